"""Turn a list of pairs into a .bin verification set.

The list has one line per pair: two image paths and 1 (same person) or 0, separated by tabs, or by spaces if no path
contains a space. Evaluation divides the list into ten folds of consecutive pairs: alternate same and different pairs.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.bin_set import write_bin
from data.images import decode_rgb
from utils.errors import InputError, exit_on_input_error


def read_pairs(path: Path) -> list[tuple[str, str, bool]]:
    """Read one (first image, second image, is_same) per line. Raises InputError with the number of a wrong line."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != 3 or fields[2].strip() not in ("0", "1"):
            raise InputError(f"{path}: line {number} is {line!r} (expected two paths, and 0 or 1)")
        pairs.append((fields[0], fields[1], fields[2].strip() == "1"))
    if not pairs:
        raise InputError(f"{path}: has no pairs (expected one per line: two paths, and 0 or 1)")
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="the list of pairs")
    parser.add_argument("output", type=Path, help="the .bin file to write")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the paths in the list are relative to")
    args = parser.parse_args()
    pairs = read_pairs(args.pairs)
    encoded = []
    for first, second, _ in tqdm(pairs, "reading images", unit="pair"):
        for name in (first, second):
            image = (args.root / name).read_bytes()
            decode_rgb(image, str(args.root / name))
            encoded.append(image)
    is_same = [same for *_, same in pairs]
    write_bin(args.output, encoded, is_same)
    print(f"{args.output}: {len(pairs)} pairs, {sum(is_same)} of them same")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
