"""Embeddings of a folder: their order and values, images that cannot be used, and files that are whole or absent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from runs import heed_signals

from backbones.mobilefacenet import MobileFaceNet
from data.face_detector import FaceDetector
from data.images import encode_png
from deploy import embed
from deploy.faces import FaceReader
from utils.errors import InputError

SMALL = ["embedding_size=16", "width=0.125"]
# In the order of the paths, as text.
FILES = ["Zoë/b.png", "a.png", "b/c/d.jpg.PNG", "b/e.png", "f.png"]


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["embed.py", *map(str, arguments)])
    embed.main()


@pytest.fixture
def folder(tmp_path, images) -> Path:
    """A folder with faces, and with files that are no images."""
    for name, image in zip(FILES, images, strict=False):
        file = tmp_path / "faces" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(image))
    for other in ("notes.txt", ".hidden.png", "b/Thumbs.db", ".git/x.png"):
        file = tmp_path / "faces" / other
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"no image")
    os.mkfifo(tmp_path / "faces" / "pipe.png")  # to open it would wait for ever
    return tmp_path / "faces"


@pytest.mark.parametrize("batch", [2, 64])
def test_rows_are_the_sums_of_both_views_in_the_order_of_the_names(
    folder, checkpoints, images, monkeypatch, batch, capsys
):
    output = folder.parent / "out" / "faces.npy"
    weights = checkpoints / "5backbone.pth"
    run(monkeypatch, folder, "--model", weights, "--output", output, *SMALL, f"val_batch_size={batch}")
    assert (folder.parent / "out" / "faces.txt").read_text().splitlines() == FILES
    network = MobileFaceNet(16, 0.125).eval().double()
    network.load_state_dict(torch.load(weights, weights_only=True))
    x = (torch.from_numpy(images[: len(FILES)]).permute(0, 3, 1, 2).double() - 127.5) / 127.5
    with torch.no_grad():
        expected = (network(x) + network(x.flip(3))).numpy()
    found = np.load(output)
    assert found.dtype == np.float32 and np.allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
    assert "float32 [5, 16]" in capsys.readouterr().out
    assert sorted(os.listdir(output.parent)) == ["faces.npy", "faces.txt"]


def test_images_that_cannot_be_used_end_the_run_or_are_listed_and_left_out(folder, checkpoints, monkeypatch, capsys):
    (folder / "b" / "broken.png").write_bytes(b"no image")
    (folder / "large.png").write_bytes(encode_png(np.zeros((200, 300, 3), np.uint8)))
    output = folder.parent / "faces.npy"
    arguments = folder, "--model", checkpoints / "5backbone.pth", "--output", output, "--aligned", *SMALL
    with pytest.raises(InputError, match=r"b/broken\.png: its 8 bytes are not an image.*--skip-bad"):
        run(monkeypatch, *arguments)
    assert not output.exists() and not output.with_suffix(".txt").exists()
    run(monkeypatch, *arguments, "--skip-bad")
    captured = capsys.readouterr()
    assert "left out: 2 images" in captured.out
    for words in ("broken.png: its 8 bytes", "large.png: 300x200 pixels; faces must be aligned"):
        assert f"left out: {folder}" in captured.err and words in captured.err
    assert output.with_suffix(".txt").read_text().splitlines() == FILES and len(np.load(output)) == len(FILES)
    for name in FILES:
        (folder / name).write_bytes(b"no image")
    with pytest.raises(InputError, match="none of its 7 images can be used"):
        run(monkeypatch, *arguments, "--skip-bad")
    assert len(np.load(output)) == len(FILES)  # the earlier files stay


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (["--detector", "absent.onnx"], FileNotFoundError, "absent.onnx"),
        (["--detector", "page.onnx"], InputError, r"page\.onnx: not a YuNet"),
        (["landmarks_path=absent"], InputError, "set landmarks_path to the weights"),
    ],
)
def test_what_is_wrong_with_the_finder_of_faces_is_no_bad_image(folder, checkpoints, monkeypatch, flags, error, words):
    """--skip-bad does not leave out all photos, and is not advised."""
    monkeypatch.chdir(folder.parent)
    Path("page.onnx").write_text("<!doctype html>")
    (folder / "photo.png").write_bytes(encode_png(np.zeros((200, 300, 3), np.uint8)))
    arguments = folder, "--model", checkpoints / "5backbone.pth", "--output", "faces.npy", *SMALL, *flags
    for more in ([], ["--skip-bad"]):
        with pytest.raises(error, match=words) as raised:
            run(monkeypatch, *arguments, *more)
        assert "--skip-bad" not in str(raised.value) and not Path("faces.npy").exists()


def test_a_detector_that_fails_on_a_photo_is_no_bad_image(folder, checkpoints, monkeypatch):
    """Some files of other networks open, but cannot be run."""

    class Detector:
        def detect(self, image):
            raise cv2.error("wrong outputs")

    def open_detector(self, path):
        self._path, self._detector = path, Detector()

    monkeypatch.setattr(FaceDetector, "__init__", open_detector)
    monkeypatch.setattr(FaceDetector, "_refusal", lambda self, error: InputError(f"{self._path}: not a YuNet"))
    (folder / "photo.png").write_bytes(encode_png(np.zeros((200, 300, 3), np.uint8)))
    output = folder.parent / "faces.npy"
    arguments = folder, "--model", checkpoints / "5backbone.pth", "--output", output, "--detector", "m.onnx", *SMALL
    with pytest.raises(InputError, match=r"m\.onnx: not a YuNet$"):
        run(monkeypatch, *arguments, "--skip-bad")
    assert not output.exists()


# embed.py with a last image that is read from a pipe.
WAITING = """
import pathlib, sys
from deploy import embed
from utils.errors import exit_on_input_error
read = pathlib.Path.read_bytes
pathlib.Path.read_bytes = lambda path: read(path.parent.parent / "waiting" if path.name == "f.png" else path)
with exit_on_input_error():
    embed.main()
"""


def test_ctrl_c_leaves_no_file(folder, checkpoints):
    """It comes while the script waits for the last image."""
    os.mkfifo(folder.parent / "waiting")
    output = folder.parent / "out" / "faces.npy"
    arguments = [folder, "--model", checkpoints / "5backbone.pth", "--output", output, *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments], cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=heed_signals
    )
    with open(folder.parent / "waiting", "wb"):  # returns when the script opens the pipe
        process.send_signal(signal.SIGINT)
        process.wait(60)
    process.stderr.close()
    assert process.returncode == 130 and not output.exists() and not output.with_suffix(".txt").exists()


@pytest.mark.parametrize(
    ("output", "words"), [("faces.bin", r"must end in \.npy"), ("notes.npy", r"notes\.txt: exists without notes\.npy")]
)
def test_other_files_are_not_overwritten(folder, checkpoints, monkeypatch, output, words):
    (folder.parent / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=words):
        run(monkeypatch, folder, "--model", checkpoints / "5backbone.pth", "--output", folder.parent / output, *SMALL)
    assert (folder.parent / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        ("one.npy", InputError, r"--output one\.npy: one\.npy is a folder"),
        ("two.npy", InputError, r"--output two\.npy: two\.txt is a folder"),
        ("file/faces.npy", OSError, "file: cannot be written .*; choose another folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    folder, checkpoints, monkeypatch, output, error, words
):
    monkeypatch.chdir(folder.parent)
    for name in ("one.npy", "two.txt"):
        Path(name).mkdir()
    Path("file").write_text("mine")
    before = sorted(os.listdir())
    monkeypatch.setattr(FaceReader, "read", lambda self, path: pytest.fail("an image was read"))
    with pytest.raises(error, match=words):
        run(monkeypatch, folder, "--model", checkpoints / "5backbone.pth", "--output", output, *SMALL)
    assert sorted(os.listdir()) == before
