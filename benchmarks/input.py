"""Images a second from a record file to batches in memory, against OpenCV decoding the same bytes and nothing else.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/input.py --rec FOLDER    # half a minute
    python benchmarks/input.py    # on drawn faces
    python benchmarks/input.py --rec FOLDER --mxnet PYTHON    # an interpreter that has requirements/mxnet.txt

OpenCV alone goes through the images in the same random order, one core. Ours reads the record, checks it, decodes into
a batch, and with workers hands it to the training process. "plain" is one image a call, float32 on the CPU, collated
(benchmarks/plain.py); MXNet is its own reader and decoder. A figure is the median of rounds, taken in turns.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.plain import PlainImages
from utils.dataset import RecordDataset
from utils.loader import GlobalOrder, batches, start_worker
from utils.make_demo_data import encoded_face
from utils.make_rec import write_record_set
from utils.run_log import describe_run

MS1MV2 = 5_822_653  # images
MXNET = """
import sys, time
import mxnet as mx, numpy as np
folder, keys = sys.argv[1], np.load(sys.argv[2]).tolist()
reader = mx.recordio.MXIndexedRecordIO(folder + "/train.idx", folder + "/train.rec", "r")
for timed in (keys[:100], keys):
    start = time.perf_counter()
    for key in timed:
        mx.image.imdecode(mx.recordio.unpack(reader.read_idx(key))[1]).asnumpy()
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rec", type=Path, help="folder with train.rec and train.idx (default: drawn faces)")
    parser.add_argument("--images", type=int, default=4096, help="read in a round (default: 4096)")
    parser.add_argument("--batch", type=int, default=128, help="images a batch (default: 128)")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="numbers of workers (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--mxnet", metavar="PYTHON", help="interpreter of an environment with MXNet")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = RecordDataset(args.rec or _draw(Path(scratch), args.images))
        sizes, rates = measure(dataset, args, Path(scratch))
    print(describe_run())
    print(f"{len(sizes)} images a round, {sizes.mean():,.0f} bytes in the mean, in batches of {args.batch}\n")
    print("| input | images/s | x OpenCV |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates['OpenCV alone']:.2f} |")
    start = time.perf_counter()
    next(iter(GlobalOrder(MS1MV2, 384, seed=0)))
    print(f"\nstart of an epoch of {MS1MV2:,} images: {time.perf_counter() - start:.2f} s")


def measure(dataset: RecordDataset, args: argparse.Namespace, scratch: Path) -> tuple[np.ndarray, dict[str, float]]:
    """The bytes of each image of a round, and images a second by name."""
    order = GlobalOrder(len(dataset), min(args.batch, len(dataset)), seed=0)
    order.start_at(0, max(0, len(order) - args.images // order.batch_size))
    positions = np.concatenate([places.positions for places in order])
    encoded = [np.frombuffer(bytes(dataset.read(position).data), np.uint8) for position in range(len(dataset))]

    def opencv() -> None:
        for position in positions:
            cv2.imdecode(encoded[position], cv2.IMREAD_COLOR_RGB)

    plain = DataLoader(
        PlainImages(dataset), order.batch_size, sampler=positions, num_workers=1, worker_init_fn=start_worker,
        persistent_workers=True,
    )  # fmt: skip
    cases = {"OpenCV alone": opencv, "plain, 1 worker": partial(_exhaust, plain)}
    for count in (0, *args.workers):
        cases[f"ours, {count} workers"] = partial(_exhaust, batches(dataset, order, count, torch.device("cpu")))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds + 1):  # the first one fetches pages and starts workers
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(found[1:]) for name, found in times.items()}
    if args.mxnet:
        keys, folder = scratch / "keys.npy", Path(dataset.source).parent
        np.save(keys, dataset.keys[positions])
        done = subprocess.run([args.mxnet, "-c", MXNET, folder, keys], stdout=subprocess.PIPE, text=True, check=True)
        seconds["MXNet, no worker"] = float(done.stdout)
    sizes = np.array([len(encoded[position]) for position in positions])
    return sizes, {name: len(positions) / spent for name, spent in seconds.items()}


def _exhaust(source: Iterable) -> None:
    for _ in source:
        pass


def _draw(folder: Path, images: int) -> Path:
    """A record set of drawn faces, each of them there several times."""
    faces = [encoded_face((0, number, 0, 0.3)) for number in range(-(-images // 8))]
    write_record_set(folder, [faces[number // 8] for number in range(images)], np.arange(images) // 8, len(faces))
    return folder


if __name__ == "__main__":
    main()
