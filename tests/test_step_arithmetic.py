"""Three optimiser steps of both tasks, compared with the arithmetic written out in float64; resumed steps."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from easydict import EasyDict
from torch import Tensor, nn

from config import load_config
from data.loader import Batch
from heads import build_head
from train import tasks
from train.step import TrainingStep
from train.tasks import Distillation, Standalone, Task

CPU = torch.device("cpu")
IMAGES, PIXELS, CLASSES, SIZE = 6, 10, 7, 5
# Peak: 0.1 * 384 / 512 = 0.075. Epochs 0, 1/2 and 1: warm-up ((e + 1) / 2)^2 twice, then a tenth from the milestone on.
STEPS_PER_EPOCH, TOTAL_BATCH = 2, 384
RATES = [0.075 / 4, 0.075 * 9 / 16, 0.0075]


def build_student(student: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks have this student, which takes no images of 112 x 112 pixels."""
    monkeypatch.setattr(tasks, "build_backbone", lambda cfg, new_last_layer: student)
    monkeypatch.setattr(tasks, "describe_cost", lambda student: "")


class GivenTeacher(Distillation):
    """Distillation whose batches contain the teacher's embeddings."""

    def __init__(self, cfg: EasyDict) -> None:
        Task.__init__(self, cfg, build_head(cfg), CPU)


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(IMAGES, PIXELS, generator=generator, dtype=torch.float64)
    teacher = torch.randn(IMAGES, SIZE, generator=generator, dtype=torch.float64) + images[:, :SIZE]
    return Batch(images, images, torch.tensor([0, 3, 6, 3, 1, 0]), teacher)


class Reference:
    """Weights, momentum, centers and norm statistics, changed by the formulas of the method and by plain SGD."""

    def __init__(self, task: Task, s: float) -> None:
        self.weights = [p.detach().clone().requires_grad_() for p in task.student.parameters()]
        self.centers = task.head.centers.detach().clone()
        self.trained_centers = isinstance(task, Standalone)
        if self.trained_centers:
            self.weights.append(self.centers.requires_grad_())
        self.momentum = [torch.zeros_like(weight) for weight in self.weights]
        self.mu, self.sigma, self.s = 20.0, 100.0, s

    def loss(self, batch: Batch, epoch: float) -> Tensor:
        f_s = (batch.images @ self.weights[0].t() + self.weights[1]).tanh() @ self.weights[2].t() + self.weights[3]
        y, norm, geo = batch.labels, f_s.detach().norm(dim=1), 0.0
        if not self.trained_centers:
            geo = self._move_centers(f_s.detach(), batch.teacher, y, epoch)
        self.mu = 0.01 * norm.mean() + 0.99 * self.mu
        self.sigma = 0.01 * ((norm - norm.mean()).square().sum() / (IMAGES - 1)).sqrt() + 0.99 * self.sigma
        z = (0.333 * (norm - self.mu) / (self.sigma + 1e-3) + geo).clamp(-1, 1)
        unit_centers = self.centers / self.centers.norm(dim=1, keepdim=True)
        cosines = (f_s / f_s.norm(dim=1, keepdim=True) @ unit_centers.t()).clamp(-0.999, 0.999)
        theta = cosines[range(IMAGES), y].arccos()
        target = (theta - 0.4 * z).clamp(1e-3, math.pi - 1e-3).cos() - (0.4 + 0.4 * z)
        is_own_class = torch.eye(CLASSES, dtype=torch.bool)[y]
        logits = self.s * torch.where(is_own_class, target[:, None], cosines)
        return (logits.exp().sum(1).log() - self.s * target).mean()

    def _move_centers(self, f_s: Tensor, f_t: Tensor, y: Tensor, epoch: float) -> Tensor:
        """Move the centers class by class, and return the geometry-aware term [B]."""
        unit_f_t, w_y = f_t / f_t.norm(dim=1, keepdim=True), self.centers[y]
        conf_t = ((w_y * unit_f_t).sum(1) / w_y.norm(dim=1)).clamp(1e-6, 1)
        cos_st = (f_s * unit_f_t).sum(1) / f_s.norm(dim=1)
        alpha = (cos_st * conf_t).clamp(1e-6, 1)
        for c in y.unique():
            rows = y == c
            pull = ((1 - alpha[rows, None]) * unit_f_t[rows]).mean(0)
            self.centers[c] = alpha[rows].mean() * self.centers[c] + pull
        return min(1.0, epoch) * 3 * (conf_t - cos_st).relu() * conf_t

    def step(self, batches: list[Batch], epoch: float, lr: float) -> float:
        """One step of SGD on the mean loss of the batches. Returns the norm of the gradient before clipping."""
        gradients = [torch.zeros_like(weight) for weight in self.weights]
        for batch in batches:
            parts = torch.autograd.grad(self.loss(batch, epoch), self.weights)
            gradients = [sum_ + part / len(batches) for sum_, part in zip(gradients, parts, strict=True)]
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        factor = min(1.0, 5 / (norm + 1e-6))  # torch adds 1e-6
        with torch.no_grad():
            for weight, momentum, gradient in zip(self.weights, self.momentum, gradients, strict=True):
                momentum.mul_(0.9).add_(factor * gradient + 5e-4 * weight)
                weight -= lr * momentum
        return norm


@pytest.mark.parametrize("s", [64, 1])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("build_task", [GivenTeacher, lambda cfg: Standalone(cfg, CPU)], ids=["teacher", "standalone"])
def test_three_steps_equal_sgd_written_out(monkeypatch, build_task, accumulate_steps, s):
    """Weights, trained or averaged centers, momentum, learning rates and gradient norms, to float64 accuracy."""
    student = nn.Sequential(nn.Linear(PIXELS, 8), nn.Tanh(), nn.Linear(8, SIZE))
    build_student(student, monkeypatch)
    cfg = load_config(
        overrides=["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}", f"s={s}", "lr_milestones=[2]",
                   f"accumulate_steps={accumulate_steps}", "dtype=float32"]
    )  # fmt: skip
    task = build_task(cfg)
    task.student.double(), task.head.double()
    task.head.set_centers(100 * task.head.centers.detach())  # of length about 2: the averages move them visibly
    step, reference = TrainingStep(cfg, task, STEPS_PER_EPOCH, TOTAL_BATCH, CPU), Reference(task, s)

    norms = []
    for done, lr in enumerate(RATES):
        batches = [batch(10 * done + number) for number in range(accumulate_steps)]
        norms.append(reference.step(batches, done / STEPS_PER_EPOCH, lr))
        result = step(iter(batches), done)
        assert result.lr == pytest.approx(lr, rel=1e-12)
        assert result.stats["grad_norm"].item() == pytest.approx(norms[-1], rel=1e-9)
    assert min(norms) > 5 if s == 64 else max(norms) < 5  # with and without clipping

    weights = [*task.student.parameters()] + ([task.head.centers] if reference.trained_centers else [])
    momentum = [step.optimizer.state[weight]["momentum_buffer"] for weight in weights]
    close = dict(rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(list(map(Tensor.detach, weights)), [w.detach() for w in reference.weights], **close)
    torch.testing.assert_close(momentum, reference.momentum, **close)
    torch.testing.assert_close(task.head.centers.detach(), reference.centers.detach(), **close)
    assert task.head.softmax.margin.batch_mean.item() == pytest.approx(float(reference.mu), rel=1e-9)
    assert task.head.softmax.margin.batch_std.item() == pytest.approx(float(reference.sigma), rel=1e-9)


def test_a_resumed_run_continues_with_the_loss_scale_the_momentum_and_the_bad_steps_in_a_row(monkeypatch):
    """In float16, the third to fifth steps are bad. The run is interrupted after the fourth."""
    cfg = load_config(
        overrides=["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}", "dtype=float16",
                   "max_bad_steps=2"]
    )  # fmt: skip

    def start() -> TrainingStep:
        torch.manual_seed(0)
        student = nn.Linear(PIXELS, SIZE)
        build_student(student, monkeypatch)
        return TrainingStep(cfg, Standalone(cfg, CPU), STEPS_PER_EPOCH, TOTAL_BATCH, CPU)

    def take(step: TrainingStep, numbers: range) -> None:
        for number in numbers:
            images = batch(number).images.float() * (math.nan if number in (2, 3, 4) else 1)
            step(iter([Batch(images, images, torch.tensor([0, 3, 6, 3, 1, 0]), None)]), number)

    uninterrupted, first, resumed = start(), start(), start()
    take(uninterrupted, range(7))
    take(first, range(4))
    assert not first.bad_steps.too_many(wait=True)
    resumed.load(copy.deepcopy(first.state()))
    for module in ("student", "head"):
        getattr(resumed.task, module).load_state_dict(getattr(first.task, module).state_dict())
    assert resumed.scaler.get_scale() == first.scaler.get_scale() == 1024 / 4
    take(resumed, range(4, 5))
    assert resumed.bad_steps.too_many(wait=True)
    assert "the last 3 steps was not finite" in str(resumed.bad_steps.error(5))
    assert "the last good one, 2, had loss" in str(resumed.bad_steps.error(5))
    take(resumed, range(5, 7))
    assert uninterrupted.scaler.state_dict() == resumed.scaler.state_dict()
    assert uninterrupted.bad_steps.total == resumed.bad_steps.total == 3
    for weight, same in zip(uninterrupted.parameters, resumed.parameters, strict=True):
        assert torch.equal(weight, same)
        momentum = uninterrupted.optimizer.state[weight]["momentum_buffer"]
        assert torch.equal(momentum, resumed.optimizer.state[same]["momentum_buffer"])


class Drawing(nn.Linear):
    """A student that draws random numbers in each forward pass, as dropout does."""

    drawn: tuple[float, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        self.drawn = (*self.drawn, torch.rand(()).item())
        return super().forward(images)


def test_the_random_numbers_of_a_step_depend_only_on_seed_step_and_rank(monkeypatch):
    """Those of its two forward passes differ. Those drawn before or by a loader that starts have no effect."""

    def feed(drawn_before: int) -> Iterator[Batch]:
        torch.rand(drawn_before)
        for number in range(2):
            yield batch(number)._replace(images=batch(number).images.float())

    drawn = {}
    for seed, done, rank in [(1, 3, 0), (1, 3, 0), (1, 4, 0), (1, 3, 1), (2, 3, 0)]:
        student = Drawing(PIXELS, SIZE)
        build_student(student, monkeypatch)
        monkeypatch.setattr("train.step.rank", lambda rank=rank: rank)
        cfg = load_config(
            overrides=["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}", "accumulate_steps=2",
                       f"seed={seed}"]
        )  # fmt: skip
        step = TrainingStep(cfg, Standalone(cfg, CPU), STEPS_PER_EPOCH, TOTAL_BATCH, CPU)
        torch.rand(len(drawn))
        step(feed(drawn_before=len(drawn)), done)
        assert drawn.setdefault((seed, done, rank), student.drawn) == student.drawn
    assert len({number for numbers in drawn.values() for number in numbers}) == 8
