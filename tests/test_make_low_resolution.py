"""tools/make_low_resolution.py as users run it."""

import itertools

import cv2
import numpy as np
import pytest
from conftest import run_script
from training_sets import png

from config import load_config
from data.bin_set import read_bin, write_bin
from eval.protocols import build_evaluation_sets

TOOL = "tools/make_low_resolution.py"
IDENTITIES = [4, 4, 0, 1, 1, 4, 2, 2]


@pytest.fixture(scope="module")
def copies(images, tmp_path_factory):
    """A set of the images, and the folder with its copies of 16, 24 and 32 pixels."""
    folder = tmp_path_factory.mktemp("copies")
    write_bin(folder / "set.bin", [png(image) for image in images], [True, False, False, True], IDENTITIES)
    done = run_script(TOOL, folder / "set.bin", folder / "low")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{folder}/low/set_{n}.bin: 4 pairs, {n} pixels across" for n in (16, 24, 32)]
    return folder / "set.bin", folder / "low"


def by_opencv(image: np.ndarray, size: int, down: int, right: int) -> np.ndarray:
    """The image after OpenCV's resizing of a window that is shifted, without the border: uint8 [96, 96, 3]."""
    padded = cv2.copyMakeBorder(image, 4, 4, 4, 4, cv2.BORDER_REPLICATE)
    window = padded[4 + down : 116 + down, 4 + right : 116 + right]
    small = cv2.resize(window, (size, size), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC)
    return large[8 - down : 104 - down, 8 - right : 104 - right]


@pytest.mark.parametrize(("size", "reach"), [(16, 3), (24, 2), (32, 1)])
def test_the_copies_have_the_same_pairs_and_few_pixels_anywhere(copies, images, size, reach):
    """Each image equals OpenCV's for one of the allowed shifts, and not always for the same one."""
    original, folder = copies
    copy = read_bin(folder / f"set_{size}.bin")
    assert copy.is_same.tolist() == read_bin(original).is_same.tolist() and copy.identities.tolist() == IDENTITIES
    assert all(copy.read(number).startswith(b"\x89PNG") for number in range(8))
    shifts = set()
    for image, found in zip(images, copy[range(8)].numpy(), strict=True):
        assert found.shape == (112, 112, 3)
        possible = itertools.product(range(-reach, reach + 1), repeat=2)
        equal = [shift for shift in possible if np.array_equal(by_opencv(image, size, *shift), found[8:104, 8:104])]
        assert len(equal) == 1
        shifts |= {*equal}
    assert len(shifts) > 2


def test_the_seed_decides_where_the_pixels_lie(copies, tmp_path):
    original, folder = copies
    for seed, name in ((0, "same"), (1, "other")):
        done = run_script(TOOL, original, tmp_path / name, "--sizes", "24", "--seed", seed)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (tmp_path / name).iterdir()] == ["set_24.bin"]
    first = (folder / "set_24.bin").read_bytes()
    assert (tmp_path / "same" / "set_24.bin").read_bytes() == first
    assert (tmp_path / "other" / "set_24.bin").read_bytes() != first


def test_the_copies_are_evaluation_sets(copies):
    _, folder = copies
    names = ["set_16", "set_24", "set_32"]
    cfg = load_config(overrides=[f"val_rec={folder}", f"val_targets={','.join(names)}", "ijb_targets=[]"])
    found = {entry.target: entry.find() for entry in build_evaluation_sets(cfg) if entry.protocol == "verification"}
    assert found == {name: folder / f"{name}.bin" for name in names}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.bin", "low"], "absent.bin"),
        (["broken.bin", "low"], "broken or cut short"),
        (["broken.bin", "low", "--sizes", "112"], "--sizes must be from 1 to 56"),
        (["broken.bin", "low", "--seed", "-1"], "--seed must be at least 0"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, words):
    (tmp_path / "broken.bin").write_bytes(b"no pickle")
    done = run_script(TOOL, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1]
    assert not (tmp_path / "low").exists()
