"""Parts of a training step: the compiled student, gradients of two ranks, the profile of a run."""

import gzip
import json
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import run_script
from runs import SCRIPTS, train
from torch.autograd import DeviceType
from torch.profiler import record_function

from config import load_config
from data.loader import Batch
from train.step_profile import PHASES, WARM_UP, StepProfile, table
from train.tasks import Standalone
from utils.distributed import all_gather, process_group, rank, world_size

CPU = torch.device("cpu")


def losses_and_weights(setting: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train three steps of two forward passes on noise that differs between ranks. Returns losses and weights.

    After each step, the bare student is evaluated, and the norm of its output is added to the losses.
    """
    cfg = load_config(
        overrides=["dataset=custom", "num_classes=10", "embedding_size=16", "width=0.125", f"compile={setting}"]
    )
    task = Standalone(cfg, CPU)
    optimizer = torch.optim.SGD([*task.student.parameters(), *task.head.parameters()], lr=0.01, fused=True)
    losses = []
    for step in range(3):
        task.student.train()
        for last in (False, True):
            seed = 100 * step + 10 * last + rank()
            images = torch.randn(6, 3, 112, 112, generator=torch.Generator().manual_seed(seed))
            with nullcontext() if last else task.no_sync():
                output = task.forward(Batch(images, images, torch.arange(6), None))
                output.loss.backward()
            losses.append(output.loss.item())
        optimizer.step()
        optimizer.zero_grad()
        task.student.eval()
        losses.append(task.student(images).detach().norm().item())
    return losses, task.student.state_dict()


def compare_compiled_with_plain() -> dict[str, torch.Tensor]:
    """Return the compiled student's weights. The backend aot_eager generates no code, because that takes a minute."""
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        losses, weights = losses_and_weights("on")
    with mock.patch("train.prelu.replace_prelus", lambda network: network):  # a compiled student has torch's PReLU
        plain_losses, plain_weights = losses_and_weights("off")
    assert losses == pytest.approx(plain_losses, rel=1e-4)
    assert weights.keys() == plain_weights.keys()
    for name, weight in weights.items():
        assert torch.allclose(weight, plain_weights[name], rtol=1e-3, atol=1e-4), name
    return weights


def test_a_compiled_student_takes_the_same_steps():
    compare_compiled_with_plain()


def test_two_ranks_with_a_compiled_student_share_the_same_gradients():
    """Of the forward passes of a step, only the last one shares gradients. The ranks run this file as a script."""
    done = run_script("tests/test_step.py", ranks=2)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_on_a_cpu_nothing_is_compiled_by_default(setting):
    with mock.patch("torch.compile", side_effect=AssertionError):
        losses_and_weights(setting)


def test_a_profile_writes_a_trace_and_logs_where_the_time_went(small_run, tmp_path):
    train(SCRIPTS[0], small_run, tmp_path, "profile=3", f"max_steps={WARM_UP + 4}", "val_eval_every_n_epoch=0")
    trace = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    names = [event["name"] for event in trace if event.get("cat") == "user_annotation"]
    assert {name: names.count(name) for name in PHASES} == dict.fromkeys(PHASES, 3)
    log = (tmp_path / "training.log").read_text()
    lines = log[log.index("trace.json.gz") :].splitlines()[1:]
    assert lines[0].startswith("3 steps ")
    shares = {line.split()[0]: float(line.split()[2]) for line in lines[1:8]}
    assert list(shares) == [*PHASES, "other"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert shares["student"] > 1 and shares["backward"] > 1
    assert lines[8] == "slowest operators" and "aten::" in lines[9]


@pytest.mark.parametrize(("steps", "message"), [(WARM_UP, "no profile"), (WARM_UP + 1, "1 steps"), (20, "3 steps")])
def test_a_run_that_ends_during_its_profile_reports_its_profiled_steps(tmp_path, steps, message):
    logged = []
    with StepProfile(3, tmp_path, CPU, logged.append) as profile:
        for _ in range(steps):
            for phase in PHASES:
                with record_function(phase):
                    torch.ones(10).sum()
            profile.step()
    assert len(logged) == 1 and message in logged[0]
    assert [path.name for path in tmp_path.iterdir()] == (["trace.json.gz"] if steps > WARM_UP else [])


def event(name: str, start: int, end: int, kernels: tuple[int, ...] = (), device: DeviceType = DeviceType.CPU):
    """A profiler event: start and end in microseconds, and the durations of the GPU kernels that it launched."""
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(
        name=name, time_range=span, kernels=[SimpleNamespace(duration=time) for time in kernels], device_type=device,
        is_user_annotation=name in PHASES, self_cpu_time_total=0,
    )  # fmt: skip


def test_on_a_gpu_a_kernel_belongs_to_the_phase_that_launched_it():
    events = [
        event("ProfilerStep#5", 0, 10_000), event("ProfilerStep#6", 10_000, 11_000),
        event("student", 1_000, 2_000), event("backward", 2_000, 3_000), event("optimiser", 3_000, 3_000),
        event("aten::conv2d", 1_100, 1_200, (3_000,)), event("aten::add", 1_300, 1_400, (500, 400)),
        event("aten::conv2d_backward", 2_500, 2_600, (2_000,)), event("aten::add", 5_000, 5_100, (1_000,)),
        event("student", 1_500, 9_500, device=DeviceType.CUDA), event("kernel", 1_500, 4_500, device=DeviceType.CUDA),
        event("copy", 2_000, 3_000, device=DeviceType.CUDA), event("kernel", 4_400, 8_400, device=DeviceType.CUDA),
        event("student", 10_500, 10_600),  # belongs to a step that was not finished
    ]  # fmt: skip
    rows = [line.split() for line in table(events, on_gpu=True).splitlines()]
    values = {row[0]: row[1:] for row in rows[1:9]}
    assert values["student"] == ["3.90", "39.0", "%", "1.00"]
    assert values["backward"] == ["2.00", "20.0", "%", "1.00"]
    assert values["other"] == ["1.00", "10.0", "%", "8.00"]
    assert values["idle"] == ["3.10", "31.0", "%"]
    assert [row[:2] for row in rows[10:]] == [
        ["aten::conv2d", "3.00"], ["aten::conv2d_backward", "2.00"], ["aten::add", "1.90"]
    ]  # fmt: skip


if __name__ == "__main__":
    with process_group("cpu"):
        weights = compare_compiled_with_plain()
        flat = torch.cat([weight.flatten() for weight in weights.values() if weight.ndim > 1])
        assert torch.equal(flat, all_gather(flat).view(world_size(), -1)[0])
