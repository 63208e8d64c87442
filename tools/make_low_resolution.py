"""Make low-resolution copies of a .bin verification set.

Each image is scaled down to N x N pixels (averages of areas) and up again to 112 x 112 (bicubic), as if the aligned
image had had N x N pixels in the camera. The grid of these pixels is shifted at random for each image, by at most half
of one: a face is rarely in line with the pixels. The copy for N = 16 of set.bin is set_16.bin, with the same pairs
(and identities), stored without further loss (PNG).

To score a network on the copies, name their folder and the sets:

  python eval/run_full_eval.py --config RUN/config.py --checkpoint FILE \\
      val_rec=FOLDER val_targets=lfw_16,lfw_24,lfw_32 ijb_targets=[] tinyface_targets=[]
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input
from data import WHERE_TO_GET
from utils.errors import exit_on_input_error

LARGEST = 56  # size of copies: half of the images' size


def low_resolution_copies(images: Any, positions: Sequence[int], size: int, seed: int) -> Iterator[bytes]:
    """Copies with size x size pixels, as PNG, of the images at `positions`.

    images: images[[position]] gives uint8 [1, 112, 112, 3] RGB.
    """
    # Imported here so that --help answers at once.
    import numpy as np
    from tqdm import tqdm

    from data.images import SIZE, encode_png, low_resolution

    reach = (SIZE // size) // 2  # at most half a small pixel
    shifts = np.random.default_rng((seed, size)).integers(-reach, reach + 1, (len(positions), 2))
    for position, shift in zip(tqdm(positions, f"{size} pixels", unit="image"), shifts, strict=True):
        yield encode_png(low_resolution(images[[position]][0].numpy(), size, tuple(shift)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="the .bin file to copy")
    parser.add_argument("output", type=Path, help="folder for the copies")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 24, 32], help="values of N (default: 16 24 32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random shifts (default: 0)")
    args = parser.parse_intermixed_args()
    if not all(1 <= size <= LARGEST for size in args.sizes):
        parser.error(f"--sizes must be from 1 to {LARGEST}")
    if args.seed < 0:
        parser.error("--seed must be at least 0")

    # Imported here so that --help answers at once.
    from data.bin_set import read_bin, write_bin

    original = read_bin(existing_input(args.set, WHERE_TO_GET))
    for size in args.sizes:
        encoded = list(low_resolution_copies(original, range(len(original)), size, args.seed))
        path = args.output / f"{args.set.stem}_{size}.bin"
        write_bin(path, encoded, original.is_same, original.identities)
        print(f"{path}: {len(original.is_same)} pairs, {size} pixels across")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
