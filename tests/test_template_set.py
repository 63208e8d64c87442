"""Arrow template sets: what is read, in which order, by which processes, and what is refused."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from easydict import EasyDict

import eval.protocols as protocols
from backbones import build_backbone
from config import load_config
from data.arrow_set import (
    INTEGERS,
    NUMBERS,
    TEXTS,
    ArrowVerificationSet,
    TemplateSet,
    TemplateSetError,
    read_metadata,
)
from data.images import fit
from data.loader import keep_batch
from eval.embeddings import embed
from eval.ijb import evaluate_templates
from eval.tinyface import evaluate_identification
from utils.errors import InputError

datasets = pytest.importorskip("datasets")
COUNT = 12


def face(number: int, size: int = 112) -> np.ndarray:
    """An RGB image that tells its number, and its channels apart."""
    return np.full((size, size, 3), (number, 100, 200), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def write_set(folder: Path, index=None, images=None, metadata=None, image_type=None) -> Path:
    index = list(np.random.default_rng(0).permutation(COUNT)) if index is None else index
    images = [png(face(number)) for number in index] if images is None else images
    features = datasets.Features(image=image_type or datasets.Image(), index=datasets.Value("int64"))
    entries = [image and {"bytes": image, "path": None} for image in images]
    rows = {"image": images if image_type else entries, "index": index}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    torch.save({"templates": np.arange(COUNT)} if metadata is None else metadata, folder / "metadata.pt")
    return folder


def numbers(images: torch.Tensor) -> list[int]:
    assert images.dtype == torch.uint8 and images.shape[1:] == (112, 112, 3)
    assert (images[..., 1] == 100).all() and (images[..., 2] == 200).all()
    return images[:, 5, 5, 0].tolist()


def test_images_come_in_the_order_of_their_index(tmp_path):
    images = TemplateSet(write_set(tmp_path / "set"))
    assert len(images) == COUNT
    assert numbers(images[range(COUNT)]) == list(range(COUNT))
    assert numbers(images[np.array([7, 0, 7])]) == [7, 0, 7]


def test_a_column_of_plain_bytes_is_read_too(tmp_path):
    images = TemplateSet(write_set(tmp_path / "set", image_type=datasets.Value("binary")))
    assert numbers(images[range(3, 6)]) == [3, 4, 5]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_it(tmp_path, method):
    images = TemplateSet(write_set(tmp_path / "set"))
    images[range(2)]  # read before the workers start, as after an earlier checkpoint
    loader = torch.utils.data.DataLoader(
        images, batch_size=None, sampler=[range(0, 5), range(5, 12)], collate_fn=keep_batch, num_workers=2,
        multiprocessing_context=method,
    )  # fmt: skip
    assert [number for batch in loader for number in numbers(batch)] == list(range(COUNT))


def test_real_sets_are_read_whole(face_data):
    root = face_data / "template_sets"
    ijb, tinyface = (
        protocols.PROTOCOLS[name].open(root / target)
        for name, target in (("ijb", "IJBX_gt_aligned"), ("tinyface", "tinyx_aligned_pad_0.1"))
    )
    assert (len(ijb), len(tinyface)) == (526, 549)
    assert ijb.metadata["templates"].shape == (526,) and len(tinyface.metadata["image_paths"]) == 549
    for images in (ijb, tinyface):
        assert images[range(500, 526)].shape == (26, 112, 112, 3)


@pytest.mark.parametrize("name", ["IJBX_gt_aligned", "tinyx_aligned_pad_0.1"])
def test_embeddings_of_real_images_are_those_of_the_public_code(face_data, name):
    checkpoint = str(face_data / "mobilefacenet_y1_128.pth")
    cfg = EasyDict(network="mobilefacenet", embedding_size=128, width=1.0, SE=False, init_from=checkpoint)
    images = TemplateSet(face_data / "template_sets" / name)
    features = embed(build_backbone(cfg), First(images, 64), torch.device("cpu"), batch_size=32).features
    expected = np.load(face_data / "template_sets" / name / "embeddings.npy")[:64]
    cosines = (features * expected).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 1 - 1e-3
    assert np.linalg.norm(features, axis=1) == pytest.approx(np.linalg.norm(expected, axis=1), rel=1e-3)


class First(torch.utils.data.Dataset):
    """The first images of a set."""

    def __init__(self, images, count):
        self.images, self.count = images, count

    def __len__(self):
        return self.count

    def __getitem__(self, positions):
        return self.images[positions]


class Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_metadata_executes_nothing(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"templates": Executes()}, "metadata.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TemplateSetError, match=r"metadata.pt: refused: it asks for posix.mkdir"):
        read_metadata("metadata.pt")
    assert not Path("executed").exists()


class ForgedType:
    """A dtype whose state says something else than NumPy would write of it."""

    def __init__(self, name, state):
        self.name, self.state = name, state

    def __reduce__(self):
        return np.dtype, (self.name, False, True), self.state


class ForgedArray:
    def __init__(self, dtype, data):
        self.dtype, self.data = dtype, data

    def __reduce__(self):
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), self.dtype, False, self.data)


class ForgedScalar:
    def __reduce__(self):
        return np._core.multiarray.scalar, (np.dtype("O"), b"AAAAAAAA")


@pytest.mark.parametrize(
    "forged",
    [
        ForgedArray(ForgedType("O8", (3, "|", None, None, None, -1, -1, 0)), b"AAAAAAAA"),  # addresses as plain bytes
        ForgedArray(ForgedType("i8", (3, "<", None, None, None, -1, -1, 63)), b"AAAAAAAA"),  # numbers as addresses
        ForgedArray(ForgedType("i8", (3, "<", None, None, None, 1000, 1, 0)), b"A" * 8),  # longer than its data
        ForgedArray(ForgedType("i8", (3, "<", None, ("a",), {"a": (np.dtype("i8"), 900)}, 8, 1, 16)), b"A" * 8),
        ForgedScalar(),
    ],
    ids=["pointers", "objects", "size", "fields", "scalar"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_metadata_choose_no_addresses_in_memory(tmp_path, zipped, forged):
    torch.save({"templates": forged}, tmp_path / "metadata.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TemplateSetError, match=r"metadata.pt: (refused: it asks for numpy|broken)"):
        read_metadata(tmp_path / "metadata.pt")


@pytest.mark.parametrize("wrong", [None, 3, "abc", ["a"] * COUNT, np.zeros((COUNT, 1)), [[1], [2, 3]], [None] * COUNT])
def test_metadata_of_another_kind_are_named(tmp_path, wrong):
    folder = write_set(tmp_path / "set", metadata={"templates": wrong})
    with pytest.raises(TemplateSetError, match=r"metadata.pt: templates must be a list of numbers, but is"):
        TemplateSet(folder, others={"templates": NUMBERS})


@pytest.mark.parametrize(
    ("entries", "kinds"),
    [
        (np.arange(COUNT), INTEGERS), (list(range(COUNT)), INTEGERS), (torch.arange(COUNT), INTEGERS),
        (np.ones(COUNT, bool), INTEGERS), (np.ones(COUNT, np.float32), NUMBERS), (["a", "bc"] * (COUNT // 2), TEXTS),
        (np.array(["a", "bc"] * (COUNT // 2), dtype=object), TEXTS),
    ],
)  # fmt: skip
def test_metadata_of_the_right_kind_are_taken_in_any_form(tmp_path, entries, kinds):
    folder = write_set(tmp_path / "set", metadata={"templates": entries})
    assert len(TemplateSet(folder, per_image={"templates": kinds}).metadata["templates"]) == COUNT


VALUES = {
    "faceness_scores": np.linspace(0, 1, 5),
    "single": np.linspace(0, 1, 5, dtype=np.float32),
    "templates": np.arange(5),
    "flags": np.array([True, False]),
    "names": np.array(["a", "bc"]),
    "objects": np.array(["a", "bc"], dtype=object),
    "one": np.float64(0.5),
    "paths": ["a.jpg", "b.jpg"],
    "tensor": torch.arange(3),
}


def as_in(package: str, path: Path) -> None:
    """Rename NumPy's package in the pickle, as the NumPy that has it under this name writes it."""

    def renamed(data: bytes) -> bytes:
        return data.replace(b"numpy._core.", f"{package}.".encode())

    if not zipfile.is_zipfile(path):
        path.write_bytes(renamed(path.read_bytes()))
        return
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, renamed(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_metadata_of_either_numpy_and_of_older_torch_is_read(tmp_path, package, zipped):
    path = tmp_path / "metadata.pt"
    torch.save(VALUES, path, _use_new_zipfile_serialization=zipped)
    as_in(package, path)
    assert f"{package}.multiarray".encode() in path.read_bytes()
    metadata = read_metadata(path)
    assert metadata.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert type(metadata[name]) is type(value)
        np.testing.assert_array_equal(metadata[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"index": [*range(COUNT - 1), 3]},
            r"set: `index` must number the 12 images from 0 on, each once: number 4 is missing",
        ),
        (
            {"index": range(1, COUNT + 1)},
            r"set: `index` must number the 12 images from 0 on, each once: number 0 is missing",
        ),
        ({"metadata": [1, 2]}, r"metadata.pt: holds no dict of arrays by name, but list"),
        (
            {"metadata": {"image_paths": ["a"] * COUNT}},
            r"metadata.pt: has no templates, but image_paths; is it another",
        ),
        ({"metadata": {"templates": np.arange(5)}}, r"metadata.pt: 5 templates for the 12 images beside it"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(tmp_path, change, message):
    folder = write_set(tmp_path / "set", **change)
    with pytest.raises(TemplateSetError, match=message):
        TemplateSet(folder, per_image={"templates": INTEGERS})


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"no image", r"set: image with index 1: 8 bytes that decode to no image"),
        (png(face(0, 100)), r"set: image with index 1: 100x100 pixels; faces must be aligned to 112x112"),
        (None, r"set: image with index 1 is missing; save the set anew"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path, encoded, message):
    whole = [png(face(number)) for number in range(COUNT)]
    images = TemplateSet(write_set(tmp_path / "set", range(COUNT), [whole[0], encoded, *whole[2:]]))
    with pytest.raises(InputError, match=message):
        images[range(COUNT)]


def arrow_file(folder: Path) -> Path:
    return next(folder.glob("*.arrow"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metadata.pt").unlink(), r"metadata.pt: no such file; .*fetch the whole folder"),
        (lambda folder: cut(folder / "metadata.pt"), r"metadata.pt: broken, cut short"),
        (lambda folder: (folder / "metadata.pt").write_bytes(b""), r"metadata.pt: broken, cut short"),
        (
            lambda folder: (folder / "state.json").unlink(),
            r"set: cannot be read as an Arrow set .*fetch the folder again",
        ),
        (lambda folder: cut(folder / "dataset_info.json"), r"set: cannot be read as an Arrow set"),
        (lambda folder: cut(arrow_file(folder)), r"set: cannot be read as an Arrow set"),
        (lambda folder: arrow_file(folder).unlink(), r"set: cannot be read as an Arrow set"),
    ],
)
def test_a_damaged_set_is_named_with_the_fix(tmp_path, damage, message):
    folder = write_set(tmp_path / "set")
    damage(folder)
    with pytest.raises(TemplateSetError, match=message):
        TemplateSet(folder)


def test_a_folder_of_other_columns_is_refused(tmp_path):
    datasets.Dataset.from_dict({"picture": [1]}).save_to_disk(str(tmp_path / "set"))
    message = r"set: has the columns \['picture'\], but must have \['image', 'index'\]; is it another protocol's"
    with pytest.raises(TemplateSetError, match=message):
        TemplateSet(tmp_path / "set")


def write_pairs(folder: Path, index: list[int], is_same: list, images: list[bytes] | None = None) -> Path:
    """Rows in this order of the index, each with its flag and an image that tells its index; no metadata.pt."""
    images = [png(face(number)) for number in index] if images is None else images
    rows = {"image": [{"bytes": image, "path": None} for image in images], "index": index, "is_same": is_same}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("kind", [bool, int, float])
def test_pairs_are_neighbours_by_index_with_the_flag_of_both(tmp_path, kind):
    flags = {5: True, 4: True, 0: False, 3: True, 1: False, 2: True, 7: False, 6: False}
    pairs = ArrowVerificationSet(write_pairs(tmp_path / "set", list(flags), [kind(flag) for flag in flags.values()]))
    assert (pairs.path, len(pairs)) == (str(tmp_path / "set"), 8)
    assert pairs.is_same.dtype == bool and pairs.is_same.tolist() == [False, True, True, False]
    assert numbers(pairs[range(8)]) == list(range(8))
    assert numbers(pairs[np.array([6, 1])]) == [6, 1]


def test_images_of_pairs_of_another_size_are_fitted_as_those_of_bin_sets(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (112, 160, 3), dtype=np.uint8)
    large = np.random.default_rng(1).integers(0, 256, (250, 224, 3), dtype=np.uint8)
    images = ArrowVerificationSet(write_pairs(tmp_path / "set", [1, 0], [True, True], [png(large), png(wide)]))[[0, 1]]
    assert np.array_equal(images[0], wide[:, 24:136])
    assert np.array_equal(images[1], fit(large))


@pytest.mark.parametrize(
    ("index", "is_same", "message"),
    [
        ([0, 1, 2], [True] * 3, r"set: 3 images, but a pair has two; fetch the folder again"),
        ([0, 1, 3, 2], [True, True, True, False], r"set: the images with index 2 and 3 are a pair, but have False and"),
        (
            [0, 1],
            [None, None],
            r"set: the images with index 0 and 1 are a pair, but have (None|nan) and .* the same fl",
        ),
        (
            [0, 1],
            [2, 2],
            r"set: the images with index 0 and 1 are a pair, but have 2 and 2 as `is_same`, which must be",
        ),
        ([0, 1, 3, 4], [True] * 4, r"set: `index` must number the 4 images from 0 on, each once: number 2 is missing"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(tmp_path, index, is_same, message):
    with pytest.raises(TemplateSetError, match=message):
        ArrowVerificationSet(write_pairs(tmp_path / "set", index, is_same))


def test_a_set_without_flags_is_no_verification_set(tmp_path):
    message = r"has the columns \['image', 'index'\], but must have \['image', 'index', 'is_same'\]"
    with pytest.raises(TemplateSetError, match=message):
        ArrowVerificationSet(write_set(tmp_path / "set"))


def test_protocols_import_without_the_slow_package():
    code = "import eval.protocols, sys; assert 'datasets' not in sys.modules"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_protocol_without_targets_is_not_evaluated():
    assert protocols.due(load_config(), 0) == ["verification", "ijb", "tinyface"]
    assert protocols.due(load_config(overrides=["ijb_targets=[]"]), 0) == ["verification", "tinyface"]


def test_absent_sets_are_reported(tmp_path):
    cfg = EasyDict(ijb_root=str(tmp_path), ijb_targets=["IJBB_gt_aligned"], num_workers=0)
    results = protocols.evaluate(torch.nn.Identity(), cfg, ["ijb"], torch.device("cpu"), torch.float32)
    assert results.metrics == {}
    assert results.absent == [f"ijb.IJBB_gt_aligned: {tmp_path / 'IJBB_gt_aligned'}"]


class MeanColour(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_sets_go_the_whole_way_and_back_to_the_protocol_s_own_function(tmp_path):
    ijb = {
        "faceness_scores": np.linspace(0.1, 1, COUNT), "templates": np.arange(COUNT) // 2, "medias": np.arange(COUNT),
        "label": np.array([1, 0, 0]), "p1": np.array([0, 0, 1]), "p2": np.array([1, 4, 5]),
    }  # fmt: skip
    names = [f"{number // 4}_{number}.png" for number in range(COUNT)]
    tinyface = {"image_paths": names, "probe_paths": names[::4], "gallery_paths": names[1::4],
                "distractor_paths": names[2::4]}  # fmt: skip
    write_set(tmp_path / "templates", metadata=ijb)
    write_set(tmp_path / "tiny", metadata=tinyface)
    cfg = EasyDict(
        ijb_root=str(tmp_path), ijb_targets=["templates"], ijb_batch_size=5, tinyface_root=str(tmp_path),
        tinyface_targets=["tiny"], tinyface_batch_size=5,
        ijb_num_workers=0, tinyface_num_workers=0, ijb_flip=True, tinyface_flip=True,
    )  # fmt: skip
    device = torch.device("cpu")
    figures = protocols.evaluate(MeanColour(), cfg, ["ijb", "tinyface"], device, torch.float32).metrics
    embeddings = 2 * (np.stack([face(number)[0, 0] for number in range(COUNT)]) - 127.5) / 127.5
    expected = {
        "ijb": {"templates": evaluate_templates(embeddings, **ijb)},
        "tinyface": {"tiny": evaluate_identification(embeddings, names, tinyface)},
    }
    assert protocols.flat(figures) == pytest.approx(protocols.flat(expected), abs=1e-6)
