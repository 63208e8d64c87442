"""Files of embeddings that do not fit the teacher, the images or the preprocessing, and broken ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from runs import SCRIPTS, refused, train, value

from config import load_config
from data.dataset import RecordDataset, build_dataset
from data.recordio import write_record_set
from data.teacher_cache import EmbeddingError, EmbeddingFile
from train.teachers import build_cached_teacher

CACHE, TRAIN = "train/cache_teacher.py", SCRIPTS[0]
CPU = torch.device("cpu")


@pytest.fixture
def copy(cached, tmp_path) -> Path:
    """A copy of the finished file and its description, for tests that damage it."""
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
    encoded = [bytes(dataset.read(position)[0]) for position in range(48)]
    write_record_set(tmp_path / "swapped", [encoded[1], encoded[0], *encoded[2:]], np.repeat(np.arange(6), 8), 6)
    write_record_set(tmp_path / "fewer", encoded[:40], np.repeat(np.arange(5), 8), 5)
    settings = [*small_run, f"teacher_embeddings={copy}", f"output={tmp_path / 'run'}"]
    refused(TRAIN, *settings, f"rec={tmp_path / 'swapped'}", words=r"data\.fingerprint is '\w+', not '\w+'")
    refused(TRAIN, *settings, f"rec={tmp_path / 'fewer'}", words=r"data\.images is 48, not 40")


def test_moved_images_and_weights_still_fit_the_file(small_run, copy, tmp_path):
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


def test_broken_files_are_refused_with_their_name(copy):
    wanted = json.loads(copy.with_suffix(".json").read_text())
    complete = copy.read_bytes()
    for content in (complete[:-10], complete[:50], b"", b"text"):
        copy.write_bytes(content)
        with pytest.raises(EmbeddingError, match=r"copy\.npy: broken or cut short"):
            EmbeddingFile(copy, wanted)
    np.save(copy, np.zeros((48, 2, 16), np.float32))
    with pytest.raises(EmbeddingError, match=r"copy\.npy: contains float32"):
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


def test_training_from_the_file_needs_no_teacher_weights(small_run, copy, tmp_path):
    gone = f"pretrained_teacher_path={tmp_path / 'gone.pth'}"
    settings = [*small_run, gone, f"teacher_embeddings={copy}", f"output={tmp_path / 'other'}"]
    refused(
        TRAIN,
        *settings,
        words=r"embeddings by .*teacher\.pth, but the config names .*gone\.pth, whose weights are not",
    )
    description = json.loads(copy.with_suffix(".json").read_text())
    description["about"]["teacher"] = str(tmp_path / "gone.pth")
    copy.with_suffix(".json").write_text(json.dumps(description))
    train(TRAIN, [*small_run, gone], tmp_path / "run", f"teacher_embeddings={copy}", "max_steps=2")
    log = (tmp_path / "run" / "training.log").read_text()
    assert "teacher: mobilefacenet from" in log and "the weights of the teacher are not available" in log
    refused(TRAIN, *settings, "teacher=iresnet18", words=r"teacher\.network is 'mobilefacenet', not 'iresnet18'")
    missing = [*small_run, gone, f"teacher_embeddings={tmp_path / 'none.npy'}"]
    refused(CACHE, *missing, words=r"gone\.pth: no such file")


def test_without_the_weights_the_repository_must_be_the_one_of_the_file(small_run, copy, tmp_path, monkeypatch):
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
    refused(TRAIN, *other, words=r"embeddings by minchul/\w+_webface4m@1+, but .*_ms1mv2@main, whose weights are not")
    pinned = [*settings, f"teacher_revision={40 * '2'}", f"output={tmp_path / 'other'}"]
    refused(TRAIN, *pinned, words=r"embeddings by minchul/\w+_webface4m@1+, but .*@2+, whose weights are not")


def test_a_repository_of_to_hub_can_be_the_one_of_the_file(small_run, copy, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    description = json.loads(copy.with_suffix(".json").read_text())
    description["about"]["teacher"] = "someone/faces@" + 40 * "1"
    copy.with_suffix(".json").write_text(json.dumps(description))

    def open_embeddings(*teacher: str) -> tuple[str, ...]:
        cfg = load_config(overrides=[*small_run, f"teacher_embeddings={copy}", f"teacher_cache={tmp_path}", *teacher])
        return build_cached_teacher(cfg, build_dataset(cfg), torch.device("cpu"))[1]

    for teacher in (
        ["pretrained_teacher_path=hf://someone/faces"],
        [f"pretrained_teacher_path=hf://someone/faces@{40 * '1'}"],
        ["pretrained_teacher_path=", "teacher_repo_id=someone/faces"],
    ):
        assert "the weights of the teacher are not available" in open_embeddings(*teacher)[-1]
    for path in ("hf://someone/other", f"hf://someone/faces@{40 * '2'}"):
        with pytest.raises(EmbeddingError, match=f"by someone/faces@1+, but the config names {path[5:]}"):
            open_embeddings(f"pretrained_teacher_path={path}")


def test_augmentations_with_cached_embeddings_need_teacher_view_clean(small_run, copy, tmp_path):
    augmented = [*small_run, f"teacher_embeddings={copy}", "low_res_augmentation_prob=0.5"]
    refused(TRAIN, *augmented, f"output={tmp_path / 'refused'}", words="set teacher_view=clean")
    train(TRAIN, augmented, tmp_path / "run", "teacher_view=clean", "max_steps=2")
    refused(CACHE, *small_run, words="teacher_embeddings: name the file to make")
    refused(CACHE, *small_run, "teacher_embeddings=cache.bin", words=r"a path that ends in \.npy")
