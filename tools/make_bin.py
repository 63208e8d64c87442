"""Turn a list of pairs into a .bin verification set.

The list has one line per pair: two image paths and 1 (same person) or 0, separated by tabs, or by spaces if no path
contains a space. It is in UTF-8, or in UTF-16 with a byte order mark. Evaluation divides the list into ten folds of
consecutive pairs: alternate same and different pairs.

The pairs.txt of LFW and the xqlfw_pairs.txt of XQLFW are recognised by their first line, two numbers: folds, and pairs
of each kind per fold. Image 4 of a person is PERSON/PERSON_0004.jpg (or .png). Such a set also stores the identities.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.aligned import EXPECTED, AlignedImages
from utils.errors import InputError, exit_on_input_error
from utils.text import read_text


class Pair(NamedTuple):
    """A line of the list: its number, the two paths as bytes, whether both images show the same person, and the names
    of the two persons, if the list has them."""

    line: int
    paths: tuple[bytes, bytes]
    is_same: bool
    names: tuple[bytes, bytes] | None = None


def read_pairs(path: Path, root: Path) -> list[Pair]:
    """Read a list of pairs of images in the folder `root`. Raises InputError with the number of a wrong line."""
    # Lines and fields are split as bytes: in text, some characters of a file name would count as spaces or line breaks.
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    if lines and re.fullmatch(rb"\s*\d+\s+\d+\s*", lines[0][1]):
        return read_lfw_pairs(path, root, *map(int, lines[0][1].split()), lines[1:])
    pairs = []
    for number, line in lines:
        fields = line.split(b"\t") if b"\t" in line else line.split()
        if len(fields) != 3 or fields[2].strip() not in (b"0", b"1"):
            raise InputError(f"{path}: line {number} is {os.fsdecode(line)!r} (expected two paths, and 0 or 1)")
        pairs.append(Pair(number, (fields[0], fields[1]), fields[2].strip() == b"1"))
    if not pairs:
        raise InputError(f"{path}: has no pairs (expected one per line: two paths, and 0 or 1)")
    return pairs


def read_lfw_pairs(path: Path, root: Path, folds: int, count: int, lines: list[tuple[int, bytes]]) -> list[Pair]:
    """Read LFW's list: `folds` times `count` lines "person, image, image", then `count` lines "person, image, person,
    image"; images are numbers. lines: (number, line) of those after the first. Raises InputError for other lines."""
    expected = folds * 2 * count
    if len(lines) != expected or not expected:
        raise InputError(f"{path}: has {len(lines)} pairs, but its first line announces {expected}; fetch it again")
    pairs = []
    for position, (number, line) in enumerate(lines):
        is_same = position % (2 * count) < count
        fields = line.split(b"\t") if b"\t" in line else line.split()
        fields = [field.strip() for field in fields]
        if is_same:
            fields.insert(2, fields[0])
        if len(fields) != 4 or not (fields[1].isdigit() and fields[3].isdigit()):
            form = "a person and two numbers" if is_same else "a person and a number, twice"
            raise InputError(f"{path}: line {number} is {os.fsdecode(line)!r} (expected {form})")
        paths = tuple(lfw_path(root, fields[at], int(fields[at + 1])) for at in (0, 2))
        pairs.append(Pair(number, paths, is_same, (fields[0], fields[2])))
    return pairs


def lfw_path(root: Path, person: bytes, number: int) -> bytes:
    """The path, relative to `root`, of an image of a person: that of the .jpg unless only the .png exists."""
    stem = b"%s/%s_%04d" % (person, person, number)
    paths = [stem + suffix for suffix in (b".jpg", b".png")]
    return next((path for path in paths if (root / os.fsdecode(path)).exists()), paths[0])


def read_image(pairs: Path, line: int, root: Path, name: bytes) -> bytes:
    """The contents of an image file that a line of the list `pairs` names. Raises InputError if it does not exist."""
    path = root / os.fsdecode(name)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        fix = "paths are relative to the folder --root"
        try:
            name.decode()
        except UnicodeDecodeError:
            fix = f"the name is not UTF-8; convert the list, for example with `iconv -f GBK -t UTF-8 {pairs} > NEW`"
        raise InputError(f"{pairs}: line {line}: {path}: no such file; {fix}") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__ + EXPECTED, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, help="the list of pairs")
    parser.add_argument("output", type=Path, help="the .bin file to write")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the paths in the list are relative to")
    parser.add_argument(
        "--resize", action="store_true", help="resize images that are not 112x112 (default: refuse them)"
    )
    args = parser.parse_args()

    # Imported here so that --help answers at once.
    from tqdm import tqdm

    from data.bin_set import write_bin

    pairs, images = read_pairs(args.pairs, args.root), AlignedImages(args.resize)
    encoded = []
    for pair in tqdm(pairs, "reading images", unit="pair"):
        for name in pair.paths:
            image = read_image(args.pairs, pair.line, args.root, name)
            encoded.append(images.check(image, str(args.root / os.fsdecode(name))))
    is_same = [pair.is_same for pair in pairs]
    numbers: dict[bytes, int] = {}  # of the persons, in the order in which they appear
    identities = [numbers.setdefault(name, len(numbers)) for pair in pairs for name in pair.names or ()]
    write_bin(args.output, encoded, is_same, identities or None)
    named = f", {len(numbers)} identities" if numbers else ""
    print(f"{args.output}: {len(pairs)} pairs, {sum(is_same)} of them same{named}{images.summary()}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
