"""Record files: what MXNet wrote is read bit for bit, and the writer writes the same bytes as MXNet."""

import hashlib
import json
import multiprocessing
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from record_files import PAYLOADS, WORD, reader_of, write_payloads
from torch.utils.data import DataLoader, Dataset

from data.record_index import RecordError
from data.recordio import MAGIC, RecordWriter
from data.workers import keep_batch

GOLDEN = Path(__file__).parent / "golden" / "recordio"
LABELS = [3.0, [7.0], [1.5, -2.0], list(range(9)), [struct.unpack("<f", WORD)[0], 1.0]]


class Payloads(Dataset):
    """The payloads of a record set by position, for loader workers."""

    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, position):
        return bytes(self.reader.read(int(self.reader.keys[position]))[1])


def read_in_child(reader, key, results):
    results.put(bytes(reader.read(key)[1]))


def test_records_written_by_mxnet_are_read_unchanged():
    expected = {int(key): record for key, record in json.loads((GOLDEN / "multipart.json").read_text()).items()}
    reader = reader_of(GOLDEN / "multipart")
    assert reader.keys.tolist() == sorted(expected)
    assert len(reader) == 40
    for key, record in expected.items():
        header, payload = reader.read(key)
        assert (header.flag, header.id, header.id2) == (record["flag"], record["id"], record["id2"])
        label = [header.label] if header.flag == 0 else header.label.tolist()
        assert label == [float(np.float32(value)) for value in record["label"]]
        assert len(payload) == record["payload_bytes"]
        assert hashlib.sha256(payload).hexdigest() == record["payload_sha256"]


def test_the_writer_writes_the_same_bytes_as_mxnet(tmp_path):
    reader = reader_of(GOLDEN / "multipart")
    lines = [line.split("\t") for line in (GOLDEN / "multipart.idx").read_text().splitlines()]
    with RecordWriter(tmp_path / "again") as writer:
        for key, _ in lines:
            header, payload = reader.read(int(key))
            writer.write(int(key), header.label, bytes(payload), id=header.id)
    assert (tmp_path / "again.idx").read_bytes() == (GOLDEN / "multipart.idx").read_bytes()
    written = bytearray((tmp_path / "again.rec").read_bytes())
    for _, offset in lines:  # the golden records have id2 = 7, the written ones 0; it is at byte 8 + 16 of a record
        struct.pack_into("<Q", written, int(offset) + 8 + 16, 7)
    assert written == (GOLDEN / "multipart.rec").read_bytes()


@pytest.mark.parametrize("label", LABELS, ids=str)
def test_written_records_are_read_unchanged(tmp_path, label):
    with RecordWriter(tmp_path / "train") as writer:
        for key, payload in enumerate(PAYLOADS):
            writer.write(3 * key, label, payload, id=None if key % 2 else 2**40 + key)
    reader = reader_of(tmp_path / "train")
    assert reader.keys.tolist() == [3 * key for key in range(len(PAYLOADS))]
    for key, payload in enumerate(PAYLOADS):
        header, found = reader.read(3 * key)
        assert bytes(found) == payload
        assert (header.id, header.id2) == (3 * key if key % 2 else 2**40 + key, 0)
        if np.ndim(label):
            assert header.flag == len(label)
            assert np.array_equal(header.label, np.array(label, dtype=np.float32))
        else:
            assert header.flag == 0
            assert header.label == label


@pytest.mark.parametrize("label", LABELS, ids=str)
def test_a_batch_equals_its_records_read_one_by_one(tmp_path, label):
    with RecordWriter(tmp_path / "train") as writer:
        for key, payload in enumerate(PAYLOADS):
            writer.write(3 * key, label, payload)
    reader = reader_of(tmp_path / "train")
    keys = reader.keys[np.random.default_rng(0).permutation(len(PAYLOADS) * 2) % len(PAYLOADS)]
    labels, found = reader.read_batch(keys)
    assert [image.tobytes() for image in found] == [bytes(reader.read(int(key))[1]) for key in keys]
    assert labels.tolist() == [float(np.float32(np.ravel(label)[0]))] * len(keys)


def test_a_batch_of_records_written_by_mxnet_is_read_unchanged():
    expected = json.loads((GOLDEN / "multipart.json").read_text())
    reader = reader_of(GOLDEN / "multipart")
    labels, found = reader.read_batch(reader.keys[::-1])
    for key, label, image in zip(reader.keys[::-1], labels, found, strict=True):
        record = expected[str(key)]
        assert label == np.float32(record["label"][0])
        assert hashlib.sha256(image).hexdigest() == record["payload_sha256"]


def test_random_payloads_full_of_the_magic_are_read_unchanged(tmp_path):
    rng = np.random.default_rng(5)
    pieces = [WORD, WORD, b"a", b"bc", b"def", b"ghij", WORD[:2], WORD[1:]]
    payloads = [b"".join(pieces[i] for i in rng.integers(0, len(pieces), rng.integers(0, 30))) for _ in range(300)]
    reader = reader_of(write_payloads(tmp_path / "train", payloads))
    assert [bytes(reader.read(key)[1]) for key in range(300)] == payloads


def test_at_4_byte_boundaries_the_magic_occurs_only_at_the_start_of_parts(tmp_path):
    write_payloads(tmp_path / "train", PAYLOADS)
    data = (tmp_path / "train.rec").read_bytes()
    assert len(data) % 4 == 0
    words = np.frombuffer(data, dtype="<u4")
    offset, parts, flags = 0, 0, []
    while offset < len(data):
        magic, word = struct.unpack_from("<II", data, offset)
        assert magic == MAGIC
        flags.append(word >> 29)
        length = word & (2**29 - 1)
        padding = -length % 4
        assert data[offset + 8 + length : offset + 8 + length + padding] == bytes(padding)
        offset += 8 + length + padding
        parts += 1
    assert (words == MAGIC).sum() == parts
    assert set(flags) == {0, 1, 2, 3}


def test_a_writer_that_fails_leaves_no_files(tmp_path):
    with pytest.raises(RecordError, match="key 4 was written before"), RecordWriter(tmp_path / "train") as writer:
        writer.write(4, 0.0, b"one")
        writer.write(4, 0.0, b"two")
    assert list(tmp_path.iterdir()) == []


def test_a_set_stays_unchanged_when_overwriting_it_fails(tmp_path):
    write_payloads(tmp_path / "train", [b"old"])
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / "train") as writer:
        writer.write(0, 0.0, b"new")
        raise KeyboardInterrupt
    assert bytes(reader_of(tmp_path / "train").read(0)[1]) == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.idx", "train.rec"]


def test_a_reader_can_be_pickled_after_reading(tmp_path):
    reader = reader_of(write_payloads(tmp_path / "train", PAYLOADS))
    reader.read(0)
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301 (written here)
    assert [bytes(again.read(key)[1]) for key in range(len(PAYLOADS))] == PAYLOADS
    assert bytes(reader.read(1)[1]) == PAYLOADS[1]


def test_a_reader_works_in_a_spawned_process(tmp_path):
    reader = reader_of(write_payloads(tmp_path / "train", PAYLOADS))
    reader.read(0)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=read_in_child, args=(reader, 9, results))
    child.start()
    assert results.get(timeout=120) == PAYLOADS[9]
    child.join(60)
    assert child.exitcode == 0


def test_a_reader_works_in_forked_workers(tmp_path):
    reader = reader_of(write_payloads(tmp_path / "train", PAYLOADS))
    reader.read(0)
    loader = DataLoader(
        Payloads(reader), batch_size=None, num_workers=2, collate_fn=keep_batch, multiprocessing_context="fork"
    )
    assert list(loader) == PAYLOADS
    assert bytes(reader.read(2)[1]) == PAYLOADS[2]


def test_a_large_unsorted_index_is_sorted(tmp_path):
    count = 500_000
    record = np.zeros(
        count, dtype=[("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2)]
    )
    record["magic"], record["length"], record["label"] = MAGIC, 24, np.arange(count)
    record.tofile(tmp_path / "train.rec")
    keys = np.arange(count) * 3 + 1
    order = np.random.default_rng(0).permutation(count)
    pairs = zip(keys[order].tolist(), (order * record.itemsize).tolist(), strict=True)
    (tmp_path / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in pairs))
    reader = reader_of(tmp_path / "train")
    assert len(reader) == count
    assert reader.keys.dtype == np.int64
    assert np.array_equal(reader.keys, keys)
    for position in (0, 1, 77, 123_456, count - 1):
        assert reader.read(3 * position + 1)[0].label == position


def test_an_index_needs_no_shared_memory(tmp_path):
    """A process that may not write files, also not in /dev/shm, opens an index of 100,000 records."""
    write_payloads(tmp_path / "train", PAYLOADS)
    size = len(PAYLOADS)
    offsets = [line.split("\t")[1] for line in (tmp_path / "train.idx").read_text().splitlines()]
    (tmp_path / "train.idx").write_text("".join(f"{key}\t{offsets[key % size]}\n" for key in range(100_000)))

    def read_without_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        assert bytes(reader_of(tmp_path / "train").read(size + 1)[1]) == PAYLOADS[1]

    child = multiprocessing.get_context("fork").Process(target=read_without_files)
    child.start()
    child.join(60)
    assert child.exitcode == 0
