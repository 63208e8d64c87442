"""The check at the start of training: it logs whether teacher and labels agree, and does not change training."""

import numpy as np
import pytest
import torch
from checked_sets import LABELS, drawn_faces, real_faces, teacher_settings

from backbones import find_teacher
from config import load_config
from data.dataset import RecordDataset, build_dataset
from data.folder_set import FolderDataset
from data.recordio import write_record_set
from train import sanity, tasks
from train.loop import Trainer
from train.tasks import Distillation, Standalone
from train.teachers import build_live_teacher

CPU = torch.device("cpu")


def notes_of(cfg):
    """The log lines of a training run about teacher and labels."""
    return [note for note in Distillation(cfg, build_dataset(cfg), CPU).notes if "cosine" in note or "WARNING" in note]


def test_training_states_whether_the_teacher_agrees_with_the_labels(face_data, tmp_path):
    images, labels = real_faces(face_data)
    write_record_set(tmp_path / "right", images, labels, 24)
    write_record_set(tmp_path / "wrong", [*images[1:], images[0]], labels, 24)
    settings = [*teacher_settings(face_data), "dataset=custom", "width=0.125", "num_workers=0"]
    (live,) = notes_of(load_config(overrides=[*settings, f"rec={tmp_path / 'right'}"]))
    assert live.startswith("teacher on 24 pairs of the training set: cosine 0.")
    same, different = (float(part.split()[0]) for part in live.split("cosine ")[1].split(", "))
    assert same > 0.4 > 0.15 > different
    cached = [*settings, f"rec={tmp_path / 'right'}", f"teacher_embeddings={tmp_path / 'teacher.npy'}"]
    (from_file,) = notes_of(load_config(overrides=cached))
    values = [float(part.split()[0]) for part in from_file.split("cosine ")[1].split(", ")]
    assert np.allclose(values, [same, different], atol=0.0011) and "24 pairs" in from_file
    line, warning = notes_of(load_config(overrides=[*settings, f"rec={tmp_path / 'wrong'}"]))
    assert line.startswith("teacher on 24 pairs") and warning.startswith("WARNING")
    assert all(word in warning for word in ("labels", "colour order", "random weights", "tools/check_data.py"))


def test_the_check_is_logged_and_does_not_change_the_training(small_run, tmp_path, monkeypatch):
    def checked_for_side_effects(*arguments):
        states = torch.get_rng_state(), np.random.get_state()[1].tolist()
        notes = sanity.teacher_notes(*arguments)
        assert torch.equal(states[0], torch.get_rng_state()) and states[1] == np.random.get_state()[1].tolist()
        return notes

    for name, notes in (("with", checked_for_side_effects), ("without", lambda *_: ())):
        monkeypatch.setattr(tasks, "teacher_notes", notes)
        cfg = load_config(
            overrides=[*small_run, f"output={tmp_path / name}", "max_steps=2", "val_eval_every_n_epoch=0"]
        )
        dataset = build_dataset(cfg)
        task = Distillation(cfg, dataset, CPU)
        weights = build_live_teacher(cfg, CPU, find_teacher(cfg)).state_dict()
        Trainer(cfg, task, dataset, CPU).run()
        assert not task._teacher.training
        assert all(torch.equal(weights[key], value) for key, value in task._teacher.state_dict().items())
    assert "teacher on 24 pairs of the training set" in (tmp_path / "with" / "training.log").read_text()
    assert "24 pairs" not in (tmp_path / "without" / "training.log").read_text()
    one, other = (torch.load(tmp_path / name / "2backbone.pth", weights_only=True) for name in ("with", "without"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert not any("pairs" in note for note in Standalone(cfg, CPU).notes)


def test_only_rank_0_runs_the_check(small_run, monkeypatch):
    cfg = load_config(overrides=small_run)
    monkeypatch.setattr(tasks, "rank", lambda: 1)
    monkeypatch.setattr(tasks, "teacher_notes", lambda *_: pytest.fail("called on rank 1"))
    assert len(Distillation(cfg, build_dataset(cfg), CPU).notes) == 2  # about teacher and student


class Labelled:
    """A set that has labels but no images, and counts how many labels are read."""

    def __init__(self, labels):
        self.labels, self.read = labels, 0

    def __len__(self):
        return len(self.labels)

    def read_labels(self, positions):
        self.read += len(positions)
        return self.labels[positions]


def test_few_labels_are_read_and_64_images_are_embedded_in_a_set_of_any_size():
    dataset = Labelled(np.arange(5_822_653) // 68)
    requested = []

    def embed(positions):
        requested.append(positions)
        return np.random.default_rng(0).normal(size=(85_743, 8))[dataset.labels[positions]]

    (line,) = sanity.teacher_notes(dataset, embed, 0)
    assert line.startswith("teacher on 32 pairs of the training set: cosine 1.000 same identity, ")
    assert dataset.read <= 1000 and [len(positions) for positions in requested] == [64]
    assert (np.diff(requested[0]) > 0).all()


def test_a_sample_without_pairs_is_reported():
    (line,) = sanity.teacher_notes(Labelled(np.arange(50_000)), lambda _: pytest.fail("nothing to embed"), 0)
    assert "0 pairs are of one identity" in line


def test_labels_of_a_folder_set_equal_those_of_a_record_set(tmp_path):
    faces = drawn_faces()
    for image, (label, face) in enumerate(zip(LABELS, faces, strict=True)):
        (tmp_path / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(label) / f"{image:02}.jpg").write_bytes(face)
    write_record_set(tmp_path / "set", faces, LABELS, 4)
    for dataset in (FolderDataset(tmp_path / "folder"), RecordDataset(tmp_path / "set")):
        assert dataset.read_labels(np.array([0, 4, 11])).tolist() == [0, 1, 3]
