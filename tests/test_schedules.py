"""Learning rates: the published values, each computed by hand."""

import itertools

import pytest
from easydict import EasyDict

from config import load_config
from train.schedules import LR_SCHEDULES, build_learning_rate


def settings(*overrides: str) -> EasyDict:
    return load_config(overrides=overrides)


def learning_rate(epoch: float, total_batch: int, cfg: EasyDict) -> float:
    return build_learning_rate(cfg, total_batch)(epoch)


def test_the_learning_rate_is_0_1_for_512_images_and_proportional_to_the_batch():
    cfg = settings("warmup_epoch=0")
    assert learning_rate(0.0, 512, cfg) == pytest.approx(0.1, rel=1e-12)
    assert learning_rate(0.0, 384, cfg) == pytest.approx(0.075, rel=1e-12)
    assert learning_rate(0.0, 4 * 384, cfg) == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize(
    ("warmup_epoch", "epoch", "factor"),
    [
        (1, 0.0, 1 / 4),  # (1 / 2)^2
        (1, 0.5, 9 / 16),  # (1.5 / 2)^2
        (1, 0.75, 49 / 64),  # (1.75 / 2)^2
        (1, 1.0, 1.0),  # not below W any more
        (3, 0.0, 1 / 16),
        (3, 2.0, 9 / 16),
        (0.5, 0.25, 25 / 36),  # (1.25 / 1.5)^2
        (0.5, 0.5, 1.0),
    ],
)
@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_warm_up_grows_as_the_square_of_the_fractional_epoch(schedule, warmup_epoch, epoch, factor):
    cfg = settings(f"warmup_epoch={warmup_epoch}", f"lr_schedule={schedule}")
    assert learning_rate(epoch, 512, cfg) == pytest.approx(0.1 * factor, rel=1e-12)


@pytest.mark.parametrize("warmup_epoch", [0, 0.0, -1, -3.5])
@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_there_is_no_warm_up_if_its_length_is_not_positive(schedule, warmup_epoch):
    cfg = settings(f"warmup_epoch={warmup_epoch}", f"lr_schedule={schedule}")
    assert learning_rate(0.0, 512, cfg) == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (1.0, 0.075), (6.999, 0.075), (7.0, 0.0075), (12.999, 0.0075), (13.0, 0.00075), (18.999, 0.00075),
        (19.0, 0.000075), (23.999, 0.000075), (24.0, 0.0000075), (25.999, 0.0000075),
    ],
)  # fmt: skip
def test_the_learning_rate_falls_to_a_tenth_one_epoch_before_each_milestone_of_ms1mv2(epoch, rate):
    """Batch 384: 0.1 * 384 / 512 = 0.075; milestones 8, 14, 20, 25; each milestone m acts from epoch m - 1 on."""
    assert learning_rate(epoch, 384, settings()) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("dataset", ["CASIA_WebFace", "Idifface"])
def test_the_small_sets_have_their_own_milestones_and_no_warm_up(dataset):
    cfg = settings(f"dataset={dataset}")
    assert cfg.num_epoch == 60
    for epoch, rate in ((0.0, 0.1), (38.9, 0.1), (39.0, 0.01), (46.9, 0.01), (47.0, 1e-3), (51.0, 1e-4), (59.9, 1e-4)):
        assert learning_rate(epoch, 512, cfg) == pytest.approx(rate, rel=1e-9)


def test_milestones_may_have_any_order_and_may_be_empty():
    assert learning_rate(15.0, 512, settings("lr_milestones=[20,8,14]")) == pytest.approx(1e-3, rel=1e-9)
    assert learning_rate(25.0, 512, settings("lr_milestones=[]")) == pytest.approx(0.1, rel=1e-12)


def test_cosine_starts_at_the_peak_after_the_warm_up_and_ends_at_zero():
    cfg = settings("lr_schedule=cosine", "warmup_epoch=2", "num_epoch=10")
    assert learning_rate(2.0, 512, cfg) == pytest.approx(0.1, rel=1e-12)
    # After a third, a half and two thirds of the epochs, the cosine is 1/2, 0 and -1/2.
    assert learning_rate(2 + 8 / 3, 512, cfg) == pytest.approx(0.075, rel=1e-12)
    assert learning_rate(6.0, 512, cfg) == pytest.approx(0.05, rel=1e-12)
    assert learning_rate(2 + 16 / 3, 512, cfg) == pytest.approx(0.025, rel=1e-12)
    assert learning_rate(10.0, 512, cfg) == pytest.approx(0.0, abs=1e-15)
    assert learning_rate(10.5, 512, cfg) == pytest.approx(0.0, abs=1e-15)


def test_cosine_without_warm_up_spans_all_epochs():
    cfg = settings("lr_schedule=cosine", "warmup_epoch=-1", "num_epoch=4")
    assert [learning_rate(e, 512, cfg) for e in (0, 2, 4)] == pytest.approx([0.1, 0.05, 0.0], abs=1e-15)


@pytest.mark.parametrize("schedule", list(LR_SCHEDULES))
def test_no_schedule_rises_after_the_warm_up_or_falls_below_zero(schedule):
    cfg = settings(f"lr_schedule={schedule}")
    rates = [learning_rate(1 + 25 * step / 1000, 512, cfg) for step in range(1001)]
    assert all(after <= before for before, after in itertools.pairwise(rates))
    assert rates[0] == pytest.approx(0.1, rel=1e-12) and min(rates) >= 0
