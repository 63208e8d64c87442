"""Files that claim what they do not hold: memory, offsets, labels, pixels."""

import os
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from strangers import TARGETS, record_files, saved

from config import BASE, ConfigError, load_config
from data.arrow_set import INTEGERS, TEXTS, TemplateSet, TemplateSetError, read_metadata
from data.bin_set import BinError, read_bin
from data.dataset import DataError, RecordDataset
from data.images import MAX_PIXELS, ImageError, decode_into, decode_rgb
from data.nist_set import NistSet, NistSetError
from data.recordio import IndexedRecordReader, RecordError, RecordWriter
from data.teacher_cache import EmbeddingError, EmbeddingFile
from eval.report.results import read_json
from utils.errors import InputError
from utils.weights import WeightsError, read_state_dict


def peak(call: Callable[[], Any]) -> int:
    """Bytes that Python and NumPy ask for at most, at one time, during a call that must raise InputError."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# What pickles of protocol 2 begin an array with: a call of NumPy's constructor, by name.
def called(name: str, *arguments: bytes) -> bytes:
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
def test_a_bin_file_takes_little_more_memory_than_it_has_bytes(tmp_path, inside, place):
    images, flags = (inside, b"](\x88\x89e") if place == "images" else (b"](" + b"C\x01x" * 4 + b"e", inside)
    data = b"\x80\x05" + images + flags + b"\x86."
    path = tmp_path / "set.bin"
    path.write_bytes(data)
    assert peak(lambda: read_bin(path)) < 100 * len(data) + 2**20


def test_an_array_that_is_too_large_for_numpy_is_broken(tmp_path):
    data = b"\x80\x05" + EMPTY + state(number(2**63 - 1) + b"\x85", b"8 bytes!") + b"."
    (tmp_path / "set.bin").write_bytes(data)
    with pytest.raises(BinError, match="an array of another size than its shape says"):
        read_bin(tmp_path / "set.bin")


def test_no_array_of_a_bin_file_changes_under_a_view_of_it(tmp_path):
    first = b"\x80\x05" + EMPTY + b"q\x00" + state(b"K\x08\x85", b"8 bytes!")
    view = called("numpy.core.numeric._frombuffer", b"h\x00", DTYPE, b"K\x08\x85", text("C"))
    for rest in (view + b"\x86.", state(b"K\x04\x85", b"less") + b"."):
        (tmp_path / "set.bin").write_bytes(first + rest)
        with pytest.raises(BinError, match=r"refused: the pickle asks for (a view|attributes) of a ndarray"):
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
def test_metadata_take_little_more_memory_than_they_have_bytes(tmp_path, value):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Value("binary"), index=datasets.Value("int64"))
    datasets.Dataset.from_dict({"image": [b"x"], "index": [0]}, features=features).save_to_disk(str(tmp_path))
    torch.save({"p1": value}, tmp_path / "metadata.pt")

    def read() -> None:
        kinds = TEXTS if isinstance(value, list | np.ndarray) else INTEGERS + "f"
        TemplateSet(tmp_path, others={"p1": kinds})

    with pytest.raises(TemplateSetError):  # once, for what is imported only then
        read()
    assert peak(read) < 100 * (tmp_path / "metadata.pt").stat().st_size + 2**20


def test_an_archive_that_claims_more_than_it_has_is_refused(tmp_path):
    content = {"a": torch.zeros(2**20)}
    torch.save(content, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole:
        for name in ("metadata.pt", "w.pth"):
            with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as packed:
                for entry in whole.namelist():
                    packed.writestr(entry, whole.read(entry))
    np.savez_compressed(tmp_path / "r.npz", **{"ijb/x/score": np.zeros(2**20)})
    (tmp_path / "r.json").write_text('{"absent": [], "failed": [], "about": {}}')
    assert peak(lambda: read_metadata(tmp_path / "metadata.pt")) < 2**20
    assert peak(lambda: read_json(tmp_path / "r.json")) < 2**20
    with pytest.raises(WeightsError, match=r"w\.pth: .*its entries claim 4\d+ bytes, more than the file has"):
        read_state_dict(tmp_path / "w.pth")


def test_weights_that_stand_for_more_than_the_file_has_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(2**40)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: weight is no plain tensor, or larger than the file"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("offset", [2**63 - 4, 2**63 - 8, 2**62, -4, 10**30])
def test_an_index_that_points_anywhere_is_refused(tmp_path, offset):
    record_files(tmp_path)
    (tmp_path / "train.idx").write_text(f"0\t0\n1\t{offset}\n")
    with pytest.raises(
        RecordError, match=r"train\.idx: key 1 points to byte|train\.idx: the index has lines other than"
    ):
        IndexedRecordReader(tmp_path / "train.rec", tmp_path / "train.idx")


@pytest.mark.parametrize(
    "labels",
    [[float("nan"), 5.0], [3.0, float("inf")], [1e38, 3e38], [3.0, 3.0], float("inf"), float("nan"), -1.0, 1e30],
)
def test_labels_that_count_no_identities_are_refused(tmp_path, labels):
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(0, labels, b"")
        for key in (1, 2):
            writer.write(key, labels if isinstance(labels, float) else 0.0, b"x")
    with pytest.raises(DataError, match=r"train\.(rec|idx): "):
        RecordDataset(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "s={1: 2}",
        "s=0x" + "f" * 2990,
        f"lr={10**400}",
        f"batch_size={2**63}",
        "rec=~a\0b",
        "rec=~\ud800",
        "rec=a\0b",
        "s=" + "-" * 2900 + "1",
        "s=" + "1" * 100_000,
        "s=" + "(" * 100_000,
        "lr_milestones=" + "1+" * 1400 + "1",
        "x" * 100_000 + "=1",
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_an_override_that_no_key_can_hold_is_refused(override):
    with pytest.raises(ConfigError) as error:
        load_config(BASE, [override])
    str(error.value)


def test_a_long_name_in_the_lists_of_nist_is_refused_by_its_line(tmp_path):
    target = TARGETS["lists of NIST"](tmp_path)
    (tmp_path / "meta").mkdir()
    for seed in target.seeds:
        (tmp_path / seed.file).write_bytes(seed.data)
    with open(tmp_path / "meta/ijbc_face_tid_mid.txt", "a") as file:
        file.write("x.jpg 1 1\n" * 5000 + "a" * 99_999 + " 1 1\n")
    with pytest.raises(NistSetError, match=r"face_tid_mid\.txt: line 5004 is .*a name has at most 255 bytes"):
        NistSet(tmp_path)
    assert peak(lambda: NistSet(tmp_path)) < 2**22


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("e.npy", saved(np.savez, a=np.zeros(3))),
        ("e.npy", saved(np.save, np.array([{}], dtype=object), allow_pickle=True)),
        ("e.json", b'{"embeddings": {"shape": [1, 2, 3]}, "teacher": []}'),
        ("e.json", b'{"embeddings": {"shape": [Infinity, 2, 3]}}'),
        ("e.json", b"[" * 100_000),
        ("e.json", b'{"embeddings": {"shape": [' + b"1" * 9999 + b", 2, 3]}}"),
    ],
    ids=range(6),
)
def test_embeddings_or_a_description_of_another_kind_are_refused(tmp_path, file, content):
    (tmp_path / "e.npy").write_bytes(saved(np.save, np.zeros((1, 2, 3), np.float16)))
    (tmp_path / "e.json").write_text('{"embeddings": {"shape": [1, 2, 3]}, "teacher": {"x": 1}}')
    EmbeddingFile(tmp_path / "e.npy", {"teacher": {"x": 1}})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(EmbeddingError, match=r"e\.(npy|json): "):
        EmbeddingFile(tmp_path / "e.npy", {"teacher": {"x": 1}})


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"about": ' + "1" * 9999 + "}",
        '{"a": {"b": {"c": "x"}}, "about": 1, "absent": [], "failed": []}',
    ],
)
def test_results_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match=r"r\.json: holds no results"):
        read_json(tmp_path / "r.json")


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
def test_an_image_that_claims_too_many_pixels_is_refused_by_its_header(encode, sizes):
    for side in sizes:
        encoded = np.frombuffer(encode(side, side), np.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        says = f"image 7: {side}x{side} pixels, too large"
        with pytest.raises(ImageError, match=says):
            decode_rgb(encoded, "image 7")
        with pytest.raises(ImageError, match=says):
            decode_into(np.empty((1, 112, 112, 3), np.uint8), [encoded], lambda row: "image 7")
        assert (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
        )  # KiB; an image would take 108 MB


def test_photos_up_to_the_limit_are_read():
    assert MAX_PIXELS == 2**25
    photo = np.zeros((3000, 4000, 3), np.uint8)
    assert decode_rgb(cv2.imencode(".jpg", photo)[1], "photo").shape == photo.shape


def test_a_program_that_imports_opencv_first_is_guarded_too(tmp_path):
    (tmp_path / "image").write_bytes(jpeg(20_000, 20_000))
    code = "import cv2, sys; from data.images import decode_rgb; decode_rgb(open(sys.argv[1], 'rb').read(), 'image')"
    without = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV")}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "image"], cwd=ROOT, env=without, capture_output=True, text=True
    )
    assert "ImageError: image: 20000x20000 pixels, too large" in done.stderr
