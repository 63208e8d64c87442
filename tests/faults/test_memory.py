"""Files that state larger sizes than they have: reading them takes little memory."""

import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_targets import TARGETS

from data.arrow_set import TemplateSet
from data.bin_set import BinError, read_bin
from data.nist_set import NistSet, NistSetError
from data.template_metadata import INTEGERS, TEXTS, ArrowSetError, read_metadata
from eval.report.results import read_json
from utils.errors import InputError
from utils.weights import WeightsError, read_state_dicts


def peak(call: Callable[[], Any]) -> int:
    """Return the peak of the bytes that Python and NumPy allocate during a call, which must raise InputError."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def called(name: str, *arguments: bytes) -> bytes:
    """Return a pickled call of a function by name, in protocol 2. Pickles create arrays in this way."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n(".encode() + b"".join(arguments) + b"tR"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


NDARRAY, BYTE = b"cnumpy\nndarray\n", text("b")
DTYPE = called("numpy.dtype", text("u1"), b"\x89\x88")
EMPTY = called("numpy.core.multiarray._reconstruct", NDARRAY, b"K\x00\x85", BYTE)
DOUBLED = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(40))  # 2**40 lists in 300 bytes


def state(rows: bytes, data: bytes) -> bytes:
    return b"(K\x01" + rows + DTYPE + b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"


@pytest.mark.parametrize(
    "inside",
    [
        b"\x96" + struct.pack("<Q", 2**33),  # a bytearray of 8 GiB
        called("numpy.core.multiarray._reconstruct", NDARRAY, number(2**33) + b"\x85", BYTE),
        called("numpy.ndarray", number(2**33) + b"\x85"),
        NDARRAY + number(2**33) + b"\x85\x85\x81",
        called("numpy.core.multiarray.scalar", called("numpy.dtype", text("V2000000000"), b"\x89\x88"), b"C\x01x"),
        DOUBLED,
        EMPTY + state(number(2**40) + b"K\x00\x86", b""),  # 2**40 rows of 0 bytes
        b"](" + b"C\x00" * 9999 + b"B" + struct.pack("<I", 99999) + bytes(99999) + b"e",
        b"]" * 50_000,
        b"(" * 50_000,
        b"]q\x00" * 50_000,
        b"\x8f" * 50_000,
        b"}" * 50_000,
    ],
    ids=[
        "bytearray",
        "shape",
        "array",
        "new",
        "dtype",
        "doubled",
        "empty rows",
        "ragged",
        *["lists", "marks", "memo", "sets", "dicts"],
    ],
)
@pytest.mark.parametrize("place", ["images", "flags"])
def test_reading_a_bin_file_takes_little_more_memory_than_its_size(tmp_path, inside, place):
    images, flags = (inside, b"](\x88\x89e") if place == "images" else (b"](" + b"C\x01x" * 4 + b"e", inside)
    data = b"\x80\x05" + images + flags + b"\x86."
    path = tmp_path / "set.bin"
    path.write_bytes(data)
    assert peak(lambda: read_bin(path)) < 100 * len(data) + 2**20


def test_an_array_too_large_for_numpy_is_refused(tmp_path):
    data = b"\x80\x05" + EMPTY + state(number(2**63 - 1) + b"\x85", b"8 bytes!") + b"."
    (tmp_path / "set.bin").write_bytes(data)
    with pytest.raises(BinError, match="an array of another size than its shape states"):
        read_bin(tmp_path / "set.bin")


def test_no_array_can_be_changed_while_a_view_of_it_exists(tmp_path):
    first = b"\x80\x05" + EMPTY + b"q\x00" + state(b"K\x08\x85", b"8 bytes!")
    view = called("numpy.core.numeric._frombuffer", b"h\x00", DTYPE, b"K\x08\x85", text("C"))
    for rest in (view + b"\x86.", state(b"K\x04\x85", b"less") + b"."):
        (tmp_path / "set.bin").write_bytes(first + rest)
        with pytest.raises(BinError, match=r"refused: the pickle asks for (a view of|an array that is changed)"):
            read_bin(tmp_path / "set.bin")


def doubled_list() -> list:
    one: list = [1, 2]
    for _ in range(40):
        one = [one, one]
    return one


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(2**40),
        torch.zeros(1, dtype=torch.int64).as_strided((2**20, 2**20), (0, 0)),
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (2**40,)),
        torch.zeros(2, dtype=torch.bfloat16),
        doubled_list(),
        ["a"] * 9999 + ["b" * 99999],
        np.array(["a"] * 9999 + ["b" * 99999], dtype=object),
        ["a", 1],
        [1.0, 2**2000],
    ],
    ids=["expanded", "strided", "sparse", "bfloat16", "doubled", "ragged", "objects", "mixed", "huge"],
)
def test_reading_metadata_takes_little_more_memory_than_its_size(tmp_path, value):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Value("binary"), index=datasets.Value("int64"))
    datasets.Dataset.from_dict({"image": [b"x"], "index": [0]}, features=features).save_to_disk(str(tmp_path))
    torch.save({"p1": value}, tmp_path / "metadata.pt")

    def read() -> None:
        kinds = TEXTS if isinstance(value, list | np.ndarray) else INTEGERS + "f"
        TemplateSet(tmp_path, others={"p1": kinds})

    with pytest.raises(ArrowSetError):  # the first call also imports modules
        read()
    assert peak(read) < 100 * (tmp_path / "metadata.pt").stat().st_size + 2**20


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    content = {"a": torch.zeros(2**20)}
    torch.save(content, tmp_path / "valid.pth")
    with zipfile.ZipFile(tmp_path / "valid.pth") as valid:
        for name in ("metadata.pt", "w.pth"):
            with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as packed:
                for entry in valid.namelist():
                    packed.writestr(entry, valid.read(entry))
    np.savez_compressed(tmp_path / "r.npz", **{"ijb/x/score": np.zeros(2**20)})
    (tmp_path / "r.json").write_text('{"absent": [], "failed": [], "about": {}}')
    assert peak(lambda: read_metadata(tmp_path / "metadata.pt")) < 2**20
    assert peak(lambda: read_json(tmp_path / "r.json")) < 2**20
    with pytest.raises(WeightsError, match=r"w\.pth: .*its entries claim 4\d+ bytes, more than the file has"):
        read_state_dicts(tmp_path / "w.pth")


def test_weights_larger_than_their_file_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(2**40)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: weight is not a plain tensor, or larger than the file"):
        read_state_dicts(tmp_path / "w.pth")


def test_a_long_file_name_in_the_nist_lists_is_refused_with_its_line(tmp_path):
    target = TARGETS["lists of NIST"](tmp_path)
    (tmp_path / "meta").mkdir()
    for seed in target.seeds:
        (tmp_path / seed.file).write_bytes(seed.data)
    with open(tmp_path / "meta/ijbc_face_tid_mid.txt", "a") as file:
        file.write("x.jpg 1 1\n" * 5000 + "a" * 99_999 + " 1 1\n")
    with pytest.raises(NistSetError, match=r"face_tid_mid\.txt: line 5004 is .*the name has at most 255 bytes"):
        NistSet(tmp_path)
    assert peak(lambda: NistSet(tmp_path)) < 2**22
