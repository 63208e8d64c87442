"""Writing the file of the teacher's embeddings: it is complete after any interruption, and never wrong."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_script
from runs import SCRIPTS, refused, value

from backbones import build_backbone
from config import load_config
from data import teacher_cache_writer as embedding_writer
from data.recordio import write_record_set
from data.teacher_cache import EmbeddingError, EmbeddingFile
from data.teacher_cache_writer import Batches, EmbeddingWriter

CACHE, TRAIN = "train/cache_teacher.py", SCRIPTS[0]
CPU = torch.device("cpu")


def described(images: int, dimensions: int) -> dict:
    return {"embeddings": {"shape": [images, 2, dimensions], "type": "float16"}, "teacher": {"network": "none"}}


@pytest.fixture(scope="module")
def slow_run(tmp_path_factory) -> list[str]:
    """Overrides for 200 images of noise and a random full-width teacher, which takes some seconds to embed them."""
    folder = tmp_path_factory.mktemp("slow")
    rng = np.random.default_rng(0)
    noise = [cv2.imencode(".jpg", rng.integers(0, 256, (112, 112, 3), np.uint8))[1].tobytes() for _ in range(200)]
    write_record_set(folder, noise, np.arange(200), 200)
    torch.manual_seed(0)
    teacher = build_backbone(load_config(overrides=["embedding_size=16"]))
    teacher.output_layer.linear.weight.data *= 1e4
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    settings = dict(
        dataset="custom", rec=folder, teacher="mobilefacenet", pretrained_teacher_path=folder / "teacher.pth",
        embedding_size=16, num_workers=1, val_batch_size=2,
    )  # fmt: skip
    return [f"{key}={value}" for key, value in settings.items()]


def done_images(path: Path) -> np.ndarray:
    """Which of the 200 images are marked as done, bool [200]."""
    done = np.zeros(200, dtype=bool)
    for marks in path.parent.glob(f"{path.name}.done*"):
        for start, stop in np.fromfile(marks, np.int64).reshape(-1, 2):
            done[start:stop] = True
    return done


def interrupt(settings: list[str], path: Path, number: int, ranks: int) -> tuple[int, str]:
    """Start to write the file, and send a signal to all processes once some images are marked as done.

    Returns the exit code and stderr.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    command = [sys.executable, *launcher, str(ROOT / CACHE), *settings, f"teacher_embeddings={path}"]
    accept_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=accept_sigint,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while done_images(path).sum() < 10:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:  # torchrun's processes are in groups of their own
        subprocess.run(["pkill", f"-{number}", "-f", str(path)], check=True)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGKILL, 0), (signal.SIGKILL, 2), (signal.SIGINT, 0)])
def test_an_interrupted_file_is_continued_without_embedding_an_image_twice(slow_run, tmp_path, number, ranks):
    path = tmp_path / "teacher.npy"
    code, errors = interrupt(slow_run, path, number, ranks)
    assert not path.exists()
    if number == signal.SIGINT:
        assert code == 130 and "Traceback" not in errors, errors
    part, done = path.with_name("teacher.npy.part"), done_images(path)
    assert 10 <= done.sum() < 200
    stored = np.load(part, mmap_mode="r+")
    assert np.isfinite(stored[done]).all() and (stored[done] != 0).any(2).all()
    stored[done] = 7  # these values remain if the images are not embedded again
    stored.flush()
    again = run_script(CACHE, *slow_run, f"teacher_embeddings={path}", "val_batch_size=16")
    assert again.returncode == 0, again.stderr
    finished = np.load(path)
    assert (finished[done] == 7).all() and (finished[~done] != 7).any(2).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher.json", "teacher.npy"]


def test_a_partial_file_of_another_teacher_is_not_continued(slow_run, tmp_path):
    path = tmp_path / "teacher.npy"
    interrupt(slow_run, path, signal.SIGKILL, 0)
    state = torch.load(value(slow_run, "pretrained_teacher_path"), weights_only=True)
    torch.save({key: 2 * tensor for key, tensor in state.items()}, tmp_path / "other.pth")
    other = [*slow_run, f"pretrained_teacher_path={tmp_path / 'other.pth'}", f"teacher_embeddings={path}"]
    refused(CACHE, *other, words=r"teacher\.npy\.part: made with other settings: teacher\.sha256 is ")


def test_a_second_process_that_makes_the_same_file_is_refused(tmp_path):
    path = tmp_path / "teacher.npy"
    other = "import sys; from data.teacher_cache_writer import EmbeddingWriter as W; W(sys.argv[1], eval(sys.argv[2]))"
    command = [sys.executable, "-c", other, str(path), repr(described(3, 4))]
    with EmbeddingWriter(path, described(3, 4)) as writer:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "EmbeddingError" in done.stderr and "another process is writing it" in done.stderr
        writer.write(0, torch.ones(3, 2, 4))
    assert np.load(path).shape == (3, 2, 4)
    with pytest.raises(EmbeddingError, match="has just finished"):
        EmbeddingWriter(path, described(3, 4))
    assert np.load(path).shape == (3, 2, 4)


@pytest.mark.parametrize("left", ["done only", "part cut short", "no description"])
def test_an_interrupted_file_that_is_incomplete_is_started_again(tmp_path, left):
    path, part = tmp_path / "teacher.npy", tmp_path / "teacher.npy.part"
    with pytest.raises(KeyboardInterrupt), EmbeddingWriter(path, described(3, 4)) as writer:
        writer.write(0, torch.ones(2, 2, 4))
        raise KeyboardInterrupt
    if left == "part cut short":
        os.truncate(part, 100)
    else:
        (part if left == "done only" else path.with_suffix(".json")).unlink()
    with EmbeddingWriter(path, described(3, 4)) as writer:
        assert writer.remaining.tolist() == [[0, 3]]
        writer.write(0, torch.ones(3, 2, 4))
    assert (np.load(path) == 1).all()


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10**9))
    with pytest.raises(EmbeddingError, match=r"needs 11\.9 GB, but 1\.0 GB are free"):
        EmbeddingWriter(tmp_path / "teacher.npy", described(5_822_653, 512))


def test_a_file_that_lacks_images_does_not_get_its_final_name(tmp_path):
    with (
        pytest.raises(EmbeddingError, match="1 images have no embeddings"),
        EmbeddingWriter(tmp_path / "teacher.npy", described(3, 4)) as writer,
    ):
        writer.write(0, torch.ones(1, 2, 4))
        writer.write(2, torch.ones(1, 2, 4))
    assert not (tmp_path / "teacher.npy").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6, 1e-6, 0.0])
def test_embeddings_that_float16_cannot_represent_are_refused_with_the_image(tmp_path, number):
    values = torch.ones(4, 2, 8)
    values[2] = number
    with (
        pytest.raises(EmbeddingError, match="embedding of image 12 is not finite, or zero, or too"),
        EmbeddingWriter(tmp_path / "teacher.npy", described(20, 8)) as writer,
    ):
        writer.write(10, values)
    assert not (tmp_path / "teacher.npy").exists()


def test_positions_with_gaps_are_written_to_the_right_rows(tmp_path):
    path, values = tmp_path / "teacher.npy", torch.arange(1.0, 61.0).reshape(6, 2, 5)
    with pytest.raises(KeyboardInterrupt), EmbeddingWriter(path, described(6, 5)) as writer:
        writer.write(0, values[:2])
        writer.write(3, values[3:4])
        raise KeyboardInterrupt
    with EmbeddingWriter(path, described(6, 5)) as writer:
        assert writer.remaining.tolist() == writer.share.tolist() == [[2, 3], [4, 6]]
        for positions in Batches(writer.share, 8):
            writer.write(int(positions[0]), values[positions])
    rows = EmbeddingFile(path, described(6, 5)).rows(np.array([5, 0, 3]), np.array([True, False, True]))
    assert rows.dtype == torch.float16 and torch.equal(rows.float(), values[[5, 0, 3], [1, 0, 1]])


def test_a_file_has_one_compute_type_and_replaces_no_other_file(slow_run, tmp_path):
    path = tmp_path / "teacher.npy"
    interrupt(slow_run, path, signal.SIGKILL, 0)
    settings = [*slow_run, f"teacher_embeddings={path}"]
    refused(CACHE, *settings, "dtype=bfloat16", words=r"embeddings\.computed_in is 'float32', not 'bfloat16'")
    (tmp_path / "mine.json").write_text('{"a": 1}')
    mine = f"teacher_embeddings={tmp_path / 'mine.npy'}"
    refused(CACHE, *slow_run, mine, words=r"mine\.json: not a description of embeddings")
    assert (tmp_path / "mine.json").read_text() == '{"a": 1}'


def test_a_full_disk_while_embedding_ends_with_an_error_that_names_the_file(tmp_path, file_size_limit, monkeypatch):
    """As after a start on a disk with enough space, on which other programs then write."""
    description, values = described(50, 8), torch.ones(50, 2, 8)
    full = pytest.raises(OSError, match=r"File too large: .*x\.npy")
    writer = EmbeddingWriter(tmp_path / "x.npy", description)
    with full, file_size_limit(4500), writer:
        monkeypatch.setattr(embedding_writer.time, "monotonic", lambda: math.inf)  # time to flush to the disk
        writer.write(0, values)
    assert not (tmp_path / "x.npy").exists()
    with EmbeddingWriter(tmp_path / "x.npy", description) as writer:
        assert writer.remaining.tolist() == [[0, 50]]  # nothing was marked as done
        writer.write(0, values)
    assert (EmbeddingFile(tmp_path / "x.npy", description).rows(np.arange(50), np.zeros(50, bool)) == 1).all()
