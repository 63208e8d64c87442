"""Gray images, and JPEGs in printing colours (CMYK, YCCK), become the RGB images that Pillow makes of them."""

import io

import numpy as np
import pytest
from conftest import run_script
from PIL import Image

from data.bin_set import read_bin
from data.dataset import RecordDataset
from data.folder_set import FolderDataset
from data.images import decode_rgb


def cmyk_jpeg(rgb: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] RGB as Photoshop does: inverted inks, with Adobe's marker. Black ink replaces gray."""
    inks = 255 - rgb.astype(int)
    black = inks.min(2, keepdims=True)
    inks = (inks - black) * 255 // np.maximum(255 - black, 1)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([inks, black], 2).astype(np.uint8), "CMYK").save(file, "JPEG", quality=98)
    return file.getvalue()


def as_ycck(jpeg: bytes) -> bytes:
    """The same file, whose Adobe marker says that the inks are stored as luminance and chrominance."""
    transform = jpeg.index(b"Adobe") + 11
    return jpeg[:transform] + b"\2" + jpeg[transform + 1 :]


def without_marker(jpeg: bytes) -> bytes:
    """The same file without Adobe's marker."""
    start = jpeg.index(b"Adobe") - 4
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def as_pillow_reads(jpeg: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(jpeg))
    assert image.mode == "CMYK"
    return np.array(image.convert("RGB"))


def difference(image: np.ndarray, other: np.ndarray) -> int:
    return abs(image.astype(int) - other).max()


@pytest.mark.parametrize("change", [bytes, as_ycck, without_marker])
def test_a_cmyk_jpeg_is_decoded_as_pillow_does(images, change):
    for image in images:
        jpeg = change(cmyk_jpeg(image))
        assert difference(decode_rgb(jpeg, "image"), as_pillow_reads(jpeg)) <= 3  # of 255, by rounding


def test_cmyk_jpegs_are_read_from_folders_record_sets_and_bin_sets(images, tmp_path):
    faces, encoded = images[:4], [cmyk_jpeg(face) for face in images[:4]]
    for number, jpeg in enumerate(encoded):
        (tmp_path / "faces" / f"{number // 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / f"{number // 2}" / f"{number}.jpg").write_bytes(jpeg)
    (tmp_path / "pairs.txt").write_text("0/0.jpg 0/1.jpg 1\n1/2.jpg 1/3.jpg 1\n")
    for arguments in (["make_rec.py", "faces", "set"], ["make_bin.py", "pairs.txt", "pairs.bin", "--root", "faces"]):
        done = run_script(f"tools/{arguments[0]}", *arguments[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    sets = FolderDataset(tmp_path / "faces"), RecordDataset(tmp_path / "set"), read_bin(tmp_path / "pairs.bin")
    for read in (dataset[np.arange(4)].numpy() for dataset in sets):
        assert difference(read, np.stack([as_pillow_reads(jpeg) for jpeg in encoded])) <= 3
        assert abs(read.astype(int) - faces).mean() < 3  # the colours are those of the faces


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
def test_a_gray_image_has_three_equal_colours(images, suffix):
    file = io.BytesIO()
    gray = Image.fromarray(images[0]).convert("L")
    gray.save(file, suffix)
    decoded = decode_rgb(file.getvalue(), "image")
    assert decoded.shape == images[0].shape and (decoded == decoded[..., :1]).all()
    assert difference(decoded[..., 0], np.array(Image.open(file))) <= 1
