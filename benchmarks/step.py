"""Time of a training step on images in memory, compared with the student's forward and backward pass alone.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/step.py    # 2 minutes on 2 CPU cores
    python benchmarks/step.py --batch 384 1536 --classes 85742 1000000 --teacher cached live --steps 20    # on a GPU

A step is everything that the training loop does with a batch: it converts bytes to network input, and runs the student,
the teacher (or uses its embeddings), the head, the backward pass, clipping and SGD. Reading and decoding are not
included (see benchmarks/input.py), nor, on a GPU, the copy of the bytes to the device, which overlaps with the previous
step. The table also has a plain implementation (benchmarks/plain.py). Times are medians over rounds in which all
alternatives take turns.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from backbones import build_teacher, find_teacher
from benchmarks.plain import PlainStep
from benchmarks.timing import median_seconds
from benchmarks.training_inputs import MS1MV2_IDENTITIES, make_inputs
from config import load_config
from data.augment import DRAWS, build_augmentation
from data.dataset import FaceDataset, build_dataset
from data.images import SIZE
from data.loader import Batch, to_batch
from data.teacher_cache import EmbeddingFile
from train.step import TrainingStep
from train.tasks import Distillation
from train.wrapping import maybe_compile
from utils.about import describe_run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="batch sizes (default: 64)")
    parser.add_argument(
        "--classes",
        type=int,
        nargs="+",
        default=[MS1MV2_IDENTITIES],
        help=f"numbers of identities (default: {MS1MV2_IDENTITIES}, as in MS1MV2)",
    )
    parser.add_argument(
        "--teacher",
        choices=["cached", "live"],
        nargs="+",
        default=["cached"],
        help="the teacher's embeddings from a file, or the network itself (default: cached)",
    )
    parser.add_argument("--steps", type=int, default=1, help="steps of each alternative in a round (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="number of measured rounds (default: 3)")
    parser.add_argument(
        "--no-plain",
        action="store_true",
        help="leave out the plain step, which needs much memory with a million classes",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys of the config, for example dtype=bfloat16"
    )
    args = parser.parse_intermixed_args()
    print(f"{describe_run()}, {torch.get_num_threads()} CPU thread(s)\n")
    print("| batch | classes | teacher | step | ms | images/s | x student |\n|---|---|---|---|---|---|---|", flush=True)
    torch.backends.cudnn.benchmark = True  # as in training
    for classes in args.classes:
        with tempfile.TemporaryDirectory() as folder:
            settings, cached = make_inputs(Path(folder), max(args.batch), classes, ["num_workers=0", *args.overrides])
            for batch, teacher in itertools.product(args.batch, args.teacher):
                more = [f"batch_size={batch}", *([cached] if teacher == "cached" else [])]
                steps = make_steps([*settings, *more], not args.no_plain)
                times = median_seconds(steps, DEVICE, args.rounds, args.steps)
                del steps
                torch.cuda.empty_cache()
                for name, seconds in times.items():
                    print(
                        f"| {batch} | {classes:,} | {teacher} | {name} | {1000 * seconds:.1f} "
                        f"| {batch / seconds:,.1f} | {seconds / times['student alone']:.2f} |",
                        flush=True,
                    )


def make_steps(settings: list[str], with_plain: bool) -> dict[str, Callable[[], object]]:
    """Return the alternatives by name, all for the same batch."""
    cfg = load_config(overrides=settings)
    dataset = build_dataset(cfg)
    task = Distillation(cfg, dataset, DEVICE)
    take_step = TrainingStep(cfg, task, len(dataset), cfg.batch_size, DEVICE)
    task.student.train()
    tensors = _read(dataset, cfg.batch_size, task.embeddings)
    augment = build_augmentation(cfg, DEVICE)

    def feed() -> Iterator[Batch]:
        while True:
            yield to_batch(*tensors, DEVICE, augment)

    batch = next(feed())
    images, labels = batch.clean, batch.labels
    embeddings = None if batch.teacher is None else batch.teacher.float()
    network = maybe_compile(task.student, cfg.compile, DEVICE)

    def student_alone() -> None:
        with torch.autocast(DEVICE.type, take_step.dtype, enabled=take_step.dtype != torch.float32):
            output = network(images)
        output.sum().backward()
        task.student.zero_grad()

    steps = {"student alone": student_alone, "this repository": partial(take_step, feed(), 1)}
    if with_plain:
        teacher = build_teacher(cfg, find_teacher(cfg)).to(DEVICE) if embeddings is None else None
        steps["plain"] = partial(PlainStep(cfg, DEVICE, teacher), images.contiguous(), labels, embeddings)
    return steps


def _read(dataset: FaceDataset, count: int, embeddings: EmbeddingFile | None) -> list[torch.Tensor | None]:
    """Read the first `count` images as workers do, to the device: images, labels, flips, draws, embeddings."""
    positions, flips = np.arange(count), np.arange(count) % 2 == 0
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    labels = dataset.read_batch(positions, images)
    rows = None if embeddings is None else embeddings.rows(positions, flips)
    arrays = (images, labels, flips, np.random.default_rng(0).random((count, DRAWS), dtype=np.float32))
    return [*(torch.from_numpy(array).to(DEVICE) for array in arrays), None if rows is None else rows.to(DEVICE)]


if __name__ == "__main__":
    main()
