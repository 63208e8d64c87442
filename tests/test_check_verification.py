"""tools/check_data.py on verification sets: images, contradictions between pairs, folds of one class."""

import cv2
import numpy as np
import pytest
from checked_sets import check, drawn_faces

from data.bin_set import write_bin


def test_contradictions_between_pairs_are_reported(tmp_path):
    faces = drawn_faces()
    one, two, three, four, *rest = faces
    broken = [b"no image", rest[0]]
    small = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8))[1].tobytes()
    pairs = [(one, two), (two, one), (three, three), (four, four), (one, three), (one, three), broken, (small, four)]
    is_same = [True, False, True, False, False, False, True, True]
    write_bin(tmp_path / "pairs.bin", [image for pair in pairs for image in pair], is_same)
    code, report = check(tmp_path / "pairs.bin")
    assert code == 1 and [report["figures"][name] for name in ("pairs", "same", "different")] == [8, 4, 4]
    assert {kind: found["examples"] for kind, found in report["problems"].items()} == {
        "image that does not decode": ["image 12"],
        "fewer pairs than the protocol has folds (10)": ["8 pairs"],
        "pair of one image with itself, labelled different": ["pair 3"],
        "pair labelled both the same and different": ["pairs 0 and 1"],
    }
    assert {kind: found["examples"] for kind, found in report["notes"].items()} == {
        "image that is not 112x112": ["image 14"],
        "pair of one image with itself, labelled the same": ["pair 2"],
        "pair that occurs twice": ["pairs 4 and 5"],
    }


FOLD_WARNING = "fold with one class of pairs (mix same and different pairs over the list)"


def noise_images(count):
    """Encoded images that all differ."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8).repeat(28, 1).repeat(28, 2)
    return [cv2.imencode(".png", image)[1].tobytes() for image in noise]


def write_arrow_pairs(folder, encoded, is_same):
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [image and {"bytes": image, "path": None} for image in encoded],
        "index": list(range(len(encoded))),
        "is_same": np.repeat(is_same, 2),
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(str(folder))


@pytest.mark.parametrize("write", [write_bin, write_arrow_pairs])
@pytest.mark.parametrize(
    ("is_same", "examples", "count"),
    [
        ([True, False] * 12, None, 0),
        ([True] * 12 + [False] * 12, ["fold 1"], 10),  # as in a list that is sorted by kind
        ([True, False] * 11 + [True, True], ["fold 10"], 1),
        ([True] * 3 + [False] * 20 + [True], ["fold 1", "fold 2"], 9),
    ],
    ids=["in turn", "same first", "last fold", "few same"],
)
def test_a_fold_with_one_class_of_pairs_is_a_warning(tmp_path, write, is_same, examples, count):
    write(tmp_path / "set.bin", noise_images(2 * len(is_same)), is_same)
    code, report = check(tmp_path / "set.bin")
    assert (code, report["problems"]) == (0, {})
    if examples is None:
        assert report["warnings"] == {}
    else:
        assert report["warnings"][FOLD_WARNING]["count"] == count
        assert report["warnings"][FOLD_WARNING]["examples"][: len(examples)] == examples


def test_a_missing_image_of_an_arrow_set_is_reported(tmp_path):
    images = noise_images(24)
    write_arrow_pairs(tmp_path / "set", [*images[:5], None, *images[6:]], [True, False] * 6)
    code, report = check(tmp_path / "set")
    assert code == 1 and report["problems"] == {"image that is missing": {"count": 1, "examples": ["image 5"]}}
