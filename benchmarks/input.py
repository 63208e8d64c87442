"""Images a second from a record file to batches in memory, against OpenCV decoding the same bytes and nothing else.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/input.py --rec FOLDER    # 1 minute on 2 CPU cores
    python benchmarks/input.py    # on drawn faces
    python benchmarks/input.py --rec FOLDER --mxnet PYTHON    # an interpreter that has requirements/mxnet.txt

OpenCV alone goes through the images in the same random order, one core. Ours reads the record, checks it, decodes into
a batch, and with workers hands it to the training process. "plain" is one image a call, float32 on the CPU, collated
(benchmarks/plain.py); MXNet is its own reader and decoder. All take turns, and a ratio is the median of those to OpenCV
in the same round: machines that others share are not equally fast for long.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from subprocess import PIPE

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.plain import PlainImages
from data.dataset import RecordDataset
from data.loader import GlobalOrder, TrainingLoader
from data.recordio import write_record_set
from data.workers import init_worker
from demo.make_demo_data import encoded_face
from utils.about import describe_run

MS1MV2 = 5_822_653  # images
MXNET = """
import sys
import mxnet as mx, numpy as np
folder, keys = sys.argv[1], np.load(sys.argv[2]).tolist()
reader = mx.recordio.MXIndexedRecordIO(folder + "/train.idx", folder + "/train.rec", "r")
for _ in sys.stdin:  # a line asks for a round
    for key in keys:
        mx.image.imdecode(mx.recordio.unpack(reader.read_idx(key))[1]).asnumpy()
    print(flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rec", type=Path, help="folder with train.rec and train.idx (default: drawn faces)")
    parser.add_argument("--images", type=int, default=3072, help="read in a round (default: 3072)")
    parser.add_argument("--batch", type=int, default=384, help="images a batch (default: 384)")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="numbers of workers (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: 15)")
    parser.add_argument("--mxnet", metavar="PYTHON", help="interpreter of an environment with MXNet")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = RecordDataset(args.rec or _draw(Path(scratch), args.images))
        sizes, times = measure(dataset, args, Path(scratch))
    print(describe_run())
    print(f"{len(sizes)} images a round, {sizes.mean():,.0f} bytes in the mean, in batches of {args.batch}\n")
    print("| input | images/s | x OpenCV |\n|---|---|---|")
    for name, seconds in times.items():
        ratio = np.median(times["OpenCV alone"] / seconds)
        print(f"| {name} | {len(sizes) / np.median(seconds):,.0f} | {ratio:.2f} |")
    start = time.perf_counter()
    next(iter(GlobalOrder(MS1MV2, 384, seed=0)))
    print(f"\nstart of an epoch of {MS1MV2:,} images: {time.perf_counter() - start:.2f} s")


def measure(
    dataset: RecordDataset, args: argparse.Namespace, scratch: Path
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The bytes of each image of a round, and the seconds of each round by name."""
    order = GlobalOrder(len(dataset), min(args.batch, args.images, len(dataset)), seed=0)
    order.start_at(0, max(0, len(order) - args.images // order.batch_size))
    positions = np.concatenate([places.positions for places in order])
    encoded = {position: np.frombuffer(bytes(dataset.read(position)[0]), np.uint8) for position in sorted(positions)}

    def opencv() -> None:
        for position in positions:
            cv2.imdecode(encoded[position], cv2.IMREAD_COLOR_RGB)

    plain = DataLoader(
        PlainImages(dataset), order.batch_size, sampler=positions, num_workers=1, worker_init_fn=init_worker,
        persistent_workers=True,
    )  # fmt: skip
    cases = {"OpenCV alone": opencv, "plain, 1 worker": partial(_exhaust, plain)}
    for count in (0, *args.workers):
        cases[f"ours, {count} workers"] = partial(_exhaust, TrainingLoader(dataset, order, count, torch.device("cpu")))
    if args.mxnet:
        keys, folder = scratch / "keys.npy", Path(dataset.source).parent
        np.save(keys, dataset.keys[positions])
        process = subprocess.Popen([args.mxnet, "-c", MXNET, folder, keys], stdin=PIPE, stdout=PIPE, text=True)
        cases["MXNet, no worker"] = partial(_ask, process)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds + 1):  # the first one fetches pages and starts workers
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    if args.mxnet:
        process.kill()  # no end of its input tells it: the workers have that pipe too
    sizes = np.array([len(encoded[position]) for position in positions])
    return sizes, {name: np.array(found[1:]) for name, found in times.items()}


def _ask(process: subprocess.Popen) -> None:
    """Have the process do its round, and wait for it."""
    print(file=process.stdin, flush=True)
    process.stdout.readline()


def _exhaust(source: Iterable) -> None:
    """Take every batch and let go of it, as training does once it has made network input of the bytes."""
    deque(source, maxlen=0)


def _draw(folder: Path, images: int) -> Path:
    """A record set of drawn faces, each of them there several times."""
    faces = [encoded_face((0, number, 0, 0.3)) for number in range(-(-images // 8))]
    write_record_set(folder, [faces[number // 8] for number in range(images)], np.arange(images) // 8, len(faces))
    return folder


if __name__ == "__main__":
    main()
