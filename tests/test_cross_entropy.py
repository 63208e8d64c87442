"""Cross-entropy by blocks of classes: equal to the plain head, in little memory, and without waiting for the device."""

import math
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from trained_head import BATCH, CLASSES, SIZE, batch, settings, trained_head

from benchmarks.plain import make_plain
from heads import MARGINS, build_head, build_standalone_head, cross_entropy

HAS_COMPILER = shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


def loss_and_gradient(head: torch.nn.Module, seed: int, dtype: torch.dtype, autocast: torch.dtype | None = None):
    """The loss of a batch, and its gradient for the student's embeddings in float64."""
    student, teacher, labels = batch(seed)
    student = student.to(dtype).requires_grad_()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        loss = head(student, teacher.to(dtype), labels).loss
    loss.backward()
    return loss.item(), student.grad.double()


@pytest.mark.parametrize("block", [1, 64, 333, 8192])
@pytest.mark.parametrize("loss", MARGINS)
def test_loss_and_gradient_equal_the_plain_head(loss, block, monkeypatch):
    monkeypatch.setitem(cross_entropy.CLASSES_PER_BLOCK, "cpu", block)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        head, reference = trained_head(f"loss={loss}").to(dtype), make_plain(trained_head(f"loss={loss}").to(dtype))
        for seed in range(2):
            found, gradient = loss_and_gradient(head, seed, dtype)
            wanted, reference_gradient = loss_and_gradient(reference, seed, dtype)
            assert found == pytest.approx(wanted, rel=tolerance)
            assert (gradient - reference_gradient).norm() < tolerance * reference_gradient.norm()
            rows = (gradient - reference_gradient).norm(dim=1) / reference_gradient.norm(dim=1).clamp_min(1e-3)
            assert rows.max() < 100 * tolerance


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])  # without and with fast products in bfloat16
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", MARGINS)
def test_in_bfloat16_and_float16_it_is_about_as_exact_as_the_plain_head(loss, dtype, capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setitem(cross_entropy.CLASSES_PER_BLOCK, "cpu", 100)
    exact = make_plain(trained_head(f"loss={loss}").double())
    narrow, reference = trained_head(f"loss={loss}"), make_plain(trained_head(f"loss={loss}"))
    for seed in range(2):
        wanted, wanted_gradient = loss_and_gradient(exact, seed, torch.float64)
        errors = []
        for head in (narrow, reference):
            loss_found, gradient = loss_and_gradient(head, seed, torch.float32, dtype)
            errors.append((abs(loss_found - wanted), (gradient - wanted_gradient).norm().item()))
        assert errors[0][0] < 1.5 * errors[1][0] + 1e-3 * wanted
        assert errors[0][1] < 1.5 * errors[1][1] + 1e-3 * wanted_gradient.norm()


def test_a_row_with_logits_far_below_those_of_the_others_stays_exact(monkeypatch):
    """Without a running maximum for each row, exp of logits below -80 would underflow."""
    monkeypatch.setitem(cross_entropy.CLASSES_PER_BLOCK, "cpu", 2)
    unit = F.normalize(torch.tensor([[-1.0, -0.1], [-1.0, 0.1]]))
    centers = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.02], [1.0, 0.03], [1.0, 0.05], [1.0, 0.06]]))
    labels, target = torch.tensor([4, 0]), torch.tensor([-1.0, -1.0])
    found = cross_entropy.block_cross_entropy(unit, target, centers, labels, 100.0, 1.0)
    logits = (100 * unit.double() @ centers.double().t()).scatter(1, labels[:, None], 100 * target[:, None].double())
    torch.testing.assert_close(found.double(), F.cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bound", [0.3, 1.0])
def test_the_gradient_is_that_of_the_loss(bound, monkeypatch):
    """Compared with finite differences. Some cosines are beyond the bound."""
    monkeypatch.setitem(cross_entropy.CLASSES_PER_BLOCK, "cpu", 4)
    generator = torch.Generator().manual_seed(0)
    unit, centers = (F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64)) for n in (6, 11))
    target = torch.rand(6, generator=generator, dtype=torch.float64)
    labels = torch.arange(6)

    def loss(unit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy.block_cross_entropy(unit, target, centers, labels, 4.0, bound)

    assert torch.autograd.gradcheck(loss, (unit.requires_grad_(), target.requires_grad_()))


def slow_loss_and_gradients(unit, target, centers, labels, s, bound):
    """The losses [B] and the gradients of their sum for `unit` and `target`, in float64, with all logits in memory."""
    unit, target = (tensor.detach().double().requires_grad_() for tensor in (unit, target))
    cosines = unit @ centers.double().t()
    # Unlike torch's clamp, the head passes no gradient exactly at the bound.
    cosines = torch.where(cosines.abs() < bound, cosines, cosines.detach().clamp(-bound, bound))
    losses = F.cross_entropy(s * cosines.scatter(1, labels[:, None], target[:, None]), labels, reduction="none")
    losses.sum().backward()
    return losses.detach(), unit.grad, target.grad


def block_loss_and_gradients(unit, target, centers, labels, s, bound, step=None):
    """The same from `block_cross_entropy`, in float64."""
    unit, target = (tensor.detach().clone().requires_grad_() for tensor in (unit, target))
    losses = cross_entropy.block_cross_entropy(unit, target, centers, labels, s, bound, step)
    losses.sum().backward()
    return losses.detach().double(), unit.grad.double(), target.grad.double()


def random_case() -> tuple[torch.Tensor, ...]:
    """Unit embeddings [8, 6], targets, unit centers [50, 6] and labels. Some cosines are beyond 0.9 and below -0.9."""
    generator = torch.Generator().manual_seed(0)
    unit, centers = (F.normalize(torch.randn(n, 6, generator=generator)) for n in (8, 50))
    unit[0], unit[1] = centers[20], -centers[30]
    unit[4] = centers[31]  # the center of its own class
    return unit, torch.rand(8, generator=generator), centers, torch.tensor([0, 1, 15, 16, 31, 32, 49, 49])


@pytest.mark.parametrize("bound", [0.9, 1.0])
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 88.7), (torch.float64, 709.7)])
def test_results_are_exact_with_and_without_a_running_maximum(dtype, largest, bound, monkeypatch):
    """The largest s without a running maximum, for 50 classes, and the next larger one."""
    monkeypatch.setitem(cross_entropy.CLASSES_PER_BLOCK, "cpu", 16)
    unit, target, centers, labels = (t.to(dtype) if t.is_floating_point() else t for t in random_case())
    limit = (largest - 1 - math.log(len(centers))) / bound
    used = []

    def step(*arguments):
        used.append(arguments[4] is not None)
        return cross_entropy.add_block(*arguments)

    for s, needs_maximum in ((limit - 0.1, False), (limit + 0.1, True)):
        found = block_loss_and_gradients(unit, target, centers, labels, s, bound, step)
        for result, expected in zip(
            found, slow_loss_and_gradients(unit, target, centers, labels, s, bound), strict=True
        ):
            torch.testing.assert_close(result, expected, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)
        assert used == [needs_maximum] * 4
        used.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("s", [64.0, 72.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_million_equal_extreme_logits_neither_overflow_nor_underflow(sign, s, dtype):
    """All cosines with other classes are 0.998, or all are -0.998. One target is 1, the other is CosFace's lowest."""
    classes, cosine = 1_000_000, 0.998
    unit = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    center = torch.tensor([sign * cosine, math.sqrt(1 - cosine**2)]).to(dtype)
    target = torch.tensor([1.0, -1.35])
    found = block_loss_and_gradients(unit, target, center.expand(classes, 2), torch.tensor([0, 5]), s, 0.999)
    logit = ((s / math.log(2) * unit[0]).to(dtype).double() @ center.double()).to(dtype).double() * math.log(2)
    z = logit + math.log(classes - 1) - s * target.double()
    by_unit = s * z.sigmoid()[:, None] * center.double()
    tolerance = 1e-4 if dtype == torch.float32 else 0.01
    for result, expected in zip(found, (F.softplus(z), by_unit, -s * z.sigmoid()), strict=True):
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("s", [64.0, 72.0])
def test_clamped_logits_count_in_the_loss_and_pass_no_gradient(sign, s):
    """All cosines with other classes are beyond the bound."""
    unit, target = torch.tensor([[1.0, 0.0]]), torch.tensor([0.0])
    centers = torch.tensor([[float(sign), 0.0]]).expand(100_000, 2)
    loss, by_unit, by_target = block_loss_and_gradients(unit, target, centers, torch.tensor([7]), s, 0.999)
    z = torch.tensor([s * 0.999 * sign + math.log(99_999)], dtype=torch.float64)
    torch.testing.assert_close(loss, F.softplus(z), rtol=1e-4, atol=0)
    torch.testing.assert_close(by_target, -s * z.sigmoid(), rtol=1e-4, atol=0)
    assert not by_unit.any()


def test_the_gradient_of_a_class_does_not_overflow_in_float16_if_a_large_batch_agrees(monkeypatch):
    """4,096 samples that are all taken for the other class: its derivative is far above float16's largest number."""
    monkeypatch.setattr(cross_entropy, "product_type", lambda centers: centers.dtype)
    samples, s, cosine = 4096, 64.0, 0.75
    unit_f_s = torch.tensor([[1.0, 0.0]]).repeat(samples, 1)
    centers = torch.tensor([[0.0, 1.0], [cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float16)
    logit = torch.full((samples,), s * cosine / math.log(2))  # of the only other class, to base 2
    sums = cross_entropy.ClassSums(logit, torch.ones(samples), None)
    labels = torch.zeros(samples, dtype=torch.int64)
    found = cross_entropy.class_gradients(sums, torch.full((samples,), s), unit_f_s, centers, labels, s, 1.0)
    assert s * samples > torch.finfo(torch.float16).max
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [s * samples, 0.0]]), rtol=1e-2, atol=0)


def test_the_only_class_has_no_loss_and_no_gradient():
    unit, center = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    for s in (64.0, 100.0):
        for result in block_loss_and_gradients(unit, torch.tensor([-1.0]), center, torch.tensor([0]), s, 1.0):
            assert not result.any()


@pytest.mark.parametrize("s", [64.0, 100.0])
def test_the_step_is_compiled_once_for_full_blocks_and_once_for_the_last_block(s, monkeypatch):
    monkeypatch.setitem(cross_entropy.CLASSES_PER_BLOCK, "cpu", 16)
    torch.compiler.reset()
    counter = CompileCounter()  # runs the traced operators without generating code
    step = torch.compile(cross_entropy.add_block, dynamic=False, fullgraph=True, backend=counter)
    for _ in range(2):
        found = block_loss_and_gradients(*random_case(), s, 0.9, step)
        for result, expected in zip(found, slow_loss_and_gradients(*random_case(), s, 0.9), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 2


@pytest.mark.skipif(not HAS_COMPILER, reason="needs g++ and Python's headers")
def test_the_compiled_head_gives_the_loss_and_gradient_of_the_plain_loop(monkeypatch):
    """Generates and compiles code for this CPU, as on a GPU."""
    monkeypatch.setitem(cross_entropy.CLASSES_PER_BLOCK, "cpu", CLASSES // 2)  # one graph
    torch.compiler.reset()
    plain, compiled = trained_head(), trained_head()
    compiled.softmax.compile_blocks()
    expected, expected_gradient = loss_and_gradient(plain, 0, torch.float32)
    found, gradient = loss_and_gradient(compiled, 0, torch.float32)
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_both_heads_give_the_same_loss_for_the_same_centers():
    """One computes it by blocks of classes with constant centers, the other with trained centers and all logits."""
    with_teacher, standalone = trained_head("use_geom_margin=False").eval(), build_standalone_head(settings()).eval()
    standalone.set_centers(with_teacher.centers)
    student, teacher, labels = batch(0)
    assert with_teacher(student, teacher, labels).loss.item() == pytest.approx(
        standalone(student, labels).loss.item(), rel=1e-5
    )


# --- memory and synchronisation --------------------------------------------------------------------------------

PEAK = """
import torch
from benchmarks.memory import peak_bytes, reset_peak
from config import load_config
from heads import build_head
classes = 400_000
head = build_head(load_config(overrides=["dataset=custom", f"num_classes={classes}", "embedding_size=32"]))
student, teacher = torch.randn(2, 256, 32)
labels = torch.arange(256)
head(student[:1], teacher[:1], labels[:1])  # so that the unit centers exist
reset_peak()
before = peak_bytes()
head(student.requires_grad_(), teacher, labels).loss.backward()
print((peak_bytes() - before) / 2**20)
"""


def test_forward_and_backward_pass_need_the_memory_of_a_few_blocks():
    """Logits [256, 400,000] in float32 would take 390 MiB, and a plain head keeps several such tensors."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 195


@pytest.mark.parametrize("loss", MARGINS)
def test_forward_and_backward_pass_never_wait_for_the_device(loss):
    """Fake tensors have no values, so reading a value raises an error."""
    with FakeTensorMode():
        head = build_head(settings(f"loss={loss}"))
        for _ in range(2):
            student = torch.empty(BATCH, SIZE, requires_grad=True)
            out = head(student, torch.empty(BATCH, SIZE), torch.empty(BATCH, dtype=torch.int64))
            out.loss.backward()
            assert student.grad.shape == student.shape
        with pytest.raises(DataDependentOutputException):
            out.loss.item()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_never_synchronises_and_computes_the_loss_of_the_cpu(dtype):
    student, teacher, labels = batch(0)
    wanted = trained_head()(student, teacher, labels).loss.item()
    head = trained_head().cuda()
    student, teacher, labels = (tensor.cuda() for tensor in (student, teacher, labels))
    run = partial(torch.autocast, "cuda", dtype, enabled=dtype != torch.float32)
    with run():
        head.eval()(student, teacher, labels)  # so that the unit centers exist
    torch.cuda.set_sync_debug_mode("error")
    try:
        with run():
            out = head.train()(student.requires_grad_(), teacher, labels)
        out.loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.loss.item() == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 0.02)
