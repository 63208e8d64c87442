"""Images whose header states too many pixels are refused before memory is allocated for them."""

import os
import resource
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from conftest import ROOT

from data.images import MAX_PIXELS, ImageError, decode_into, decode_rgb


def png(width: int, height: int) -> bytes:
    chunks = ((b"IHDR", struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9999))))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(cv2.imencode(".jpg", np.zeros((112, 112, 3), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 154, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(100)


def webp(width: int, height: int) -> bytes:
    data = bytearray(
        cv2.imencode(".webp", np.zeros((112, 112, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 90])[1].tobytes()
    )
    at = data.index(b"\x9d\x01\x2a") + 3
    data[at : at + 4] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    ("encode", "sizes"),
    [(png, (6000, 20_000, 60_000)), (jpeg, (6000, 20_000, 60_000)), (bmp, (6000, 20_000)), (webp, (6000, 16_383))],
)
def test_an_image_that_states_too_many_pixels_is_refused_by_its_header(encode, sizes):
    for side in sizes:
        encoded = np.frombuffer(encode(side, side), np.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        message = f"image 7: {side}x{side} pixels, too large"
        with pytest.raises(ImageError, match=message):
            decode_rgb(encoded, "image 7")
        with pytest.raises(ImageError, match=message):
            decode_into(np.empty((1, 112, 112, 3), np.uint8), [encoded], lambda row: "image 7")
        assert (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
        )  # KiB; an image would take 108 MB


def test_photos_up_to_the_limit_are_decoded():
    assert MAX_PIXELS == 2**25
    photo = np.zeros((3000, 4000, 3), np.uint8)
    assert decode_rgb(cv2.imencode(".jpg", photo)[1], "photo").shape == photo.shape


def test_the_limit_also_holds_in_a_program_that_imports_opencv_first(tmp_path):
    (tmp_path / "image").write_bytes(jpeg(20_000, 20_000))
    code = "import cv2, sys; from data.images import decode_rgb; decode_rgb(open(sys.argv[1], 'rb').read(), 'image')"
    without = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV")}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "image"], cwd=ROOT, env=without, capture_output=True, text=True
    )
    assert "ImageError: image: 20000x20000 pixels, too large" in done.stderr
