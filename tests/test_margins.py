"""Margins: the published formulas, and finite numbers for extreme embeddings and cosines."""

import math

import pytest
import torch
from slow_heads import CLASSES, LABELS, SIZE, batch, float64_head, settings, slow_loss

from config import names
from heads import MARGINS, build_head
from heads.margins import AdaFace, CosFace

TARGETS = {
    "MLLoss": lambda cosine: cosine,
    "CosFace": lambda cosine: cosine - 0.35,
    "ArcFace": lambda cosine: math.cos(math.acos(cosine) + 0.45),
}


@pytest.mark.parametrize("loss", TARGETS)
def test_the_loss_is_the_cross_entropy_with_the_published_margin_on_the_target(loss):
    head = float64_head(f"loss={loss}")
    for seed in (0, 1):
        student, teacher, labels = batch(seed)
        computed = head(student, teacher, labels).loss.item()
        centers = head.centers.numpy()  # after the step
        assert computed == pytest.approx(slow_loss(student.numpy(), centers, labels, TARGETS[loss]), rel=1e-10)


@pytest.mark.parametrize(("loss", "m"), [("CosFace", 0.1), ("ArcFace", 0.2), ("ArcFace", 0.0)])
def test_the_configs_m_and_s_are_used(loss, m):
    head = float64_head(f"loss={loss}", f"m={m}", "s=10")
    student, teacher, labels = batch()
    computed = head(student, teacher, labels).loss.item()
    target = {"CosFace": lambda x: x - m, "ArcFace": lambda x: math.cos(math.acos(x) + m)}[loss]
    assert computed == pytest.approx(slow_loss(student.numpy(), head.centers.numpy(), labels, target, 10.0), rel=1e-10)


def test_a_batch_of_one_sample_updates_the_mean_of_the_norms_but_not_the_deviation():
    head = float64_head()
    student, teacher, labels = batch(count=1)
    student.requires_grad_()
    head(student, teacher, labels).loss.backward()
    assert torch.isfinite(student.grad).all()
    assert head.header()["batch_std"].item() == 100
    expected = 0.01 * student.detach().norm().item() + 0.99 * 20
    assert head.header()["batch_mean"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("loss", MARGINS)
def test_gradients_are_finite_if_a_cosine_is_one_or_minus_one(loss, sign, dtype):
    head = float64_head(f"loss={loss}").to(dtype).eval()  # in eval mode the centers do not move
    # Centers along the axes, so that the cosines are 1 or -1 without a rounding error.
    head.set_centers(torch.eye(SIZE, dtype=dtype)[torch.arange(CLASSES) % SIZE] * 4)
    student = (sign * 3 * head.centers[LABELS]).requires_grad_()
    out = head(student, head.centers[LABELS], LABELS)
    out.loss.backward()
    assert torch.isfinite(out.loss) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("feature_kd", ["none", "cosine", "l2"])
@pytest.mark.parametrize("loss", MARGINS)
def test_embeddings_of_length_zero_give_finite_losses_gradients_and_centers(loss, feature_kd):
    head = build_head(settings(f"loss={loss}", f"feature_kd={feature_kd}"))
    student, teacher, labels = batch()
    student, teacher = student.float(), teacher.float()
    student[:4], teacher[2:6] = 0, 0  # of the student, of both, of the teacher
    student.requires_grad_()
    out = head(student, teacher, labels)
    out.loss.backward()
    assert torch.isfinite(out.loss) and torch.isfinite(student.grad).all() and torch.isfinite(head.centers).all()
    assert all(torch.isfinite(value) for value in out.stats.values())


@pytest.mark.parametrize("length", [1e-30, 1e-6, 1e6])
@pytest.mark.parametrize("loss", MARGINS)
def test_very_short_and_very_long_embeddings_give_finite_numbers(loss, length):
    head = build_head(settings(f"loss={loss}"))
    student, teacher, labels = batch()
    student = (student.float() * length).requires_grad_()
    out = head(student, teacher.float() * length, labels)
    out.loss.backward()
    assert torch.isfinite(out.loss) and torch.isfinite(student.grad).all() and torch.isfinite(head.centers).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", MARGINS)
def test_equal_embeddings_and_centers_of_zero_give_finite_numbers(loss, dtype):
    """A collapsed network returns the same embedding for all images, of one class or of several."""
    head = build_head(settings(f"loss={loss}"))
    head.set_centers(torch.zeros_like(head.centers))
    student, teacher, labels = batch()
    student = student[:1].float().repeat(len(labels), 1).requires_grad_()
    for same_class in (labels, labels[:1].expand(len(labels))):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = head(student, teacher[:1].float().expand_as(student), same_class)
        out.loss.backward()
        assert torch.isfinite(out.loss) and torch.isfinite(student.grad).all() and torch.isfinite(head.centers).all()
        assert all(torch.isfinite(value).all() for value in head.state_dict().values())


def slow_target(loss: str, cos_y: float, norm: float, geo: float, m: float) -> float:
    """The target's cosine by the published formula. For AdaFace, with its initial statistics."""
    if loss == "AdaFace":
        z = min(max(0.333 * (min(max(norm, 1e-3), 100) - 20) / (100 + 1e-3) + geo, -1), 1)
        return math.cos(min(max(math.acos(cos_y) - m * z, 1e-3), math.pi - 1e-3)) - (m + m * z)
    return {"ArcFace": math.cos(math.acos(cos_y) + m), "CosFace": cos_y - m, "MLLoss": cos_y}[loss]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("m", [0.0, 0.35, 0.6])
@pytest.mark.parametrize("loss", MARGINS)
def test_a_margin_equals_its_formula_for_each_sample(loss, m, dtype, tolerance):
    cosines, norms, geos = [-0.99, -0.5, 0.0, 0.3, 0.9, 0.998], [0.0, 5.0, 20.0, 90.0, 500.0], [0.0, 0.4, 2.0]
    cos_y, norm, geo = torch.cartesian_prod(*(torch.tensor(values, dtype=dtype) for values in (cosines, norms, geos))).T
    margin = MARGINS[loss].from_config(settings(f"m={m}")).to(dtype).eval()
    target, size = margin(cos_y, norm, norm, geo)
    rows = zip(cos_y.tolist(), norm.tolist(), geo.tolist(), strict=True)
    expected = torch.tensor([slow_target(loss, *row, m) for row in rows], dtype=dtype)
    torch.testing.assert_close(target, expected, rtol=0, atol=tolerance)
    assert target.dtype == size.dtype == dtype and target.shape == size.shape == cos_y.shape


@pytest.mark.parametrize("loss", MARGINS)
def test_a_margin_passes_the_gradient_of_its_formula(loss):
    cosines = torch.linspace(-0.95, 0.95, 39, dtype=torch.float64)
    margin = MARGINS[loss].from_config(settings()).double().eval()
    norm, geo = torch.full_like(cosines, 25.0), torch.full_like(cosines, 0.3)
    assert torch.autograd.gradcheck(lambda cos_y: margin(cos_y, norm, norm, geo)[0], cosines.requires_grad_())


@pytest.mark.parametrize("loss", MARGINS)
def test_a_margin_is_positive_and_lowers_the_targets_cosine(loss):
    cos_y, norm = torch.linspace(-0.5, 0.9, 20), torch.linspace(15, 40, 20)
    target, size = MARGINS[loss].from_config(settings())(cos_y, norm, norm, torch.zeros(20))
    if loss == "MLLoss":
        assert torch.equal(target, cos_y) and not size.any()
    else:
        assert (target < cos_y).all() and (size > 0).all()


def test_adafaces_statistics_are_running_averages_over_the_steps():
    margin = AdaFace(m=0.4, h=0.333, t_alpha=0.25).double()
    mean, std = 20.0, 100.0
    for seed in range(4):
        norms = 30 * torch.rand(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 5
        margin(torch.zeros(16), norms, norms, torch.zeros(16))
        mean = 0.25 * norms.mean().item() + 0.75 * mean
        std = 0.25 * norms.std(correction=1).item() + 0.75 * std
    assert margin.batch_mean.item() == pytest.approx(mean, rel=1e-12)
    assert margin.batch_std.item() == pytest.approx(std, rel=1e-12)


def test_adafaces_statistics_are_those_of_all_ranks_and_not_of_this_one():
    margin = AdaFace(m=0.4, h=0.333, t_alpha=1.0)
    margin(torch.zeros(2), torch.tensor([10.0, 20.0]), torch.tensor([10.0, 20.0, 60.0, 70.0]), torch.zeros(2))
    assert margin.batch_mean.item() == 40


def test_adafaces_statistics_can_start_from_the_first_batch_also_after_loading_a_state():
    def build() -> AdaFace:
        return AdaFace.from_config(settings("norm_statistics_start=first_batch", "t_alpha=0.25")).double()

    margin, norms, zero = build(), [], torch.zeros(16, dtype=torch.float64)
    broken = torch.full((16,), math.nan, dtype=torch.float64)
    margin(zero, broken, broken, zero)  # changes nothing
    for seed in range(3):
        norms.append(30 * torch.rand(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 5)
        resumed = build()
        resumed.load_state_dict(margin.state_dict())
        margin = resumed
        _, size = margin(zero, norms[-1], norms[-1], zero)
        means, stds = [batch.mean().item() for batch in norms], [batch.std(correction=1).item() for batch in norms]
        mean, std = means[0], stds[0]
        for batch_mean, batch_std in zip(means[1:], stds[1:], strict=True):
            mean, std = 0.25 * batch_mean + 0.75 * mean, 0.25 * batch_std + 0.75 * std
        assert margin.batch_mean.item() == pytest.approx(mean, rel=1e-12)
        assert margin.batch_std.item() == pytest.approx(std, rel=1e-12)
        z = (0.333 * (norms[-1] - mean) / (std + 1e-3)).clamp(-1, 1)
        torch.testing.assert_close(size, 0.4 + 0.4 * z, rtol=0, atol=1e-12)


def test_a_first_batch_of_one_sample_gives_a_mean_and_the_second_batch_starts_the_statistics():
    margin, zero = AdaFace(0.4, 0.333, 0.25, start=(0.0, 0.0)), torch.zeros(1)
    assert margin(zero, torch.tensor([12.0]), torch.tensor([12.0]), zero)[1].item() == pytest.approx(0.4)
    assert (margin.batch_mean.item(), margin.batch_std.item()) == (12, 0)
    margin(zero, torch.tensor([6.0]), torch.tensor([6.0, 10.0]), zero)
    assert (margin.batch_mean.item(), margin.batch_std.item()) == (8, pytest.approx(8**0.5))


@pytest.mark.parametrize("loss", MARGINS)
def test_every_margin_is_built_from_the_config_with_its_own_default_m(loss):
    margin = MARGINS[loss].from_config(settings(f"loss={loss}"))
    assert margin.m == MARGINS[loss].default_m
    assert MARGINS[loss].from_config(settings(f"loss={loss}", "m=0.2")).m == 0.2


class HalfCosFace(CosFace):
    """A margin that a user adds."""

    def forward(self, cos_y, norm, norms, geo):
        return cos_y - self.m / 2, torch.full_like(norm, self.m / 2)


def test_a_new_margin_is_one_class_and_one_line_in_a_table(monkeypatch):
    monkeypatch.setitem(names.MARGINS, "HalfCosFace", f"{__name__}:HalfCosFace")
    monkeypatch.setitem(MARGINS, "HalfCosFace", HalfCosFace)  # heads looks the table up when it is imported
    student, teacher, labels = batch()
    half = float64_head("loss=HalfCosFace", "m=0.3")(student, teacher, labels)
    assert torch.equal(half.loss, float64_head("loss=CosFace", "m=0.15")(student, teacher, labels).loss)
    assert half.stats["margin"].item() == pytest.approx(0.15)
