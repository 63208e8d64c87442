"""Looks a record set or a verification set over, whole, and collects all that is wrong with it: no error ends it.

Of each record a row of an array is kept, so that a set of millions fits into memory.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from eval.verification import FOLDS
from utils.bin_file import VerificationSet, fit
from utils.dataset import DataError, read_property
from utils.images import SIZE, ImageError, decode_rgb
from utils.loader import decoded_batches
from utils.pairs import Pairs
from utils.recordio import Header, RecordError, RecordFile, read_index

EXAMPLES, CHUNK = 5, 256
OTHER_SIZE = f"image that is not {SIZE}x{SIZE}"
# What is kept of an image: where the record after it begins, -1 where it could not be read; its label; whether it
# decodes; 16 bytes that tell it from others.
ROW = np.dtype([("end", "i8"), ("label", "f4"), ("sound", "?"), ("digest", "u8", 2)])


class Report:
    """Figures of a set by name; by kind, how many problems and notes there are, and the first ones' names."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.figures: dict[str, str | float | None] = {}
        self.problems: dict[str, dict] = {}
        self.notes: dict[str, dict] = {}

    def problem(self, kind: str, names: Iterable[str], more: int = 0) -> None:
        """Count what has this problem, if anything has: `names`, the first few of which are kept, and `more`."""
        _count(self.problems, kind, names, more)

    def note(self, kind: str, names: Iterable[str]) -> None:
        """The same of what is odd, but nothing wrong."""
        _count(self.notes, kind, names)

    def lines(self) -> Iterator[str]:
        """The report to read."""
        yield self.source
        yield from (f"  {name.replace('_', ' ')}: {value}" for name, value in self.figures.items())
        for word, kinds in (("problem", self.problems), ("note", self.notes)):
            for kind, found in kinds.items():
                more = ", ..." if found["count"] > len(found["examples"]) else ""
                yield f"  {word}: {kind}: {found['count']} ({', '.join(found['examples'])}{more})"
        yield f"kinds of problem: {len(self.problems)}" if self.problems else "nothing wrong"


def _count(kinds: dict[str, dict], kind: str, names: Iterable[str], more: int = 0) -> None:
    names = iter(names)
    found = kinds.get(kind, {"count": 0, "examples": []})
    first = list(islice(names, EXAMPLES - len(found["examples"])))
    found["examples"] += first
    found["count"] += len(first) + sum(1 for _ in names) + more
    if found["count"]:
        kinds[kind] = found


class Looked(NamedTuple):
    """rows: ROW [n]; problems, notes: (kind, name) of single images."""

    rows: np.ndarray
    problems: list[tuple[str, str]]
    notes: list[tuple[str, str]]


class Records:
    """The records at `offsets` of a file under `keys` [N]; those with `is_image` [N] hold an image."""

    def __init__(self, file: RecordFile, keys: np.ndarray, offsets: np.ndarray, is_image: np.ndarray) -> None:
        self.file, self.keys, self.offsets, self.is_image = file, keys, offsets, is_image

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, positions: np.ndarray) -> Looked:
        looked = Looked(np.zeros(len(positions), ROW), [], [])
        for row, position in zip(looked.rows, positions, strict=True):
            key = int(self.keys[position])
            try:
                header, data, row["end"] = self.file.read_at(int(self.offsets[position]), key)
            except RecordError as error:
                row["end"] = -1
                reason = str(error).removeprefix(f"{self.file.rec_path}: ")
                looked.problems.append(("record that cannot be read", f"record {key}: {reason}"))
                continue
            row["label"] = _label(header)
            if self.is_image[position]:
                kinds = list(_look(bytes(data), row))
                row["sound"] &= OTHER_SIZE not in kinds  # training does not resize
                looked.problems.extend((kind, f"record {key}") for kind in kinds)
        return looked

    def image(self, position: int) -> np.ndarray:
        """uint8 [112, 112, 3] RGB, of an image that is sound."""
        _, data, _ = self.file.read_at(int(self.offsets[position]), int(self.keys[position]))
        return decode_rgb(data, f"record {self.keys[position]}")


class BinImages:
    """The images of a verification set."""

    def __init__(self, images: VerificationSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: np.ndarray) -> Looked:
        looked = Looked(np.zeros(len(positions), ROW), [], [])
        for row, position in zip(looked.rows, positions, strict=True):
            for kind in _look(bytes(self.images.encoded[position]), row):
                (looked.notes if kind == OTHER_SIZE else looked.problems).append((kind, f"image {position}"))
        return looked

    def image(self, position: int) -> np.ndarray:
        """uint8 [112, 112, 3] RGB, of an image that is sound."""
        return fit(decode_rgb(self.images.encoded[position], f"image {position}"))


class Pixels:
    """pixels[positions] -> uint8 [n, 112, 112, 3] of sound images, RGB or, `swapped`, BGR."""

    def __init__(self, source: Records | BinImages, swapped: bool) -> None:
        self.source, self.swapped = source, swapped

    def __getitem__(self, positions: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(np.stack([self.source.image(int(position)) for position in positions]))
        return images.flip(3) if self.swapped else images


def _label(header: Header) -> float:
    return float(np.ravel(header.label)[0])


def _look(data: bytes, row: np.void) -> Iterator[str]:
    """What is wrong with an encoded image; its digest, and whether it decodes, go into `row`."""
    row["digest"] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), dtype=np.uint64)
    try:
        image = decode_rgb(data, "")
    except ImageError:
        yield "image that does not decode"
        return
    row["sound"] = True
    if image.shape != (SIZE, SIZE, 3):
        yield OTHER_SIZE
    if image.min() == image.max():
        yield "image of one brightness throughout"


def _look_at_all(source: Records | BinImages, report: Report, num_workers: int) -> np.ndarray:
    """ROW [N] of a whole source, decoded by `num_workers` processes, in its order."""
    rows = np.zeros(len(source), ROW)
    chunks = [np.arange(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    with tqdm(total=len(rows), desc="looking at images", unit="image") as bar:
        for positions, looked in decoded_batches(source, chunks, num_workers):
            rows[positions] = looked.rows
            for kind, name in looked.problems:
                report.problem(kind, [name])
            for kind, name in looked.notes:
                report.note(kind, [name])
            bar.update(len(positions))
    return rows


def examine_records(folder: Path, report: Report, num_workers: int) -> tuple[Records, np.ndarray, np.ndarray]:
    """The records of a set, and positions [n] and labels [n] of the images that can be trained on.

    Raises InputError or OSError only where the files cannot be read at all.
    """
    file = RecordFile(folder / "train.rec")
    keys, offsets = _usable(*read_index(folder / "train.idx"), file, report)
    is_image, num_classes = _layout(folder, file, keys, offsets, report)
    records = Records(file, keys, offsets, is_image)
    rows = _look_at_all(records, report, num_workers)
    _check_chain(records, rows["end"], report)
    images = np.flatnonzero(is_image & (rows["end"] >= 0))
    labels = rows["label"][images]
    num_classes = _check_labels(labels, keys[images], num_classes, report)
    _check_duplicates(rows["digest"][images], labels, keys[images], report)
    trainable = rows["sound"][images] & (labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))
    return records, images[trainable], labels[trainable].astype(np.int64)


def _usable(keys: np.ndarray, offsets: np.ndarray, file: RecordFile, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of the entries that can be followed, each key once, in the order of the file."""
    inside = (offsets >= 0) & (offsets <= file.size - 8) & (offsets % 4 == 0)
    outside = zip(keys[~inside], offsets[~inside], strict=True)
    report.problem("index entry that points where no record can be", (f"record {k} at byte {o}" for k, o in outside))
    keys, offsets = keys[inside], offsets[inside]
    once = np.unique(keys, return_index=True)[1]
    twice = np.delete(keys, once)
    report.problem("key that the index lists again", (f"record {key}" for key in twice))
    if not len(keys):
        raise RecordError(f"{file.rec_path}: the index points to no place of it; fetch both again")
    keys, offsets = keys[once], offsets[once]
    order = np.argsort(offsets, kind="stable")
    return keys[order], offsets[order]


def _layout(
    folder: Path, file: RecordFile, keys: np.ndarray, offsets: np.ndarray, report: Report
) -> tuple[np.ndarray, int | None]:
    """Which records are images, bool [N], and how many identities there should be; None where nothing says so."""
    stated = None
    try:
        stated = read_property(folder / "property")
    except DataError as error:
        report.problem("property file that cannot be used", [str(error)])
    first = int(keys.argmin())
    try:
        header, _, _ = file.read_at(int(offsets[first]), int(keys[first]))
        limits = [int(value) for value in header.label] if header.flag == 2 else None
        if limits and not 1 < limits[0] < limits[1]:
            raise ValueError(limits)
    except (RecordError, ValueError, OverflowError) as error:
        kind = "first record does not say which records are images: all are taken for images"
        report.problem(kind, [f"record {keys[first]}: {error}"])
        limits = None
    if limits is None:
        report.figures["layout"] = "CVLFace's: every record is an image"
        return np.ones(len(keys), dtype=bool), stated
    end, last = limits
    report.figures["layout"] = f"InsightFace's: images 1..{end - 1}, {last - end} identities"
    is_image = (keys >= 1) & (keys < end)
    missing = end - 1 - int(is_image.sum())
    # Among so many numbers there are EXAMPLES that are no keys, if so many are missing.
    absent = np.setdiff1d(np.arange(1, min(end, len(keys) + EXAMPLES + 1)), keys)[:missing]
    report.problem("image that the index lacks", (f"record {key}" for key in absent), missing - len(absent))
    if stated is not None and stated != last - end:
        report.problem("property that disagrees with record 0", [f"{stated} identities, not {last - end}"])
    return is_image, last - end


def _check_chain(records: Records, ends: np.ndarray, report: Report) -> None:
    """Whether the records follow one another from the file's first byte to its last."""
    read = ends >= 0
    starts, failed = records.offsets[read], records.offsets[~read]
    reach = np.maximum.accumulate(np.r_[0, ends[read]])  # up to where records before this one go
    overlaps = zip(records.keys[read][starts < reach[:-1]], starts[starts < reach[:-1]], strict=True)
    report.problem("record that begins within the one before", (f"record {k} at byte {o}" for k, o in overlaps))
    starts = np.r_[starts, records.file.size]
    for start, end in zip(reach[starts > reach], starts[starts > reach], strict=True):
        inside = slice(*np.searchsorted(failed, [start, end]))
        _check_gap(records.file, int(start), int(end), failed[inside], report)


def _check_gap(file: RecordFile, start: int, end: int, failed: np.ndarray, report: Report) -> None:
    """What lies in a part of the file that no record of the index covers; `failed`: offsets in it reported before."""
    while start < end and start not in failed:
        try:
            header, _, after = file.read_at(start, -1)
        except RecordError:
            report.problem("bytes that are no record", [f"{end - start} from byte {start}"])
            return
        report.problem("record that the index does not list", [f"byte {start} (id {header.id})"])
        start = after


def _check_labels(labels: np.ndarray, keys: np.ndarray, num_classes: int | None, report: Report) -> int:
    """Count labels float32 [N] of the images under `keys` [N]; gives the number of identities."""
    whole = (labels == np.floor(labels)) & (labels >= 0) & np.isfinite(labels)
    if num_classes is None:
        num_classes = 1 + int(labels[whole].max(initial=-1))
        report.figures["layout"] += "; no property file: identities are counted"
    right = whole & (labels < num_classes)
    wrong = zip(keys[~right], labels[~right], strict=True)
    report.problem(
        f"label that is not one of 0..{num_classes - 1}", (f"record {key}: {label:g}" for key, label in wrong)
    )
    # Labels are float32: where more identities are stated than that can number, that is wrong by itself.
    counts = np.bincount(labels[right].astype(np.int64), minlength=min(num_classes, 1 << 24))
    report.problem("identity without an image", (f"identity {label}" for label in np.flatnonzero(counts == 0)))
    report.note("identity with one image", (f"identity {label}" for label in np.flatnonzero(counts == 1)))
    present = counts[counts > 0]
    report.figures |= {
        "images": len(labels),
        "identities": num_classes,
        "smallest_images_an_identity": int(present.min(initial=len(labels))),
        "mean_images_an_identity": round(float(right.sum() / max(len(present), 1)), 2),
        "largest_images_an_identity": int(present.max(initial=0)),
    }
    return num_classes


def _check_duplicates(digests: np.ndarray, labels: np.ndarray, keys: np.ndarray, report: Report) -> None:
    """Name images of the same bytes: each with the next one, sorted by label, that has them."""
    order = np.lexsort((keys, labels, digests[:, 1], digests[:, 0]))
    again = np.flatnonzero((digests[order[1:]] == digests[order[:-1]]).all(1))
    again = again[np.argsort(keys[order[again]])]  # the first of the set are named
    one, other = order[again], order[again + 1]
    within = labels[one] == labels[other]
    pairs = zip(one[within], other[within], strict=True)
    report.note("image again in the same identity", (f"records {keys[a]} and {keys[b]}" for a, b in pairs))
    pairs = zip(one[~within], other[~within], strict=True)
    names = (f"records {keys[a]} and {keys[b]} of identities {labels[a]:g} and {labels[b]:g}" for a, b in pairs)
    report.problem("image again in another identity", names)


def examine_bin(images: VerificationSet, report: Report, num_workers: int) -> tuple[BinImages, Pairs]:
    """The images of a set, and its pairs that can be embedded."""
    source, is_same = BinImages(images), images.is_same
    rows = _look_at_all(source, report, num_workers)
    report.figures |= {"pairs": len(is_same), "same": int(is_same.sum()), "different": int((~is_same).sum())}
    if is_same.all() or not is_same.any():
        report.problem("pairs of one kind only", ["all are the same" if is_same.all() else "all are different"])
    if len(is_same) < FOLDS:
        report.problem(f"fewer pairs than the protocol has folds ({FOLDS})", [f"{len(is_same)} pairs"])
    distinct, image = np.unique(rows["digest"], axis=0, return_inverse=True)
    report.figures["distinct_images"] = len(distinct)
    pairs = np.sort(image.reshape(-1, 2), axis=1)  # the same two images in either order
    twin = pairs[:, 0] == pairs[:, 1]
    report.problem("pair of one image, said to be different", (f"pair {n}" for n in np.flatnonzero(twin & ~is_same)))
    report.note("pair of one image, said to be the same", (f"pair {n}" for n in np.flatnonzero(twin & is_same)))
    order = np.lexsort((is_same, pairs[:, 1], pairs[:, 0]))
    again = np.flatnonzero((pairs[order[1:]] == pairs[order[:-1]]).all(1))
    one, other = order[again], order[again + 1]
    agree = is_same[one] == is_same[other]
    names = [f"pairs {min(a, b)} and {max(a, b)}" for a, b in zip(one, other, strict=True)]
    report.problem(
        "pair said to be the same and different", (n for n, same in zip(names, agree, strict=True) if not same)
    )
    report.note("pair that stands twice", (n for n, same in zip(names, agree, strict=True) if same))
    decodes = rows["sound"].reshape(-1, 2).all(1)
    rows_of = np.arange(len(source)).reshape(-1, 2)
    return source, Pairs(rows_of[is_same & decodes], rows_of[~is_same & decodes])
