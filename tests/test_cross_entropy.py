"""The head by blocks of classes: equal to the plain head, small in memory, and never waiting for the device."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from easydict import EasyDict
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.plain import make_plain
from config import load_config
from heads import MARGINS, build_head, build_standalone_head, cross_entropy

CLASSES, SIZE, BATCH = 1000, 24, 16


def settings(*overrides: str) -> EasyDict:
    return load_config(overrides=["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}", *overrides])


def trained_head(*overrides: str) -> torch.nn.Module:
    """A head whose centers spread as after training, some of them twice."""
    head = build_head(settings(*overrides))
    centers = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(1))
    centers[500:510] = centers[:10]
    head.set_centers(centers)
    head.set_epoch(1.0)
    return head


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher near their centers; labels on the first and last class, at the edges of blocks, and twice."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 511, 512, 999, 63, 64, 127, 128, 3, 505, 505, 700, 701, 702, 999])
    centers = trained_head().centers[labels]
    student, teacher = (4 * centers + 2 * torch.randn(BATCH, SIZE, generator=generator) for _ in range(2))
    student[0] = 3 * centers[0]  # on its own center
    student[1] = 3 * trained_head().centers[8]  # on another's, which two classes share: outside AdaFace's bounds
    student[2] = -3 * trained_head().centers[9]
    return student, teacher, labels


def step(head: torch.nn.Module, seed: int, dtype: torch.dtype, autocast: torch.dtype | None = None):
    """Loss and gradient of a step, in float64."""
    student, teacher, labels = batch(seed)
    student = student.to(dtype).requires_grad_()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        loss = head(student, teacher.to(dtype), labels).loss
    loss.backward()
    return loss.item(), student.grad.double()


@pytest.mark.parametrize("block", [1, 64, 333, 8192])
@pytest.mark.parametrize("loss", MARGINS)
def test_loss_and_gradient_equal_the_plain_head(loss, block, monkeypatch):
    monkeypatch.setitem(cross_entropy.CLASSES_A_BLOCK, "cpu", block)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        head, reference = trained_head(f"loss={loss}").to(dtype), make_plain(trained_head(f"loss={loss}").to(dtype))
        for seed in range(2):
            found, gradient = step(head, seed, dtype)
            wanted, reference_gradient = step(reference, seed, dtype)
            assert found == pytest.approx(wanted, rel=tolerance)
            assert (gradient - reference_gradient).norm() < tolerance * reference_gradient.norm()
            rows = (gradient - reference_gradient).norm(dim=1) / reference_gradient.norm(dim=1).clamp_min(1e-3)
            assert rows.max() < 100 * tolerance


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])  # by float32 products, and by those of the type itself
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", MARGINS)
def test_narrow_types_err_no_more_than_the_plain_head_in_them(loss, dtype, capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setitem(cross_entropy.CLASSES_A_BLOCK, "cpu", 100)
    exact = make_plain(trained_head(f"loss={loss}").double())
    narrow, reference = trained_head(f"loss={loss}"), make_plain(trained_head(f"loss={loss}"))
    for seed in range(2):
        wanted, wanted_gradient = step(exact, seed, torch.float64)
        errors = []
        for head in (narrow, reference):
            loss_found, gradient = step(head, seed, torch.float32, dtype)
            errors.append((abs(loss_found - wanted), (gradient - wanted_gradient).norm().item()))
        assert errors[0][0] < 1.5 * errors[1][0] + 1e-3 * wanted
        assert errors[0][1] < 1.5 * errors[1][1] + 1e-3 * wanted_gradient.norm()


def test_a_row_far_below_the_others_keeps_its_digits(monkeypatch):
    """Logits of -80 and less underflow but under a running maximum of their own row."""
    monkeypatch.setitem(cross_entropy.CLASSES_A_BLOCK, "cpu", 2)
    unit = F.normalize(torch.tensor([[-1.0, -0.1], [-1.0, 0.1]]))
    centers = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.02], [1.0, 0.03], [1.0, 0.05], [1.0, 0.06]]))
    labels, target = torch.tensor([4, 0]), torch.tensor([-1.0, -1.0])
    found = cross_entropy.block_cross_entropy(unit, target, centers, labels, 100.0, 1.0)
    logits = (100 * unit.double() @ centers.double().t()).scatter(1, labels[:, None], 100 * target[:, None].double())
    torch.testing.assert_close(found.double(), F.cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=0)


def test_the_standalone_head_gives_the_loss_of_the_head_under_a_teacher():
    """One softmax, by blocks and plainly: the same centers, fixed here and trained there."""
    under_teacher, alone = trained_head("use_geom_margin=False").eval(), build_standalone_head(settings()).eval()
    alone.set_centers(under_teacher.centers)
    student, teacher, labels = batch(0)
    assert under_teacher(student, teacher, labels).loss.item() == pytest.approx(
        alone(student, labels).loss.item(), rel=1e-5
    )


# --- unit centers ----------------------------------------------------------------------------------------------


def assert_unit_centers(head: torch.nn.Module) -> None:
    wanted = F.normalize(head.centers, eps=1e-12)
    assert torch.equal(head.unit_centers.of(head.centers), wanted)


def test_renewed_rows_equal_those_made_anew_to_the_bit():
    head = build_head(settings("embedding_size=512"))
    for count in (1, 2, 5, 300):
        generator = torch.Generator().manual_seed(count)
        student, teacher = torch.randn(2, count, 512, generator=generator)
        head(student, teacher, torch.randint(0, CLASSES, (count,), generator=generator))
        made = head.unit_centers.of(head.centers)
        assert made.data_ptr() == head.unit_centers.of(head.centers).data_ptr()
        assert_unit_centers(head)


def test_a_step_renews_only_the_rows_of_its_batch():
    head = trained_head()
    head(*batch(0))
    head.unit_centers.of(head.centers)[600] = 7.0  # marks a row that no label touches
    head(*batch(1))
    assert (head.unit_centers.of(head.centers)[600] == 7.0).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.set_centers(2 * head.centers.flip(0)),
        lambda head: head.centers[3].neg_(),
        lambda head: head.load_state_dict({**head.state_dict(), "centers": head.centers.flip(1)}),
        lambda head: head.load_header({**head.header(), "kernel": head.header()["kernel"].flip(0)}),
        lambda head: head.double(),
    ],
    ids=["set_centers", "in place", "load_state_dict", "load_header", "double"],
)
def test_centers_that_change_otherwise_take_their_unit_centers_along(change):
    head = trained_head()
    head(*batch(0))
    change(head)
    assert_unit_centers(head)


def test_they_are_in_autocasts_type_and_in_no_file():
    head = trained_head()
    with torch.autocast("cpu", torch.bfloat16):
        head(*batch(0))
        assert head.unit_centers.of(head.centers).dtype == torch.bfloat16
    assert head.unit_centers.of(head.centers).dtype == torch.float32
    assert set(head.state_dict()) == {"centers", "softmax.margin.batch_mean", "softmax.margin.batch_std"}


# --- memory and synchronisation --------------------------------------------------------------------------------

PEAK = """
import torch
from benchmarks.memory import forget_peak, peak
from config import load_config
from heads import build_head
classes = 400_000
head = build_head(load_config(overrides=["dataset=custom", f"num_classes={classes}", "embedding_size=32"]))
student, teacher = torch.randn(2, 256, 32)
labels = torch.arange(256)
head(student[:1], teacher[:1], labels[:1])  # the unit centers are there
forget_peak()
before = peak()
head(student.requires_grad_(), teacher, labels).loss.backward()
print((peak() - before) / 2**20)
"""


def test_a_step_takes_the_memory_of_a_few_blocks():
    """Logits [256, 400,000] in float32 would take 390 MiB, and the plain way holds several of them."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 195


def test_a_head_that_was_called_in_inference_mode_trains_on():
    head = trained_head()
    with torch.inference_mode():
        head.eval()(*batch(0))
    head.train()(*batch(1))
    assert_unit_centers(head)


@pytest.mark.parametrize("loss", MARGINS)
def test_no_step_waits_for_a_number_from_the_device(loss):
    """Fake tensors have no numbers: whatever asks for one raises."""
    with FakeTensorMode():
        head = build_head(settings(f"loss={loss}"))
        for _ in range(2):
            student = torch.empty(BATCH, SIZE, requires_grad=True)
            out = head(student, torch.empty(BATCH, SIZE), torch.empty(BATCH, dtype=torch.int64))
            out.loss.backward()
            assert student.grad.shape == student.shape
        with pytest.raises(DataDependentOutputException):
            out.loss.item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_a_gpu_synchronises_nothing_and_gives_the_loss_of_the_cpu(dtype):
    student, teacher, labels = batch(0)
    wanted = trained_head()(student, teacher, labels).loss.item()
    head = trained_head().cuda()
    student, teacher, labels = (tensor.cuda() for tensor in (student, teacher, labels))
    run = partial(torch.autocast, "cuda", dtype, enabled=dtype != torch.float32)
    with run():
        head.eval()(student, teacher, labels)  # the unit centers are there
    torch.cuda.set_sync_debug_mode("error")
    try:
        with run():
            out = head.train()(student.requires_grad_(), teacher, labels)
        out.loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.loss.item() == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 0.02)
