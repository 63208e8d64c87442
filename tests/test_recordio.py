"""Record files: what MXNet wrote is read bit for bit, what we write is what MXNet would, and broken sets are named."""

import hashlib
import json
import multiprocessing
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from data.recordio import MAGIC, IndexedRecordReader, RecordError, RecordWriter

GOLDEN = Path(__file__).parent / "golden" / "recordio"
WORD = struct.pack("<I", MAGIC)
# The fixed header has 24 bytes, so a payload of a record with one label in it starts at a 4-byte boundary.
PAYLOADS = [
    b"",
    b"plain",
    WORD,
    WORD + WORD,
    WORD + b"abc",
    b"abcd" + WORD,
    b"a" + WORD + b"bcd",
    b"ab" + WORD + WORD + b"cd",
    b"abc" + WORD + b"x" + WORD + b"yz",
    b"abcd" + WORD + b"ab" + WORD + b"cd" + WORD * 3 + b"e",
    WORD[:3] + WORD,
    bytes(range(256)) * 5 + WORD,
]
LABELS = [3.0, [7.0], [1.5, -2.0], list(range(9)), [struct.unpack("<f", WORD)[0], 1.0]]


class Payloads(Dataset):
    """The payloads of a record set by position, as a loader's workers read them."""

    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, position):
        return bytes(self.reader.read(int(self.reader.keys[position]))[1])


def reader_of(stem):
    return IndexedRecordReader(f"{stem}.rec", f"{stem}.idx")


def write_payloads(stem, payloads):
    with RecordWriter(stem) as writer:
        for key, payload in enumerate(payloads):
            writer.write(key, float(key), payload)
    return stem


def read_in_a_child(reader, key, results):
    results.put(bytes(reader.read(key)[1]))


def identity(item):
    return item


def test_every_record_that_mxnet_wrote_is_read_as_it_was():
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


def test_the_writer_writes_the_bytes_that_mxnet_wrote(tmp_path):
    reader = reader_of(GOLDEN / "multipart")
    lines = [line.split("\t") for line in (GOLDEN / "multipart.idx").read_text().splitlines()]
    with RecordWriter(tmp_path / "again") as writer:
        for key, _ in lines:
            header, payload = reader.read(int(key))
            writer.write(int(key), header.label, bytes(payload), id=header.id)
    assert (tmp_path / "again.idx").read_bytes() == (GOLDEN / "multipart.idx").read_bytes()
    written = bytearray((tmp_path / "again.rec").read_bytes())
    for _, offset in lines:  # the golden records have id2 7, ours 0: the last 8 of the 24 bytes after the 8 of the part
        struct.pack_into("<Q", written, int(offset) + 8 + 16, 7)
    assert written == (GOLDEN / "multipart.rec").read_bytes()


@pytest.mark.parametrize("label", LABELS, ids=str)
def test_what_is_written_is_read(tmp_path, label):
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
def test_a_batch_of_records_is_read_as_one_by_one(tmp_path, label):
    with RecordWriter(tmp_path / "train") as writer:
        for key, payload in enumerate(PAYLOADS):
            writer.write(3 * key, label, payload)
    reader = reader_of(tmp_path / "train")
    keys = reader.keys[np.random.default_rng(0).permutation(len(PAYLOADS) * 2) % len(PAYLOADS)]
    labels, found = reader.read_batch(keys)
    assert [image.tobytes() for image in found] == [bytes(reader.read(int(key))[1]) for key in keys]
    assert labels.tolist() == [float(np.float32(np.ravel(label)[0]))] * len(keys)


def test_a_batch_of_the_records_that_mxnet_wrote_is_read_as_they_were():
    expected = json.loads((GOLDEN / "multipart.json").read_text())
    reader = reader_of(GOLDEN / "multipart")
    labels, found = reader.read_batch(reader.keys[::-1])
    for key, label, image in zip(reader.keys[::-1], labels, found, strict=True):
        record = expected[str(key)]
        assert label == np.float32(record["label"][0])
        assert hashlib.sha256(image).hexdigest() == record["payload_sha256"]


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0, 0, "no record at byte"), (4, 2 << 29 | 40, "part flag 2"), (8, 9, "claims 9 labels"), (4, 20, "too few")],
)
def test_a_broken_record_in_a_batch_is_named(tmp_path, at, value, message):
    stem = write_payloads(tmp_path / "train", [b"payload of 16 B."] * 3)
    data = bytearray((tmp_path / "train.rec").read_bytes())
    struct.pack_into("<I", data, len(data) // 3 + at, value)
    (tmp_path / "train.rec").write_bytes(data)
    reader = reader_of(stem)
    reader.read_batch(np.array([0, 2]))
    with pytest.raises(RecordError, match=rf"train\.rec: .*{message}"):
        reader.read_batch(np.array([0, 1, 2]))


def test_a_key_that_is_not_there_is_named_in_a_batch_too(tmp_path):
    reader = reader_of(write_payloads(tmp_path / "train", [b"one", b"two"]))
    with pytest.raises(RecordError, match="no key 2"):
        reader.read_batch(np.array([0, 2]))


def test_random_payloads_full_of_the_magic_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(5)
    pieces = [WORD, WORD, b"a", b"bc", b"def", b"ghij", WORD[:2], WORD[1:]]
    payloads = [b"".join(pieces[i] for i in rng.integers(0, len(pieces), rng.integers(0, 30))) for _ in range(300)]
    reader = reader_of(write_payloads(tmp_path / "train", payloads))
    assert [bytes(reader.read(key)[1]) for key in range(300)] == payloads


def test_a_split_record_holds_no_magic_at_a_boundary_but_at_its_parts(tmp_path):
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


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RecordError, match="key 4 stands twice"), RecordWriter(tmp_path / "train") as writer:
        writer.write(4, 0.0, b"one")
        writer.write(4, 0.0, b"two")
    assert list(tmp_path.iterdir()) == []


def test_a_set_stays_as_it_was_when_writing_it_anew_fails(tmp_path):
    write_payloads(tmp_path / "train", [b"old"])
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / "train") as writer:
        writer.write(0, 0.0, b"new")
        raise KeyboardInterrupt
    assert bytes(reader_of(tmp_path / "train").read(0)[1]) == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.idx", "train.rec"]


def test_a_reader_that_has_read_pickles_and_reads_on(tmp_path):
    reader = reader_of(write_payloads(tmp_path / "train", PAYLOADS))
    reader.read(0)
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301 (our own)
    assert [bytes(again.read(key)[1]) for key in range(len(PAYLOADS))] == PAYLOADS
    assert bytes(reader.read(1)[1]) == PAYLOADS[1]


def test_a_reader_goes_to_a_spawned_process(tmp_path):
    reader = reader_of(write_payloads(tmp_path / "train", PAYLOADS))
    reader.read(0)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=read_in_a_child, args=(reader, 9, results))
    child.start()
    assert results.get(timeout=120) == PAYLOADS[9]
    child.join(60)
    assert child.exitcode == 0


def test_a_reader_works_in_forked_workers(tmp_path):
    reader = reader_of(write_payloads(tmp_path / "train", PAYLOADS))
    reader.read(0)
    loader = DataLoader(
        Payloads(reader), batch_size=None, num_workers=2, collate_fn=identity, multiprocessing_context="fork"
    )
    assert list(loader) == PAYLOADS
    assert bytes(reader.read(2)[1]) == PAYLOADS[2]


def test_a_big_index_in_any_order_is_right_and_shared_between_processes(tmp_path):
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
    tensors = [value for value in vars(reader).values() if isinstance(value, torch.Tensor)]
    assert sorted(len(tensor) for tensor in tensors) == [count, count]
    assert all(tensor.is_shared() for tensor in tensors)


@pytest.mark.parametrize("suffix", [".rec", ".idx"])
def test_a_missing_file_is_named(tmp_path, suffix):
    write_payloads(tmp_path / "train", PAYLOADS)
    (tmp_path / f"train{suffix}").unlink()
    with pytest.raises(RecordError, match=rf"train\{suffix}: no such file"):
        reader_of(tmp_path / "train")


@pytest.mark.parametrize("cut", [1, 4, 8, 40, 1200])
def test_a_record_file_cut_short_is_named_when_it_is_opened(tmp_path, cut):
    write_payloads(tmp_path / "train", [b"first", bytes(2000) + WORD + b"last"])
    data = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data[:-cut])
    with pytest.raises(RecordError, match=r"train\.rec.*cut"):
        reader_of(tmp_path / "train")


@pytest.mark.parametrize("size", [0, 4, 32])
def test_a_record_file_that_ends_before_its_last_records_is_named(tmp_path, size):
    write_payloads(tmp_path / "train", PAYLOADS)
    data = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data[:size])
    with pytest.raises(RecordError, match=r"train\.idx.*train\.rec"):
        reader_of(tmp_path / "train")


@pytest.mark.parametrize("offset", [-4, 2, 2**40])
def test_an_index_that_points_outside_is_named_with_its_key(tmp_path, offset):
    write_payloads(tmp_path / "train", PAYLOADS)
    with (tmp_path / "train.idx").open("a") as file:
        file.write(f"99\t{offset}\n")
    with pytest.raises(RecordError, match=rf"train\.idx: key 99 .*{offset}.*train\.rec"):
        reader_of(tmp_path / "train")


def test_an_index_that_points_into_a_record_is_named_when_that_is_read(tmp_path):
    write_payloads(tmp_path / "train", PAYLOADS)
    with (tmp_path / "train.idx").open("a") as file:
        file.write("99\t4\n")
    reader = reader_of(tmp_path / "train")
    with pytest.raises(RecordError, match=r"train\.rec: no record at byte 4.*key 99"):
        reader.read(99)


def test_a_key_that_points_to_the_middle_of_a_split_record_is_named(tmp_path):
    write_payloads(tmp_path / "train", [b"abcd" + WORD + b"efgh", b"last"])
    with (tmp_path / "train.idx").open("a") as file:
        file.write("99\t36\n")
    with pytest.raises(RecordError, match=r"train\.rec: record 99 has part flag 3 out of turn"):
        reader_of(tmp_path / "train").read(99)


@pytest.mark.parametrize("text", [b"", b"\n", b"  \n\n"])
def test_an_empty_index_is_named(tmp_path, text):
    write_payloads(tmp_path / "train", PAYLOADS)
    (tmp_path / "train.idx").write_bytes(text)
    with pytest.raises(RecordError, match=r"train\.idx: the index is empty"):
        reader_of(tmp_path / "train")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "text", [b"<html>\n", b"0\t0\nx\ty\n", b"0\n", b"0\t0\n1\n", b"0\t0\t5\n", b"\x00\xff\xfe\x80", b"0.5\t0\n"]
)
def test_a_garbage_index_is_named(tmp_path, text):
    write_payloads(tmp_path / "train", PAYLOADS)
    (tmp_path / "train.idx").write_bytes(text)
    with pytest.raises(RecordError, match=r"train\.idx: the index has lines other than"):
        reader_of(tmp_path / "train")


def test_a_key_that_stands_twice_in_the_index_is_named(tmp_path):
    write_payloads(tmp_path / "train", PAYLOADS)
    with (tmp_path / "train.idx").open("a") as file:
        file.write("5\t0\n")
    with pytest.raises(RecordError, match=r"train\.idx: key 5 stands twice"):
        reader_of(tmp_path / "train")


@pytest.mark.parametrize("key", [-1, 5, 12])
def test_an_unknown_key_is_named(tmp_path, key):
    with RecordWriter(tmp_path / "train") as writer:
        for known in (1, 3, 11):
            writer.write(known, 0.0, b"x")
    with pytest.raises(RecordError, match=rf"train\.idx: no key {key}; there are 3 from 1 to 11"):
        reader_of(tmp_path / "train").read(key)


@pytest.mark.parametrize(("body", "message"), [(bytes(20), "too few"), (struct.pack("<IfQQ", 9, 0, 0, 0), "9 labels")])
def test_a_record_too_short_for_its_header_is_named(tmp_path, body, message):
    write_payloads(tmp_path / "train", [b"good"])
    with (tmp_path / "train.rec").open("r+b") as file:
        file.write(struct.pack("<II", MAGIC, len(body)) + body)
    with pytest.raises(RecordError, match=rf"train\.rec: record 0 .*{message}"):
        reader_of(tmp_path / "train")
