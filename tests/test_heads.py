"""Complete heads: golden numbers, data types, feature distillation, statistics, header files, undoing a step."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_heads import (
    CLASSES,
    SIZE,
    batch,
    cosine,
    float64_head,
    relative_error,
    settings,
    slow_alphas,
    slow_loss,
    unit,
)

from config import names
from heads import MARGINS, build_head, build_standalone_head, feature_kd
from heads.head import AdaDistillHead, MarginSoftmax
from heads.margins import CosFace

GOLDEN = np.load(Path(__file__).parent / "golden" / "heads.npz")
GOLDEN_CASES = {
    "arcface": ["loss=ArcFace", "m=0.5"],
    "cosface": ["loss=CosFace", "m=0.35"],
    "adaface": ["use_geom_margin=False"],
    "adaface_plain_alpha": ["use_geom_margin=False", "adaptive_alpha=False"],
    "adaface_geo_adaptive": [],
    "adaface_geo_adaptive_half_warm": ["geom_margin_w=0.8", "geom_margin_k=2", "geom_margin_warmup_epoch=2"],
    "adaface_geo_static": [
        "geom_margin=static", "geom_margin_w=0.5", "geom_margin_k=1", "geom_margin_warmup_epoch=0",
        "geom_margin_mask=0.8", "geom_margin_baseline=0.25",
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_two_steps_equal_the_golden_numbers(case):
    cfg = settings(*GOLDEN_CASES[case], "num_classes=50", "embedding_size=64")
    head = build_head(cfg).double()
    head.set_centers(torch.from_numpy(GOLDEN["centers"]))
    head.set_epoch(1.0)
    for step in (0, 1):
        student = torch.from_numpy(GOLDEN["student"]).clone().requires_grad_()
        out = head(student, torch.from_numpy(GOLDEN["teacher"]), torch.from_numpy(GOLDEN["labels"]))
        out.loss.backward()
        assert relative_error(out.loss, GOLDEN[f"{case}/loss{step}"]) < 1e-9
        assert relative_error(student.grad, GOLDEN[f"{case}/grad{step}"]) < 1e-9
        assert relative_error(head.centers, GOLDEN[f"{case}/centers{step}"]) < 1e-9
        if case.startswith("adaface"):
            header = head.header()
            assert relative_error(header["batch_mean"], GOLDEN[f"{case}/norm_mean{step}"]) < 1e-9
            assert relative_error(header["batch_std"], GOLDEN[f"{case}/norm_std{step}"]) < 1e-9


def test_every_golden_case_is_tested():
    assert {name.split("/")[0] for name in GOLDEN.files if "/" in name} == set(GOLDEN_CASES)


@pytest.mark.parametrize("loss", MARGINS)
def test_eval_mode_changes_neither_centers_nor_statistics(loss):
    head = float64_head(f"loss={loss}").eval()
    before = {key: value.clone() for key, value in head.state_dict().items()}
    student, teacher, labels = batch()
    first = head(student, teacher, labels).loss
    assert torch.isfinite(first) and torch.equal(first, head(student, teacher, labels).loss)
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", MARGINS)
def test_in_each_data_type_gradients_are_finite_and_losses_close_to_those_in_float64(loss, dtype):
    exact, head = float64_head(f"loss={loss}"), float64_head(f"loss={loss}").float()
    for seed in (0, 1):
        student, teacher, labels = batch(seed)
        # Embeddings in the data type in which networks return them. The reference gets the same rounded numbers.
        low, low_teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
        reference = low.detach().double().requires_grad_()
        expected = exact(reference, low_teacher.double(), labels).loss
        expected.backward()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = head(low, low_teacher, labels)
        out.loss.backward()
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        assert out.loss.dtype == torch.float32
        assert out.loss.item() == pytest.approx(expected.item(), rel=tolerance)
        assert torch.isfinite(low.grad).all()
        difference = (low.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert difference < 5 * tolerance
    torch.testing.assert_close(head.centers.double(), exact.centers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 2.5])
@pytest.mark.parametrize("loss", ["cosine", "l2"])
def test_feature_distillation_adds_its_weight_times_its_formula(loss, weight):
    student, teacher, labels = batch()
    plain = float64_head()(student, teacher, labels).loss.item()
    computed = float64_head(f"feature_kd={loss}", f"feature_kd_weight={weight}")(student, teacher, labels).loss
    terms = {
        "cosine": [1 - cosine(a, b) for a, b in zip(student.numpy(), teacher.numpy(), strict=True)],
        "l2": [sum((unit(a) - unit(b)) ** 2) for a, b in zip(student.numpy(), teacher.numpy(), strict=True)],
    }[loss]
    assert computed.item() - plain == pytest.approx(weight * sum(terms) / len(terms), rel=1e-10, abs=1e-12)


def dot_product(f_s, f_t):
    """A feature loss that a user adds."""
    return -(f_s * f_t).sum(1).mean()


def test_a_new_feature_loss_is_one_function_and_one_line_in_a_table(monkeypatch):
    monkeypatch.setitem(names.FEATURE_KD, "dot_product", f"{__name__}:dot_product")
    student, teacher, labels = batch()
    without = float64_head()(student, teacher, labels).loss
    loss = float64_head("feature_kd=dot_product", "feature_kd_weight=0.5")(student, teacher, labels).loss
    torch.testing.assert_close(loss - without, 0.5 * dot_product(student, teacher))


def test_stats_are_the_means_over_the_batch():
    head = float64_head(epoch=0.5)
    student, teacher, labels = batch()
    centers = head.centers.numpy().copy()
    alphas = slow_alphas(centers, student.numpy(), teacher.numpy(), labels)
    out = head(student.requires_grad_(), teacher, labels)
    pairs = list(zip(student.detach().numpy(), teacher.numpy(), labels, strict=True))
    conf_t = [min(max(cosine(centers[y], f_t), 1e-6), 1.0) for _, f_t, y in pairs]
    cos_st = [cosine(f_s, f_t) for f_s, f_t, _ in pairs]
    penalty = [3 * max(c - d, 0.0) * c for c, d in zip(conf_t, cos_st, strict=True)]
    norms = np.sqrt((student.detach().numpy() ** 2).sum(1))
    expected = {
        "loss": out.loss.item(),
        "alpha": np.mean(alphas),
        "conf_t": np.mean(conf_t),
        "cos_st": np.mean(cos_st),
        "geom_penalty": np.mean(penalty),
        "geom_penalty_weighted": 0.5 * np.mean(penalty),
        "norm_mean": norms.mean(),
        "norm_std": norms.std(),
    }
    assert set(out.stats) == {*expected, "margin"}
    assert all(value.dim() == 0 and not value.requires_grad for value in out.stats.values())
    assert {name: out.stats[name].item() for name in expected} == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("loss", MARGINS)
def test_every_loss_has_the_same_stats(loss):
    assert set(float64_head(f"loss={loss}")(*batch()).stats) == set(float64_head()(*batch()).stats)


@pytest.mark.parametrize("loss", MARGINS)
def test_a_header_has_the_public_layout_and_can_be_loaded_again(loss, tmp_path):
    head = float64_head(f"loss={loss}").float()
    student, teacher, labels = batch()
    head(student, teacher, labels)
    torch.save(head.header(), tmp_path / "header.pth")
    header = torch.load(tmp_path / "header.pth", weights_only=True)
    assert set(header) == ({"kernel", "batch_mean", "batch_std"} if loss == "AdaFace" else {"kernel"})
    assert header["kernel"].shape == (SIZE, CLASSES) and torch.equal(header["kernel"], head.centers.t())
    other = build_head(settings(f"loss={loss}"))
    other.set_epoch(1.0)
    other.load_header(header)
    assert torch.equal(other.centers, head.centers)
    assert torch.equal(other(student, teacher, labels).loss, head(student, teacher, labels).loss)


@pytest.mark.parametrize("loss", MARGINS)
def test_the_standalone_head_trains_its_centers(loss):
    head = build_standalone_head(settings(f"loss={loss}"))
    student, _, labels = batch()
    student = student.float().requires_grad_()
    before, first = head.centers.detach().clone(), head(student, labels).loss
    optimizer = torch.optim.SGD(head.parameters(), 0.001)
    for _ in range(20):
        optimizer.zero_grad()
        head(student, labels).loss.backward()
        optimizer.step()
    assert [name for name, _ in head.named_parameters()] == ["centers"]
    assert not torch.equal(head.centers, before) and student.grad.abs().sum() > 0
    assert head(student, labels).loss < first
    assert head.header()["kernel"].shape == (SIZE, CLASSES) and not head.header()["kernel"].requires_grad


def test_the_standalone_loss_is_the_cross_entropy_over_its_centers():
    head = build_standalone_head(settings("loss=ArcFace")).double()
    student, _, labels = batch()
    expected = slow_loss(
        student.numpy(), head.centers.detach().numpy(), labels, lambda x: math.cos(math.acos(x) + 0.45)
    )
    out = head(student, labels)
    assert out.loss.item() == pytest.approx(expected, rel=1e-10)
    assert {"loss", "norm_mean", "norm_std"} <= set(out.stats)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_batch_with_a_non_finite_sample_changes_neither_centers_nor_statistics(broken):
    student, teacher = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1).chunk(2)
    student = student.clone()
    student[1, 0] = broken
    head = build_head(settings("embedding_size=8", "num_classes=6"))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head(student, teacher, torch.tensor([0, 1, 2, 3]))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    head(torch.nan_to_num(student, 0.0, 1.0), teacher, torch.tensor([0, 1, 2, 3]))
    assert not any(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def changed_state(undo: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The centers and statistics of a head before and after a step of two forward passes that is undone or not."""
    head = float64_head()
    before = copy.deepcopy(head.state_dict())
    head.begin_step()
    for seed in (0, 1):
        head(*batch(seed))
    head.end_step(torch.tensor(undo))
    return before, head.state_dict()


def test_a_step_that_is_undone_leaves_the_centers_bit_equal():
    before, after = changed_state(undo=True)
    assert torch.equal(after["centers"], before["centers"])


def test_a_step_that_is_not_undone_keeps_its_centers():
    before, after = changed_state(undo=False)
    expected = float64_head()
    for seed in (0, 1):
        expected(*batch(seed))
    assert not torch.equal(after["centers"], before["centers"])
    assert torch.equal(after["centers"], expected.centers)


def test_the_standalone_head_has_nothing_to_undo():
    head = build_standalone_head(settings())
    before = copy.deepcopy(head.state_dict())
    head.begin_step()
    head(batch()[0], batch()[2])
    head.end_step(torch.tensor(True))
    assert torch.equal(head.centers, before["centers"])


def test_a_head_can_be_built_from_values_without_a_config():
    centers = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = AdaDistillHead(
        MarginSoftmax(CosFace(m=0.35), s=64.0),
        centers.clone(),
        moving=True,
        adaptive_alpha=True,
        geometry=None,
        feature_kd=feature_kd.cosine,
        feature_kd_weight=2.5,
    )
    expected = float64_head("loss=CosFace", "feature_kd=cosine", "feature_kd_weight=2.5")
    expected.set_centers(centers)
    assert torch.equal(head(*batch()).loss, expected(*batch()).loss)
    assert torch.equal(head.centers, expected.centers)


def test_teacher_embeddings_may_be_float16_as_in_a_file():
    student, teacher, labels = batch()
    first, second = float64_head(), float64_head()
    assert torch.equal(
        first(student, teacher.half(), labels).loss, second(student, teacher.half().double(), labels).loss
    )
    assert torch.equal(first.centers, second.centers)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_teacher_embedding_that_is_not_finite_moves_no_center(broken):
    head = float64_head()
    before = head.centers.clone()
    student, teacher, labels = batch()
    teacher[4, 2] = broken
    head(student, teacher, labels)
    assert torch.equal(head.centers, before)


def test_fixed_centers_have_nothing_to_undo(tmp_path):
    path = tmp_path / "header.pth"
    torch.save({"kernel": torch.randn(SIZE, CLASSES, generator=torch.Generator().manual_seed(0))}, path)
    head = build_head(settings("centers=fixed", f"pretrained_teacher_header_path={path}")).double()
    before = head.centers.clone()
    head.begin_step()
    head(*batch())
    head.end_step(torch.tensor(True))
    assert torch.equal(head.centers, before)
