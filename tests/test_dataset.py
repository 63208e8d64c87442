"""Training sets in every layout: their images, their labels, and errors that name what is wrong."""

import os

import cv2
import numpy as np
import pytest
import torch
from easydict import EasyDict
from training_sets import image_of, png, write_cvlface_set, write_folder_set, write_insightface_set

from data.dataset import DataError, RecordDataset, build_dataset
from data.folder_set import FolderDataset
from utils.errors import InputError


def config(**settings):
    return EasyDict({"db_file_format": "rec", "sample": 0, "num_classes": None, "num_image": None, **settings})


def test_the_insightface_layout_of_real_faces_is_read_as_rgb(face_data):
    dataset = build_dataset(cfg := config(rec=[str(face_data / "lfw")]))
    assert (len(dataset), dataset.num_classes) == (cfg.num_image, cfg.num_classes) == (10562, 4859)
    positions = np.array([0, 1, 5000, 10561])
    images, labels = dataset[positions], dataset.read_labels(positions)
    assert images.shape == (4, 112, 112, 3)
    assert (images.dtype, labels.dtype) == (torch.uint8, np.int64)
    for row, position in enumerate(positions):
        header, encoded = dataset.reader.read(int(position) + 1)
        bgr = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(images[row].numpy(), bgr[..., ::-1])
        assert labels[row] == np.ravel(header.label)[0]
    labels = [dataset.reader.read(key)[0].label for key in range(1, 10563)]
    assert {int(np.ravel(label)[0]) for label in labels} == set(range(4859))


@pytest.mark.parametrize(("stated", "found"), [(None, 4), (4, 4), (9, 9)])
def test_the_cvlface_layout_is_read_from_key_0(tmp_path, stated, found):
    labels = [0, 2, 2, 1, 3]
    dataset = RecordDataset(write_cvlface_set(tmp_path / "set", labels, stated))
    assert (len(dataset), dataset.num_classes) == (5, found)
    assert dataset.read_labels(np.array([4, 0, 1])).tolist() == [3, 0, 2]
    images = dataset[np.array([4, 0, 1])].numpy()
    assert np.array_equal(images, np.stack([image_of(number) for number in (4, 0, 1)]))


def test_the_identity_records_of_the_insightface_layout_are_left_out(tmp_path):
    records = [(label, png(image_of(number))) for number, label in enumerate([0, 0, [1, 5, 5], [2]])]
    dataset = RecordDataset(write_insightface_set(tmp_path / "set", records, 3))
    assert (len(dataset), dataset.num_classes) == (4, 3)
    assert dataset.read_labels(np.arange(4)).tolist() == [0, 0, 1, 2]
    images = dataset[np.arange(4)].numpy()
    assert np.array_equal(images, np.stack([image_of(number) for number in range(4)]))


def test_a_folder_set_is_read_in_the_order_of_names(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"bob": 3, "alice": 1, "Zoë": 2})
    (folder / "notes.txt").write_text("no identity")
    (folder / "bob" / "notes.txt").write_text("no image")
    dataset = build_dataset(cfg := config(db_file_format="folder", data_path=str(folder)))
    assert (len(dataset), dataset.num_classes) == (cfg.num_image, cfg.num_classes) == (6, 3)
    assert dataset.read_labels(np.arange(6)).tolist() == [0, 0, 1, 2, 2, 2]  # Zoë, alice, bob
    images = dataset[np.arange(6)].numpy()
    assert np.array_equal(images, np.stack([image_of(number) for number in range(6)]))


def test_hidden_and_tool_files_are_left_out_of_a_folder_set_and_counted(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 2, "c": 1})
    plain = FolderDataset(folder)
    assert plain.notes == ()
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "a/.ipynb_checkpoints", "a/@eaDir"):
        (folder / name).mkdir()
        (folder / name / "000-checkpoint.png").write_bytes(png(image_of(9)))
    for name in ("a/._000.png", "a/.DS_Store", "Thumbs.db", "c/Thumbs.db"):
        (folder / name).write_bytes(b"\0")
    for name in ("list.txt", "c/notes.txt", "c/000.xml"):
        (folder / name).write_text("")
    dataset = FolderDataset(folder)
    assert dataset.num_classes == 2 and dataset.fingerprint == plain.fingerprint
    left_out = (
        "files outside the folders of identities (1), files that are not images (2), "
        "hidden entries and entries created by tools (9)"
    )
    assert dataset.notes == (f"left out of {folder}: {left_out}",)


def test_links_to_identities_and_images_are_followed(tmp_path):
    target = write_folder_set(tmp_path / "elsewhere", {"a": 2, "b": 1})
    (tmp_path / "faces" / "c").mkdir(parents=True)
    (tmp_path / "faces" / "a").symlink_to(target / "a")
    (tmp_path / "faces" / "c" / "000.png").symlink_to(target / "b" / "000.png")
    dataset = FolderDataset(tmp_path / "faces")
    assert dataset.labels.tolist() == [0, 0, 1] and dataset.notes == ()
    assert np.array_equal(dataset[np.arange(3)].numpy(), np.stack([image_of(number) for number in range(3)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "b").symlink_to("gone"), r"faces/b: broken link to gone; restore its target, or"),
        (lambda folder: (folder / "a" / "1.png").symlink_to("gone"), r"faces/a/1\.png: broken link to gone; restore"),
        (lambda folder: (folder / "a" / "1.png").symlink_to("1.png"), r"faces/a/1\.png: broken link to 1\.png"),
        (lambda folder: (folder / "a" / "2020").mkdir(), r"faces/a/2020: a folder inside .*move its images up, or"),
        (lambda folder: os.mkfifo(folder / "a" / "1.png"), r"faces/a/1\.png: neither a file nor a folder; remove it"),
    ],
    ids=["identity", "image", "loop", "nested", "pipe"],
)
def test_what_is_broken_in_a_folder_set_is_refused(tmp_path, make, message):
    make(write_folder_set(tmp_path / "faces", {"a": 1}))
    with pytest.raises(DataError, match=message):
        FolderDataset(tmp_path / "faces")


@pytest.mark.parametrize("stated", [None, 3])
def test_images_with_two_labels_are_read_from_the_first_record_on(tmp_path, stated):
    """As `im2rec --pack-label` writes them."""
    folder = write_cvlface_set(tmp_path / "set", [[2, 3], [0, 1], [1, 7], [0, 0.5]], stated)
    dataset = RecordDataset(folder)
    assert dataset.num_classes == 3 and dataset.read_labels(np.arange(4)).tolist() == [2, 0, 1, 0]
    assert np.array_equal(dataset[np.arange(4)].numpy(), np.stack([image_of(number) for number in range(4)]))
    assert dataset.notes == ("the records have 2 labels each; the first one is the identity",)


def test_sample_takes_the_first_images_of_each_identity(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 3, "b": 1, "c": 2})
    dataset = build_dataset(config(db_file_format="folder", data_path=str(folder), sample=2))
    assert dataset.read_labels(np.arange(len(dataset))).tolist() == [0, 0, 1, 2, 2]
    images = dataset[np.arange(len(dataset))].numpy()
    assert np.array_equal(images, np.stack([image_of(number) for number in (0, 1, 3, 4, 5)]))


@pytest.mark.parametrize(("key", "value", "found"), [("num_classes", 5, 3), ("num_image", 3, 4)])
def test_a_config_that_contradicts_the_set_is_refused_with_both_numbers(tmp_path, key, value, found):
    folder = write_cvlface_set(tmp_path / "set", [0, 1, 2, 2], 3)
    build_dataset(config(rec=[str(folder)], num_classes=3, num_image=4))
    with pytest.raises(DataError, match=rf"{key} = {value}, but .*train\.rec has {found}"):
        build_dataset(config(rec=[str(folder)], **{key: value}))


def test_a_property_file_that_record_0_contradicts_is_named(tmp_path):
    folder = write_insightface_set(tmp_path / "set", [(0, png(image_of(0)))], 1)
    (folder / "property").write_text("2,112,112")
    with pytest.raises(DataError, match=r"property: says 2 identities, but record 0 says 1"):
        RecordDataset(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_property_file_and_an_index_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path, encoding):
    folder = write_cvlface_set(tmp_path / "set", [0, 1, 0], 5)
    for name in ("property", "train.idx"):
        text = (folder / name).read_text().replace("\n", "\r\n")
        (folder / name).write_bytes((text + "\r\n" * (name == "property")).encode(encoding))
    dataset = RecordDataset(folder)
    assert dataset.num_classes == 5 and dataset.read_labels(np.arange(3)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("text", ["", "many", "3,112", "3,96,112"])
def test_a_property_file_that_cannot_be_used_is_named(tmp_path, text):
    folder = write_cvlface_set(tmp_path / "set", [0, 1])
    (folder / "property").write_text(text)
    with pytest.raises(DataError, match=r"property: "):
        RecordDataset(folder)


@pytest.mark.parametrize("label", [3.0, -1.0, 0.5, float("nan"), float("inf"), [7.0, 0.0]], ids=repr)
def test_a_label_outside_the_classes_is_named_with_its_record(tmp_path, label):
    records = [(0, png(image_of(0))), (label, png(image_of(1)))]
    dataset = RecordDataset(write_insightface_set(tmp_path / "set", records, 3))
    assert dataset.read_labels(np.array([0])).tolist() == [0]
    with pytest.raises(InputError, match=r"train\.rec: record 2 has label .*outside 0\.\.2"):
        dataset[np.array([0, 1])]


@pytest.mark.parametrize(
    ("encoded", "message"),
    [(b"", "are not an image"), (b"garbage", "are not an image"), (png(image_of(0)[:100]), "112x100 pixels")],
    ids=["empty", "garbage", "size"],
)
def test_an_image_that_cannot_be_used_is_named_with_its_record(tmp_path, encoded, message):
    records = [(0, png(image_of(0))), (1, encoded)]
    dataset = RecordDataset(write_insightface_set(tmp_path / "set", records, 2))
    with pytest.raises(InputError, match=rf"train\.rec: record 2: .*{message}"):
        dataset[np.array([0, 1])]


def test_an_image_file_that_cannot_be_used_is_named(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 1})
    (folder / "a" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"faces/a/bad\.jpg: its 8 bytes are not an image"):
        FolderDataset(folder)[np.arange(2)]


def test_a_set_without_images_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.rec: contains no images"):
        RecordDataset(write_insightface_set(tmp_path / "set", [], 2))
    (tmp_path / "faces").mkdir()
    with pytest.raises(DataError, match="faces: contains no folders with images"):
        FolderDataset(tmp_path / "faces")
    (tmp_path / "faces" / "nobody").mkdir()
    with pytest.raises(DataError, match="nobody: contains no images"):
        FolderDataset(tmp_path / "faces")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        FolderDataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"nowhere/train\.rec: no such file"):
        RecordDataset(tmp_path / "nowhere")


def test_an_index_that_lacks_images_is_named(tmp_path):
    folder = write_insightface_set(tmp_path / "set", [(0, b""), (0, b""), (1, b"")], 2)
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(DataError, match=r"train\.idx: lists 2 images, but record 0 says 3"):
        RecordDataset(folder)
