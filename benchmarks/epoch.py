"""Speed of the complete training loop from a record file, and the hours that 26 epochs of MS1MV2 would take.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/epoch.py    # 2 minutes on 2 CPU cores
    python benchmarks/epoch.py batch_size=384 num_workers=12 --images 153600 --steps 300    # on a GPU

Compares a plain implementation with the live teacher (benchmarks/plain.py), the training script with the live teacher,
and the training script with the teacher's embeddings from a file. The record set has drawn faces and as many identities
as MS1MV2, and the teacher has random weights; the speed does not depend on either. The first quarter of the steps is
not counted. The speed is the number of images of the other steps divided by their time, which includes waiting for
input. It does not include what a run does once or at the end of epochs: embedding the set, checkpoints, evaluation. On
a GPU, use many more images than the workers read ahead. With profile=N, the tables of the profiler come first.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2
import torch
from torch.utils.data import DataLoader

from backbones import build_teacher, find_teacher
from benchmarks.plain import PlainImages, PlainStep
from benchmarks.training_inputs import MS1MV2_IDENTITIES, MS1MV2_IMAGES, make_inputs
from config import load_config
from data.dataset import build_dataset
from data.workers import init_worker
from utils.about import describe_run
from utils.memory import keep_freed_memory

EPOCHS = 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160, help="images in the record set (default: 160)")
    parser.add_argument(
        "--classes",
        type=int,
        default=MS1MV2_IDENTITIES,
        help=f"identities in the record set (default: {MS1MV2_IDENTITIES}, as in MS1MV2)",
    )
    parser.add_argument("--steps", type=int, default=4, help="steps of each run, at least 2 (default: 4)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each alternative, in turns (default: 1)")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain implementation")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys of the config, for example teacher=cvlface_ir101"
    )
    args = parser.parse_intermixed_args()
    if args.plain:
        print(plain_rate(args.overrides, args.steps))
        return
    overrides = ["batch_size=32", "num_workers=1", *args.overrides]
    rates: dict[str, list[float]] = {} if args.no_plain else {"plain, live teacher": []}
    rates |= {"this repository, live teacher": [], "this repository, cached teacher": []}
    with tempfile.TemporaryDirectory() as folder:
        settings, cached = make_inputs(Path(folder), args.images, args.classes, overrides)
        for number in range(args.rounds):
            if not args.no_plain:
                plain = _run(Path(__file__), "--plain", f"--steps={args.steps}", *settings).splitlines()[-1]
                rates["plain, live teacher"].append(float(plain))
            for name, more in (("this repository, live teacher", []), ("this repository, cached teacher", [cached])):
                output = Path(folder, f"{name} {number}")
                rates[name].append(_rate(output, args.steps, *settings, *more))
                for table in _profiles(output):
                    print(f"```text\n{name}\n{table}```", flush=True)
        cfg = load_config(output / "config.py")
    print(f"\n{describe_run()}, {torch.get_num_threads()} CPU thread(s)")
    print(
        f"teacher {cfg.teacher}, student {cfg.network}, batch {cfg.batch_size}, {args.classes:,} identities, "
        f"{cfg.dtype}, {cfg.num_workers} worker(s)\n"
    )
    print(f"| training | images/s | ratio | hours for {EPOCHS} epochs of MS1MV2 |\n|---|---|---|---|")
    means = {name: statistics.harmonic_mean(values) for name, values in rates.items()}
    for name, rate in means.items():
        hours = EPOCHS * MS1MV2_IMAGES / rate / 3600
        print(f"| {name} | {rate:,.1f} | {rate / next(iter(means.values())):.2f} | {hours:,.1f} |")


def plain_rate(settings: list[str], steps: int) -> float:
    """Return images per second of the plain implementation, with its input, after the first quarter of the steps."""
    cfg = load_config(overrides=settings)
    dataset = build_dataset(cfg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = DataLoader(
        PlainImages(dataset), cfg.batch_size, shuffle=True, drop_last=True, num_workers=cfg.num_workers,
        pin_memory=device.type == "cuda", worker_init_fn=init_worker, persistent_workers=cfg.num_workers > 0,
    )  # fmt: skip
    cv2.setNumThreads(0)
    if device.type == "cpu":
        keep_freed_memory()  # as the training scripts do
    step = PlainStep(cfg, device, build_teacher(cfg, find_teacher(cfg)).to(device))
    done, start = 0, time.perf_counter()
    while True:
        for images, labels in loader:
            if done == _not_counted(steps):
                start = time.perf_counter()
            if done == steps:
                return (steps - _not_counted(steps)) * cfg.batch_size / (time.perf_counter() - start)
            step(images.to(device), labels.to(device), None)  # reads the loss, so it waits for the device
            done += 1


def _not_counted(steps: int) -> int:
    """Return how many of the first steps are not counted."""
    return max(1, steps // 4)


def _rate(output: Path, steps: int, *settings: str) -> float:
    """Run the training script and return images per second, from its metrics.jsonl."""
    every = _not_counted(steps)
    log = [f"log_every={every}", f"max_steps={steps}", f"output={output}"]
    _run(ROOT / "train" / "train_AdaDistill.py", *settings, *log)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = lines[0], lines[-1]
    batch_size = load_config(output / "config.py").batch_size
    return (last["step"] - first["step"]) * batch_size / (last["time"] - first["time"])


def _profiles(output: Path) -> list[str]:
    """Return the tables of the profiler in the log of a run: one with profile=N, otherwise none."""
    log = (output / "training.log").read_text(encoding="utf-8")
    return re.findall(r"profile: .*\n((?:(?!\d{4}-).*\n)+)", log)


def _run(script: Path, *settings: str) -> str:
    """Run a script and return what it prints. Its progress is shown."""
    done = subprocess.run([sys.executable, str(script), *settings], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + f"{script} failed")
    return done.stdout


if __name__ == "__main__":
    main()
