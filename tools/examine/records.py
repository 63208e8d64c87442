"""Checks record sets: agreement of index and file, record 0, property file, labels, duplicates, and every image."""

from pathlib import Path

import numpy as np

from data.dataset import DataError, read_property, states_layout
from data.images import decode_rgb
from data.record_index import RecordError, read_index
from data.recordio import Header, RecordFile
from tools.examine.images import OTHER_SIZE, ROW, Checked, check_all_images, check_image
from tools.examine.report import MAX_EXAMPLES, Report


class Records:
    """The records of a file: `keys` and `offsets` [N], and whether each holds an image, `is_image` [N]."""

    def __init__(self, file: RecordFile, keys: np.ndarray, offsets: np.ndarray, is_image: np.ndarray) -> None:
        self.file, self.keys, self.offsets, self.is_image = file, keys, offsets, is_image

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, positions: np.ndarray) -> Checked:
        checked = Checked(np.zeros(len(positions), ROW), [], [])
        for row, position in zip(checked.rows, positions, strict=True):
            key = int(self.keys[position])
            try:
                header, data, row["end"] = self.file.read_at(int(self.offsets[position]), key)
            except RecordError as error:
                row["end"] = -1
                reason = str(error).removeprefix(f"{self.file.rec_path}: ")
                checked.problems.append(("record that cannot be read", f"record {key}: {reason}"))
                continue
            row["label"] = _label(header)
            if self.is_image[position]:
                findings = list(check_image(bytes(data), row))
                row["is_usable"] &= OTHER_SIZE not in findings  # training does not resize
                checked.problems.extend((finding, f"record {key}") for finding in findings)
        return checked

    def image(self, position: int) -> np.ndarray:
        """Return uint8 [112, 112, 3] RGB, for a usable image."""
        _, data, _ = self.file.read_at(int(self.offsets[position]), int(self.keys[position]))
        return decode_rgb(data, f"record {self.keys[position]}")


def _label(header: Header) -> float:
    return float(np.ravel(header.label)[0])


def examine_records(folder: Path, report: Report, num_workers: int) -> tuple[Records, np.ndarray, np.ndarray]:
    """Check a set. Returns its records, and positions [n] and labels [n] of the images that training can use.

    Raises InputError or OSError only if the files cannot be read at all.
    """
    file = RecordFile(folder / "train.rec")
    keys, offsets = _valid_entries(*read_index(folder / "train.idx"), file, report)
    is_image, num_classes = _detect_layout(folder, file, keys, offsets, report)
    records = Records(file, keys, offsets, is_image)
    rows = check_all_images(records, report, num_workers)
    _check_order(records, rows["end"], report)
    images = np.flatnonzero(is_image & (rows["end"] >= 0))
    labels = rows["label"][images]
    num_classes = _check_labels(labels, keys[images], num_classes, report)
    _check_duplicates(rows["digest"][images], labels, keys[images], report)
    trainable = rows["is_usable"][images] & (labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))
    return records, images[trainable], labels[trainable].astype(np.int64)


def _valid_entries(
    keys: np.ndarray, offsets: np.ndarray, file: RecordFile, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and offsets of the valid index entries, each key once, in the order of the file."""
    inside = (offsets >= 0) & (offsets <= file.size - 8) & (offsets % 4 == 0)
    outside = zip(keys[~inside], offsets[~inside], strict=True)
    examples = (f"record {key} at byte {offset}" for key, offset in outside)
    report.problem("index entry that points where no record can be", examples)
    keys, offsets = keys[inside], offsets[inside]
    first = np.unique(keys, return_index=True)[1]
    report.problem("key that the index lists twice", (f"record {key}" for key in np.delete(keys, first)))
    if not len(keys):
        raise RecordError(f"{file.rec_path}: no entry of its index points into the file; download both again")
    keys, offsets = keys[first], offsets[first]
    order = np.argsort(offsets, kind="stable")
    return keys[order], offsets[order]


def _detect_layout(
    folder: Path, file: RecordFile, keys: np.ndarray, offsets: np.ndarray, report: Report
) -> tuple[np.ndarray, int | None]:
    """Return which records are images, bool [N], and the stated number of identities; None if it is not stated."""
    stated = None
    try:
        stated = read_property(folder / "property")
    except DataError as error:
        report.problem("property file that cannot be used", [str(error)])
    first = int(keys.argmin())
    try:
        header, encoded, _ = file.read_at(int(offsets[first]), int(keys[first]))
        limits = [int(value) for value in header.label] if states_layout(header, encoded) else None
        if limits and not 1 < limits[0] < limits[1]:
            raise ValueError(limits)
    except (RecordError, ValueError, OverflowError) as error:
        finding = "first record does not state which records are images (all are treated as images)"
        report.problem(finding, [f"record {keys[first]}: {error}"])
        limits = None
    if limits is None:
        report.figures["layout"] = "CVLFace's: every record is an image"
        return np.ones(len(keys), dtype=bool), stated
    end, last = limits
    report.figures["layout"] = f"InsightFace's: images 1..{end - 1}, {last - end} identities"
    is_image = (keys >= 1) & (keys < end)
    missing = end - 1 - int(is_image.sum())
    # `end` may be huge. This limit is high enough to include at least MAX_EXAMPLES missing keys, if there are so many.
    absent = np.setdiff1d(np.arange(1, min(end, len(keys) + MAX_EXAMPLES + 1)), keys)[:missing]
    report.problem("image that the index does not list", (f"record {key}" for key in absent), missing - len(absent))
    if stated is not None and stated != last - end:
        report.problem("property file that disagrees with record 0", [f"{stated} identities, not {last - end}"])
    return is_image, last - end


def _check_order(records: Records, ends: np.ndarray, report: Report) -> None:
    """Check that the records cover the file from the first byte to the last, without gaps or overlaps."""
    read = ends >= 0
    starts, failed = records.offsets[read], records.offsets[~read]
    reach = np.maximum.accumulate(np.r_[0, ends[read]])  # for each record, where the records before it end
    overlaps = zip(records.keys[read][starts < reach[:-1]], starts[starts < reach[:-1]], strict=True)
    examples = (f"record {key} at byte {offset}" for key, offset in overlaps)
    report.problem("record that begins inside the one before", examples)
    starts = np.r_[starts, records.file.size]
    for start, end in zip(reach[starts > reach], starts[starts > reach], strict=True):
        inside = slice(*np.searchsorted(failed, [start, end]))
        _check_gap(records.file, int(start), int(end), failed[inside], report)


def _check_gap(file: RecordFile, start: int, end: int, failed: np.ndarray, report: Report) -> None:
    """Find what is in a part of the file that the index does not cover. failed: offsets that are already reported."""
    while start < end and start not in failed:
        try:
            header, _, after = file.read_at(start, -1)
        except RecordError:
            report.problem("bytes that are not part of a record", [f"{end - start} from byte {start}"])
            return
        report.problem("record that the index does not list", [f"byte {start} (id {header.id})"])
        start = after


def _check_labels(labels: np.ndarray, keys: np.ndarray, num_classes: int | None, report: Report) -> int:
    """Check the labels, float32 [N], of the images with `keys` [N]. Returns the number of identities."""
    is_identity = (labels == np.floor(labels)) & (labels >= 0) & np.isfinite(labels)
    if num_classes is None:
        num_classes = 1 + int(labels[is_identity].max(initial=-1))
        report.figures["layout"] += "; no property file: identities were counted"
    is_valid = is_identity & (labels < num_classes)
    invalid = zip(keys[~is_valid], labels[~is_valid], strict=True)
    report.problem(
        f"label that is not one of 0..{num_classes - 1}", (f"record {key}: {label:g}" for key, label in invalid)
    )
    # float32 labels are exact only up to 2^24. This also limits the memory if a huge number of identities is stated.
    counts = np.bincount(labels[is_valid].astype(np.int64), minlength=min(num_classes, 1 << 24))
    report.problem("identity without an image", (f"identity {label}" for label in np.flatnonzero(counts == 0)))
    report.note("identity with only one image", (f"identity {label}" for label in np.flatnonzero(counts == 1)))
    present = counts[counts > 0]
    report.figures |= {
        "images": len(labels),
        "identities": num_classes,
        "smallest_images_an_identity": int(present.min(initial=len(labels))),
        "mean_images_an_identity": round(float(is_valid.sum() / max(len(present), 1)), 2),
        "largest_images_an_identity": int(present.max(initial=0)),
    }
    return num_classes


def _check_duplicates(digests: np.ndarray, labels: np.ndarray, keys: np.ndarray, report: Report) -> None:
    """Find images with the same bytes. Each is reported with the next one, in the order of labels and keys."""
    order = np.lexsort((keys, labels, digests[:, 1], digests[:, 0]))
    repeated = np.flatnonzero((digests[order[1:]] == digests[order[:-1]]).all(1))
    repeated = repeated[np.argsort(keys[order[repeated]])]  # so that the examples are the first ones in the set
    first, second = order[repeated], order[repeated + 1]
    is_within = labels[first] == labels[second]
    pairs = zip(first[is_within], second[is_within], strict=True)
    report.note("image that occurs twice in an identity", (f"records {keys[a]} and {keys[b]}" for a, b in pairs))
    pairs = zip(first[~is_within], second[~is_within], strict=True)
    names = (f"records {keys[a]} and {keys[b]} of identities {labels[a]:g} and {labels[b]:g}" for a, b in pairs)
    report.problem("image that occurs in two identities", names)
