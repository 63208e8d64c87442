"""Make low-resolution copies of a .bin verification set.

Each image is scaled down to N x N pixels (averages of areas) and up again to 112 x 112 (bicubic), as if the aligned
image had had N x N pixels in the camera. The grid of these pixels is shifted at random for each image, by at most half
of one: a face is rarely in line with the pixels. The copy for N = 16 of set.bin is set_16.bin, with the same pairs,
stored without further loss (PNG).

To score a network on the copies, name their folder and the sets:

  python eval/run_full_eval.py --config RUN/config.py --checkpoint FILE \\
      val_rec=FOLDER val_targets=lfw_16,lfw_24,lfw_32 ijb_targets=[] tinyface_targets=[]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input
from data import WHERE_TO_GET
from utils.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="the .bin file to copy")
    parser.add_argument("output", type=Path, help="folder for the copies")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 24, 32], help="values of N (default: 16 24 32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random shifts (default: 0)")
    args = parser.parse_intermixed_args()
    if not all(1 <= size <= 56 for size in args.sizes):
        parser.error("--sizes must be from 1 to 56")
    if args.seed < 0:
        parser.error("--seed must be at least 0")

    # Imported here so that --help answers at once.
    import numpy as np
    from tqdm import tqdm

    from data.bin_set import read_bin, write_bin
    from data.images import SIZE, encode_png, low_resolution

    original = read_bin(existing_input(args.set, WHERE_TO_GET))
    for size in args.sizes:
        reach = (SIZE // size) // 2  # at most half a small pixel
        shifts = np.random.default_rng((args.seed, size)).integers(-reach, reach + 1, (len(original), 2))
        encoded = []
        for number in tqdm(range(len(original)), f"{size} pixels", unit="image"):
            image = original[[number]][0].numpy()
            encoded.append(encode_png(low_resolution(image, size, tuple(shifts[number]))))
        path = args.output / f"{args.set.stem}_{size}.bin"
        write_bin(path, encoded, original.is_same)
        print(f"{path}: {len(original.is_same)} pairs, {size} pixels across")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
