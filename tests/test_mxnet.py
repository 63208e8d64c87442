"""MXNet reads the record files and .bin sets that we write, and we read those that it writes.

MXNet needs an older NumPy, so it runs in a separate environment, which is created once in the folder for temporary
files.
"""

import hashlib
import json
import platform
import struct
import sys

import cv2
import numpy as np
import pytest
from environments import environment

from data.bin_set import write_bin
from data.recordio import MAGIC, IndexedRecordReader, RecordWriter, write_record_set

WORD = struct.pack("<I", MAGIC)
PAYLOADS = [
    b"",
    b"plain",
    WORD,
    WORD * 3,
    b"abcd" + WORD + b"ef",
    b"ab" + WORD + b"cd",
    bytes(999) + WORD,
    b"a" + WORD * 2,
]
LABELS = [4.0, [7.0], [1.5, -2.0, 3.0]]
RECORDS = [(label, payload) for label in LABELS for payload in PAYLOADS]

READ_RECORDS = """
import hashlib, json, sys
import mxnet as mx, numpy as np
reader = mx.recordio.MXIndexedRecordIO(sys.argv[1] + ".idx", sys.argv[1] + ".rec", "r")
found = {}
for key in reader.keys:
    header, payload = mx.recordio.unpack(reader.read_idx(key))
    found[key] = [header.flag, np.ravel(header.label).tolist(), header.id, hashlib.sha256(payload).hexdigest()]
print(json.dumps(found))
"""

WRITE_RECORDS = """
import json, sys
import mxnet as mx, numpy as np
writer = mx.recordio.MXIndexedRecordIO(sys.argv[1] + ".idx", sys.argv[1] + ".rec", "w")
for key, (label, payload) in enumerate(json.load(open(sys.argv[2]))):
    header = mx.recordio.IRHeader(0, np.array(label, "float32") if isinstance(label, list) else label, 50 + key, 6)
    writer.write_idx(key, mx.recordio.pack(header, bytes.fromhex(payload)))
writer.close()
"""

READ_BIN = """
import hashlib, json, pickle, sys
import mxnet as mx
encoded, is_same = pickle.load(open(sys.argv[1], "rb"), encoding="bytes")
images = [mx.image.imdecode(image).asnumpy() for image in encoded]
print(json.dumps([[hashlib.sha256(image.tobytes()).hexdigest() for image in images], list(is_same)]))
"""


@pytest.fixture(scope="module")
def run_mxnet():
    """run_mxnet(script, *arguments): run a script in the environment of MXNet, and return its output."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("MXNet is available for Linux on x86-64 only")
    return environment("mxnet.txt", "mxnet")


def png(number):
    image = np.random.default_rng(number).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    return image, cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_mxnet_reads_our_records(run_mxnet, tmp_path):
    with RecordWriter(tmp_path / "train") as writer:
        for key, (label, payload) in enumerate(RECORDS):
            writer.write(key, label, payload, id=50 + key)
    found = json.loads(run_mxnet(READ_RECORDS, tmp_path / "train"))
    expected = {
        str(key): [np.size(label) if np.ndim(label) else 0, np.ravel(label).tolist(), 50 + key, sha256(payload)]
        for key, (label, payload) in enumerate(RECORDS)
    }
    assert found == expected


def test_mxnet_reads_our_record_sets(run_mxnet, tmp_path):
    encoded = [png(number)[1] for number in range(5)]
    write_record_set(tmp_path, encoded, np.array([0, 0, 1, 2, 2]), 3)
    found = json.loads(run_mxnet(READ_RECORDS, tmp_path / "train"))
    labels = [[6, 9], [0], [0], [1], [2], [2], [1, 3], [3, 4], [4, 6]]
    images = [b"", *encoded, b"", b"", b""]
    assert found == {
        str(key): [2 if len(label) == 2 else 0, label, key, sha256(image)]
        for key, (label, image) in enumerate(zip(labels, images, strict=True))
    }


def test_records_written_by_mxnet_are_read(run_mxnet, tmp_path):
    (tmp_path / "records.json").write_text(json.dumps([(label, payload.hex()) for label, payload in RECORDS]))
    run_mxnet(WRITE_RECORDS, tmp_path / "by_mxnet", tmp_path / "records.json")
    reader = IndexedRecordReader(tmp_path / "by_mxnet.rec", tmp_path / "by_mxnet.idx")
    assert reader.keys.tolist() == list(range(len(RECORDS)))
    for key, (label, payload) in enumerate(RECORDS):
        header, found = reader.read(key)
        assert (header.flag, header.id, header.id2) == (len(label) if np.ndim(label) else 0, 50 + key, 6)
        assert np.ravel(header.label).tolist() == np.ravel(label).tolist()
        assert bytes(found) == payload


def test_mxnet_decodes_our_bin_sets(run_mxnet, tmp_path):
    images, encoded = zip(*(png(number) for number in range(4)), strict=True)
    write_bin(tmp_path / "set.bin", encoded, [True, False])
    hashes, is_same = json.loads(run_mxnet(READ_BIN, tmp_path / "set.bin"))
    assert hashes == [sha256(image.tobytes()) for image in images]
    assert is_same == [True, False]
