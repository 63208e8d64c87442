"""Network input by hand arithmetic; files that appear whole; checkpoints that say what there is."""

import cv2
import numpy as np
import pytest
import torch

from data.images import ImageError, decode_aligned, decode_rgb, to_input
from train.checkpoint import PARTS, SUMS, Checkpoint, CheckpointError, complete_steps, load, prune, save
from utils.files import atomic_write, make_writable_folder

CPU = torch.device("cpu")


def random_images(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8))


def checkpoint(step):
    return Checkpoint({"weight": torch.full((2,), float(step))}, {"kernel": torch.ones(3, 4)}, {"step": step})


def test_network_input_is_what_the_formula_says_flips_included():
    images = random_images(4)
    flips = torch.tensor([False, True, True, False])
    x = to_input(images, flips, CPU)
    assert x.shape == (4, 3, 112, 112)
    assert x.dtype == torch.float32
    for row in range(4):
        image = images[row].numpy().astype(np.float32)
        image = image[:, ::-1] if flips[row] else image
        expected = ((image - np.float32(127.5)) / np.float32(127.5)).transpose(2, 0, 1)
        assert np.array_equal(x[row].numpy(), expected)
    assert torch.equal(to_input(images, None, CPU), to_input(images, torch.zeros(4, dtype=torch.bool), CPU))


def test_network_input_spans_minus_one_to_one():
    images = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    images[:, :, 56:] = 255
    x = to_input(images, None, CPU)
    assert torch.equal(x[..., :56], torch.full((1, 3, 112, 56), -1.0))
    assert torch.equal(x[..., 56:], torch.full((1, 3, 112, 56), 1.0))


@pytest.mark.parametrize("flips", [None, torch.tensor([True, False])], ids=["no flips", "flips"])
def test_network_input_is_channels_last(flips):
    assert to_input(random_images(2), flips, CPU).is_contiguous(memory_format=torch.channels_last)


def test_images_are_decoded_to_rgb():
    image = random_images(1)[0].numpy()
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    for form in (encoded, encoded.tobytes(), memoryview(encoded.tobytes())):
        assert np.array_equal(decode_aligned(form, "image"), image)


@pytest.mark.parametrize("encoded", [b"", b"no image", b"\xff\xd8\xff\xe0"])
def test_bytes_that_are_no_image_are_named(encoded):
    with pytest.raises(ImageError, match=rf"set\.rec: record 5: {len(encoded)} bytes that decode to no image"):
        decode_rgb(encoded, "set.rec: record 5")


def test_an_image_of_another_size_is_named_with_its_size():
    encoded = cv2.imencode(".png", np.zeros((112, 96, 3), dtype=np.uint8))[1]
    with pytest.raises(ImageError, match=r"^photo\.png: 96x112 pixels"):
        decode_aligned(encoded, "photo.png")


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.bin"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_nothing(tmp_path, error):
    with pytest.raises(error), atomic_write(tmp_path / "file.bin") as file:
        file.write(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"a long old content")
    with pytest.raises(ValueError, match="stop"), atomic_write(path) as file:
        file.write(b"half")
        raise ValueError("stop")
    assert path.read_bytes() == b"a long old content"
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"a long old content"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    assert list(make_writable_folder(tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(OSError, match=r"taken.*cannot be written"):
        make_writable_folder(tmp_path / "taken" / "folder")


def test_a_checkpoint_loads_as_it_was_saved(tmp_path):
    assert save(tmp_path, 40, checkpoint(40)) == tmp_path / "40backbone.pth"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"40{part}" for part in (*PARTS, SUMS))
    loaded = load(tmp_path, 40)
    assert torch.equal(loaded.backbone["weight"], torch.tensor([40.0, 40.0]))
    assert torch.equal(loaded.header["kernel"], torch.ones(3, 4))
    assert loaded.state == {"step": 40}


def test_a_checkpoint_is_complete_with_all_its_files(tmp_path):
    for step in (100, 20, 3):
        save(tmp_path, step, checkpoint(step))
    assert complete_steps(tmp_path) == [3, 20, 100]
    for part, step in zip(PARTS, (100, 20, 3), strict=True):
        (tmp_path / f"{step}{part}").rename(tmp_path / f"{step}{part}.bak")
        assert step not in complete_steps(tmp_path)
    (tmp_path / "xstate.pth").write_bytes(b"")
    assert complete_steps(tmp_path) == []
    assert complete_steps(tmp_path / "nowhere") == []


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_pruning_keeps_the_newest(tmp_path, keep):
    for step in (5, 40, 100):
        save(tmp_path, step, checkpoint(step))
    (tmp_path / "7backbone.pth").write_bytes(b"a student without its state")
    (tmp_path / "log.csv").write_bytes(b"")
    prune(tmp_path, keep)
    kept = [5, 40, 100][-keep:]
    assert complete_steps(tmp_path) == kept
    names = {f"{step}{part}" for step in kept for part in (*PARTS, SUMS)} | {"7backbone.pth", "log.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_step_that_is_not_there_is_told_with_those_that_are(tmp_path):
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 7; there is none"):
        load(tmp_path, 7)
    for step in (5, 40):
        save(tmp_path, step, checkpoint(step))
    (tmp_path / "50backbone.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 50; there are 5, 40") as error:
        load(tmp_path, 50)
    assert str(tmp_path) in str(error.value)
