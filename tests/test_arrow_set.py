"""Sets in CVLFace's Arrow layout: which images are read, in which order, by which processes, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from arrow_sets import COUNT, datasets, face, numbers, png, write_pairs, write_set

from data.arrow_set import ArrowVerificationSet, TemplateSet
from data.images import fit
from data.template_metadata import INTEGERS, ArrowSetError
from data.workers import keep_batch
from eval.protocols import PROTOCOLS
from utils.errors import InputError


def test_images_are_ordered_by_their_index(tmp_path):
    images = TemplateSet(write_set(tmp_path / "set"))
    assert len(images) == COUNT
    assert numbers(images[range(COUNT)]) == list(range(COUNT))
    assert numbers(images[np.array([7, 0, 7])]) == [7, 0, 7]


def test_a_column_of_plain_bytes_is_read_too(tmp_path):
    images = TemplateSet(write_set(tmp_path / "set", image_type=datasets.Value("binary")))
    assert numbers(images[range(3, 6)]) == [3, 4, 5]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_read_a_set(tmp_path, method):
    images = TemplateSet(write_set(tmp_path / "set"))
    images[range(2)]  # read before the workers start, like in a second evaluation
    loader = torch.utils.data.DataLoader(
        images, batch_size=None, sampler=[range(0, 5), range(5, 12)], collate_fn=keep_batch, num_workers=2,
        multiprocessing_context=method,
    )  # fmt: skip
    assert [number for batch in loader for number in numbers(batch)] == list(range(COUNT))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"index": [*range(COUNT - 1), 3]},
            r"set: `index` must contain each number from 0 to 11 once, but 4 is missing or a smaller number is rep",
        ),
        (
            {"index": range(1, COUNT + 1)},
            r"set: `index` must contain each number from 0 to 11 once, but 0 is missing",
        ),
        ({"metadata": [1, 2]}, r"metadata.pt: must contain a dict of arrays by name, but contains list"),
        (
            {"metadata": {"image_paths": ["a"] * COUNT}},
            r"metadata.pt: has no templates, only image_paths; is it a set of another",
        ),
        ({"metadata": {"templates": np.arange(5)}}, r"metadata.pt: 5 templates for 12 images; fetch the folder"),
    ],
)
def test_an_inconsistent_set_is_refused(tmp_path, change, message):
    folder = write_set(tmp_path / "set", **change)
    with pytest.raises(ArrowSetError, match=message):
        TemplateSet(folder, per_image={"templates": INTEGERS})


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"no image", r"set: image with index 1: its 8 bytes are not an image"),
        (png(face(0, 100)), r"set: image with index 1: 100x100 pixels; faces must be aligned to 112x112"),
    ],
)
def test_an_error_names_an_image_that_cannot_be_used(tmp_path, encoded, message):
    good = [png(face(number)) for number in range(COUNT)]
    images = TemplateSet(write_set(tmp_path / "set", range(COUNT), [good[0], encoded, *good[2:]]))
    with pytest.raises(InputError, match=message):
        images[range(COUNT)]


def test_missing_images_are_counted_before_any_is_read_and_the_first_is_named(tmp_path):
    absent = {4: None, 7: {"bytes": None, "path": "/a/face.png"}, 9: {"bytes": None, "path": None}}
    index = np.random.default_rng(1).permutation(COUNT)
    entries = [absent.get(number, {"bytes": b"no image", "path": None}) for number in index]
    # Like Image(), but paths are saved unchanged.
    image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features(image=image, index=datasets.Value("int64"))
    rows = datasets.Dataset.from_dict({"image": entries, "index": index}, features=features)
    rows.save_to_disk(str(tmp_path / "set"), num_shards=3)
    torch.save({}, tmp_path / "set" / "metadata.pt")
    message = r"set: 3 of the 12 images are missing, the first is the image with index 4; save the set again"
    with pytest.raises(ArrowSetError, match=message):
        TemplateSet(tmp_path / "set")
    pairs = rows.add_column("is_same", [True] * COUNT)
    pairs.save_to_disk(str(tmp_path / "pairs_set"))
    with pytest.raises(ArrowSetError, match=message):
        PROTOCOLS["verification"].open(tmp_path / "pairs_set")


def arrow_file(folder: Path) -> Path:
    return next(folder.glob("*.arrow"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metadata.pt").unlink(), r"metadata.pt: no such file; .*fetch the whole folder"),
        (lambda folder: cut(folder / "metadata.pt"), r"metadata.pt: broken, cut short"),
        (lambda folder: (folder / "metadata.pt").write_bytes(b""), r"metadata.pt: .*an empty file; .*again"),
        (
            lambda folder: (folder / "state.json").unlink(),
            r"set: cannot be read as an Arrow set .*fetch the folder again",
        ),
        (lambda folder: cut(folder / "dataset_info.json"), r"set: cannot be read as an Arrow set"),
        (lambda folder: cut(arrow_file(folder)), r"set: cannot be read as an Arrow set"),
        (lambda folder: arrow_file(folder).unlink(), r"set: cannot be read as an Arrow set"),
    ],
)
def test_an_error_names_a_damaged_set_and_what_to_do(tmp_path, damage, message):
    folder = write_set(tmp_path / "set")
    damage(folder)
    with pytest.raises(ArrowSetError, match=message):
        TemplateSet(folder)


def test_a_set_with_other_columns_is_refused(tmp_path):
    datasets.Dataset.from_dict({"picture": [1]}).save_to_disk(str(tmp_path / "set"))
    message = r"set: has the columns \['picture'\], but must have \['image', 'index'\]; is it a set of another protocol"
    with pytest.raises(ArrowSetError, match=message):
        TemplateSet(tmp_path / "set")


@pytest.mark.parametrize("kind", [bool, int, float])
def test_a_pair_is_two_images_in_a_row_by_index(tmp_path, kind):
    flags = {5: True, 4: True, 0: False, 3: True, 1: False, 2: True, 7: False, 6: False}
    pairs = ArrowVerificationSet(write_pairs(tmp_path / "set", list(flags), [kind(flag) for flag in flags.values()]))
    assert (pairs.path, len(pairs)) == (str(tmp_path / "set"), 8)
    assert pairs.is_same.dtype == bool and pairs.is_same.tolist() == [False, True, True, False]
    assert numbers(pairs[range(8)]) == list(range(8))
    assert numbers(pairs[np.array([6, 1])]) == [6, 1]


def test_images_of_another_size_are_resized_and_cropped_as_in_bin_sets(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (112, 160, 3), dtype=np.uint8)
    large = np.random.default_rng(1).integers(0, 256, (250, 224, 3), dtype=np.uint8)
    images = ArrowVerificationSet(write_pairs(tmp_path / "set", [1, 0], [True, True], [png(large), png(wide)]))[[0, 1]]
    assert np.array_equal(images[0], wide[:, 24:136])
    assert np.array_equal(images[1], fit(large))


@pytest.mark.parametrize(
    ("index", "is_same", "message"),
    [
        ([0, 1, 2], [True] * 3, r"set: 3 images, but each pair needs two; fetch the folder again"),
        (
            [0, 1, 3, 2],
            [True, True, True, False],
            r"set: the images with index 2 and 3 are a pair, but .* False and True",
        ),
        (
            [0, 1],
            [None, None],
            r"set: the images with index 0 and 1 are a pair, but their `is_same` is (None|nan) and .*expected the same",
        ),
        (
            [0, 1],
            [2, 2],
            r"set: the images with index 0 and 1 are a pair, but their `is_same` is 2 and 2 .expected the same",
        ),
        (
            [0, 1, 3, 4],
            [True] * 4,
            r"set: `index` must contain each number from 0 to 3 once, but 2 is missing",
        ),
    ],
)
def test_inconsistent_pairs_are_refused(tmp_path, index, is_same, message):
    with pytest.raises(ArrowSetError, match=message):
        ArrowVerificationSet(write_pairs(tmp_path / "set", index, is_same))


def test_a_set_without_flags_is_refused_as_a_verification_set(tmp_path):
    message = r"has the columns \['image', 'index'\], but must have \['image', 'index', 'is_same'\]"
    with pytest.raises(ArrowSetError, match=message):
        ArrowVerificationSet(write_set(tmp_path / "set"))
