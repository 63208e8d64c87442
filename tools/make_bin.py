"""Turn a list of pairs into a .bin verification set.

The list has a line a pair: two image paths and 1 (same person) or 0, separated by tabs, or by spaces where no path has
one. The ten folds are cut from the list in its order, so spread same and different pairs over it evenly.
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
    """(first image, second image, same) a line. Raises InputError with the line's number."""
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != 3 or fields[2].strip() not in ("0", "1"):
            raise InputError(f"{path}: line {number} is not 'first second 0|1': {line!r}")
        pairs.append((fields[0], fields[1], fields[2].strip() == "1"))
    if not pairs:
        raise InputError(f"{path}: holds no pair")
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="the list of pairs")
    parser.add_argument("output", type=Path, help="the .bin file to write")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the paths in the list start from")
    args = parser.parse_args()
    pairs = read_pairs(args.pairs)
    encoded = []
    for first, second, _ in tqdm(pairs, "reading images", unit="pair"):
        for name in (first, second):
            image = (args.root / name).read_bytes()
            decode_rgb(image, str(args.root / name))
            encoded.append(image)
    write_bin(args.output, encoded, [same for *_, same in pairs])
    print(f"{len(pairs)} pairs, {sum(same for *_, same in pairs)} of them same: {args.output}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
