"""The examples of docs/data.md give the sets and images that they promise."""

import pickle
import re

import cv2
import numpy as np
from conftest import ROOT
from test_readme import blocks
from training_sets import image_of

from data.alignment import ARCFACE_POINTS
from data.bin_set import read_bin
from demo.make_demo_data import encoded_face

PAGE = (ROOT / "docs" / "data.md").read_text()
ALIGN, ENCODE = blocks(PAGE, "python")


def test_the_table_of_points_is_the_template_that_the_code_uses():
    rows = re.findall(r"^\| [a-z ]+ \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert np.array_equal(np.array(rows, dtype=float), ARCFACE_POINTS)


def test_the_example_aligns_a_face_in_a_photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    face = cv2.imdecode(np.frombuffer(encoded_face((0, 7, 0, 0.3)), dtype=np.uint8), cv2.IMREAD_COLOR)
    photo = np.zeros((400, 500, 3), dtype=np.uint8)
    photo[100:212, 200:312] = face  # the points of the example are the template's, shifted by (200, 100)
    cv2.imwrite("photo.png", photo)
    exec(ALIGN, {})  # noqa: S102 (our own page)
    difference = np.abs(cv2.imread("face.png").astype(float) - face)[5:-5, 5:-5]
    shifted = np.abs(np.roll(face, 1, axis=1).astype(float) - face)[5:-5, 5:-5]
    assert difference.mean() < shifted.mean() / 5


def test_the_example_encodes_raw_pixels_without_a_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = [image_of(number) for number in range(4)]
    (tmp_path / "pixels.bin").write_bytes(pickle.dumps((images, [True, False])))
    exec(ENCODE, {})  # noqa: S102 (our own page)
    made = read_bin("mine.bin")
    assert np.array_equal(made[range(4)].numpy(), np.stack(images)) and made.is_same.tolist() == [True, False]
