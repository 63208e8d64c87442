"""Speed of the training input, from a record file to batches in memory, compared with OpenCV decoding the same bytes.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/input.py --rec FOLDER    # 1 minute on 2 CPU cores
    python benchmarks/input.py    # on drawn faces
    python benchmarks/input.py --rec FOLDER --mxnet PYTHON    # a Python with requirements/mxnet.txt

OpenCV alone decodes the images in the same random order on one core and does nothing else. This repository's input
reads the records, checks them, decodes them into a batch, and with workers passes it to the training process. The plain
input makes one call and one float32 array per image and collates them (benchmarks/plain.py). MXNet uses its own reader
and decoder. All alternatives take turns. A ratio is the median of the ratios to OpenCV in the same round, because a
shared machine is not equally fast at all times.
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
from benchmarks.training_inputs import MS1MV2_IMAGES
from data.dataset import RecordDataset
from data.loader import GlobalOrder, TrainingLoader
from data.recordio import write_record_set
from data.workers import init_worker
from demo.make_demo_data import encoded_face
from utils.about import describe_run

MXNET = """
import sys
import mxnet as mx, numpy as np
folder, keys = sys.argv[1], np.load(sys.argv[2]).tolist()
reader = mx.recordio.MXIndexedRecordIO(folder + "/train.idx", folder + "/train.rec", "r")
for _ in sys.stdin:  # one line per round
    for key in keys:
        mx.image.imdecode(mx.recordio.unpack(reader.read_idx(key))[1]).asnumpy()
    print(flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rec", type=Path, help="folder with train.rec and train.idx (default: drawn faces)")
    parser.add_argument("--images", type=int, default=3072, help="images per round (default: 3072)")
    parser.add_argument("--batch", type=int, default=384, help="batch size (default: 384)")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="numbers of workers (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=15, help="number of measured rounds (default: 15)")
    parser.add_argument("--mxnet", metavar="PYTHON", help="Python interpreter of an environment with MXNet")
    args = parser.parse_intermixed_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = RecordDataset(args.rec or _draw(Path(scratch), args.images))
        sizes, times = measure(dataset, args, Path(scratch))
    print(describe_run())
    print(f"{len(sizes)} images per round, {sizes.mean():,.0f} bytes on average, in batches of {args.batch}\n")
    print("| input | images/s | x OpenCV |\n|---|---|---|")
    for name, seconds in times.items():
        ratio = np.median(times["OpenCV alone"] / seconds)
        print(f"| {name} | {len(sizes) / np.median(seconds):,.0f} | {ratio:.2f} |")
    start = time.perf_counter()
    next(iter(GlobalOrder(MS1MV2_IMAGES, 384, seed=0)))
    print(f"\nstart of an epoch of {MS1MV2_IMAGES:,} images: {time.perf_counter() - start:.2f} s")


def measure(
    dataset: RecordDataset, args: argparse.Namespace, scratch: Path
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the size in bytes of each image of a round, and for each alternative the seconds of each round."""
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
    cpu = torch.device("cpu")
    for count in (0, *args.workers):
        loader = TrainingLoader(dataset, order, count, cpu)
        cases[f"this repository, {count} worker{'s' * (count != 1)}"] = partial(_exhaust_reading, loader)
    if args.mxnet:
        keys, folder = scratch / "keys.npy", Path(dataset.source).parent
        np.save(keys, dataset.keys[positions])
        process = subprocess.Popen([args.mxnet, "-c", MXNET, folder, keys], stdin=PIPE, stdout=PIPE, text=True)
        cases["MXNet, 0 workers"] = partial(_run_round, process)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds + 1):  # the first round reads the files and starts the workers; it is not counted
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    if args.mxnet:
        process.kill()  # closing its input would not end it, because the workers have inherited that pipe
    sizes = np.array([len(encoded[position]) for position in positions])
    return sizes, {name: np.array(seconds[1:]) for name, seconds in times.items()}


def _run_round(process: subprocess.Popen) -> None:
    """Let the process run one round, and wait until it has finished."""
    print(file=process.stdin, flush=True)
    process.stdout.readline()


def _exhaust(source: Iterable) -> None:
    """Read every batch and release it, as training does after converting the bytes."""
    deque(source, maxlen=0)


def _exhaust_reading(loader: TrainingLoader) -> None:
    """Read every batch of bytes; what happens on the device afterwards is not part of this measurement."""
    _exhaust(loader.read())


def _draw(folder: Path, images: int) -> Path:
    """Write a record set of drawn faces, with several copies of each."""
    faces = [encoded_face((0, number, 0, 0.3)) for number in range(-(-images // 8))]
    write_record_set(folder, [faces[number // 8] for number in range(images)], np.arange(images) // 8, len(faces))
    return folder


if __name__ == "__main__":
    main()
