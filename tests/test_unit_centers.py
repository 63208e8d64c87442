"""The centers at unit length, which are kept between steps: they always equal the normalised centers."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from trained_head import CLASSES, batch, settings, trained_head

from heads import build_head


def assert_unit_centers(head: torch.nn.Module) -> None:
    expected = F.normalize(head.centers, eps=1e-12)
    assert torch.equal(head.unit_centers.get(head.centers), expected)


def test_updated_rows_are_bit_equal_to_the_rows_of_all_normalised_centers():
    head = build_head(settings("embedding_size=512"))
    for count in (1, 2, 5, 300):
        generator = torch.Generator().manual_seed(count)
        student, teacher = torch.randn(2, count, 512, generator=generator)
        head(student, teacher, torch.randint(0, CLASSES, (count,), generator=generator))
        unit_centers = head.unit_centers.get(head.centers)
        assert unit_centers is head.unit_centers.get(head.centers)
        assert_unit_centers(head)


@pytest.mark.parametrize("undo", [False, True])
def test_a_step_updates_only_the_rows_of_its_batch_also_if_it_is_undone(undo):
    head = trained_head()
    head(*batch(0))
    head.unit_centers.get(head.centers)[600] = 7.0  # marks a row that no label touches
    head.begin_step()
    head(*batch(1))
    head.end_step(torch.tensor(undo))
    unit = head.unit_centers.get(head.centers)
    assert (unit[600] == 7.0).all()
    others = torch.arange(len(unit)) != 600
    assert torch.equal(unit[others], torch.nn.functional.normalize(head.centers, eps=1e-12)[others])


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
def test_unit_centers_follow_every_other_change_of_the_centers(change):
    head = trained_head()
    head(*batch(0))
    change(head)
    assert_unit_centers(head)


def test_unit_centers_have_autocasts_type_and_are_not_saved():
    head = trained_head()
    with torch.autocast("cpu", torch.bfloat16):
        head(*batch(0))
        assert head.unit_centers.get(head.centers).dtype == torch.bfloat16
    assert head.unit_centers.get(head.centers).dtype == torch.float32
    assert set(head.state_dict()) == {"centers", "softmax.margin.batch_mean", "softmax.margin.batch_std"}


def test_a_head_that_was_called_in_inference_mode_can_be_trained():
    head = trained_head()
    with torch.inference_mode():
        head.eval()(*batch(0))
    head.train()(*batch(1))
    assert_unit_centers(head)


def test_an_edit_through_an_older_reference_to_the_centers_is_seen():
    head = trained_head()
    centers = head.centers
    head(*batch(0))
    head.eval()(*batch(1))
    centers[3].neg_()
    assert_unit_centers(head)


def test_unit_centers_follow_a_step_that_is_undone():
    head = trained_head()
    head(*batch(0))
    head.begin_step()
    head(*batch(1))
    head.end_step(torch.tensor(True))
    unit_centers = head.unit_centers.get(head.centers)
    assert_unit_centers(head)
    assert unit_centers is head.unit_centers.get(head.centers)


def test_a_copy_of_a_head_has_unit_centers_of_its_own():
    head = trained_head()
    head(*batch(0))
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):  # noqa: S301 - its own bytes
        copied(*batch(1))
        assert_unit_centers(copied)
    assert_unit_centers(head)


def test_undoing_two_forward_passes_restores_the_centers_that_both_moved():
    head = trained_head()
    student, teacher, labels = batch(5)
    before, unit_before = head.centers.clone(), head.unit_centers.get(head.centers).clone()
    for undo in (False, True):
        head.begin_step()
        for _ in range(2):  # the same classes in both passes, as with accumulate_steps=2
            head(student, teacher, labels)
        moved = head.centers.clone()
        head.end_step(torch.tensor(undo))
        assert torch.equal(head.centers, before if undo else moved)
        if not undo:
            assert not torch.equal(moved, before)
            head.set_centers(before)
    assert torch.equal(head.unit_centers.get(head.centers), unit_before)
