"""Random changes of files: of their bytes, or of the pieces that they consist of (opcodes, words)."""

import contextlib
import pickletools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_NUMBERS = (0, 1, 2, 3, 4, 8, 127, 128, 255, 256, 1023, 32767, 65535, 2**24, 2**29 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)
WORDS = [
    b"", b"0", b"-1", b"1", b"nan", b"inf", b"-inf", b"1e400", b"-0.0", b"9" * 30, b"9" * 5000, b"0x" + b"f" * 2900,
    b"9223372036854775807", b"4294967296", b"\x00", b"\xff\xfe", b"\xc2\xa0", b"\r", b"\n", b"\t", b"\x1c", b"..",
    b"../../x", b"/etc/passwd", b"~", b"~nobody\x00", b"$HOME", b"${X", b"[" * 150, b"(" * 1000, b"-" * 2900,
    b"1+" * 1400 + b"1", b"{1:2}", b"{}", b"[]", b"[[1]]", b"()", b"None", b"True", b"b'x'", b"'", b'"', b"1j", b"=",
    b"a" * 300, b"lambda: 0", b"__import__('os').system('x')", b"\xed\xa0\x80", b"null", b'{"a": 1}', b"[1, 2, 3]",
    b"1.5", b"*", b"#", b"\\x", b"\\",
]  # fmt: skip


@dataclass
class Seed:
    """Content to change; `pack(data)` is written to `file`. tokens: splits the data into pieces."""

    file: str
    data: bytes
    tokens: Callable[[bytes], list[bytes]] | None = None
    pack: Callable[[bytes], bytes] = bytes


def opcodes(data: bytes) -> list[bytes]:
    """Split a pickle into its opcodes, each with its argument. Data that is not a pickle is one piece."""
    starts = []
    with contextlib.suppress(Exception):  # keep the opcodes before the broken one
        for _, _, at in pickletools.genops(data):
            starts.append(at)
    return [data[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(data)], strict=True)] if starts else [data]


def words(data: bytes) -> list[bytes]:
    """Split a text into words and the characters between them."""
    return re.findall(rb"[\w.+-]+|[^\w.+-]", data)


def mutate(source: random.Random, seed: Seed, corpus: list[Seed], extra: Sequence[bytes]) -> Seed:
    """Change a seed one to six times. `extra`: pieces to insert; other pieces come from the `corpus`."""
    data = seed.data
    for _ in range(source.choice((1, 1, 1, 2, 3, 6))):
        if seed.tokens and source.random() < 0.6:
            data = b"".join(_mutate_pieces(source, seed.tokens(data), source.choice(corpus), extra))
        else:
            data = _mutate_bytes(source, data, source.choice(corpus).data)
    return Seed(seed.file, data[: 2**17], seed.tokens, seed.pack)


def _mutate_pieces(source: random.Random, pieces: list[bytes], other: Seed, extra: Sequence[bytes]) -> list[bytes]:
    at, to = (source.randrange(len(pieces) + 1) for _ in range(2))
    action = source.randrange(7)
    if action == 0:
        del pieces[at : at + source.choice((1, 1, 2, 8))]
    elif action == 1:
        pieces[to:to] = pieces[at : at + source.choice((1, 2, 8))]
    elif action == 2:
        pieces[at : at + 1] = [source.choice(extra)]
    elif action == 3:
        pieces.insert(at, source.choice(extra))
    elif action == 4 and other.tokens:
        others = other.tokens(other.data)
        start = source.randrange(len(others) + 1)
        pieces[at : at + source.choice((0, 1, 4))] = others[start : start + source.choice((1, 2, 8))]
    elif action == 5:
        pieces[at : at + 1], pieces[to : to + 1] = pieces[to : to + 1], pieces[at : at + 1]
    elif at < len(pieces):
        pieces[at] = _mutate_bytes(source, pieces[at], other.data)
    return pieces


def _mutate_bytes(source: random.Random, data: bytes, other: bytes) -> bytes:
    at, to = sorted(source.randrange(len(data) + 1) for _ in range(2))
    action = source.randrange(8)
    if action == 0:
        return data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :] if at < len(data) else data
    if action == 1:
        return data[:at]
    if action in (2, 3):  # overwrite bytes with a number, or insert it
        width = source.choice((1, 2, 4, 8))
        number = source.choice(_NUMBERS) % 256**width
        return data[:at] + number.to_bytes(width, source.choice(("little", "big"))) + data[at + width * (action == 2) :]
    if action == 4:
        return data[:at] + data[at : at + source.choice((1, 4, 16, 64))] + data[at:]
    if action == 5:
        return data[:at] + data[min(to, at + source.choice((1, 4, 16, 64))) :]
    if action == 6:
        start = source.randrange(len(other) + 1)
        return data[:at] + other[start : start + source.choice((1, 4, 16, 64, 4096))] + data[to:]
    return data[:at] + source.randbytes(source.choice((1, 2, 8))) + data[at:]
