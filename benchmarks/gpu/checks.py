"""Checks of training on this machine's GPU, or on the CPU if there is none. benchmarks/on_gpu.sh runs all of them.

    python benchmarks/gpu/checks.py steps
    python benchmarks/gpu/checks.py safety --quick    # tiny sizes

Each check prints a table. The exit code is 1 if a value is above its limit.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.memory import host_peak_bytes
from benchmarks.training_inputs import make_inputs
from config import load_config
from data.dataset import build_dataset
from data.loader import Batch, TrainingLoader
from data.recordio import write_record_set
from demo.make_demo_data import encoded_face
from train.loop import Trainer
from train.tasks import Distillation, Standalone
from train.wrapping import missing_for_compiling
from utils.distributed import process_group

CPU = torch.device("cpu")
STEPS = 6  # in the first one, kernels are compiled and chosen; the other five must not wait for the device
# How far losses and gradient norms may be from those of a CPU in float32, as a fraction of these.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 3e-2}
GRAD_NORM_TOLERANCE = {"float32": 1e-2, "bfloat16": 1e-1, "float16": 1e-1}
SAME_LOSS_TOLERANCE = 3e-2  # the same for two runs in bfloat16 that round differently


class StepResults(NamedTuple):
    """Loss and gradient norm of each step."""

    losses: list[float]
    grad_norms: list[float]


class Limits:
    """A table of values with their limits. At the end of the block, ends the process if a value is above its limit."""

    def __enter__(self) -> "Limits":
        print("| value | measured | at most |\n|---|---|---|", flush=True)
        self._exceeded: list[str] = []
        return self

    def row(self, name: str, value: float, limit: float) -> None:
        """Print a row. A value that is not a number is above every limit."""
        print(f"| {name} | {value:.2g} | {limit:.2g} |", flush=True)
        if not value <= limit:
            self._exceeded.append(name)

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is None and self._exceeded:
            sys.exit(f"above the limit: {'; '.join(self._exceeded)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=CHECKS, help="which check")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few steps")
    args = parser.parse_args()
    CHECKS[args.check](args.quick)


def steps(quick: bool) -> None:
    """Steps of both tasks in each data type: none waits for the device, and the losses are those of a CPU."""
    with process_group() as device, _small_set(quick) as settings, Limits() as limits:
        dtypes = [dtype for dtype in LOSS_TOLERANCE if device.type == "cuda" or dtype != "float16"]  # slow on CPUs
        for task in (Distillation, Standalone):
            on_cpu = take_steps(build_trainer([*settings, "dtype=float32"], CPU, task))
            for dtype in dtypes:
                taken = take_steps(build_trainer([*settings, f"dtype={dtype}"], device, task))
                name = f"{task.__name__}, {dtype}, difference to a CPU"
                limits.row(
                    f"{name}: loss, largest",
                    max(relative_differences(taken.losses, on_cpu.losses)),
                    LOSS_TOLERANCE[dtype],
                )
                # The median, because float16 overflows in the first steps until the loss scale is small enough.
                middle = statistics.median(relative_differences(taken.grad_norms, on_cpu.grad_norms))
                limits.row(f"{name}: gradient norm, median", middle, GRAD_NORM_TOLERANCE[dtype])


def safety(quick: bool) -> None:
    """A compiled student computes the same losses; a bad step changes nothing; a run resumes from its checkpoint."""
    with process_group() as device, _small_set(quick) as settings, Limits() as limits:
        eager = build_trainer(settings, device)
        losses = take_steps(eager).losses
        limits.row("changed by a step that is not finite", changed_by_bad_step(eager), 0)
        interrupted = build_trainer([*settings, f"max_steps={STEPS // 2}"], device)
        interrupted.run()
        resumed = build_trainer([*settings, "resume=auto"], device)
        resumed.state.resume()
        limits.row("resumed: tensors that differ from the saved ones", _differing(interrupted, _values(resumed)), 0)
        resumed.run()
        lines = (resumed.files.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line)["loss"] for line in lines]
        limits.row(
            "resumed: loss, difference to a run without a break",
            max(relative_differences(logged, losses)),
            SAME_LOSS_TOLERANCE,
        )
        if device.type == "cuda" and (lacking := missing_for_compiling(device)):
            print(f"| not compiled: torch.compile needs {', '.join(lacking)} |  |  |")
            return
        # On a CPU, generating code would take minutes. The backend "eager" runs the traced student as it is.
        backend = {} if device.type == "cuda" else {"backend": "eager"}
        with mock.patch("torch.compile", partial(torch.compile, **backend)):
            compiled = build_trainer([*settings, "compile=on"], device)
        largest = max(relative_differences(take_steps(compiled).losses, losses))
        limits.row("compiled: loss, difference to eager", largest, SAME_LOSS_TOLERANCE)
        limits.row("compiled: changed by a step that is not finite", changed_by_bad_step(compiled), 0)


def memory(quick: bool) -> None:
    """Peak memory with two million classes: of building, of two steps, and with a checkpoint."""
    batch, classes = (4, 2000) if quick else (384, 2_000_000)
    small = ["teacher=cvlface_ir18", "width=0.125"] if quick else []
    with process_group() as device, tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        given = [f"batch_size={batch}", "num_workers=1", *small]
        settings, cached = make_inputs(Path(folder), 2 * batch, classes, given)
        print(
            "| after | GPU memory, peak in GB | reserved | host memory, peak in GB | seconds |\n|---|---|---|---|---|"
        )

        def row(name: str) -> None:
            on_gpu = device.type == "cuda"
            peaks = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()] if on_gpu else [None, None]
            cells = ["" if peak is None else f"{peak / 1e9:.2f}" for peak in (*peaks, host_peak_bytes())]
            print(f"| {name} | {' | '.join(cells)} | {time.perf_counter() - start:.0f} |", flush=True)

        row("writing the inputs")
        trainer = build_trainer([*settings, cached, "max_steps=2", f"output={folder}/run"], device)
        row("building")
        take_steps(trainer, 2)
        row("two steps")
        trainer.run()
        row("two more steps and a checkpoint")
        size = sum(path.stat().st_size for path in Path(folder, "run").glob("2*"))
        print(f"| the checkpoint, {size / 1e9:.2f} GB on disk |  |  |  |  |")


def rank(quick: bool) -> None:
    """Under torchrun: a collective, the gradient of a student in DistributedDataParallel, and a run."""
    with process_group() as device, _small_set(quick) as settings, Limits() as limits:
        summed = torch.ones(1000, device=device)
        dist.all_reduce(summed)
        limits.row(f"{dist.get_backend()}: error of a sum", (summed - dist.get_world_size()).abs().max().item(), 0)
        trainer = build_trainer([*settings, "max_steps=2"], device)
        student = trainer.task.student.eval()
        images = torch.randn(8, 3, 112, 112, device=device)
        wrapped = DistributedDataParallel(student, device_ids=[device.index] if device.type == "cuda" else None)
        gradients = []
        for network in (student, wrapped):
            network(images).square().sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
            student.zero_grad()
        error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
        limits.row("DistributedDataParallel: error of the gradient", error.item(), 1e-3)
        trainer.run()
        limits.row("a run of two steps: steps missing", 2 - trainer.step, 0)


@contextmanager
def _small_set(quick: bool) -> Iterator[list[str]]:
    """Write a set of drawn faces for STEPS steps. Yields the overrides of a run with the teacher of the demo."""
    batch, width = (8, 0.125) if quick else (64, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        labels = np.arange(STEPS * batch) // 8
        faces = (encoded_face((0, int(label), image, 0.3)) for image, label in enumerate(labels))
        write_record_set(Path(folder), faces, labels, labels[-1] + 1)
        yield [
            "dataset=custom", f"rec={folder}", "teacher=mobilefacenet", "teacher_width=0.5", "embedding_size=128",
            f"pretrained_teacher_path={ROOT / 'demo' / 'teacher.pth'}", f"width={width}", f"batch_size={batch}",
            "num_epoch=1", "lr=0.01", "num_workers=1", "log_every=1", "compile=off", "val_eval_every_n_epoch=0",
            "eval_every_n_epoch=0", f"output={folder}/run",
        ]  # fmt: skip


def build_trainer(settings: list[str], device: torch.device, task: type = Distillation) -> Trainer:
    """Build what a training script builds."""
    cfg = load_config(overrides=settings)
    dataset = build_dataset(cfg)
    built = Distillation(cfg, dataset, device) if task is Distillation else Standalone(cfg, device)
    return Trainer(cfg, built, dataset, device)


def take_steps(trainer: Trainer, count: int = STEPS) -> StepResults:
    """Take the first steps of a run. After the first one, torch raises an error if the host waits for the GPU."""
    batches = iter(TrainingLoader(trainer.dataset, trainer.order, 1, trainer.device, trainer.task.embeddings))
    trainer.task.student.train()
    trainer.task.head.train()
    stats = [trainer.take_step(batches, 0).stats]
    with _no_waiting(trainer.device):
        stats += [trainer.take_step(batches, done).stats for done in range(1, count)]
    return StepResults(*(torch.stack([values[name] for values in stats]).tolist() for name in ("loss", "grad_norm")))


@contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def changed_by_bad_step(trainer: Trainer) -> int:
    """Take a step on images that are not finite. Returns how many tensors of the state it changed."""
    before = _values(trainer)
    nan = torch.full((trainer.cfg.batch_size, 3, 112, 112), torch.nan, device=trainer.device)
    nan = nan.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(nan), dtype=torch.int64, device=trainer.device)
    trainer.take_step(iter([Batch(nan, nan, labels, None)]), STEPS)
    if int(trainer.bad_steps.total) != 1:
        sys.exit("a step on images that are not finite was not counted as a bad step")
    return _differing(trainer, before)


def _values(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of the weights, the BatchNorm statistics, the centers and the momenta."""
    backbone, header, state = trainer.state.checkpoint()
    momenta = {f"momentum {n}": value["momentum_buffer"] for n, value in state["optimizer"]["state"].items()}
    return {name: tensor.detach().clone() for name, tensor in {**backbone, **header, **momenta}.items()}


def _differing(trainer: Trainer, values: dict[str, Tensor]) -> int:
    """How many tensors of the state are not equal to `values`, bit for bit."""
    return sum(not torch.equal(tensor, values[name]) for name, tensor in _values(trainer).items())


def relative_differences(values: list[float], wanted: list[float]) -> list[float]:
    """For each step, |value - wanted| / |wanted|."""
    return [abs(one / other - 1) for one, other in zip(values, wanted, strict=True)]


CHECKS = {check.__name__: check for check in (steps, safety, memory, rank)}


if __name__ == "__main__":
    main()
