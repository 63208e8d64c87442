"""A large index is parsed once; later processes map the stored arrays, unless the index or the record file changed."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from record_files import reader_of, write_payloads

from data import record_index
from data.record_index import RecordError, stored_path

PAYLOADS = [f"payload {number}".encode() * (1 + number % 3) for number in range(40)]


@pytest.fixture
def stem(tmp_path, monkeypatch) -> Path:
    """A record set, whose index counts as a large one."""
    monkeypatch.setattr(record_index, "MIN_BYTES_TO_STORE", 0)
    write_payloads(tmp_path / "train", PAYLOADS)
    lines = (tmp_path / "train.idx").read_text().splitlines()
    (tmp_path / "train.idx").write_text("\n".join(lines[::-1]))  # not in the order of the keys
    return tmp_path / "train"


def payloads(stem: Path) -> list[bytes]:
    reader = reader_of(stem)
    return [bytes(reader.read(int(key))[1]) for key in reader.keys]


def parse_never(monkeypatch) -> None:
    monkeypatch.setattr(record_index, "read_index", lambda _: pytest.fail("parsed again"))


def test_the_stored_arrays_are_those_of_the_index_and_are_mapped(stem, monkeypatch):
    assert payloads(stem) == PAYLOADS
    keys, offsets = np.load(stored_path(stem.with_suffix(".idx")))
    lines = [line.split("\t") for line in stem.with_suffix(".idx").read_text().splitlines()]
    assert sorted(map(tuple, lines), key=lambda line: int(line[0])) == [
        (str(key), str(offset)) for key, offset in zip(keys[:-2], offsets[:-2], strict=True)
    ]
    parse_never(monkeypatch)
    assert payloads(stem) == PAYLOADS
    assert not reader_of(stem).keys.flags.writeable  # mapped, and shared by all processes


def test_a_small_index_is_not_stored(stem, monkeypatch):
    monkeypatch.setattr(record_index, "MIN_BYTES_TO_STORE", 10**6)
    assert payloads(stem) == PAYLOADS and not stored_path(stem.with_suffix(".idx")).exists()


def test_a_new_index_is_parsed_again(stem):
    payloads(stem)
    write_payloads(stem, PAYLOADS[::-1])
    assert payloads(stem) == PAYLOADS[::-1]


def test_an_index_of_another_size_is_parsed_again_also_with_the_same_time(stem):
    """As of a file that was fetched again by a tool that keeps the server's time."""
    index = stem.with_suffix(".idx")
    lines, time_of_index = index.read_text(), index.stat().st_mtime_ns
    index.write_text("".join(lines.splitlines(keepends=True)[:-3]))
    os.utime(index, ns=(time_of_index, time_of_index))
    assert len(payloads(stem)) == len(PAYLOADS) - 3
    index.write_text(lines)
    os.utime(index, ns=(time_of_index, time_of_index))
    assert payloads(stem) == PAYLOADS


@pytest.mark.parametrize("length", [0, 20, 200, -8])
def test_broken_arrays_are_made_again(stem, length):
    payloads(stem)
    stored = stored_path(stem.with_suffix(".idx"))
    complete, time_of_index = stored.read_bytes(), stored.stat().st_mtime_ns
    stored.write_bytes(complete[:length])
    os.utime(stored, ns=(time_of_index, time_of_index))
    assert payloads(stem) == PAYLOADS
    assert stored.read_bytes() == complete


def test_a_record_file_that_was_cut_short_is_noticed(stem):
    payloads(stem)
    rec = stem.with_suffix(".rec")
    rec.write_bytes(rec.read_bytes()[:-100])
    with pytest.raises(RecordError, match=r"train\.(idx: key 39 points to byte|rec: record 39 is cut off)"):
        reader_of(stem)


def test_without_the_right_to_write_the_index_is_parsed_each_time(stem, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(record_index, "atomic_write", refuse)
    assert payloads(stem) == payloads(stem) == PAYLOADS


def test_of_several_processes_only_one_parses_the_index(stem, monkeypatch):
    """Threads instead of processes: the lock belongs to an open file, and each thread opens its own."""
    parsed, read_index = [], record_index.read_index

    def slow(path):
        parsed.append(path)
        time.sleep(0.2)
        return read_index(path)

    monkeypatch.setattr(record_index, "read_index", slow)
    readers = []
    threads = [threading.Thread(target=lambda: readers.append(reader_of(stem))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readers) == 3 and len(parsed) == 1
