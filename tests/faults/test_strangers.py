"""Files by strangers: changed at random, made to exhaust memory, to execute something, or to name other files."""

import ast
import builtins
import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, WARM, run_script, size
from easydict import EasyDict
from strangers import FAULTY, TARGETS, record_files, run, saved

from config import BASE, ConfigError, load_config
from eval.protocols import PROTOCOLS, embeddings_file
from eval.results import read_json, require_ours, write_json
from utils import checkpoint
from utils.bin_file import BinError, read_bin
from utils.dataset import DataError, RecordDataset
from utils.embedding_file import EmbeddingError, EmbeddingFile
from utils.errors import InputError
from utils.images import MOST_PIXELS, ImageError, decode_into, decode_rgb
from utils.nist_set import NistSet, NistSetError
from utils.recordio import IndexedRecordReader, RecordError, RecordWriter
from utils.template_set import INTEGERS, TEXTS, TemplateSet, TemplateSetError, read_metadata
from utils.weights import WeightsError, read_state_dict

_LONG = {
    "record files": 100_000, "indexes of record files": 100_000, ".bin sets": 100_000, "metadata.pt": 100_000,
    "overrides of the config": 100_000, "lists of NIST": 100_000,
}  # fmt: skip


def failures(name: str, times: int, kept: Path) -> list[str]:
    """What is said of the inputs that did not survive; these are kept in the folder `kept`."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # files that are written 100,000 times
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = WARM.Process(target=run, args=(name, times, Path(folder), theirs))
        process.start()
        theirs.close()
        failed = []
        try:
            while ours.poll(60):
                failed += filter(None, [ours.recv()])
            failed.append("a minute without a word")
            process.kill()
        except EOFError:
            process.join()
            if process.exitcode:
                failed.append(f"the process ended with code {process.exitcode}")
        if failed:  # under failed-N-FILE, or, after a crash or a hang, as it stands
            shutil.copytree(folder, kept)
            print(*failed, f"the inputs are in {kept}", sep="\n")
    return failed


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(tmp_path, tried, name):
    times = size(1000, _LONG.get(name, 20_000))
    failed = failures(name, times, tmp_path / "inputs")
    tried(f"changed {name}: read or refused", times, times - len(failed))


@pytest.mark.parametrize("fault", FAULTY)
def test_the_watch_sees_a_reader_at_fault(tmp_path, fault):
    assert fault in failures(fault, 2, tmp_path / "inputs")[0]


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
        says = f"image 7: .*{side}x{side} pixels, too large" if encode in (png, jpeg) else "image 7: too large"
        with pytest.raises(ImageError, match=says):
            decode_rgb(encoded, "image 7")
        with pytest.raises(ImageError, match=says):
            decode_into(np.empty((1, 112, 112, 3), np.uint8), [encoded], lambda row: "image 7")
        assert (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
        )  # KiB; an image would take 108 MB


def test_photos_up_to_the_limit_are_read():
    assert MOST_PIXELS == 2**25
    photo = np.zeros((3000, 4000, 3), np.uint8)
    assert decode_rgb(cv2.imencode(".jpg", photo)[1], "photo").shape == photo.shape


def test_a_program_that_imports_opencv_first_is_guarded_too(tmp_path):
    (tmp_path / "image").write_bytes(jpeg(20_000, 20_000))
    code = "import cv2, sys; from utils.images import decode_rgb; decode_rgb(open(sys.argv[1], 'rb').read(), 'image')"
    without = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV")}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "image"], cwd=ROOT, env=without, capture_output=True, text=True
    )
    assert "ImageError: image: claims to be 20000x20000 pixels, too large" in done.stderr


class Touch:
    """Makes a file where it is unpickled by one who trusts it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_files_that_would_execute_something_are_refused_unexecuted(tmp_path, small_run, tried):
    marker = tmp_path / "executed"
    evil = Touch(marker)
    folder = tmp_path / "files"
    folder.mkdir()
    pickled = np.array([evil], dtype=object)
    torch.save(evil, folder / "w.pth")
    torch.save({"state_dict": {"a": evil}}, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"templates": evil}, folder / "metadata.pt")
    checkpoint.save(folder, 5, checkpoint.Checkpoint({"a": evil}, {"kernel": evil}, {"step": evil}))
    for protocol in range(6):
        (folder / f"{protocol}.bin").write_bytes(pickle.dumps(([b"x", evil], [True]), protocol))
    np.save(folder / "e.npy", pickled, allow_pickle=True)
    (folder / "e.json").write_text('{"embeddings": {"shape": [1, 2, 3]}}')
    np.savez(folder / "r.npz", **{"ijb/x/score": pickled})
    (folder / "r.json").write_text('{"absent": [], "failed": [], "about": {}}')
    (folder / "w.safetensors").write_bytes(pickle.dumps(evil))
    (folder / "cvlface").mkdir()
    shutil.copy(folder / "w.pth", folder / "cvlface" / "model.safetensors")
    pickle.loads((folder / "0.bin").read_bytes())  # noqa: S301 (the files are as bad as they should be)
    assert marker.exists()
    marker.unlink()

    from backbones import build_backbone
    from heads import build_head

    student = EasyDict(network="mobilefacenet", embedding_size=16, width=0.125, SE=False)
    head = load_config(BASE, ["num_classes=6", "centers=fixed", f"pretrained_teacher_header_path={folder}/5header.pth"])
    ways = [
        *(lambda path=path: read_bin(path) for path in sorted(folder.glob("*.bin"))),
        *(lambda name=name: build_backbone(EasyDict(student, init_from=str(folder / name)))
          for name in ("w.pth", "old.pth", "w.safetensors", "cvlface/model.safetensors", "5backbone.pth")),
        lambda: build_head(head),
        lambda: checkpoint.load(folder, 5),
        lambda: read_metadata(folder / "metadata.pt"),
        lambda: EmbeddingFile(folder / "e.npy", {}),
        lambda: read_json(folder / "r.json"),
    ]  # fmt: skip
    refused = 0
    for way in ways:
        with pytest.raises(InputError):
            way()
        refused += not marker.exists()
    tried("files that would execute something: refused", len(ways), refused)
    for arguments in (
        ["eval/run_full_eval.py", "--checkpoint", folder / "w.pth", "--device", "cpu", "width=0.125"],
        ["train/train_AdaDistill.py", *small_run, f"init_from={folder}/w.pth", f"output={tmp_path}/run"],
    ):
        done = run_script(*arguments)
        assert done.returncode == 2 and "without executing it" in done.stderr, done.stderr
        assert not marker.exists()


def test_our_code_opens_no_way_to_execute_data():
    """What ruff's rules S102, S301, S302, S307 and S506 do not hold."""
    for path in ROOT.glob("*/**/*.py"):
        if path.is_relative_to(ROOT / "tests") or ".venv" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            assert called != "torch.load" or given.get("weights_only") == "True", (path, node.lineno)
            assert given.get("allow_pickle", "False") == "False", (path, node.lineno)
            assert "trust_remote_code" not in given, (path, node.lineno)


def write_arrow(folder: Path, images: list, **columns: Any) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), index=columns.pop("index", datasets.Value("int64")))
    rows = {"image": images, "index": list(range(len(images)))}
    datasets.Dataset.from_dict({**rows, **columns}, features=features).save_to_disk(str(folder))
    torch.save({"templates": np.arange(len(images))}, folder / "metadata.pt")


def test_an_image_that_is_a_path_is_not_opened(tmp_path):
    (tmp_path / "other.png").write_bytes(png(112, 112))
    datasets = pytest.importorskip("datasets")
    entry = {"bytes": None, "path": str(tmp_path / "other.png")}
    image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # as Image(), but saved as it is
    features = datasets.Features(image=image, index=datasets.Value("int64"))
    datasets.Dataset.from_dict({"image": [entry], "index": [0]}, features=features).save_to_disk(tmp_path / "set")
    torch.save({}, tmp_path / "set" / "metadata.pt")
    with pytest.raises(TemplateSetError, match="image with index 0 is missing"):
        TemplateSet(tmp_path / "set")[[0]]


def test_an_index_that_is_a_path_is_not_opened(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "other.png").write_bytes(png(112, 112))
    entry = {"bytes": None, "path": str(tmp_path / "other.png")}
    features = datasets.Features(image=datasets.Image(), index=datasets.Image())
    datasets.Dataset.from_dict({"image": [entry], "index": [entry]}, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(TemplateSetError, match=r"index is Image.*must be a number"):
        TemplateSet(tmp_path / "set")


@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "{}/other/data-00000-of-00001.arrow"])
def test_a_set_reads_no_images_outside_its_folder(tmp_path, name):
    face = {"bytes": cv2.imencode(".png", np.zeros((112, 112, 3), np.uint8))[1].tobytes(), "path": None}
    for folder in ("set", "other"):
        write_arrow(tmp_path / folder, [face])
    state_file = tmp_path / "set" / "state.json"
    content = json.loads(state_file.read_text())
    assert TemplateSet(tmp_path / "set")[[0]].shape == (1, 112, 112, 3)
    content["_data_files"][0]["filename"] = name.format(tmp_path)
    state_file.write_text(json.dumps(content))
    with pytest.raises(TemplateSetError, match=r"state\.json names '.*other.*no file of the folder"):
        TemplateSet(tmp_path / "set")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "..", ".", "a\0b", "x" * 250])
def test_names_in_the_lists_of_nist_stay_in_their_folder(tmp_path, name):
    target = TARGETS["lists of NIST"](tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "secret.jpg").write_bytes(png(112, 112))
    for seed in target.seeds:
        (tmp_path / seed.file).write_bytes(seed.data.replace(b"1.jpg", name.encode()))
    with pytest.raises(NistSetError, match=r"without a folder|meta lists it, but it cannot be read"):
        NistSet(tmp_path)[[0]]


def test_paths_in_the_metadata_of_tinyface_are_names_and_never_opened(monkeypatch):
    names = [f"{folder}/{number // 2}_{number}.png" for number, folder in enumerate(("..", "/etc", "http://x", "/dev"))]
    lists = {"image_paths": names, "probe_paths": names[::2], "gallery_paths": names[1::2], "distractor_paths": []}
    opened = []
    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, lambda path, *_: opened.append(path))
    figures, _ = PROTOCOLS["tinyface"].score(
        EasyDict(metadata=lists), EasyDict(features=np.eye(4, 8) + 1, norms=np.ones(4))
    )
    assert figures["rank-5"] == 100
    assert not opened


def test_what_is_written_of_a_set_stays_in_its_folder(tmp_path):
    for target in ("../../x", "/etc/x", "a/b", "..", "lfw"):
        path = embeddings_file(tmp_path / "out", "verification", target)
        assert path.resolve().parent == tmp_path / "out"
    assert embeddings_file("out", "verification", "lfw") == Path("out/verification.lfw.npy")


@pytest.fixture
def a_result(tmp_path) -> Path:
    from eval.protocols import Results

    arrays = {"verification": {"lfw": {"score": np.zeros(3)}}}
    write_json(tmp_path / "r.json", Results({}, arrays, [], []), {"run": "x"})
    return tmp_path / "r.json"


def test_a_result_of_ours_is_written_over(a_result):
    require_ours(a_result, with_arrays=True)
    require_ours(a_result.with_name("new.json"), with_arrays=True)
    collected = a_result.with_name("all.json")
    collected.write_text('{"checkpoints": {}, "about": {}}')
    require_ours(collected, with_arrays=False)


@pytest.mark.parametrize(
    "content", [b"", b"notes", b"[]", b'"about"', b'{"about": 1}', b"[" * 100_000, b"\xff\xd8", b"PK\x05\x06"]
)
def test_what_is_no_result_is_not_written_over(a_result, content):
    for file, arrays in ((a_result.with_name("x.json"), False), (a_result.with_suffix(".npz"), True)):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"{file.name}: exists, and holds no results; .*--force"):
            require_ours(a_result if arrays else file, with_arrays=arrays)
    with pytest.raises(InputError, match="exists, and holds no results"):
        require_ours(a_result.parent, with_arrays=False)


def test_scripts_refuse_to_write_over_what_is_no_result_before_they_score(tmp_path, a_result):
    from backbones.mobilefacenet import MobileFaceNet

    torch.save(MobileFaceNet(16, 0.125).state_dict(), tmp_path / "5backbone.pth")
    common = ["--device", "cpu", "width=0.125", "embedding_size=16", "--val-data", tmp_path, "--val-targets", "x"]
    mine = tmp_path / "mine.json"
    for script, *flags in (
        ["eval/run_full_eval.py", "--checkpoint", tmp_path / "5backbone.pth"],
        ["eval/run_batch_eval.py", "--checkpoint-dir", tmp_path],
    ):
        mine.write_text("my notes")
        done = run_script(script, *flags, *common, "--results-json", mine)
        assert done.returncode == 2
        assert "mine.json: exists, and holds no results" in done.stderr and "--force" in done.stderr
        assert done.stdout == "" and mine.read_text() == "my notes"
        done = run_script(script, *flags, *common, "--results-json", mine, "--force")
        assert "about" in json.loads(mine.read_text()), done.stderr
        mine.with_suffix(".npz").unlink(missing_ok=True)
