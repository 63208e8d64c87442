"""Record sets: the index against the file, record 0, property, labels, duplicates, and every image."""

from pathlib import Path

import numpy as np

from data.dataset import DataError, read_property
from data.images import decode_rgb
from data.recordio import Header, RecordError, RecordFile, read_index
from tools.examine.images import OTHER_SIZE, ROW, Looked, look, look_at_all
from tools.examine.report import EXAMPLES, Report


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
                kinds = list(look(bytes(data), row))
                row["sound"] &= OTHER_SIZE not in kinds  # training does not resize
                looked.problems.extend((kind, f"record {key}") for kind in kinds)
        return looked

    def image(self, position: int) -> np.ndarray:
        """uint8 [112, 112, 3] RGB, of an image that is sound."""
        _, data, _ = self.file.read_at(int(self.offsets[position]), int(self.keys[position]))
        return decode_rgb(data, f"record {self.keys[position]}")


def _label(header: Header) -> float:
    return float(np.ravel(header.label)[0])


def examine_records(folder: Path, report: Report, num_workers: int) -> tuple[Records, np.ndarray, np.ndarray]:
    """The records of a set, and positions [n] and labels [n] of the images that can be trained on.

    Raises InputError or OSError only where the files cannot be read at all.
    """
    file = RecordFile(folder / "train.rec")
    keys, offsets = _usable(*read_index(folder / "train.idx"), file, report)
    is_image, num_classes = _layout(folder, file, keys, offsets, report)
    records = Records(file, keys, offsets, is_image)
    rows = look_at_all(records, report, num_workers)
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
