"""Training sets in every layout, and the order of batches, which does not depend on who reads them."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from easydict import EasyDict

from data import loader
from data.bin_set import read_bin
from data.dataset import DataError, FaceDataset, FolderDataset, RecordDataset, build_dataset
from data.images import ImageError
from data.loader import Batches, GlobalOrder
from data.recordio import RecordWriter
from utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def image_of(number):
    return np.random.default_rng(number).integers(0, 256, (112, 112, 3), dtype=np.uint8)


def png(image):
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_cvlface_set(folder, labels, stated=None):
    """Records of flag 0 from key 0 on, image k under key k."""
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train") as writer:
        for key, label in enumerate(labels):
            writer.write(key, label, png(image_of(key)))
    if stated is not None:
        (folder / "property").write_text(f"{stated},112,112")
    return folder


def write_insightface_set(folder, records, num_classes):
    """`records`: (label, encoded image) of keys 1 .. N; record 0 and a record an identity around them."""
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
    """counts: identity -> number of images; image numbers run through the sorted identities."""
    number = 0
    for identity in sorted(counts):
        (folder / identity).mkdir(parents=True)
        for index in range(counts[identity]):
            (folder / identity / f"{index:03d}.png").write_bytes(png(image_of(number)))
            number += 1
    return folder


def config(**settings):
    return EasyDict({"db_file_format": "rec", "sample": 0, "num_classes": None, "num_image": None, **settings})


def run_script(name, *arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


class Numbers(FaceDataset):
    """Images that hold their position; the positions in `broken` cannot be read."""

    source = "numbers"

    def __init__(self, count, broken=()):
        self.count, self.num_classes, self.broken = count, 7, broken

    def __len__(self):
        return self.count

    def read_image(self, position):
        if position in self.broken:
            raise ImageError(f"numbers: record {position} is broken")
        return np.full((112, 112, 3), position % 256, dtype=np.uint8), position % 7


def epoch_of(order, epoch, first=0):
    order.start_at(epoch, first)
    return list(order)


def equal(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_the_insightface_layout_of_real_faces_is_read_as_rgb(face_data):
    dataset = build_dataset(cfg := config(rec=str(face_data / "lfw")))
    assert (len(dataset), dataset.num_classes) == (cfg.num_image, cfg.num_classes) == (10562, 4859)
    positions = np.array([0, 1, 5000, 10561])
    batch = dataset[positions]
    assert batch.images.shape == (4, 112, 112, 3)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
    for row, position in enumerate(positions):
        header, encoded = dataset.reader.read(int(position) + 1)
        bgr = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(batch.images[row].numpy(), bgr[..., ::-1])
        assert batch.labels[row] == np.ravel(header.label)[0]
    labels = [dataset.reader.read(key)[0].label for key in range(1, 10563)]
    assert {int(np.ravel(label)[0]) for label in labels} == set(range(4859))


@pytest.mark.parametrize(("stated", "found"), [(None, 4), (4, 4), (9, 9)])
def test_the_cvlface_layout_is_read_from_key_0(tmp_path, stated, found):
    labels = [0, 2, 2, 1, 3]
    dataset = RecordDataset(write_cvlface_set(tmp_path / "set", labels, stated))
    assert (len(dataset), dataset.num_classes) == (5, found)
    batch = dataset[np.array([4, 0, 1])]
    assert batch.labels.tolist() == [3, 0, 2]
    assert np.array_equal(batch.images.numpy(), np.stack([image_of(number) for number in (4, 0, 1)]))


def test_the_insightface_layout_leaves_the_identity_records_out(tmp_path):
    records = [(label, png(image_of(number))) for number, label in enumerate([0, 0, [1, 5, 5], [2]])]
    dataset = RecordDataset(write_insightface_set(tmp_path / "set", records, 3))
    assert (len(dataset), dataset.num_classes) == (4, 3)
    batch = dataset[np.arange(4)]
    assert batch.labels.tolist() == [0, 0, 1, 2]
    assert np.array_equal(batch.images.numpy(), np.stack([image_of(number) for number in range(4)]))


def test_a_folder_set_is_read_in_the_order_of_names(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"bob": 3, "alice": 1, "Zoë": 2})
    (folder / "notes.txt").write_text("no identity")
    (folder / "bob" / "notes.txt").write_text("no image")
    dataset = build_dataset(cfg := config(db_file_format="folder", data_path=str(folder)))
    assert (len(dataset), dataset.num_classes) == (cfg.num_image, cfg.num_classes) == (6, 3)
    batch = dataset[np.arange(6)]
    assert batch.labels.tolist() == [0, 0, 1, 2, 2, 2]  # Zoë, alice, bob
    assert np.array_equal(batch.images.numpy(), np.stack([image_of(number) for number in range(6)]))


def test_a_sample_of_a_folder_set_takes_the_first_images_of_each(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 3, "b": 1, "c": 2})
    dataset = build_dataset(config(db_file_format="folder", data_path=str(folder), sample=2))
    batch = dataset[np.arange(len(dataset))]
    assert batch.labels.tolist() == [0, 0, 1, 2, 2]
    assert np.array_equal(batch.images.numpy(), np.stack([image_of(number) for number in (0, 1, 3, 4, 5)]))


@pytest.mark.parametrize(("key", "value", "found"), [("num_classes", 5, 3), ("num_image", 3, 4)])
def test_a_config_that_the_set_does_not_fit_is_told_both_numbers(tmp_path, key, value, found):
    folder = write_cvlface_set(tmp_path / "set", [0, 1, 2, 2], 3)
    build_dataset(config(rec=str(folder), num_classes=3, num_image=4))
    with pytest.raises(DataError, match=rf"{key} = {value}, but .*train\.rec has {found}"):
        build_dataset(config(rec=str(folder), **{key: value}))


def test_a_property_file_that_record_0_contradicts_is_named(tmp_path):
    folder = write_insightface_set(tmp_path / "set", [(0, png(image_of(0)))], 1)
    (folder / "property").write_text("2,112,112")
    with pytest.raises(DataError, match=r"property: says 2 identities, record 0 says 1"):
        RecordDataset(folder)


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
    assert dataset[np.array([0])].labels.tolist() == [0]
    with pytest.raises(InputError, match=r"train\.rec: record 2 has label .*outside 0\.\.2"):
        dataset[np.array([0, 1])]


@pytest.mark.parametrize(
    ("encoded", "message"),
    [(b"", "no image"), (b"not an image", "no image"), (png(image_of(0)[:100]), "112x100 pixels")],
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
    with pytest.raises(InputError, match=r"faces/a/bad\.jpg: .*decode to no image"):
        FolderDataset(folder)[np.arange(2)]


def test_a_set_without_images_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.rec: holds no image"):
        RecordDataset(write_insightface_set(tmp_path / "set", [], 2))
    (tmp_path / "faces").mkdir()
    with pytest.raises(DataError, match="faces: no images"):
        FolderDataset(tmp_path / "faces")
    (tmp_path / "faces" / "nobody").mkdir()
    with pytest.raises(DataError, match="nobody: holds no image"):
        FolderDataset(tmp_path / "faces")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        FolderDataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"nowhere/train\.rec: no such file"):
        RecordDataset(tmp_path / "nowhere")


@pytest.mark.parametrize("sample", [0, 2])
def test_a_folder_made_into_records_gives_the_same_images_and_labels(tmp_path, sample):
    write_folder_set(tmp_path / "faces", {"a": 3, "b": 1, "c": 2, "d": 4})
    done = run_script("make_rec.py", "faces", "set", "--sample", sample, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder, records = FolderDataset(tmp_path / "faces", sample), RecordDataset(tmp_path / "set")
    assert f"{len(folder)} images of 4 identities" in done.stdout
    assert (len(records), records.num_classes) == (len(folder), 4)
    everything = np.arange(len(folder))
    for one, other in zip(folder[everything], records[everything], strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "set" / "property").read_text() == "4,112,112"
    end = len(folder) + 1
    assert records.reader.read(0)[0].label.tolist() == [end, end + 4]
    for identity in range(4):
        first, last = records.reader.read(end + identity)[0].label
        assert set(folder.labels[int(first) - 1 : int(last) - 1]) == {identity}
        assert last - first == (folder.labels == identity).sum()


def test_making_records_of_a_broken_image_names_it_and_leaves_no_set(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 2})
    (folder / "a" / "001.png").write_bytes(b"no image")
    done = run_script("make_rec.py", folder, tmp_path / "set", cwd="/")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "faces/a/001.png" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "set").iterdir()) == []


def test_a_list_of_pairs_made_into_a_bin_reads_back(tmp_path):
    write_folder_set(tmp_path / "faces", {"a": 2, "b": 2})
    (tmp_path / "pairs.txt").write_text("a/000.png a/001.png 1\n\na/000.png\tb/001.png\t0\n")
    done = run_script("make_bin.py", "pairs.txt", "out/set.bin", "--root", "faces", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = read_bin(tmp_path / "out" / "set.bin")
    assert made.is_same.tolist() == [True, False]
    assert np.array_equal(made[range(4)].numpy(), np.stack([image_of(number) for number in (0, 1, 0, 3)]))


def test_a_line_that_is_no_pair_is_named(tmp_path):
    (tmp_path / "pairs.txt").write_text("\na b yes\n")
    done = run_script("make_bin.py", "pairs.txt", "set.bin", cwd=tmp_path)
    assert done.returncode == 2
    assert "pairs.txt: line 2 " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "set.bin").exists()


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(monkeypatch, ranks):
    whole = epoch_of(GlobalOrder(101, 12, seed=3, draws=3), epoch=2)
    assert len(whole) == 8 and whole[0].draws.shape == (12, 3)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loader, "world_size", lambda: ranks)
        order = GlobalOrder(101, 12 // ranks, seed=3, draws=3)
        assert len(order) == 8
        shares.append(epoch_of(order, epoch=2))
    joined = [
        tuple(np.concatenate([share[number][part] for share in shares]) for part in (0, 1, 2)) for number in range(8)
    ]
    assert equal(joined, whole)


def test_every_position_stands_at_most_once_in_an_epoch():
    order = GlobalOrder(103, 10, seed=0)
    positions = np.concatenate([places.positions for places in epoch_of(order, epoch=0)])
    assert len(positions) == 100 == 10 * len(order)
    assert len(np.unique(positions)) == 100
    assert positions.min() >= 0
    assert positions.max() < 103


def test_epochs_and_seeds_differ_and_repeat():
    order = GlobalOrder(200, 20, seed=0, draws=2)
    first, second = epoch_of(order, 0), epoch_of(order, 1)
    for part in (0, 1, 2):
        assert not np.array_equal(first[0][part], second[0][part])
        assert not np.array_equal(first[0][part], epoch_of(GlobalOrder(200, 20, seed=1, draws=2), 0)[0][part])
    assert equal(epoch_of(order, 0), first)
    assert equal(epoch_of(GlobalOrder(200, 20, seed=0, draws=2), 1), second)


def test_about_half_of_the_images_are_mirrored():
    flips = np.concatenate([places.flips for places in epoch_of(GlobalOrder(10_000, 100, seed=0), 0)])
    assert flips.dtype == bool
    assert 4800 < flips.sum() < 5200


def test_train_flip_off_mirrors_no_image_and_leaves_the_order_as_it_is():
    mirrored, plain = (list(GlobalOrder(1000, 100, seed=0, flip=flip)) for flip in (True, False))
    assert not any(plan.flips.any() for plan in plain)
    for one, other in zip(mirrored, plain, strict=True):
        assert np.array_equal(one.positions, other.positions)


def test_the_numbers_drawn_for_an_image_are_uniform_and_differ_from_image_to_image():
    draws = np.concatenate([places.draws for places in epoch_of(GlobalOrder(10_000, 100, seed=0, draws=4), 0)])
    assert (draws.shape, draws.dtype) == ((10_000, 4), np.float32)
    assert draws.min() >= 0 and draws.max() < 1
    assert len(np.unique(draws[:, 0])) > 9_900
    assert abs(draws.mean(0) - 0.5).max() < 0.02 and abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.05


@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_an_epoch_goes_on_from_any_batch_as_if_uninterrupted(first):
    order = GlobalOrder(53, 10, seed=9, draws=5)
    whole = epoch_of(order, 3)
    rest = epoch_of(GlobalOrder(53, 10, seed=9, draws=5), 3, first)
    assert len(rest) == 5 - first
    assert equal(rest, whole[first:])


def test_the_batches_do_not_depend_on_the_number_of_workers():
    runs = []
    for num_workers in (0, 1, 2):
        order = GlobalOrder(50, 8, seed=4)
        source = Batches(Numbers(50), order, num_workers, CPU)
        order.start_at(0, 2)
        run = list(source)
        order.start_at(1, 0)
        run += list(source)
        runs.append(run)
    assert len(runs[0]) == 4 + 6
    for batch in runs[0]:
        assert (batch.images.shape, batch.labels.shape, batch.flips.shape) == ((8, 112, 112, 3), (8,), (8,))
        assert (batch.images.dtype, batch.labels.dtype, batch.flips.dtype) == (torch.uint8, torch.int64, torch.bool)
    expected = epoch_of(GlobalOrder(50, 8, seed=4), 0, 2) + epoch_of(GlobalOrder(50, 8, seed=4), 1)
    for batch, (positions, flips, _) in zip(runs[0], expected, strict=True):
        assert batch.teacher is None
        assert batch.images[:, 0, 0, 0].tolist() == positions.tolist()
        assert batch.labels.tolist() == (positions % 7).tolist()
        assert batch.flips.tolist() == flips.tolist()
    for run in runs[1:]:
        assert len(run) == len(runs[0])
        for one, other in zip(run, runs[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_input_error_of_a_worker_is_raised_as_itself(num_workers):
    order = GlobalOrder(40, 10, seed=0)
    broken = int(epoch_of(order, 0)[2][0][5])
    order.start_at(0, 0)
    read = 0
    with pytest.raises(ImageError, match=rf"^numbers: record {broken} is broken$"):
        for _ in Batches(Numbers(40, {broken}), order, num_workers, CPU):
            read += 1
    assert read == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_stays_as_it_is_as_long_as_any_view_of_it_is_held(num_workers):
    order = GlobalOrder(160, 8, seed=4)
    source = Batches(Numbers(160), order, num_workers, CPU)
    held = [batch.images[:, 5, 5, 1].numpy() for batch in source]
    assert [view.tolist() for view in held] == [places.positions.tolist() for places in epoch_of(order, 0)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_memory_of_batches_is_used_again(num_workers):
    order = GlobalOrder(160, 8, seed=4)
    source = Batches(Numbers(160), order, num_workers, CPU)
    for epoch in range(3):
        order.start_at(epoch, 0)
        for number, _ in enumerate(source):  # given up on the way, with batches on their way from the workers
            if number == 3:
                break
    order.start_at(3, 0)
    places = {batch.images.data_ptr() for batch in source}
    assert len(places) <= 2 * num_workers + 3
    expected = epoch_of(order, 3)
    for batch, (positions, _, _) in zip(source, expected, strict=True):
        assert batch.images[:, 0, 0, 0].tolist() == positions.tolist()


def test_too_little_shared_memory_is_told_with_what_to_do(monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert len(list(Batches(Numbers(16), GlobalOrder(16, 8, seed=0), 0, CPU))) == 2
    with pytest.raises(InputError, match=r"no shared memory for 2 MB of batches: lower num_workers"):
        Batches(Numbers(16), GlobalOrder(16, 8, seed=0), 2, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_copied_ahead_to_the_gpu():
    order, device = GlobalOrder(160, 8, seed=4), torch.device("cuda")
    found = list(Batches(Numbers(160), order, 2, device))
    for batch, (positions, flips, _) in zip(found, epoch_of(order, 0), strict=True):
        assert {part.device.type for part in batch[:4]} == {"cuda"}
        assert batch.images[:, 0, 0, 0].tolist() == positions.tolist()
        assert batch.flips.tolist() == flips.tolist()


def test_an_index_that_lacks_images_is_named(tmp_path):
    folder = write_insightface_set(tmp_path / "set", [(0, b""), (0, b""), (1, b"")], 2)
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(DataError, match=r"train\.idx: lists 2 images, record 0 says 3"):
        RecordDataset(folder)
