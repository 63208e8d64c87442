"""The geometry-aware term of AdaFace's margin."""

import math

import numpy as np
import pytest
import torch
from slow_heads import batch, cosine, float64_head, settings

from config import names
from heads.centers import confidence, similarity
from heads.geometry import GeometryTerm, adaptive_penalty, confidence_penalty, progress_penalty, ramp, static_penalty


def slow_adaface(student, teacher, labels, before, after, cfg, epoch, mean, std) -> float:
    """The loss with AdaFace and its geometry-aware term.

    before, after: the centers before and after the step; mean, std: the norm statistics after their update.
    """
    clamped = [min(max(math.sqrt(sum(x * x for x in f)), 1e-3), 100.0) for f in student]
    warmup = cfg.geom_margin_warmup_epoch
    ramp = 1.0 if warmup == 0 else min(1.0, epoch / warmup)
    losses, bound = [], 1 - 1e-3
    confidences = [min(max(cosine(before[y], f_t), 1e-6), 1.0) for f_t, y in zip(teacher, labels, strict=True)]
    mean_cos_st = sum(cosine(f_s, f_t) for f_s, f_t in zip(student, teacher, strict=True)) / len(labels)
    for f_s, f_t, y, n in zip(student, teacher, labels, clamped, strict=True):
        conf_t, cos_st = min(max(cosine(before[y], f_t), 1e-6), 1.0), cosine(f_s, f_t)
        if cfg.geom_margin in ("adaptive", "progress"):
            penalty = cfg.geom_margin_k * max(conf_t - cos_st, 0.0) * conf_t
            penalty *= min(max(mean_cos_st, 0.0), 1.0) if cfg.geom_margin == "progress" else 1.0
        elif cfg.geom_margin == "confidence":
            penalty = cfg.geom_margin_k * (conf_t - sum(confidences) / len(confidences))
        else:
            share = min(max(cfg.geom_margin_k * (1 - cos_st), 0.0), 1.0) if cos_st < cfg.geom_margin_mask else 0.0
            penalty = max(share - cfg.geom_margin_baseline, 0.0)
        z = cfg.h * (n - mean) / (std + 1e-3) + cfg.geom_margin_w * ramp * penalty
        z = min(max(z, -1.0), 1.0)
        cosines = [min(max(cosine(f_s, w), -bound), bound) for w in after]
        theta = min(max(math.acos(cosines[y]) - 0.4 * z, 1e-3), math.pi - 1e-3)
        cosines[y] = math.cos(theta) - (0.4 + 0.4 * z)
        largest = max(cosines)
        losses.append(64 * (largest - cosines[y]) + math.log(sum(math.exp(64 * (x - largest)) for x in cosines)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("epoch", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("version", names.GEOMETRY)
def test_adaface_with_its_geometry_term_equals_the_formulas_for_each_sample(version, epoch):
    overrides = [f"geom_margin={version}", "geom_margin_w=0.7", "geom_margin_k=2", "t_alpha=0.3"]
    head = float64_head(*overrides, epoch=epoch)
    student, teacher, labels = batch()
    before = head.centers.numpy().copy()
    computed = head(student, teacher, labels).loss.item()
    norms = np.clip(np.sqrt((student.numpy() ** 2).sum(1)), 1e-3, 100)
    mean = 0.3 * norms.mean() + 0.7 * 20
    std = 0.3 * math.sqrt(((norms - norms.mean()) ** 2).sum() / (len(norms) - 1)) + 0.7 * 100
    cfg = settings(*overrides)
    expected = slow_adaface(
        student.numpy(), teacher.numpy(), labels, before, head.centers.numpy(), cfg, epoch, mean, std
    )
    assert computed == pytest.approx(expected, rel=1e-10)
    assert head.header()["batch_mean"].item() == pytest.approx(mean, rel=1e-12)
    assert head.header()["batch_std"].item() == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("geometry", [True, False])
def test_with_norms_of_the_teacher_they_decide_the_margin_and_the_statistics(geometry):
    """Against the formulas, with student embeddings that are scaled to these norms: no cosine changes by that."""
    overrides = ["norm_source=teacher", "norm_statistics_start=first_batch", f"use_geom_margin={geometry}"]
    head = float64_head(*overrides)
    student, teacher, labels = batch()
    teacher *= torch.linspace(0.2, 2, len(teacher))[:, None]
    before = head.centers.numpy().copy()
    out = head(student, teacher, labels)
    norms = np.sqrt((teacher.numpy() ** 2).sum(1))
    mean, std = norms.mean(), norms.std(ddof=1)
    scaled = student.numpy() / np.sqrt((student.numpy() ** 2).sum(1))[:, None] * norms[:, None]
    cfg = settings(*overrides, *([] if geometry else ["geom_margin_w=0"]))
    expected = slow_adaface(scaled, teacher.numpy(), labels, before, head.centers.numpy(), cfg, 1.0, mean, std)
    assert out.loss.item() == pytest.approx(expected, rel=1e-10)
    assert head.header()["batch_mean"].item() == pytest.approx(mean, rel=1e-12)
    assert head.header()["batch_std"].item() == pytest.approx(std, rel=1e-12)
    assert out.stats["norm_mean"].item() == pytest.approx(student.norm(dim=1).mean().item(), rel=1e-12)


def test_the_geometry_term_starts_at_zero_and_makes_the_loss_larger():
    student, teacher, labels = batch()

    def loss(*overrides, epoch=1.0):
        return float64_head(*overrides, epoch=epoch)(student, teacher, labels).loss.item()

    without = loss("use_geom_margin=False")
    assert loss(epoch=0.0) == without and loss("geom_margin_w=0") == without
    assert without < loss(epoch=0.5) < loss(epoch=1.0) == loss(epoch=2.0)
    assert loss("geom_margin_warmup_epoch=0", epoch=0.0) == loss(epoch=1.0)


@pytest.mark.parametrize("loss", ["ArcFace", "CosFace", "MLLoss"])
def test_the_geometry_term_is_ignored_with_other_losses(loss):
    with_term, without = (float64_head(f"loss={loss}", f"use_geom_margin={on}") for on in (True, False))
    out = with_term(*batch())
    assert torch.equal(out.loss, without(*batch()).loss)
    assert out.stats["geom_penalty"] == 0 and out.stats["geom_penalty_weighted"] == 0


def test_the_adaptive_penalty_is_zero_unless_the_teacher_is_more_confident():
    conf_t, cos_st = torch.tensor([0.9, 0.5, 0.9]), torch.tensor([0.4, 0.5, 1.0])
    torch.testing.assert_close(adaptive_penalty(conf_t, cos_st, k=3), torch.tensor([3 * 0.5 * 0.9, 0.0, 0.0]))


def test_the_progress_penalty_grows_with_the_mean_similarity_of_the_batch():
    conf_t, cos_st = torch.tensor([0.9, 0.5]), torch.tensor([0.4, 0.2])
    torch.testing.assert_close(
        progress_penalty(conf_t, cos_st, k=3), torch.tensor([3 * 0.5 * 0.9 * 0.3, 3 * 0.3 * 0.5 * 0.3])
    )
    assert not progress_penalty(conf_t, -cos_st, k=3).any()


def test_the_confidence_penalty_leaves_the_mean_margin_where_it_is():
    penalty = confidence_penalty(torch.tensor([0.9, 0.5, 0.1]), torch.zeros(3), k=2)
    torch.testing.assert_close(penalty, torch.tensor([0.8, 0.0, -0.8]))
    small = ["geom_margin=confidence", "geom_margin_k=0.1", "norm_statistics_start=first_batch"]  # z is not clamped
    with_term, without = (float64_head(*small, f"use_geom_margin={on}")(*batch()) for on in (True, False))
    assert with_term.stats["margin"].item() == pytest.approx(without.stats["margin"].item(), rel=1e-12)
    assert with_term.loss != without.loss


def test_the_static_penalty_has_a_mask_and_a_baseline():
    cos_st = torch.tensor([0.79, 0.81, 0.3, -0.9])
    penalty = static_penalty(torch.ones(4), cos_st, k=1, mask=0.8, baseline=0.15)
    torch.testing.assert_close(penalty, torch.tensor([0.06, 0.0, 0.55, 0.85]))


def test_the_ramp_grows_linearly_to_one():
    assert [ramp(epoch, 2) for epoch in (0, 0.5, 2, 9)] == [0, 0.25, 1, 1]
    assert ramp(0, 0) == ramp(0, -1) == 1


def test_the_term_is_the_weighted_and_ramped_penalty():
    conf_t, cos_st = torch.tensor([0.9, 0.8]), torch.tensor([0.4, 0.9])
    term = GeometryTerm(lambda conf_t, cos_st: conf_t - cos_st, w=0.5, warmup_epoch=4)
    penalty, geo = term(conf_t, cos_st, epoch=1.0)
    torch.testing.assert_close(penalty, torch.tensor([0.5, -0.1]))
    torch.testing.assert_close(geo, 0.5 * 0.25 * penalty)


def constant_penalty(cfg):
    """A geometry term that a user adds: the config's k for every sample."""
    return lambda conf_t, cos_st: torch.full_like(cos_st, cfg.geom_margin_k)


def test_a_new_term_is_one_function_of_the_config_and_one_line_in_a_table(monkeypatch):
    monkeypatch.setitem(names.GEOMETRY, "constant", f"{__name__}:constant_penalty")
    out = float64_head("geom_margin=constant", "geom_margin_k=0.7", "geom_margin_w=0.1")(*batch())
    assert out.stats["geom_penalty"].item() == pytest.approx(0.7)
    assert out.stats["geom_penalty_weighted"].item() == pytest.approx(0.07)


def test_no_gradient_flows_through_the_term():
    """With fixed centers and norm statistics, the gradient equals that for a constant geometry-aware term."""
    student, teacher, labels = batch()
    head = float64_head().eval()
    first, second = (student.clone().requires_grad_() for _ in range(2))
    head(first, teacher, labels).loss.backward()
    geo = head.geometry(*confidence_and_similarity(head, student, teacher, labels), head.epoch)[1]
    unit_centers, norm = head.unit_centers.get(head.centers), second.detach().norm(dim=1)
    head.softmax.by_blocks(second, norm, norm, head.centers, unit_centers, labels, geo)[0].backward()
    assert torch.equal(first.grad, second.grad)


def confidence_and_similarity(head, student, teacher, labels) -> tuple[torch.Tensor, torch.Tensor]:
    return confidence(head.centers[labels], teacher), similarity(student, teacher)
