"""Record files for tests. Their payloads contain the magic word at 4-byte boundaries and elsewhere."""

import struct

from data.recordio import MAGIC, IndexedRecordReader, RecordWriter

WORD = struct.pack("<I", MAGIC)
# The header has 24 bytes, so the payload of a record starts at a 4-byte boundary.
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


def reader_of(stem):
    return IndexedRecordReader(f"{stem}.rec", f"{stem}.idx")


def write_payloads(stem, payloads):
    with RecordWriter(stem) as writer:
        for key, payload in enumerate(payloads):
            writer.write(key, float(key), payload)
    return stem
