"""Images: decoding, PNG encoding, and network input compared with the formula."""

import cv2
import numpy as np
import pytest
import torch

from data.image_header import stated_size
from data.images import ImageError, decode_aligned, decode_rgb, encode_png, to_input

CPU = torch.device("cpu")


def random_images(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8))


def test_network_input_follows_the_formula_with_and_without_flips():
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
def test_an_error_names_bytes_that_are_not_an_image(encoded):
    with pytest.raises(ImageError, match=rf"set\.rec: record 5: its {len(encoded)} bytes are not an image"):
        decode_rgb(encoded, "set.rec: record 5")


def test_an_error_names_an_image_of_another_size():
    encoded = cv2.imencode(".png", np.zeros((112, 96, 3), dtype=np.uint8))[1]
    with pytest.raises(ImageError, match=r"^photo\.png: 96x112 pixels"):
        decode_aligned(encoded, "photo.png")


def test_a_png_decodes_to_the_image_that_was_encoded():
    image = np.ascontiguousarray(random_images(1)[0].numpy()[:, :70])
    encoded = encode_png(image)
    assert isinstance(encoded, bytes)
    assert np.array_equal(decode_rgb(encoded, "image"), image)


@pytest.mark.parametrize(
    ("suffix", "flags"),
    [(".png", []), (".jpg", []), (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".bmp", []),
     (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]), (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101])],
)  # fmt: skip
def test_the_stated_size_is_the_size_of_the_decoded_image(suffix, flags):
    encoded = cv2.imencode(suffix, random_images(1)[0].numpy()[:, :70], flags)[1]
    assert stated_size(encoded.data) == (70, 112)
    assert decode_rgb(encoded, "image").shape == (112, 70, 3)


def test_other_bytes_state_no_size():
    for start in (b"", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 ", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        assert stated_size(memoryview(start)) == (0, 0)
    assert stated_size(memoryview(b"RIFF\0\0\0\0WEBPABCD" + bytes(40))) == (0, 0)
