"""tools/check_data.py --teacher: a trained network detects wrong labels and a wrong colour order."""

import cv2
import numpy as np
import pytest
from checked_sets import check, real_faces, teacher_settings

from data.bin_set import write_bin
from data.recordio import write_record_set


def swapped(face):
    image = cv2.imdecode(np.frombuffer(face, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


LABELS_WRONG, COLOURS_WRONG = (
    "labels that do not agree with the teacher",
    "colours that are swapped according to the teacher",
)


@pytest.mark.parametrize(("fault", "found"), [("none", []), ("labels", [LABELS_WRONG]), ("colours", [COLOURS_WRONG])])
def test_a_teacher_detects_shuffled_labels_and_swapped_colours(face_data, tmp_path, fault, found):
    images, labels = real_faces(face_data)
    if fault == "labels":
        images = [images[position] for position in np.random.default_rng(1).permutation(len(images))]
    if fault == "colours":
        images = [swapped(image) for image in images]
    write_record_set(tmp_path / "set", images, labels, 24)
    code, report = check(tmp_path / "set", "--teacher", *teacher_settings(face_data))
    figures = report["figures"]
    assert figures["teacher"].endswith("mobilefacenet_y1_128.pth: 331 tensors")
    assert (code, list(report["problems"])) == (int(bool(found)), found)
    assert figures["pairs_embedded"] == "24 same identity, 24 different"
    if fault == "none":
        assert figures["RGB_same"] > 0.4 > 0.15 > figures["RGB_different"] and figures["RGB_AUC"] > 0.95
        assert figures["RGB_same"] - figures["RGB_different"] > figures["BGR_same"] - figures["BGR_different"]


def test_a_teacher_checks_the_pairs_of_a_bin_set(face_data, tmp_path):
    images, _ = real_faces(face_data)
    pairs = [images[i : i + 2] for i in range(0, 24, 2)] + [[images[i], images[i + 4]] for i in range(0, 24, 2)]
    for name, is_same in (("right", [True] * 12 + [False] * 12), ("wrong", [True, False] * 12)):
        write_bin(tmp_path / f"{name}.bin", [image for pair in pairs for image in pair], is_same)
        code, report = check(tmp_path / f"{name}.bin", "--teacher", *teacher_settings(face_data))
        assert (code, list(report["problems"])) == ((0, []) if name == "right" else (1, [LABELS_WRONG]))
