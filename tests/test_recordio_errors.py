"""Broken record files and indexes: the error names the file, the record or key, and what is wrong."""

import struct

import numpy as np
import pytest
from record_files import PAYLOADS, WORD, reader_of, write_payloads

from data.record_index import RecordError
from data.recordio import MAGIC, RecordWriter


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0, 0, "no record at byte"), (4, 2 << 29 | 40, "part flag 2"), (8, 9, "states 9 labels"), (4, 20, "too few")],
)
def test_an_error_names_the_broken_record_of_a_batch(tmp_path, at, value, message):
    stem = write_payloads(tmp_path / "train", [b"payload of 16 B."] * 3)
    data = bytearray((tmp_path / "train.rec").read_bytes())
    struct.pack_into("<I", data, len(data) // 3 + at, value)
    (tmp_path / "train.rec").write_bytes(data)
    reader = reader_of(stem)
    reader.read_batch(np.array([0, 2]))
    with pytest.raises(RecordError, match=rf"train\.rec: .*{message}"):
        reader.read_batch(np.array([0, 1, 2]))


def test_an_error_names_an_unknown_key_of_a_batch(tmp_path):
    reader = reader_of(write_payloads(tmp_path / "train", [b"one", b"two"]))
    with pytest.raises(RecordError, match="no key 2"):
        reader.read_batch(np.array([0, 2]))


@pytest.mark.parametrize("suffix", [".rec", ".idx"])
def test_an_error_names_a_missing_file(tmp_path, suffix):
    write_payloads(tmp_path / "train", PAYLOADS)
    (tmp_path / f"train{suffix}").unlink()
    with pytest.raises(RecordError, match=rf"train\{suffix}: no such file"):
        reader_of(tmp_path / "train")


@pytest.mark.parametrize("cut", [1, 4, 8, 40, 1200])
def test_a_record_file_that_was_cut_short_is_detected_when_it_is_opened(tmp_path, cut):
    write_payloads(tmp_path / "train", [b"first", bytes(2000) + WORD + b"last"])
    data = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data[:-cut])
    with pytest.raises(RecordError, match=r"train\.rec.*cut"):
        reader_of(tmp_path / "train")


@pytest.mark.parametrize("size", [4, 32])
def test_a_record_file_without_its_last_records_is_detected_when_it_is_opened(tmp_path, size):
    write_payloads(tmp_path / "train", PAYLOADS)
    data = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data[:size])
    with pytest.raises(RecordError, match=r"train\.idx.*train\.rec"):
        reader_of(tmp_path / "train")


@pytest.mark.parametrize("offset", [-4, 2, 2**40])
def test_an_error_names_the_key_that_points_outside_the_file(tmp_path, offset):
    write_payloads(tmp_path / "train", PAYLOADS)
    with (tmp_path / "train.idx").open("a") as file:
        file.write(f"99\t{offset}\n")
    with pytest.raises(RecordError, match=rf"train\.idx: key 99 .*{offset}.*train\.rec"):
        reader_of(tmp_path / "train")


def test_an_error_names_the_key_that_points_into_a_record(tmp_path):
    write_payloads(tmp_path / "train", PAYLOADS)
    with (tmp_path / "train.idx").open("a") as file:
        file.write("99\t4\n")
    reader = reader_of(tmp_path / "train")
    with pytest.raises(RecordError, match=r"train\.rec: no record at byte 4.*key 99"):
        reader.read(99)


def test_an_error_names_the_key_that_points_to_the_middle_of_a_split_record(tmp_path):
    write_payloads(tmp_path / "train", [b"abcd" + WORD + b"efgh", b"last"])
    with (tmp_path / "train.idx").open("a") as file:
        file.write("99\t36\n")
    with pytest.raises(RecordError, match=r"train\.rec: record 99 has part flag 3 out of order"):
        reader_of(tmp_path / "train").read(99)


@pytest.mark.parametrize("text", [b"\n", b"  \n\n"])
def test_an_error_names_an_empty_index(tmp_path, text):
    write_payloads(tmp_path / "train", PAYLOADS)
    (tmp_path / "train.idx").write_bytes(text)
    with pytest.raises(RecordError, match=r"train\.idx: the index is empty"):
        reader_of(tmp_path / "train")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "text", [b"<x>\n", b"0\t0\nx\ty\n", b"0\n", b"0\t0\n1\n", b"0\t0\t5\n", b"\x00\xff\xfe\x80", b"0.5\t0\n"]
)
def test_an_error_names_an_index_with_other_lines(tmp_path, text):
    write_payloads(tmp_path / "train", PAYLOADS)
    (tmp_path / "train.idx").write_bytes(text)
    with pytest.raises(RecordError, match=r"train\.idx: the index has lines other than"):
        reader_of(tmp_path / "train")


def test_an_error_names_a_key_that_the_index_lists_twice(tmp_path):
    write_payloads(tmp_path / "train", PAYLOADS)
    with (tmp_path / "train.idx").open("a") as file:
        file.write("5\t0\n")
    with pytest.raises(RecordError, match=r"train\.idx: key 5 is listed twice"):
        reader_of(tmp_path / "train")


@pytest.mark.parametrize("key", [-1, 5, 12])
def test_an_error_names_an_unknown_key_and_the_range_of_keys(tmp_path, key):
    with RecordWriter(tmp_path / "train") as writer:
        for known in (1, 3, 11):
            writer.write(known, 0.0, b"x")
    with pytest.raises(RecordError, match=rf"train\.idx: no key {key}; there are 3 from 1 to 11"):
        reader_of(tmp_path / "train").read(key)


@pytest.mark.parametrize(("body", "message"), [(bytes(20), "too few"), (struct.pack("<IfQQ", 9, 0, 0, 0), "9 labels")])
def test_an_error_names_a_record_too_short_for_its_header(tmp_path, body, message):
    write_payloads(tmp_path / "train", [b"good"])
    with (tmp_path / "train.rec").open("r+b") as file:
        file.write(struct.pack("<II", MAGIC, len(body)) + body)
    with pytest.raises(RecordError, match=rf"train\.rec: record 0 .*{message}"):
        reader_of(tmp_path / "train")
