"""The teacher's embeddings in a file: what they are, made whole after any kill, refused where they do not fit."""

import json
import os
import re
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
from test_training import SCRIPTS, metrics, train

from backbones import build_backbone, build_teacher
from config import load_config
from data import teacher_cache_writer as embedding_writer
from data.dataset import RecordDataset, build_dataset
from data.recordio import write_record_set
from data.teacher_cache import EmbeddingError, EmbeddingFile
from data.teacher_cache_writer import EmbeddingWriter
from train.loop import Trainer
from train.tasks import Distillation

CACHE, TRAIN = "train/cache_teacher.py", SCRIPTS[0]
CPU = torch.device("cpu")


def described(images: int, dimensions: int) -> dict:
    return {"embeddings": {"shape": [images, 2, dimensions], "type": "float16"}, "teacher": {"network": "none"}}


def value(settings: list[str], key: str) -> str:
    return dict(setting.split("=") for setting in settings)[key]


def refused(script: str, *arguments: str, words: str) -> None:
    done = run_script(script, *arguments)
    assert done.returncode == 2 and re.search(words, done.stderr) and "Traceback" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def cached(small_run, tmp_path_factory) -> Path:
    """The file of the small set, made by one process."""
    path = tmp_path_factory.mktemp("cache") / "teacher.npy"
    done = run_script(CACHE, *small_run, f"teacher_embeddings={path}")
    assert done.returncode == 0, done.stderr
    return path


def test_the_file_holds_the_embeddings_of_each_image_and_of_its_mirror_image(small_run, cached):
    teacher, dataset = build_teacher(load_config(overrides=small_run)), RecordDataset(value(small_run, "rec"))
    stored = np.load(cached, mmap_mode="r")
    assert (stored.shape, stored.dtype) == ((48, 2, 16), np.float16)
    for position in range(48):
        bgr = cv2.imdecode(np.frombuffer(dataset.read(position).data, np.uint8), cv2.IMREAD_COLOR)
        for view, image in enumerate((bgr, cv2.flip(bgr, 1))):
            x = (image[..., ::-1].astype(np.float32) - 127.5) / 127.5
            with torch.no_grad():
                expected = teacher(torch.from_numpy(x.transpose(2, 0, 1).copy())[None])[0].numpy()
            assert np.allclose(stored[position, view], expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


def test_the_description_names_weights_images_and_preprocessing(small_run, cached):
    description = json.loads(cached.with_suffix(".json").read_text())
    done = subprocess.run(["sha256sum", value(small_run, "pretrained_teacher_path")], capture_output=True, text=True)
    assert description["teacher"]["sha256"] == done.stdout.split()[0]
    assert description["data"]["images"] == 48 and len(description["data"]["fingerprint"]) == 64
    assert description["preprocessing"]["scale"] == "(x - 127.5) / 127.5"
    assert sorted(path.name for path in cached.parent.iterdir()) == ["teacher.json", "teacher.npy"]


def test_any_number_of_ranks_makes_the_same_file(small_run, cached, tmp_path):
    """Also one that training makes first, since it is missing."""
    settings = [*small_run, "batch_size=4", f"teacher_embeddings={tmp_path / 'teacher.npy'}", "max_steps=1"]
    train(TRAIN, settings, tmp_path / "run", ranks=2)
    assert (tmp_path / "teacher.npy").read_bytes() == cached.read_bytes()


def test_training_from_the_file_takes_the_same_steps_as_with_the_live_teacher(small_run, cached, tmp_path):
    train(TRAIN, small_run, tmp_path / "live", "max_steps=1")
    train(TRAIN, small_run, tmp_path / "cached", "max_steps=1", f"teacher_embeddings={cached}")
    live, from_file = (metrics(tmp_path / name)[0] for name in ("live", "cached"))
    for name in ("loss", "conf_t", "margin", "norm_mean", "grad_norm"):
        assert from_file[name] == pytest.approx(live[name], rel=1e-3), name


def test_from_random_weights_the_live_teacher_rounded_to_float16_gives_the_very_same_run(small_run, tmp_path):
    """Nothing but that rounding tells the two apart: batches, flips and rows are the same, bit for bit."""
    settings = [*small_run, "dtype=float32", "val_batch_size=8", "val_eval_every_n_epoch=0"]
    for name, file in (("live", ""), ("cached", tmp_path / "teacher.npy")):
        cfg = load_config(overrides=[*settings, f"output={tmp_path / name}", f"teacher_embeddings={file}"])
        dataset = build_dataset(cfg)
        task = Distillation(cfg, dataset, CPU)
        if name == "live":
            teacher = task._teacher
            task._teacher = lambda images, teacher=teacher: teacher(images).half()
        Trainer(cfg, task, dataset, CPU).run()
    assert len(metrics(tmp_path / "live")) == 12
    assert metrics(tmp_path / "live") == metrics(tmp_path / "cached")


def write_lfw(folder: Path, face_data: Path, images: int) -> None:
    """The first images of LFW's training set as a record set of their own."""
    dataset = RecordDataset(face_data / "lfw")
    encoded = [dataset.read(position) for position in range(images)]
    labels = np.unique([image.label for image in encoded], return_inverse=True)[1]
    write_record_set(folder, [bytes(image.data) for image in encoded], labels, labels.max() + 1)


def test_200_steps_from_the_file_follow_200_steps_with_the_live_teacher(face_data, tmp_path):
    """float32, the pretrained MobileFaceNet as the teacher, batch 16, losses equal to a relative 1e-3.

    The student has been trained for a while: from random weights, the first steps magnify a change of the weights by
    1e-7 to some percent of the loss within ten steps, whatever the teacher.
    """
    write_lfw(tmp_path / "set", face_data, 160)
    shared = [
        "--config", str(ROOT / "config" / "lfw.py"), f"rec={tmp_path / 'set'}", "width=0.125", "batch_size=16",
        "num_epoch=20", "log_every=1", "val_eval_every_n_epoch=0", "lr_schedule=step", "dtype=float32",
    ]  # fmt: skip
    from_file = f"teacher_embeddings={tmp_path / 'teacher.npy'}"
    train(TRAIN, shared, tmp_path / "before", from_file, "lr=1.6", "max_steps=100")
    start = [f"init_from={tmp_path / 'before' / '100backbone.pth'}", "lr=0.02", "warmup_epoch=0"]
    train(TRAIN, shared, tmp_path / "live", *start)
    train(TRAIN, shared, tmp_path / "cached", *start, from_file)
    live, cached = (metrics(tmp_path / name) for name in ("live", "cached"))
    assert len(live) == len(cached) == 200
    assert live[-1]["loss"] < live[0]["loss"]
    worst = max(abs(one["loss"] / other["loss"] - 1) for one, other in zip(live, cached, strict=True))
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert 0 < worst < 1e-3


# --- made whole ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_run(tmp_path_factory) -> list[str]:
    """Overrides for 200 images of noise under a random full-width teacher: some seconds to embed."""
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


def interrupt(settings: list[str], path: Path, number: int, ranks: int) -> tuple[int, str]:
    """Start making the file and send the signal to all processes once a part is marked: return code, errors."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    command = [sys.executable, *launcher, str(ROOT / CACHE), *settings, f"teacher_embeddings={path}"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where the tests run in the background
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard
    )
    marks = path.with_name(path.name + ".done")
    deadline = time.monotonic() + 120
    while not (marks.is_file() and np.fromfile(marks, np.uint8).sum() >= 10):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:  # torchrun's processes are in groups of their own
        subprocess.run(["pkill", f"-{number}", "-f", str(path)], check=True)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGKILL, 0), (signal.SIGKILL, 2), (signal.SIGINT, 0)])
def test_a_file_cut_short_goes_on_without_embedding_anything_twice(slow_run, tmp_path, number, ranks):
    path = tmp_path / "teacher.npy"
    code, errors = interrupt(slow_run, path, number, ranks)
    assert not path.exists()
    if number == signal.SIGINT:
        assert code == 130 and "Traceback" not in errors, errors
    part, marks = path.with_name("teacher.npy.part"), path.with_name("teacher.npy.done")
    done = np.fromfile(marks, np.uint8) == 1
    assert 10 <= done.sum() < 200
    stored = np.load(part, mmap_mode="r+")
    assert np.isfinite(stored[done]).all() and (stored[done] != 0).any(2).all()
    stored[done] = 7  # to be seen again if nobody embeds these images once more
    stored.flush()
    again = run_script(CACHE, *slow_run, f"teacher_embeddings={path}", "val_batch_size=16")
    assert again.returncode == 0, again.stderr
    finished = np.load(path)
    assert (finished[done] == 7).all() and (finished[~done] != 7).any(2).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher.json", "teacher.npy"]


def test_a_part_of_another_teacher_is_not_gone_on_with(slow_run, tmp_path):
    path = tmp_path / "teacher.npy"
    interrupt(slow_run, path, signal.SIGKILL, 0)
    state = torch.load(value(slow_run, "pretrained_teacher_path"), weights_only=True)
    torch.save({key: 2 * tensor for key, tensor in state.items()}, tmp_path / "other.pth")
    other = [*slow_run, f"pretrained_teacher_path={tmp_path / 'other.pth'}", f"teacher_embeddings={path}"]
    refused(CACHE, *other, words=r"teacher\.npy\.part: made from something else: teacher\.sha256 is ")


def test_a_second_process_that_makes_the_same_file_is_refused(tmp_path):
    path = tmp_path / "teacher.npy"
    other = "import sys; from data.teacher_cache_writer import EmbeddingWriter as W; W(sys.argv[1], eval(sys.argv[2]))"
    command = [sys.executable, "-c", other, str(path), repr(described(3, 4))]
    with EmbeddingWriter(path, described(3, 4)) as writer:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "EmbeddingError" in done.stderr and "another process is writing it" in done.stderr
        writer.write(np.arange(3), torch.ones(3, 2, 4))
    assert np.load(path).shape == (3, 2, 4)
    with pytest.raises(EmbeddingError, match="has just finished"):
        EmbeddingWriter(path, described(3, 4))
    assert np.load(path).shape == (3, 2, 4)


@pytest.mark.parametrize("left", ["done only", "part cut short", "no description"])
def test_what_a_kill_or_a_hand_left_behind_is_begun_anew(tmp_path, left):
    path, part = tmp_path / "teacher.npy", tmp_path / "teacher.npy.part"
    with pytest.raises(KeyboardInterrupt), EmbeddingWriter(path, described(3, 4)) as writer:
        writer.write(np.arange(2), torch.ones(2, 2, 4))
        raise KeyboardInterrupt
    if left == "part cut short":
        os.truncate(part, 100)
    else:
        (part if left == "done only" else path.with_suffix(".json")).unlink()
    with EmbeddingWriter(path, described(3, 4)) as writer:
        assert writer.remaining.tolist() == [0, 1, 2]
        writer.write(writer.remaining, torch.ones(3, 2, 4))
    assert (np.load(path) == 1).all()


def test_a_disk_too_small_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10**9))
    with pytest.raises(EmbeddingError, match=r"needs 11\.9 GB, but 1\.0 GB are free"):
        EmbeddingWriter(tmp_path / "teacher.npy", described(5_822_653, 512))


def test_a_file_with_images_left_out_does_not_get_its_name(tmp_path):
    with (
        pytest.raises(EmbeddingError, match="1 images have no embeddings"),
        EmbeddingWriter(tmp_path / "teacher.npy", described(3, 4)) as writer,
    ):
        writer.write(np.array([0, 2]), torch.ones(2, 2, 4))
    assert not (tmp_path / "teacher.npy").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6, 1e-6, 0.0])
def test_embeddings_that_float16_cannot_hold_are_refused_by_image(tmp_path, number):
    values = torch.ones(4, 2, 8)
    values[2] = number
    with (
        pytest.raises(EmbeddingError, match="embedding of image 12 is not finite, or zero, or too"),
        EmbeddingWriter(tmp_path / "teacher.npy", described(20, 8)) as writer,
    ):
        writer.write(np.arange(10, 14), values)
    assert not (tmp_path / "teacher.npy").exists()


def test_positions_with_gaps_go_to_their_places(tmp_path):
    path, values = tmp_path / "teacher.npy", torch.arange(1.0, 61.0).reshape(6, 2, 5)
    with pytest.raises(KeyboardInterrupt), EmbeddingWriter(path, described(6, 5)) as writer:
        writer.write(np.array([0, 1, 3]), values[[0, 1, 3]])
        raise KeyboardInterrupt
    with EmbeddingWriter(path, described(6, 5)) as writer:
        assert writer.remaining.tolist() == [2, 4, 5]
        writer.write(writer.remaining, values[[2, 4, 5]])
    rows = EmbeddingFile(path, described(6, 5)).rows(np.array([5, 0, 3]), np.array([True, False, True]))
    assert rows.dtype == torch.float16 and torch.equal(rows.float(), values[[5, 0, 3], [1, 0, 1]])


# --- refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(cached, tmp_path) -> Path:
    """A copy of the finished file and its description, to break."""
    for suffix in (".npy", ".json"):
        shutil.copy(cached.with_suffix(suffix), tmp_path / f"copy{suffix}")
    return tmp_path / "copy.npy"


def test_a_file_of_another_teacher_is_refused_with_the_difference(small_run, copy, tmp_path):
    state = torch.load(value(small_run, "pretrained_teacher_path"), weights_only=True)
    torch.save({key: 2 * tensor for key, tensor in state.items()}, tmp_path / "other.pth")
    settings = [*small_run, f"teacher_embeddings={copy}", f"output={tmp_path / 'run'}"]
    other = f"pretrained_teacher_path={tmp_path / 'other.pth'}"
    for script in (TRAIN, CACHE):
        refused(script, *settings, other, words=r"copy\.npy: .*teacher\.sha256 is '\w{64}', not '\w{64}'")
    refused(TRAIN, *settings, "embedding_size=32", words=r"embeddings\.shape is \[48, 2, 16\], not \[48, 2, 32\]")


def test_a_file_of_other_images_is_refused_with_the_difference(small_run, copy, tmp_path):
    dataset = RecordDataset(value(small_run, "rec"))
    encoded = [bytes(dataset.read(position).data) for position in range(48)]
    write_record_set(tmp_path / "swapped", [encoded[1], encoded[0], *encoded[2:]], np.repeat(np.arange(6), 8), 6)
    write_record_set(tmp_path / "fewer", encoded[:40], np.repeat(np.arange(5), 8), 5)
    settings = [*small_run, f"teacher_embeddings={copy}", f"output={tmp_path / 'run'}"]
    refused(TRAIN, *settings, f"rec={tmp_path / 'swapped'}", words=r"data\.fingerprint is '\w+', not '\w+'")
    refused(TRAIN, *settings, f"rec={tmp_path / 'fewer'}", words=r"data\.images is 48, not 40")


def test_the_same_images_in_another_place_are_the_same(small_run, copy, tmp_path):
    for name in ("train.rec", "train.idx", "property"):
        shutil.copy(Path(value(small_run, "rec"), name), tmp_path)
    shutil.copy(value(small_run, "pretrained_teacher_path"), tmp_path / "moved.pth")
    moved = [f"rec={tmp_path}", f"pretrained_teacher_path={tmp_path / 'moved.pth'}"]
    train(TRAIN, [*small_run, *moved], tmp_path / "run", f"teacher_embeddings={copy}", "max_steps=1")


def test_a_file_of_another_preprocessing_is_refused_with_the_difference(small_run, copy, tmp_path):
    description = json.loads(copy.with_suffix(".json").read_text())
    description["preprocessing"]["scale"] = "x / 255"
    copy.with_suffix(".json").write_text(json.dumps(description))
    settings = [*small_run, f"teacher_embeddings={copy}", f"output={tmp_path / 'run'}"]
    refused(TRAIN, *settings, words=r"preprocessing\.scale is 'x / 255', not '\(x - 127\.5\) / 127\.5'")


def test_broken_files_are_refused_by_name(copy):
    wanted = json.loads(copy.with_suffix(".json").read_text())
    whole = copy.read_bytes()
    for content in (whole[:-10], whole[:50], b"", b"text"):
        copy.write_bytes(content)
        with pytest.raises(EmbeddingError, match=r"copy\.npy: broken or cut short"):
            EmbeddingFile(copy, wanted)
    np.save(copy, np.zeros((48, 2, 16), np.float32))
    with pytest.raises(EmbeddingError, match=r"copy\.npy: holds float32"):
        EmbeddingFile(copy, wanted)
    for content in ("", "[]", "{}", '{"embeddings": {"shape": "large"}}'):
        copy.with_suffix(".json").write_text(content)
        with pytest.raises(EmbeddingError, match=r"copy\.json: not a description of embeddings"):
            EmbeddingFile(copy, wanted)
    copy.with_suffix(".json").unlink()
    with pytest.raises(EmbeddingError, match=r"copy\.json: missing"):
        EmbeddingFile(copy, wanted)


def test_an_object_array_in_the_file_is_never_unpickled(copy):
    wanted = json.loads(copy.with_suffix(".json").read_text())
    np.save(copy, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(EmbeddingError, match=r"copy\.npy: broken"):
        EmbeddingFile(copy, wanted)


def test_training_needs_no_teacher_where_its_embeddings_are_there(small_run, copy, tmp_path):
    gone = f"pretrained_teacher_path={tmp_path / 'gone.pth'}"
    settings = [*small_run, gone, f"teacher_embeddings={copy}", f"output={tmp_path / 'other'}"]
    refused(TRAIN, *settings, words=r"embeddings by .*teacher\.pth, and the weights asked for \(.*gone\.pth\) are not")
    description = json.loads(copy.with_suffix(".json").read_text())
    description["about"]["teacher"] = str(tmp_path / "gone.pth")
    copy.with_suffix(".json").write_text(json.dumps(description))
    train(TRAIN, [*small_run, gone], tmp_path / "run", f"teacher_embeddings={copy}", "max_steps=2")
    log = (tmp_path / "run" / "training.log").read_text()
    assert "teacher: mobilefacenet from" in log and "weights are not here" in log
    refused(TRAIN, *settings, "teacher=iresnet18", words=r"teacher\.network is 'mobilefacenet', not 'iresnet18'")
    missing = [*small_run, gone, f"teacher_embeddings={tmp_path / 'none.npy'}"]
    refused(CACHE, *missing, words=r"gone\.pth: no such file")


def test_without_the_weights_the_repository_must_still_be_the_files(small_run, copy, tmp_path, monkeypatch):
    description = json.loads(copy.with_suffix(".json").read_text())
    description["teacher"]["network"] = "cvlface_ir50"
    description["about"]["teacher"] = "minchul/cvlface_adaface_ir50_webface4m@" + 40 * "1"
    copy.with_suffix(".json").write_text(json.dumps(description))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = [
        *small_run, "teacher=cvlface_ir50", "pretrained_teacher_path=", f"teacher_cache={tmp_path}", "max_steps=1",
        f"teacher_embeddings={copy}",
    ]  # fmt: skip
    train(TRAIN, settings, tmp_path / "run")
    other = [*settings, "teacher_repo_id=minchul/cvlface_adaface_ir50_ms1mv2", f"output={tmp_path / 'other'}"]
    refused(TRAIN, *other, words=r"embeddings by minchul/\w+_webface4m@1+, and .*_ms1mv2@main\) are not")
    pinned = [*settings, f"teacher_revision={40 * '2'}", f"output={tmp_path / 'other'}"]
    refused(TRAIN, *pinned, words=r"embeddings by minchul/\w+_webface4m@1+, and .*@2+\) are not")


def test_a_file_is_of_one_compute_type_and_overwrites_nobody_elses(slow_run, tmp_path):
    path = tmp_path / "teacher.npy"
    interrupt(slow_run, path, signal.SIGKILL, 0)
    settings = [*slow_run, f"teacher_embeddings={path}"]
    refused(CACHE, *settings, "dtype=bfloat16", words=r"embeddings\.computed_in is 'float32', not 'bfloat16'")
    (tmp_path / "mine.json").write_text('{"a": 1}')
    mine = f"teacher_embeddings={tmp_path / 'mine.npy'}"
    refused(CACHE, *slow_run, mine, words=r"mine\.json: not a description of embeddings")
    assert (tmp_path / "mine.json").read_text() == '{"a": 1}'


def test_what_the_teacher_sees_is_explicit(small_run, copy, tmp_path):
    augmented = [*small_run, f"teacher_embeddings={copy}", "low_res_augmentation_prob=0.5"]
    refused(TRAIN, *augmented, f"output={tmp_path / 'refused'}", words="set teacher_view=clean")
    train(TRAIN, augmented, tmp_path / "run", "teacher_view=clean", "max_steps=2")
    refused(CACHE, *small_run, words="teacher_embeddings: name the file to make")
    refused(CACHE, *small_run, "teacher_embeddings=cache.bin", words=r"a path that ends in \.npy")


# --- the teacher in training -----------------------------------------------------------------------------------


def test_the_live_teacher_is_frozen_in_the_compute_type_and_channels_last(small_run):
    cfg = load_config(overrides=[*small_run, "num_classes=6", "dtype=bfloat16"])
    task = Distillation(cfg, RecordDataset(cfg.rec), CPU)
    teacher = task._teacher
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    state = teacher.state_dict()
    assert state["conv1.conv.weight"].dtype == state["output_layer.linear.weight"].dtype == torch.bfloat16
    assert state["conv1.bn.running_var"].dtype == state["conv1.bn.weight"].dtype == torch.float32
    assert teacher.conv_23.conv.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert {id(p) for p in teacher.parameters()}.isdisjoint({id(p) for p in task.student.parameters()})


def test_an_ir50_in_a_cvlface_folder_teaches_two_ranks_live_and_from_the_file(face_data, tmp_path):
    from golden_networks import golden_keys, recipe
    from safetensors.torch import save_file

    write_lfw(tmp_path / "set", face_data, 24)
    teacher = tmp_path / "ir50"
    (teacher / "pretrained_model").mkdir(parents=True)
    (teacher / "pretrained_model" / "model.yaml").write_text("name: ir50\ncolor_space: RGB\noutput_dim: 512\n")
    weights = {key: recipe(key, shape) for key, shape in golden_keys("cvlface_ir50").items()}
    save_file(weights, teacher / "model.safetensors")
    settings = [
        "dataset=custom", f"rec={tmp_path / 'set'}", f"pretrained_teacher_path={teacher}", "width=0.25", "batch_size=4",
        "max_steps=3", "log_every=1", "val_eval_every_n_epoch=0", "eval_every_n_epoch=0", "num_workers=1",
    ]  # fmt: skip
    train(TRAIN, settings, tmp_path / "live", ranks=2)
    train(TRAIN, settings, tmp_path / "cached", f"teacher_embeddings={tmp_path / 'ir50.npy'}", ranks=2)
    live, cached = (metrics(tmp_path / name) for name in ("live", "cached"))
    assert len(live) == len(cached) == 3
    assert cached[0]["loss"] == pytest.approx(live[0]["loss"], rel=1e-3)
    for name in ("live", "cached"):
        assert "teacher: cvlface_ir50 from" in (tmp_path / name / "training.log").read_text()
        keys = torch.load(tmp_path / name / "3backbone.pth", weights_only=True).keys()
        assert keys == build_backbone(load_config(overrides=["width=0.25"])).state_dict().keys()
    assert np.load(tmp_path / "ir50.npy", mmap_mode="r").shape == (24, 2, 512)
