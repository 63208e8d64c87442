"""metadata.pt of template sets: no code is executed, wrong types are refused, arrays of NumPy 1 and 2 are read."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from arrow_sets import COUNT, write_set

from data.arrow_set import TemplateSet
from data.template_metadata import INTEGERS, NUMBERS, TEXTS, ArrowSetError, read_metadata


class Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_the_metadata_is_executed(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"templates": Executes()}, "metadata.pt", _use_new_zipfile_serialization=zipped)
    message = r"metadata.pt: refused: it asks for posix.mkdir" if zipped else r"metadata.pt: broken, cut short, or not"
    with pytest.raises(ArrowSetError, match=message):
        read_metadata("metadata.pt")
    assert not Path("executed").exists()


class ForgedType:
    """A dtype with a state that NumPy would not write for it."""

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
def test_metadata_cannot_choose_addresses_in_memory(tmp_path, zipped, forged):
    torch.save({"templates": forged}, tmp_path / "metadata.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArrowSetError, match=r"metadata.pt: refused: it asks for an? (array|scalar) of"):
        read_metadata(tmp_path / "metadata.pt")


@pytest.mark.parametrize("wrong", [None, 3, "abc", ["a"] * COUNT, np.zeros((COUNT, 1)), [[1], [2, 3]], [None] * COUNT])
def test_an_error_names_metadata_of_the_wrong_type(tmp_path, wrong):
    folder = write_set(tmp_path / "set", metadata={"templates": wrong})
    with pytest.raises(ArrowSetError, match=r"metadata.pt: templates must be a list of numbers, but is"):
        TemplateSet(folder, others={"templates": NUMBERS})


@pytest.mark.parametrize(
    ("entries", "kinds"),
    [
        (np.arange(COUNT), INTEGERS), (list(range(COUNT)), INTEGERS), (torch.arange(COUNT), INTEGERS),
        (np.ones(COUNT, bool), INTEGERS), (np.ones(COUNT, np.float32), NUMBERS), (["a", "bc"] * (COUNT // 2), TEXTS),
        (np.array(["a", "bc"] * (COUNT // 2), dtype=object), TEXTS),
    ],
)  # fmt: skip
def test_metadata_of_the_right_type_are_accepted_in_any_container(tmp_path, entries, kinds):
    folder = write_set(tmp_path / "set", metadata={"templates": entries})
    assert len(TemplateSet(folder, per_image={"templates": kinds}).metadata["templates"]) == COUNT


def test_a_key_that_may_be_missing_is_checked_where_it_exists(tmp_path):
    folder, optional = write_set(tmp_path / "set"), {"identities": INTEGERS}
    assert "identities" not in TemplateSet(folder, optional=optional).metadata
    for entries, words in (
        (np.arange(COUNT + 1), f"{COUNT + 1} identities for {COUNT} images"),
        (["a"] * COUNT, "identities must be a list of integers"),
    ):
        torch.save({"identities": entries}, folder / "metadata.pt")
        with pytest.raises(ArrowSetError, match=words):
            TemplateSet(folder, optional=optional)


VALUES = {
    "faceness_scores": np.linspace(0, 1, 5),
    "single": np.linspace(0, 1, 5, dtype=np.float32),
    "templates": np.arange(5),
    "flags": np.array([True, False]),
    "names": np.array(["a", "bc"]),
    "objects": np.array(["a", "bc"], dtype=object),
    "scalar": np.float64(0.5),
    "text": np.str_("a text"),
    "paths": ["a.jpg", "b.jpg"],
    "tensor": torch.arange(3),
}


def rename_numpy_package(package: str, path: Path) -> None:
    """Write NumPy's package in the pickle under another name: numpy.core as NumPy 1 does, numpy._core as NumPy 2."""

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
def test_metadata_from_numpy_1_and_2_and_from_old_torch_are_read(tmp_path, package, zipped):
    path = tmp_path / "metadata.pt"
    torch.save(VALUES, path, _use_new_zipfile_serialization=zipped)
    rename_numpy_package(package, path)
    assert f"{package}.multiarray".encode() in path.read_bytes()
    metadata = read_metadata(path)
    assert metadata.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert type(metadata[name]) is type(value)
        np.testing.assert_array_equal(metadata[name], value)
