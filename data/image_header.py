"""The size of an encoded image as its header states it, before anything is decoded."""

import struct


def stated_size(data: memoryview) -> tuple[int, int]:
    """(width, height) in pixels from the header of a JPEG, PNG, BMP or WebP image; (0, 0) for anything else."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return struct.unpack_from(">II", data, 16)
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    if data[:2] == b"BM" and len(data) >= 26:
        return _bmp_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_size(data)
    return 0, 0


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    start = 2  # where the next segment starts: 0xFF, its type, its length in 2 bytes
    while start + 9 <= len(data):
        segment = data[start + 1]
        if data[start] != 0xFF or segment == 0xFF:  # bytes between segments are skipped
            start += 1
        elif 0xC0 <= segment <= 0xCF and segment not in (0xC4, 0xC8, 0xCC):  # the start of a frame
            height, width = struct.unpack_from(">HH", data, start + 5)
            return width, height
        else:
            start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return 0, 0


def _bmp_size(data: memoryview) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # the short header of OS/2
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height means that rows run from top to bottom


def _webp_size(data: memoryview) -> tuple[int, int]:
    chunk = bytes(data[12:16])
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":  # lossy
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8L" and data[20] == 0x2F:  # lossless: width - 1 and height - 1 in 14 bits each
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8X":  # extended: width - 1 and height - 1 in 24 bits each
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return 0, 0
