"""Several training sets at once: images, labels, errors, the teacher's file, and a run that is resumed on two sets."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from config_files import write_file
from easydict import EasyDict
from runs import SCRIPTS, assert_same_checkpoint, metrics, refused, train, value
from training_sets import image_of, write_cvlface_set, write_folder_set, write_insightface_set, write_lfw

from config import ConfigError, load_config
from data.dataset import DataError, FaceDataset, RecordDataset, build_dataset
from data.folder_set import FolderDataset
from data.joined_set import JoinedDataset
from data.loader import GlobalOrder, TrainingLoader
from data.recordio import write_record_set
from data.teacher_cache import EmbeddingFile
from deploy.model_card import _training_data
from train.teachers import describe_embeddings
from utils.errors import InputError


@pytest.fixture
def parts(tmp_path):
    """Three sets of 5, 4 and 6 images and 3, 2 and 4 identities: CVLFace's layout, a folder, and CVLFace's again."""
    return [
        RecordDataset(write_cvlface_set(tmp_path / "one", [0, 2, 2, 1, 0], 3)),
        FolderDataset(write_folder_set(tmp_path / "two", {"a": 3, "b": 1})),
        RecordDataset(write_cvlface_set(tmp_path / "three", [3, 3, 1, 0, 2, 0], 4)),
    ]


def config(*folders, **settings):
    defaults = {"db_file_format": "rec", "num_classes": None, "num_image": None, "shared_labels": False}
    return EasyDict({**defaults, "rec": [str(folder) for folder in folders], **settings})


def test_the_config_takes_one_folder_or_several(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    here = str(tmp_path / "a")
    expected = [here, "/sets/b"]
    assert (
        load_config(overrides=["rec=a,/sets/b"]).rec == load_config(overrides=["rec=['a', '/sets/b']"]).rec == expected
    )
    assert load_config(write_file(tmp_path / "p.py", "preset = dict(rec=['a', '/sets/b'])")).rec == expected
    assert load_config(overrides=["rec=a"]).rec == load_config(write_file(tmp_path / "p.py", "preset={'rec': 'a'}")).rec
    assert load_config(overrides=["rec=['/sets/a,b']"]).rec == ["/sets/a,b"]
    with pytest.raises(ConfigError, match=r"needs rec, a folder with train\.rec"):
        load_config(overrides=["rec="])


@pytest.mark.parametrize("shared", [False, True])
def test_images_and_labels_are_those_of_the_sets_one_after_the_other(parts, shared):
    if shared:
        for part in parts:
            part.num_classes = 4
    joined = JoinedDataset(parts, shared)
    firsts = [0, 0, 0] if shared else [0, 3, 5]
    expected = [
        (bytes(part.read(position)[0]), first + part.read(position)[1], part.name(position))
        for part, first in zip(parts, firsts, strict=True)
        for position in range(len(part))
    ]
    assert len(joined) == 15 and joined.num_classes == (4 if shared else 9)
    assert [(bytes(joined.read(k)[0]), joined.read(k)[1], joined.name(k)) for k in range(15)] == expected
    positions = np.array([14, 0, 5, 8, 9, 4, 4, 13, 6])
    labels = [expected[position][1] for position in positions]
    images = np.empty((9, 112, 112, 3), np.uint8)
    assert joined.read_batch(positions, images).tolist() == joined.read_labels(positions).tolist() == labels
    numbers = [*range(5), *range(4), *range(6)]  # the sets number their images from 0
    assert all(np.array_equal(image, image_of(numbers[k])) for image, k in zip(images, positions, strict=True))


def test_an_epoch_is_a_permutation_of_all_images_in_workers_too(parts):
    joined = JoinedDataset(parts)
    for num_workers in (0, 2):
        order = GlobalOrder(len(joined), 5, seed=1)
        batches = TrainingLoader(joined, order, num_workers, torch.device("cpu"))
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        positions = np.concatenate([plan.positions for plan in order])
        assert sorted(positions) == list(range(15)) and labels == joined.read_labels(positions).tolist()


def test_the_fingerprint_depends_on_every_set_and_on_their_order(parts):
    prints = [JoinedDataset(sets).fingerprint for sets in (parts, parts[::-1], parts[:2], parts[1:])]
    assert len(set(prints)) == 4 and JoinedDataset(parts).fingerprint == prints[0]


class Letters(FaceDataset):
    """A set whose images are single letters, and whose layout is these letters."""

    notes, num_classes = (), 1

    def __init__(self, letters: bytes) -> None:
        self.letters, self.source = letters, ""

    def __len__(self) -> int:
        return len(self.letters)

    def layout(self) -> list[bytes]:
        return [self.letters]

    def read(self, position: int) -> tuple[bytes, int]:
        return self.letters[position : position + 1], 0


def test_the_fingerprint_depends_on_where_a_set_ends():
    """The labels of the images between two borders change with the border."""
    joined = [JoinedDataset([Letters(b"abc"), Letters(b"d")]), JoinedDataset([Letters(b"ab"), Letters(b"cd")])]
    assert joined[0].fingerprint != joined[1].fingerprint


def test_the_notes_name_the_sets_and_keep_their_notes(parts, tmp_path):
    (tmp_path / "two" / "notes.txt").write_text("")
    notes = JoinedDataset([parts[0], FolderDataset(tmp_path / "two")]).notes
    assert notes[0] == f"training set 1: 5 images of 3 identities from {tmp_path}/one/train.rec"
    assert notes[2] == f"left out of {tmp_path}/two: files outside the folders of identities (1)"


def test_sets_with_shared_labels_need_the_same_number_of_identities(tmp_path):
    folders = [write_cvlface_set(tmp_path / "one", [0, 1], 5), write_cvlface_set(tmp_path / "two", [4, 0, 2], 5)]
    dataset = build_dataset(cfg := config(*folders, shared_labels=True))
    assert (cfg.num_classes, cfg.num_image) == (5, 5) and dataset.read_labels(np.arange(5)).tolist() == [0, 1, 4, 0, 2]
    (tmp_path / "two" / "property").unlink()
    (tmp_path / "one" / "property").write_text("7,112,112")
    with pytest.raises(DataError, match=r"one/train.rec has 7, .*two/train.rec has 5; state"):
        build_dataset(config(*folders, shared_labels=True))
    build_dataset(cfg := config(*folders))
    assert cfg.num_classes == 12
    with pytest.raises(DataError, match=r"num_classes = 7, but .*one/train.rec, .*two/train.rec has 12; fix num_class"):
        build_dataset(config(*folders, num_classes=7))


def test_an_absent_set_and_a_broken_image_are_named_with_their_set(tmp_path):
    one = write_insightface_set(tmp_path / "one", [(0, b"not an image"), (1, b"")], 2)
    two = write_insightface_set(tmp_path / "two", [(0, b"not an image"), (7, b"")], 2)
    with pytest.raises(InputError, match=r"nowhere/train\.rec: no such file; a record set needs"):
        build_dataset(config(one, tmp_path / "nowhere"))
    joined = build_dataset(config(one, two))
    with pytest.raises(InputError, match=r"two/train\.rec: record 1: its 12 bytes are not an image"):
        joined[np.array([2])]
    with pytest.raises(InputError, match=r"two/train\.rec: record 2 has label 7, outside 0\.\.1"):
        joined.read_labels(np.array([0, 3]))


def test_a_model_card_names_all_sets():
    cfg = load_config(overrides=["rec=/secret/one,/secret/two", "num_classes=5", "num_image=9"])
    assert _training_data(cfg).startswith("`one` and `two` (9 images of 5 identities): ")


@pytest.fixture(scope="module")
def real(face_data, small_run, tmp_path_factory):
    """Overrides of a run on two sets of real faces, which have 24 and 20 images."""
    folder = tmp_path_factory.mktemp("joined")
    write_lfw(folder / "one", face_data, 24)
    dataset = RecordDataset(face_data / "lfw")
    encoded, labels = zip(*(dataset.read(position) for position in range(300, 320)), strict=True)
    labels = np.unique(labels, return_inverse=True)[1]
    write_record_set(folder / "two", [bytes(image) for image in encoded], labels, labels.max() + 1)
    return [*small_run, f"rec={folder / 'one'},{folder / 'two'}", "val_targets=[]", "max_steps=3", "checkpoint_every=2"]


@pytest.mark.parametrize(("ranks", "order"), [(0, []), (2, ["order=blocks", "order_window=16"])])
def test_a_run_on_two_sets_resumes_bit_equal(real, tmp_path, ranks, order):
    batch = [f"batch_size={8 // max(ranks, 1)}", *order]
    train(SCRIPTS[0], [*real, *batch], tmp_path / "whole", ranks=ranks)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    train(SCRIPTS[0], [*real, *batch], tmp_path / "parts", "global_step=2", ranks=ranks)
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts", 3)
    assert [line["step"] for line in metrics(tmp_path / "parts")] == [1, 2, 3]
    log = (tmp_path / "whole" / "training.log").read_text()
    assert "44 images of" in log and "training set 2: 20 images of" in log and "teacher on" in log
    words = "training set 'sha256"
    swapped = "rec=" + ",".join(reversed(value(real, "rec").split(",")))
    if not ranks:
        refused(SCRIPTS[0], *real, *batch, swapped, f"output={tmp_path / 'parts'}", "resume=auto", words=words)


def test_the_file_of_a_teacher_has_the_rows_of_all_sets(real, tmp_path):
    whole = tmp_path / "both.npy"
    train(SCRIPTS[0], [*real, f"teacher_embeddings={whole}"], tmp_path / "run", "max_steps=1")
    singles = []
    for number, folder in enumerate(value(real, "rec").split(",")):
        path = tmp_path / f"{number}.npy"
        train(SCRIPTS[0], [*real, f"rec={folder}", f"teacher_embeddings={path}"], tmp_path / str(number), "max_steps=1")
        singles.append(np.load(path))
    cfg = load_config(overrides=[*real, f"teacher_embeddings={whole}"])
    dataset = build_dataset(cfg)
    stored = EmbeddingFile(Path(whole), describe_embeddings(cfg, dataset))
    rows = stored.rows(np.arange(44), np.zeros(44, dtype=bool)).float().numpy()
    expected = np.concatenate(singles)[:, 0].astype(np.float32)
    assert np.abs(rows - expected).max() < 0.01 * np.abs(expected).max()  # batches of other sizes round differently
