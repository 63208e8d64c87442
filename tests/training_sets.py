"""Small training sets in every layout, for tests."""

from pathlib import Path

import cv2
import numpy as np

from data.dataset import RecordDataset
from data.recordio import RecordWriter, write_record_set


def image_of(number):
    return np.random.default_rng(number).integers(0, 256, (112, 112, 3), dtype=np.uint8)


def png(image):
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_cvlface_set(folder, labels, stated=None):
    """Records with flag 0. Image k has key k, from 0 on. stated: the number of identities in the file `property`."""
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train") as writer:
        for key, label in enumerate(labels):
            writer.write(key, label, png(image_of(key)))
    if stated is not None:
        (folder / "property").write_text(f"{stated},112,112")
    return folder


def write_insightface_set(folder, records, num_classes):
    """records: (label, encoded image) for the keys 1 to N. Record 0 and one record per identity are added."""
    folder.mkdir(exist_ok=True)
    end = len(records) + 1
    with RecordWriter(folder / "train") as writer:
        writer.write(0, [end, end + num_classes], b"")
        for key, (label, encoded) in enumerate(records, start=1):
            writer.write(key, label, encoded)
        for identity in range(num_classes):
            writer.write(end + identity, [0, 0], b"")
    return folder


def write_folder_set(folder, counts):
    """counts: identity -> number of images. The images are numbered across the identities, in sorted order."""
    number = 0
    for identity in sorted(counts):
        (folder / identity).mkdir(parents=True)
        for index in range(counts[identity]):
            (folder / identity / f"{index:03d}.png").write_bytes(png(image_of(number)))
            number += 1
    return folder


def write_lfw(folder: Path, face_data: Path, images: int) -> None:
    """Write the first images of LFW's training set as a record set."""
    dataset = RecordDataset(face_data / "lfw")
    encoded, labels = zip(*(dataset.read(position) for position in range(images)), strict=True)
    labels = np.unique(labels, return_inverse=True)[1]
    write_record_set(folder, [bytes(image) for image in encoded], labels, labels.max() + 1)
