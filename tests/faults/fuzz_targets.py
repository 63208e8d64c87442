"""Targets for test_changed_files.py: readers of files from other people, each with valid files to change."""

import contextlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from fuzzing import Target
from mutation import Seed, opcodes, words

from config import BASE, load_config
from data.bin_set import read_bin
from data.dataset import RecordDataset
from data.images import decode_into, decode_rgb
from data.nist_set import NistSet
from data.record_index import RecordError
from data.recordio import MAGIC, IndexedRecordReader, RecordWriter
from data.teacher_cache import EmbeddingFile, row_type
from data.teacher_projection import Projection, read_projection, write_projection
from data.template_metadata import INTEGERS, TEXTS, flat_array, read_metadata
from eval.report.results import read_json
from utils.weights import read_state_dicts


def saved(save: Callable, *content: object, **options: object) -> bytes:
    """Return the bytes that save(..., file) writes."""
    file = io.BytesIO()
    save(*content, file, **options) if save is torch.save else save(file, *content, **options)
    return file.getvalue()


def record_files(folder: Path) -> dict[str, bytes]:
    """Return a record set with all types of records: one label, several, split at the magic number, record 0."""
    with RecordWriter(folder / "train") as writer:
        writer.write(0, [5.0, 7.0], b"")
        for key in range(1, 5):
            writer.write(key, float(key % 2), b"an image " * key + (struct.pack("<I", MAGIC) if key == 3 else b""))
        writer.write(5, [1.0, 3.0, 0.0], b"")
    return {name: (folder / name).read_bytes() for name in ("train.rec", "train.idx")}


def read_records(folder: Path) -> None:
    reader = IndexedRecordReader(folder / "train.rec", folder / "train.idx")
    for key in reader.keys[:50]:
        with contextlib.suppress(RecordError):
            reader.read(int(key))
    reader.read_batch(reader.keys[:50])


def read_training_set(folder: Path) -> None:
    dataset = RecordDataset(folder)
    for position in range(min(len(dataset), 50)):
        dataset.read(position)


def records(folder: Path) -> Target:
    files = record_files(folder)
    return Target(read_records, "data/recordio.py", [Seed("train.rec", files["train.rec"])], files)


def index(folder: Path) -> Target:
    files = record_files(folder)
    return Target(read_records, "data/recordio.py", [Seed("train.idx", files["train.idx"], words)], files)


def training_set(folder: Path) -> Target:
    files = record_files(folder)
    seeds = [Seed("property", b"2,112,112\n", words), *(Seed(name, data) for name, data in files.items())]
    return Target(read_training_set, "data/dataset.py", seeds)


# Opcodes whose arguments state a large size, or that build large objects from little data.
HOSTILE_OPCODES = [
    b"\x8e" + struct.pack("<Q", 2**40) + b"x",  # BINBYTES8
    b"\x96" + struct.pack("<Q", 2**34) + b"x",  # BYTEARRAY8
    b"\x96" + struct.pack("<Q", 2**62) + b"x",
    b"\x8d" + struct.pack("<Q", 2**40) + b"x",  # BINUNICODE8
    b"\x95" + struct.pack("<Q", 2**40),  # FRAME
    b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\x7f",  # LONG4
    b"\x8b" + struct.pack("<i", -5),
    b"B" + struct.pack("<I", 2**32 - 1) + b"x",  # BINBYTES
    b"X" + struct.pack("<I", 2**31) + b"x",  # BINUNICODE
    b"T" + struct.pack("<i", -1),  # BINSTRING
    b"J" + struct.pack("<i", 2**31 - 1), b"J" + struct.pack("<i", -1), b"M\xff\xff", b"K\x00", b"K\x01",
    b"L" + b"9" * 30 + b"L\n", b"I" + b"9" * 5000 + b"\n", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"F1e400\n",
    b"r" + struct.pack("<I", 2**32 - 1), b"j" + struct.pack("<I", 2**32 - 1), b"q\x00", b"h\x00", b"h\x01", b"\x94",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\nexec\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.multiarray\nscalar\n",
    b"cnumpy._core.numeric\n_frombuffer\n", b"c_codecs\nencode\n", b"ios\nsystem\n", b"\x93", b"o", b"\x81", b"\x92",
    b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(\x8a\x06\x00\x00\x00\x00\x00\x01tC\x01btR",
    b"cnumpy\nndarray\n(J\x00\x00\x00\x40J\x00\x00\x00\x40\x86tR",
    b"cnumpy\ndtype\n(X\x0b\x00\x00\x00V1000000000K\x00K\x01tR",
    b"0", b"1", b"2", b"(", b"]", b"}", b")", b"\x8f", b"a", b"e", b"s", b"u", b"b", b"R", b"t", b"l", b"d", b"\x90",
    b"\x91", b"\x85", b"\x86", b"\x87", b"\x97", b"\x98", b"P1\n", b"Q", b"\x82\x01", b".", b"N", b"\x88", b"\x89",
]  # fmt: skip
# A bytes object as Python 3 writes it in protocol 2.
LATIN1 = b"c_codecs\nencode\nX\x02\x00\x00\x00\xc3\xbfX\x06\x00\x00\x00latin1\x86R"
PICKLE_WORDS = [*HOSTILE_OPCODES, LATIN1]
# Before torch reads a text, it allocates the length that the file states for it (4 bytes, so up to 4 GiB).
TORCH_ALLOCATION = 5 * 2**30


def bin_files(folder: Path) -> Target:
    images, flags = [b"image %d" % number for number in range(4)], [True, False]
    arrays = [np.frombuffer(image, np.uint8).copy() for image in images]
    contents = [
        (images, flags),
        (arrays, np.array(flags)),
        (arrays, [np.bool_(flag) for flag in flags]),
        ([bytearray(image) for image in images[:2]], (1,)),
    ]
    pickles = [pickle.dumps(content, protocol) for content in contents[:3] for protocol in (0, 2, 4, 5)]
    pickles.append(pickle.dumps(contents[3], 5))
    pickles.append(b"((lp0\nS'\\x01'\np1\naS'b'\na(lp2\nI01\natp3\n.")  # written by Python 2
    seeds = [Seed("set.bin", data, opcodes) for data in pickles]
    return Target(
        lambda folder: read_bin(folder / "set.bin"),
        "data/safe_pickle.py",
        seeds,
        words=PICKLE_WORDS,
    )


def torch_files(content: object, name: str) -> list[Seed]:
    """Seeds from torch.save: a file in the old format, one in the new format, and the pickle of a valid archive."""
    new, old = saved(torch.save, content), saved(torch.save, content, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(io.BytesIO(new)) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    inside = next(entry for entry in entries if entry.endswith("data.pkl"))

    def pack(data: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for entry, stored in entries.items():
                archive.writestr(entry, data if entry == inside else stored)
        return file.getvalue()

    return [Seed(name, new), Seed(name, old, opcodes), Seed(name, entries[inside], opcodes, pack)]


def metadata(folder: Path) -> Target:
    contents = [
        {"templates": np.arange(3), "scores": np.array([0.5, 1.0]), "texts": ["a_1.jpg", "b.jpg"]},
        {"label": torch.arange(2), "p1": [1, 2], "flag": np.bool_(True), "names": np.array(["x", "yz"])},
    ]

    def read(folder: Path) -> None:
        for value in read_metadata(folder / "metadata.pt").values():
            array = flat_array(value)  # as TemplateSet does with the keys it needs
            if array.ndim == 1 and array.dtype.kind in INTEGERS + TEXTS:
                array.tolist()

    seeds = [seed for content in contents for seed in torch_files(content, "metadata.pt")]
    return Target(read, "data/template_metadata.py", seeds, words=PICKLE_WORDS, max_allocation=TORCH_ALLOCATION)


def weights(folder: Path) -> Target:
    from safetensors.torch import save

    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    seeds = [*torch_files(state, "w.pth"), *torch_files({"state_dict": state}, "w.pth")]
    seeds.append(Seed("w.safetensors", save(state), words))

    def read(folder: Path) -> None:
        read_state_dicts(folder / "w.safetensors")
        read_state_dicts(folder / "w.pth")

    return Target(read, "utils/weights.py", seeds, max_allocation=TORCH_ALLOCATION)


def overrides(folder: Path) -> Target:
    texts = [
        "lr=0.1\nloss=ArcFace\nlr_milestones=[8,14]",
        "val_targets=lfw,cfp_fp\nm=none\nrec=~/x",
        "dataset=custom\nSE=true",
        "output=$HOME/x\nteacher_embeddings=a.npy",
        "ijb_targets=['a', 'b']\nseed=7\ngeom_margin_k=3.",
        "width=1e-3",
    ]

    def read(folder: Path) -> None:
        load_config(BASE, (folder / "overrides").read_bytes().decode(errors="surrogateescape").split("\n"))

    seeds = [Seed("overrides", text.encode(), words) for text in texts]
    return Target(read, "config/__init__.py", seeds, parses_python=True)


def nist_lists(folder: Path) -> Target:
    points = " ".join(["30.5 40", "70 41.25", "50 60", "35 80", "66 81"])
    lists = {
        "meta/ijbc_face_tid_mid.txt": "1.jpg 1 10\n2.jpg 1 11\n3.jpg 2 12\n",
        "meta/ijbc_name_5pts_score.txt": "".join(f"{number}.jpg {points} 0.9{number}\n" for number in (2, 1, 3)),
        "meta/ijbc_template_pair_label.txt": "1 1 1\n1 2 0\n",
    }

    def read(folder: Path) -> None:
        images = NistSet(folder)
        images[[0]]  # the photo exists, unless the name was changed

    folder.joinpath("loose_crop").mkdir()
    photo = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    others = {f"loose_crop/{number}.jpg": photo for number in (1, 2, 3)}
    seeds = [Seed(file, text.encode(), words) for file, text in lists.items()]
    return Target(read, "data/nist_set.py", seeds, others)


def embeddings(folder: Path) -> Target:
    seeds = []
    for kind in ("float16", "int8"):
        about = {"embeddings": {"shape": [2, 2, 3], "type": kind}, "teacher": {"sha256": "0"}, "about": {"data": "x"}}
        row = row_type(about)
        array = saved(np.save, np.zeros((2, 2, *row.shape), row.base))
        seeds += [Seed(f"{kind}.npy", array, words), Seed(f"{kind}.json", json.dumps(about).encode(), words)]

    def read(folder: Path) -> None:
        for kind in ("float16", "int8"):
            file = EmbeddingFile(folder / f"{kind}.npy", {"teacher": {"sha256": "0"}})
            file.rows(np.arange(2), np.zeros(2, bool))
            file.summary()

    return Target(read, "data/teacher_cache.py", seeds)


def projections(folder: Path) -> Target:
    about = {"projection": {"dimensions": [3, 2]}, "about": {"energy": 0.5, "cosines": {}}}
    write_projection(folder / "p.safetensors", Projection(torch.ones(3, 2, dtype=torch.float64), about))
    seeds = [Seed("p.safetensors", (folder / "p.safetensors").read_bytes(), words)]
    return Target(lambda folder: read_projection(folder / "p.safetensors"), "data/teacher_projection.py", seeds)


def results(folder: Path) -> Target:
    figures = {"verification": {"lfw": {"Accuracy-Flip": 0.5, "XNorm": None}}}
    text = json.dumps({**figures, "absent": [], "failed": ["a: b"], "about": {"run": "x"}}).encode()
    arrays = {"verification/lfw/score": np.zeros(3), "ijb/a/b/score": np.zeros(2, np.float32)}
    seeds = [Seed("r.json", text, words), Seed("r.npz", saved(np.savez, **arrays))]
    return Target(lambda folder: read_json(folder / "r.json"), "eval/report/results.py", seeds)


def images(folder: Path) -> Target:
    face = np.random.default_rng(0).integers(0, 256, (14, 14, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    seeds = [Seed("image", cv2.imencode(f".{kind}", face)[1].tobytes()) for kind in ("jpg", "png", "webp", "bmp")]
    progressive = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    batch = np.empty((1, 112, 112, 3), np.uint8)

    def read(folder: Path) -> None:
        encoded = np.fromfile(folder / "image", np.uint8)
        assert decode_rgb(encoded, "image").dtype == np.uint8
        decode_into(batch, [encoded], lambda row: "image")

    return Target(read, "data/images.py", [*seeds, Seed("image", progressive)])


TARGETS: dict[str, Callable[[Path], Target]] = {
    "record files": records,
    "indexes of record files": index,
    "training sets": training_set,
    ".bin sets": bin_files,
    "metadata.pt": metadata,
    "weights": weights,
    "overrides of the config": overrides,
    "lists of NIST": nist_lists,
    "embeddings and their descriptions": embeddings,
    "projections of embeddings": projections,
    "results": results,
    "images (JPEG, PNG, WebP, BMP)": images,
}
