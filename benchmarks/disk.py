"""Bytes that are read from the disk per byte that training needs, by the order of the images.

    python benchmarks/disk.py --folder FOLDER    # 1.2 GB in FOLDER, on the disk to measure; 20 s

The page cache is emptied before each order. A real set is larger than memory, so that nothing read long ago is still
in the cache. Here, "permutation" reads only a small share of an epoch, before chance has put much of the file into the
cache. "blocks" reads an epoch and, ahead of the next one, its first window. After each window, its blocks are dropped
from the cache, which then holds what a machine with memory for two windows would hold. One process reads, without
decoding. "From the disk" is `read_bytes` of /proc/self/io: what this process caused the disk to read, including what
the system reads around each record on its own (/sys/block/DISK/queue/read_ahead_kb).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from data.dataset import RecordDataset
from data.loader import BatchPlan, GlobalOrder
from data.record_index import read_index
from data.recordio import write_record_set
from data.shuffle import Shuffle
from utils.about import describe_run

BATCH = 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write the record file (default: the folder for temporary files)")
    parser.add_argument("--images", type=int, default=120_000, help="images in the record file (default: 120000)")
    parser.add_argument("--bytes", type=int, default=10_000, help="bytes of each image (default: 10000)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 4], help="images per block (default: 16 4)")
    parser.add_argument("--window", type=int, default=15_000, help="images per window (default: 15000)")
    args = parser.parse_intermixed_args()
    print(describe_run())
    print(f"{args.images:,} images of {args.bytes:,} bytes, windows of {args.window:,}\n")
    print("| order | images read | MB needed | MB from the disk | ratio | images/s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        generator = np.random.default_rng(0)
        images = (generator.bytes(args.bytes) for _ in range(args.images))
        write_record_set(Path(scratch), images, np.arange(args.images) // 50, -(-args.images // 50))
        orders = [(f"blocks of {block}", args.window, block, 1.0) for block in args.blocks]
        for name, window, block, share in (("permutation", 0, 1, 0.02), *orders):
            count, needed, read, seconds = measure(Path(scratch), window, block, share)
            rate, ratio = count / seconds, read / needed
            print(f"| {name} | {count:,} | {needed / 1e6:,.1f} | {read / 1e6:,.1f} | {ratio:.2f} | {rate:,.0f} |")


def measure(folder: Path, window: int, block: int, share: float) -> tuple[int, int, int, float]:
    """Read a share of an epoch: (images, their bytes, bytes from the disk, seconds)."""
    offsets = read_index(folder / "train.idx")[1]
    with open(folder / "train.rec", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        dataset = RecordDataset(folder)
        order = GlobalOrder(len(dataset), BATCH, seed=0, window=window, block=block)
        shuffle = Shuffle(len(dataset), 0, 0, window, block)
        count = needed = 0
        before, start = _bytes_from_disk(), time.perf_counter()
        for plan in _first(order, share):
            for first, end in plan.ahead.tolist():
                dataset.read_ahead(first, end)
            needed += sum(len(bytes(image)) for image in dataset.read_encoded(plan.positions)[1])  # reads every byte
            done, count = shuffle.window_at(count), count + BATCH
            if shuffle.window_at(count) > done:
                dataset = RecordDataset(folder)  # pages of the old map could not be dropped
                for images in shuffle.ranges(shuffle.blocks[done]):
                    begin, end = offsets[1 + images]
                    os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)
        return count, needed, _bytes_from_disk() - before, time.perf_counter() - start


def _first(order: GlobalOrder, share: float) -> Iterator[BatchPlan]:
    """The plans of the first part of an epoch."""
    return islice(order, max(1, round(share * len(order))))


def _bytes_from_disk() -> int:
    """The bytes that this process has caused the disk to read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines())
    return int(fields["read_bytes"])


if __name__ == "__main__":
    main()
