"""Cross-entropy by blocks of classes: equal to the plain head, in little memory, and without waiting for the device."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from trained_head import BATCH, SIZE, batch, settings, trained_head

from benchmarks.plain import make_plain
from heads import MARGINS, build_head, build_standalone_head, cross_entropy


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
