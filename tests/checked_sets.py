"""Sets for the tests of tools/check_data.py, and a function that runs the tool."""

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np

from data.dataset import RecordDataset
from data.recordio import RecordWriter
from demo.make_demo_data import encoded_face
from tools import check_data

LABELS = np.repeat(np.arange(4), 3)


@cache
def drawn_faces() -> list[bytes]:
    """Encoded drawn faces with the labels LABELS."""
    return [encoded_face((5, int(label), image, 0.3)) for image, label in enumerate(LABELS)]


@cache
def real_faces(face_data: Path) -> tuple[list[bytes], np.ndarray]:
    """Encoded images and labels of 24 people of LFW, two images each."""
    dataset = RecordDataset(face_data / "lfw")
    labels = dataset.read_labels(np.arange(len(dataset)))
    several = np.flatnonzero(np.bincount(labels) >= 2)[:24]
    positions = np.concatenate([np.flatnonzero(labels == label)[:2] for label in several])
    return [bytes(dataset.read(int(position))[0]) for position in positions], np.repeat(np.arange(24), 2)


def teacher_settings(face_data: Path) -> list[str]:
    """Overrides that choose a trained network as the teacher."""
    return [
        "teacher=mobilefacenet", f"pretrained_teacher_path={face_data / 'mobilefacenet_y1_128.pth'}",
        "embedding_size=128", "val_batch_size=16",
    ]  # fmt: skip


def write_cvlface_set(folder, faces, labels, stated=None):
    """Write a record set without InsightFace's record 0. stated: number of identities in the property file, if any."""
    with RecordWriter(folder / "train") as writer:
        for key, (label, face) in enumerate(zip(labels, faces, strict=True)):
            writer.write(key, label, face)
    if stated is not None:
        (folder / "property").write_text(f"{stated},112,112")
    return folder


def check(*arguments: object) -> tuple[int, dict]:
    """Run tools/check_data.py. Returns its exit code, and the report from its JSON file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        command = ["check_data.py", *map(str, arguments), "--json", str(file)]
        if "--num-workers" not in arguments:
            command += ["--num-workers", "0"]
        with mock.patch.object(sys, "argv", command):
            code = check_data.main()
        return code, json.loads(file.read_text())
