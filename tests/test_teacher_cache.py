"""The file of the teacher's embeddings: its content, and training from it compared with the live teacher."""

import json
import subprocess

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, size
from runs import SCRIPTS, metrics, train, value
from training_sets import write_lfw

from backbones import build_backbone, build_teacher
from config import load_config
from data.dataset import RecordDataset, build_dataset
from train.loop import Trainer
from train.tasks import Distillation

CACHE, TRAIN = "train/cache_teacher.py", SCRIPTS[0]
CPU = torch.device("cpu")


def test_the_file_holds_the_embeddings_of_each_image_and_of_its_mirror_image(small_run, cached):
    teacher, dataset = build_teacher(load_config(overrides=small_run)), RecordDataset(value(small_run, "rec"))
    stored = np.load(cached, mmap_mode="r")
    assert (stored.shape, stored.dtype) == ((48, 2, 16), np.float16)
    for position in range(48):
        bgr = cv2.imdecode(np.frombuffer(dataset.read(position)[0], np.uint8), cv2.IMREAD_COLOR)
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
    """Training makes the file first if it is missing."""
    settings = [*small_run, "batch_size=4", f"teacher_embeddings={tmp_path / 'teacher.npy'}", "max_steps=1"]
    train(TRAIN, settings, tmp_path / "run", ranks=2)
    assert (tmp_path / "teacher.npy").read_bytes() == cached.read_bytes()


def test_training_from_the_file_starts_as_with_the_live_teacher(small_run, cached, tmp_path):
    train(TRAIN, small_run, tmp_path / "live", "max_steps=1")
    train(TRAIN, small_run, tmp_path / "cached", "max_steps=1", f"teacher_embeddings={cached}")
    live, from_file = (metrics(tmp_path / name)[0] for name in ("live", "cached"))
    for name in ("loss", "conf_t", "margin", "norm_mean", "grad_norm"):
        assert from_file[name] == pytest.approx(live[name], rel=1e-3), name


def test_a_live_teacher_rounded_to_float16_gives_the_same_run_as_the_file(small_run, tmp_path):
    """The rounding is the only difference between the two: batches, flips and rows are the same, bit for bit."""
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


def test_losses_from_the_file_follow_those_with_the_live_teacher(face_data, tmp_path):
    """With the pretrained MobileFaceNet as the teacher and batches of 16, losses differ by less than 0.1 % in float32.

    80 steps, or 200 in the long form.

    The student starts from trained weights. From random weights, a difference of 1e-7 in the weights would grow to some
    percent of the loss within ten steps, with any teacher.
    """
    write_lfw(tmp_path / "set", face_data, 160)
    epochs = size(8, 20)
    shared = [
        "--config", str(ROOT / "config" / "lfw.py"), f"rec={tmp_path / 'set'}", "width=0.125", "batch_size=16",
        f"num_epoch={epochs}", "log_every=1", "val_eval_every_n_epoch=0", "lr_schedule=step", "dtype=float32",
    ]  # fmt: skip
    from_file = f"teacher_embeddings={tmp_path / 'teacher.npy'}"
    train(TRAIN, shared, tmp_path / "before", from_file, "lr=1.6", "max_steps=60")
    start = [f"init_from={tmp_path / 'before' / '60backbone.pth'}", "lr=0.02", "warmup_epoch=0"]
    train(TRAIN, shared, tmp_path / "live", *start)
    train(TRAIN, shared, tmp_path / "cached", *start, from_file)
    live, cached = (metrics(tmp_path / name) for name in ("live", "cached"))
    assert len(live) == len(cached) == 10 * epochs
    assert live[-1]["loss"] < live[0]["loss"]
    worst = max(abs(one["loss"] / other["loss"] - 1) for one, other in zip(live, cached, strict=True))
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert 0 < worst < 1e-3


def test_the_live_teacher_is_frozen_in_the_compute_type_and_channels_last(small_run):
    cfg = load_config(overrides=[*small_run, "num_classes=6", "dtype=bfloat16"])
    task = Distillation(cfg, RecordDataset(cfg.rec[0]), CPU)
    teacher = task._teacher
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    state = teacher.state_dict()
    assert {weight.dtype for weight in state.values()} == {torch.bfloat16}  # it has no BatchNorm any more
    assert teacher.conv_23.conv.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert {id(p) for p in teacher.parameters()}.isdisjoint({id(p) for p in task.student.parameters()})


def test_an_ir50_from_a_cvlface_folder_teaches_two_ranks_live_and_from_the_file(face_data, tmp_path):
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
        log = (tmp_path / name / "training.log").read_text()
        assert "teacher: cvlface_ir50 from" in log
        assert f" {len(weights)} tensors; prefix 'model.net.' removed\n" in log
        keys = torch.load(tmp_path / name / "3backbone.pth", weights_only=True).keys()
        assert keys == build_backbone(load_config(overrides=["width=0.25"])).state_dict().keys()
    assert np.load(tmp_path / "ir50.npy", mmap_mode="r").shape == (24, 2, 512)
