"""The heads: against the golden numbers, against float64 written sample by sample, and where numbers get extreme."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict

from config import ConfigError, load_config
from heads import MARGINS, build_head, build_standalone_head
from utils.weights import WeightsError

GOLDEN = np.load(Path(__file__).parent / "golden" / "heads.npz")
CASES = {
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
CLASSES, SIZE = 20, 16
LABELS = torch.tensor([3, 7, 3, 11, 3, 7, 0, 19, 11, 5, 12, 3])


def settings(*overrides: str) -> EasyDict:
    return load_config(
        overrides=["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}", *map(str, overrides)]
    )


def batch(seed: int = 0, count: int = len(LABELS)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher embeddings in float64 that resemble each other, and labels with repeats."""
    rng = np.random.default_rng(seed)
    identity = rng.standard_normal((CLASSES, SIZE))[LABELS[:count].numpy()]
    teacher = 5 * (identity + 0.7 * rng.standard_normal((count, SIZE)))
    student = 4 * (identity + 1.2 * rng.standard_normal((count, SIZE)))
    return torch.from_numpy(student), torch.from_numpy(teacher), LABELS[:count]


def head_in_float64(*overrides: str, epoch: float = 1.0) -> torch.nn.Module:
    """A head whose centers lie near their identities, as after some training."""
    head = build_head(settings(*overrides)).double()
    rng = np.random.default_rng(0)
    identity = rng.standard_normal((CLASSES, SIZE))
    head.set_centers(torch.from_numpy(identity + 0.5 * np.random.default_rng(1).standard_normal((CLASSES, SIZE))))
    head.set_epoch(epoch)
    return head


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(math.sqrt(sum(x * x for x in vector)), 1e-12)


def angle_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(unit(a), unit(b), strict=True)))


def slow_alphas(centers, student, teacher, labels, adaptive=True) -> list[float]:
    alphas = []
    for f_s, f_t, y in zip(student, teacher, labels, strict=True):
        conf_t = min(max(angle_cosine(centers[y], f_t), 1e-6), 1.0)
        cos_st = angle_cosine(f_s, f_t)
        alphas.append(min(max(cos_st * conf_t if adaptive else cos_st, 1e-6), 1.0))
    return alphas


def slow_centers(centers, student, teacher, labels, adaptive=True) -> np.ndarray:
    """Class by class: w_c <- mean(alpha) w_c + mean((1 - alpha) hat f_t), of the centers as they were before."""
    alphas = slow_alphas(centers, student, teacher, labels, adaptive)
    moved = centers.copy()
    for c in range(len(centers)):
        own = [i for i, y in enumerate(labels) if y == c]
        if own:
            stays = sum(alphas[i] for i in own) / len(own)
            moved[c] = stays * centers[c] + sum((1 - alphas[i]) * unit(teacher[i]) for i in own) / len(own)
    return moved


def slow_loss(student, centers, labels, target_of, s=64.0) -> float:
    """The mean cross-entropy, sample by sample, with the target's cosine changed by `target_of`."""
    losses = []
    for f_s, y in zip(student, labels, strict=True):
        cosines = [angle_cosine(f_s, w) for w in centers]
        cosines[y] = target_of(cosines[y])
        highest = max(cosines)
        losses.append(s * (highest - cosines[y]) + math.log(sum(math.exp(s * (x - highest)) for x in cosines)))
    return sum(losses) / len(losses)


def relative(found: torch.Tensor, wanted: np.ndarray) -> float:
    return abs(found.detach().numpy() - wanted).max() / abs(wanted).max()


# --- golden numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_two_steps_equal_the_golden_numbers(case):
    cfg = settings(*CASES[case], "num_classes=50", "embedding_size=64")
    head = build_head(cfg).double()
    head.set_centers(torch.from_numpy(GOLDEN["centers"]))
    head.set_epoch(1.0)
    for step in (0, 1):
        student = torch.from_numpy(GOLDEN["student"]).clone().requires_grad_()
        out = head(student, torch.from_numpy(GOLDEN["teacher"]), torch.from_numpy(GOLDEN["labels"]))
        out.loss.backward()
        assert relative(out.loss, GOLDEN[f"{case}/loss{step}"]) < 1e-9
        assert relative(student.grad, GOLDEN[f"{case}/grad{step}"]) < 1e-9
        assert relative(head.centers, GOLDEN[f"{case}/centers{step}"]) < 1e-9
        if case.startswith("adaface"):
            header = head.header()
            assert relative(header["batch_mean"], GOLDEN[f"{case}/norm_mean{step}"]) < 1e-9
            assert relative(header["batch_std"], GOLDEN[f"{case}/norm_std{step}"]) < 1e-9


def test_every_golden_case_is_held_against():
    assert {name.split("/")[0] for name in GOLDEN.files if "/" in name} == set(CASES)


# --- centers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [True, False])
def test_centers_follow_the_means_over_the_samples_of_their_class(adaptive):
    head = head_in_float64(f"adaptive_alpha={adaptive}")
    for seed in (0, 1):
        student, teacher, labels = batch(seed)
        wanted = slow_centers(head.centers.numpy(), student.numpy(), teacher.numpy(), labels.numpy(), adaptive)
        head(student, teacher, labels)
        assert relative(head.centers, wanted) < 1e-12


def test_centers_of_absent_classes_stay_as_they_are():
    head = head_in_float64()
    before = head.centers.clone()
    head(*batch())
    absent = [c for c in range(CLASSES) if c not in LABELS]
    assert torch.equal(head.centers[absent], before[absent])
    assert not torch.equal(head.centers[LABELS], before[LABELS])


def test_centers_do_not_depend_on_the_order_of_the_samples():
    first, second = head_in_float64(), head_in_float64()
    order = torch.from_numpy(np.random.default_rng(3).permutation(len(LABELS)))
    student, teacher, labels = batch()
    loss = first(student, teacher, labels).loss
    other = second(student[order], teacher[order], labels[order]).loss
    torch.testing.assert_close(first.centers, second.centers, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)


def test_a_sample_given_twice_moves_its_center_as_if_given_once():
    once, twice = head_in_float64(), head_in_float64()
    student, teacher, _ = batch(count=1)
    once(student, teacher, LABELS[:1])
    twice(student.repeat(3, 1), teacher.repeat(3, 1), LABELS[:1].repeat(3))
    torch.testing.assert_close(once.centers, twice.centers, rtol=1e-13, atol=1e-13)


def test_centers_keep_their_own_length():
    head = head_in_float64()
    head.set_centers(head.centers * 7)
    student, teacher, labels = batch()
    wanted = slow_centers(head.centers.numpy(), student.numpy(), teacher.numpy(), labels.numpy())
    head(student, teacher, labels)
    assert relative(head.centers, wanted) < 1e-12
    assert head.centers.norm(dim=1).max() > 3


def test_a_center_opposite_to_its_teacher_is_replaced_by_the_teacher():
    head = head_in_float64()
    student, teacher, _ = batch(count=1)
    head.set_centers(-teacher.repeat(CLASSES, 1))
    head(student, teacher, LABELS[:1])
    wanted = teacher[0] / teacher[0].norm()
    torch.testing.assert_close(head.centers[LABELS[0]], wanted, rtol=0, atol=1e-4)


def test_centers_are_a_buffer_without_gradient():
    head = build_head(settings())
    assert "centers" in dict(head.named_buffers()) and not list(head.parameters())
    assert head.centers.dtype == torch.float32 and head.centers.shape == (CLASSES, SIZE)
    student, teacher, labels = batch()
    student, teacher = student.float().requires_grad_(), teacher.float().requires_grad_()
    head(student, teacher, labels).loss.backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert not head.centers.requires_grad and head.centers.grad is None and head.centers.grad_fn is None


def test_initial_centers_are_normal_with_deviation_a_hundredth_and_follow_the_seed():
    overrides = ["num_classes=400", "embedding_size=256"]
    centers = build_head(settings(*overrides)).centers
    assert centers.std().item() == pytest.approx(0.01, rel=0.02) and abs(centers.mean().item()) < 1e-4
    assert torch.equal(centers, build_head(settings(*overrides)).centers)
    assert not torch.equal(centers, build_head(settings(*overrides, "seed=1")).centers)


def test_centers_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="20, 16"):
        build_head(settings()).set_centers(torch.zeros(CLASSES, SIZE + 1))


@pytest.mark.parametrize("loss", MARGINS)
def test_eval_mode_moves_neither_centers_nor_statistics(loss):
    head = head_in_float64(f"loss={loss}").eval()
    before = {key: value.clone() for key, value in head.state_dict().items()}
    student, teacher, labels = batch()
    first = head(student, teacher, labels).loss
    assert torch.isfinite(first) and torch.equal(first, head(student, teacher, labels).loss)
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


# --- margins ---------------------------------------------------------------------------------------------------

TARGETS = {
    "MLLoss": lambda cosine: cosine,
    "CosFace": lambda cosine: cosine - 0.35,
    "ArcFace": lambda cosine: math.cos(math.acos(cosine) + 0.45),
}


@pytest.mark.parametrize("loss", TARGETS)
def test_the_loss_is_the_cross_entropy_with_the_published_margin_on_the_target(loss):
    head = head_in_float64(f"loss={loss}")
    for seed in (0, 1):
        student, teacher, labels = batch(seed)
        found = head(student, teacher, labels).loss.item()
        centers = head.centers.numpy()  # the moved ones
        assert found == pytest.approx(slow_loss(student.numpy(), centers, labels, TARGETS[loss]), rel=1e-10)


@pytest.mark.parametrize(("loss", "m"), [("CosFace", 0.1), ("ArcFace", 0.2), ("ArcFace", 0.0)])
def test_a_margin_of_ones_own_and_the_scale_are_used(loss, m):
    head = head_in_float64(f"loss={loss}", f"m={m}", "s=10")
    student, teacher, labels = batch()
    found = head(student, teacher, labels).loss.item()
    target = {"CosFace": lambda x: x - m, "ArcFace": lambda x: math.cos(math.acos(x) + m)}[loss]
    assert found == pytest.approx(slow_loss(student.numpy(), head.centers.numpy(), labels, target, 10.0), rel=1e-10)


def slow_adaface(student, teacher, labels, before, after, cfg, epoch, mean, std) -> float:
    """AdaFace with its geometry term; `before` and `after`: the centers around the step; statistics already moved."""
    clamped = [min(max(math.sqrt(sum(x * x for x in f)), 1e-3), 100.0) for f in student]
    warmup = cfg.geom_margin_warmup_epoch
    ramp = 1.0 if warmup == 0 else min(1.0, epoch / warmup)
    losses, bound = [], 1 - 1e-3
    for f_s, f_t, y, n in zip(student, teacher, labels, clamped, strict=True):
        conf_t, cos_st = min(max(angle_cosine(before[y], f_t), 1e-6), 1.0), angle_cosine(f_s, f_t)
        if cfg.geom_margin == "adaptive":
            penalty = cfg.geom_margin_k * max(conf_t - cos_st, 0.0) * conf_t
        else:
            share = min(max(cfg.geom_margin_k * (1 - cos_st), 0.0), 1.0) if cos_st < cfg.geom_margin_mask else 0.0
            penalty = max(share - cfg.geom_margin_baseline, 0.0)
        z = cfg.h * (n - mean) / (std + 1e-3) + cfg.geom_margin_w * ramp * penalty
        z = min(max(z, -1.0), 1.0)
        cosines = [min(max(angle_cosine(f_s, w), -bound), bound) for w in after]
        theta = min(max(math.acos(cosines[y]) - 0.4 * z, 1e-3), math.pi - 1e-3)
        cosines[y] = math.cos(theta) - (0.4 + 0.4 * z)
        highest = max(cosines)
        losses.append(64 * (highest - cosines[y]) + math.log(sum(math.exp(64 * (x - highest)) for x in cosines)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("epoch", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("version", ["adaptive", "static"])
def test_adaface_and_its_geometry_term_recomputed_sample_by_sample(version, epoch):
    overrides = [f"geom_margin={version}", "geom_margin_w=0.7", "geom_margin_k=2", "t_alpha=0.3"]
    head = head_in_float64(*overrides, epoch=epoch)
    student, teacher, labels = batch()
    before = head.centers.numpy().copy()
    found = head(student, teacher, labels).loss.item()
    norms = np.clip(np.sqrt((student.numpy() ** 2).sum(1)), 1e-3, 100)
    mean = 0.3 * norms.mean() + 0.7 * 20
    std = 0.3 * math.sqrt(((norms - norms.mean()) ** 2).sum() / (len(norms) - 1)) + 0.7 * 100
    cfg = settings(*overrides)
    wanted = slow_adaface(student.numpy(), teacher.numpy(), labels, before, head.centers.numpy(), cfg, epoch, mean, std)
    assert found == pytest.approx(wanted, rel=1e-10)
    assert head.header()["batch_mean"].item() == pytest.approx(mean, rel=1e-12)
    assert head.header()["batch_std"].item() == pytest.approx(std, rel=1e-12)


def test_the_geometry_term_starts_at_nothing_and_makes_the_loss_larger():
    student, teacher, labels = batch()

    def loss(*overrides, epoch=1.0):
        return head_in_float64(*overrides, epoch=epoch)(student, teacher, labels).loss.item()

    without = loss("use_geom_margin=False")
    assert loss(epoch=0.0) == without and loss("geom_margin_w=0") == without
    assert without < loss(epoch=0.5) < loss(epoch=1.0) == loss(epoch=2.0)
    assert loss("geom_margin_warmup_epoch=0", epoch=0.0) == loss(epoch=1.0)


@pytest.mark.parametrize("loss", ["ArcFace", "CosFace", "MLLoss"])
def test_geometry_is_ignored_under_other_losses(loss):
    with_it, without = (head_in_float64(f"loss={loss}", f"use_geom_margin={on}") for on in (True, False))
    out = with_it(*batch())
    assert torch.equal(out.loss, without(*batch()).loss)
    assert out.stats["geom_penalty"] == 0 and out.stats["geom_penalty_weighted"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("loss", MARGINS)
def test_gradients_are_finite_where_a_cosine_is_one_or_minus_one(loss, sign, dtype):
    head = head_in_float64(f"loss={loss}").to(dtype).eval()  # eval: the centers stay where they are
    # Along the axes, so that no rounding keeps the cosines short of one.
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
    """A network that has collapsed: all embeddings one, the teacher's one, all of a class or of several."""
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


def test_a_batch_of_one_moves_the_mean_of_the_norms_and_leaves_the_deviation():
    head = head_in_float64()
    student, teacher, labels = batch(count=1)
    student.requires_grad_()
    head(student, teacher, labels).loss.backward()
    assert torch.isfinite(student.grad).all()
    assert head.header()["batch_std"].item() == 100
    wanted = 0.01 * student.detach().norm().item() + 0.99 * 20
    assert head.header()["batch_mean"].item() == pytest.approx(wanted, rel=1e-12)


# --- compute types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", MARGINS)
def test_each_compute_type_gives_finite_gradients_and_the_loss_of_float64(loss, dtype):
    exact, head = head_in_float64(f"loss={loss}"), head_in_float64(f"loss={loss}").float()
    for seed in (0, 1):
        student, teacher, labels = batch(seed)
        # As the networks hand them over; the reference sees the same rounded numbers.
        low, low_teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
        reference = low.detach().double().requires_grad_()
        wanted = exact(reference, low_teacher.double(), labels).loss
        wanted.backward()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = head(low, low_teacher, labels)
        out.loss.backward()
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        assert out.loss.dtype == torch.float32
        assert out.loss.item() == pytest.approx(wanted.item(), rel=tolerance)
        assert torch.isfinite(low.grad).all()
        difference = (low.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert difference < 5 * tolerance
    torch.testing.assert_close(head.centers.double(), exact.centers, rtol=1e-4, atol=1e-5)


# --- feature distillation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 2.5])
@pytest.mark.parametrize("feature_kd", ["cosine", "l2"])
def test_feature_distillation_adds_its_weighted_formula(feature_kd, weight):
    student, teacher, labels = batch()
    plain = head_in_float64()(student, teacher, labels).loss.item()
    found = head_in_float64(f"feature_kd={feature_kd}", f"feature_kd_weight={weight}")(student, teacher, labels).loss
    terms = {
        "cosine": [1 - angle_cosine(a, b) for a, b in zip(student.numpy(), teacher.numpy(), strict=True)],
        "l2": [sum((unit(a) - unit(b)) ** 2) for a, b in zip(student.numpy(), teacher.numpy(), strict=True)],
    }[feature_kd]
    assert found.item() - plain == pytest.approx(weight * sum(terms) / len(terms), rel=1e-10, abs=1e-12)


# --- files and statistics --------------------------------------------------------------------------------------


def test_fixed_centers_come_from_a_header_file_and_never_move(tmp_path):
    kernel = torch.randn(SIZE, CLASSES, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "header.pth"
    torch.save({"kernel": kernel, "batch_mean": torch.zeros(1), "batch_std": torch.ones(1)}, path)
    head = build_head(settings("centers=fixed", f"pretrained_teacher_header_path={path}"))
    assert torch.equal(head.centers, kernel.t()) and "centers" in dict(head.named_buffers())
    for seed in range(3):
        student, teacher, labels = batch(seed)
        student.requires_grad_()
        head(student, teacher, labels).loss.backward()
        assert student.grad.abs().sum() > 0
    assert torch.equal(head.centers, kernel.t())


@pytest.mark.parametrize(
    "header",
    [
        {"kernel": torch.zeros(CLASSES, SIZE)},  # not transposed
        {"kernel": torch.zeros(SIZE, CLASSES + 1)},
        {"kernel": torch.zeros(SIZE + 1, CLASSES)},
        {"weight": torch.zeros(SIZE, CLASSES)},
    ],
    ids=["transposed", "classes", "dimensions", "name"],
)
def test_a_header_that_does_not_fit_is_refused_by_name(header, tmp_path):
    path = tmp_path / "header.pth"
    torch.save(header, path)
    with pytest.raises(WeightsError, match=r"header\.pth.*16, 20"):
        build_head(settings("centers=fixed", f"pretrained_teacher_header_path={path}"))


def test_fixed_centers_without_a_header_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="pretrained_teacher_header_path"):
        settings("centers=fixed")
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        build_head(settings("centers=fixed", f"pretrained_teacher_header_path={tmp_path / 'absent.pth'}"))


def test_stats_are_the_means_over_the_batch():
    head = head_in_float64(epoch=0.5)
    student, teacher, labels = batch()
    centers = head.centers.numpy().copy()
    alphas = slow_alphas(centers, student.numpy(), teacher.numpy(), labels)
    out = head(student.requires_grad_(), teacher, labels)
    pairs = list(zip(student.detach().numpy(), teacher.numpy(), labels, strict=True))
    conf_t = [min(max(angle_cosine(centers[y], f_t), 1e-6), 1.0) for _, f_t, y in pairs]
    cos_st = [angle_cosine(f_s, f_t) for f_s, f_t, _ in pairs]
    penalty = [3 * max(c - d, 0.0) * c for c, d in zip(conf_t, cos_st, strict=True)]
    norms = np.sqrt((student.detach().numpy() ** 2).sum(1))
    wanted = {
        "loss": out.loss.item(),
        "alpha": np.mean(alphas),
        "conf_t": np.mean(conf_t),
        "cos_st": np.mean(cos_st),
        "geom_penalty": np.mean(penalty),
        "geom_penalty_weighted": 0.5 * np.mean(penalty),
        "norm_mean": norms.mean(),
        "norm_std": norms.std(),
    }
    assert set(out.stats) == {*wanted, "margin"}
    assert all(value.dim() == 0 and not value.requires_grad for value in out.stats.values())
    assert {name: out.stats[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("loss", MARGINS)
def test_every_loss_has_the_same_stats(loss):
    assert set(head_in_float64(f"loss={loss}")(*batch()).stats) == set(head_in_float64()(*batch()).stats)


@pytest.mark.parametrize("loss", MARGINS)
def test_a_header_has_the_public_layout_and_comes_back(loss, tmp_path):
    head = head_in_float64(f"loss={loss}").float()
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


# --- without a teacher -----------------------------------------------------------------------------------------


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
    wanted = slow_loss(student.numpy(), head.centers.detach().numpy(), labels, TARGETS["ArcFace"])
    out = head(student, labels)
    assert out.loss.item() == pytest.approx(wanted, rel=1e-10)
    assert {"loss", "norm_mean", "norm_std"} <= set(out.stats)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_batch_with_a_sample_that_is_not_finite_leaves_centers_and_statistics_alone(broken):
    cfg = load_config(overrides=["embedding_size=8", "dataset=custom", "num_classes=6"])
    student, teacher = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1).chunk(2)
    student = student.clone()
    student[1, 0] = broken
    head = build_head(cfg)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head(student, teacher, torch.tensor([0, 1, 2, 3]))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    head(torch.nan_to_num(student, 0.0, 1.0), teacher, torch.tensor([0, 1, 2, 3]))
    assert not any(torch.equal(value, before[name]) for name, value in head.state_dict().items())
