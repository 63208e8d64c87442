"""Training batches: their order, which does not depend on ranks or workers, and their content."""

import numpy as np
import pytest
import torch
from numbered_images import Numbers

from data import loader
from data.images import ImageError, to_input
from data.loader import GlobalOrder, TrainingLoader

CPU = torch.device("cpu")


def bytes_of(images):
    """Network input [B, 3, H, W] in [-1, 1] -> the bytes that it was made from."""
    return (127.5 * images + 127.5).round().byte()


def assert_as_planned(batch, plan):
    """Assert that the batch has the images of the plan, mirrored if the plan says so, and their labels."""
    pixels = bytes_of(batch.clean).cpu()
    assert pixels[:, 0, 5, 5].tolist() == plan.positions.tolist()
    assert (pixels[:, 0, 5, -1] == 255).tolist() == plan.flips.tolist()
    assert (pixels[:, 0, 5, 0] == 255).tolist() == (~plan.flips).tolist()
    assert batch.labels.tolist() == (plan.positions % 7).tolist()


def epoch_of(order, epoch, first=0):
    order.start_at(epoch, first)
    return list(order)


def equal(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x[:3], y[:3], strict=True)
    )


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(monkeypatch, ranks):
    expected = epoch_of(GlobalOrder(101, 12, seed=3, draws=3), epoch=2)
    assert len(expected) == 8 and expected[0].draws.shape == (12, 3)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loader, "world_size", lambda: ranks)
        order = GlobalOrder(101, 12 // ranks, seed=3, draws=3)
        assert len(order) == 8
        shares.append(epoch_of(order, epoch=2))
    joined = [
        tuple(np.concatenate([share[number][part] for share in shares]) for part in (0, 1, 2)) for number in range(8)
    ]
    assert equal(joined, expected)


def test_every_position_occurs_at_most_once_per_epoch():
    order = GlobalOrder(103, 10, seed=0)
    positions = np.concatenate([plan.positions for plan in epoch_of(order, epoch=0)])
    assert len(positions) == 100 == 10 * len(order)
    assert len(np.unique(positions)) == 100
    assert positions.min() >= 0
    assert positions.max() < 103


def test_epochs_and_seeds_differ_and_repeat():
    order = GlobalOrder(200, 20, seed=0, draws=2)
    first, second = epoch_of(order, 0), epoch_of(order, 1)
    for part in (0, 1, 2):
        assert not np.array_equal(first[0][part], second[0][part])
        assert not np.array_equal(first[0][part], epoch_of(GlobalOrder(200, 20, seed=1, draws=2), 0)[0][part])
    assert equal(epoch_of(order, 0), first)
    assert equal(epoch_of(GlobalOrder(200, 20, seed=0, draws=2), 1), second)


def test_about_half_of_the_images_are_mirrored():
    flips = np.concatenate([plan.flips for plan in epoch_of(GlobalOrder(10_000, 100, seed=0), 0)])
    assert flips.dtype == bool
    assert 4800 < flips.sum() < 5200


def test_without_train_flip_no_image_is_mirrored_and_the_order_is_the_same():
    mirrored, plain = (list(GlobalOrder(1000, 100, seed=0, flip=flip)) for flip in (True, False))
    assert not any(plan.flips.any() for plan in plain)
    for one, other in zip(mirrored, plain, strict=True):
        assert np.array_equal(one.positions, other.positions)


def test_the_random_numbers_of_images_are_uniform_and_independent():
    draws = np.concatenate([plan.draws for plan in epoch_of(GlobalOrder(10_000, 100, seed=0, draws=4), 0)])
    assert (draws.shape, draws.dtype) == ((10_000, 4), np.float32)
    assert draws.min() >= 0 and draws.max() < 1
    assert len(np.unique(draws[:, 0])) > 9_900
    assert abs(draws.mean(0) - 0.5).max() < 0.02 and abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.05


@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_an_epoch_that_starts_at_a_later_batch_continues_in_the_same_order(first):
    order = GlobalOrder(53, 10, seed=9, draws=5)
    complete = epoch_of(order, 3)
    rest = epoch_of(GlobalOrder(53, 10, seed=9, draws=5), 3, first)
    assert len(rest) == 5 - first
    assert equal(rest, complete[first:])


def test_the_batches_do_not_depend_on_the_number_of_workers():
    runs = []
    for num_workers in (0, 1, 2):
        order = GlobalOrder(50, 8, seed=4)
        source = TrainingLoader(Numbers(50), order, num_workers, CPU)
        order.start_at(0, 2)
        run = list(source)
        order.start_at(1, 0)
        run += list(source)
        runs.append(run)
    assert len(runs[0]) == 4 + 6
    expected = epoch_of(GlobalOrder(50, 8, seed=4), 0, 2) + epoch_of(GlobalOrder(50, 8, seed=4), 1)
    for batch, plan in zip(runs[0], expected, strict=True):
        assert (batch.images.shape, batch.labels.shape) == ((8, 3, 112, 112), (8,))
        assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
        assert batch.teacher is None and batch.images is batch.clean
        assert_as_planned(batch, plan)
    for run in runs[1:]:
        assert len(run) == len(runs[0])
        for one, other in zip(run, runs[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_input_error_in_a_worker_is_raised_unchanged(num_workers):
    order = GlobalOrder(40, 10, seed=0)
    broken = int(epoch_of(order, 0)[2][0][5])
    order.start_at(0, 0)
    read = 0
    with pytest.raises(ImageError, match=rf"^numbers: record {broken} is broken$"):
        for _ in TrainingLoader(Numbers(40, {broken}), order, num_workers, CPU):
            read += 1
    assert read == 2


@pytest.fixture
def received(monkeypatch):
    """The uint8 images of each batch, as the loader passes them to `to_input`."""
    images = []
    monkeypatch.setattr(loader, "to_input", lambda x, flips, device: images.append(x) or to_input(x, flips, device))
    return images


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_images_of_a_batch_do_not_change_while_they_are_in_use(received, num_workers):
    order = GlobalOrder(160, 8, seed=4)
    for _ in TrainingLoader(Numbers(160), order, num_workers, CPU):
        received[-1] = received[-1][:, 5, 5, 1].numpy()  # a view of a view
    assert [view.tolist() for view in received] == [plan.positions.tolist() for plan in epoch_of(order, 0)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_memory_of_batches_is_reused(received, num_workers):
    order = GlobalOrder(160, 8, seed=4)
    source = TrainingLoader(Numbers(160), order, num_workers, CPU)
    for epoch in range(3):
        order.start_at(epoch, 0)
        for number, _ in enumerate(source):  # stops early, while the workers still send batches
            received.clear()
            if number == 3:
                break
    order.start_at(3, 0)
    addresses = set()
    for _ in source:
        addresses.add(received.pop().data_ptr())
    assert len(addresses) <= 2 * num_workers + 4
    for batch, plan in zip(source, epoch_of(order, 3), strict=True):
        received.clear()
        assert_as_planned(batch, plan)


@pytest.mark.gpu
def test_batches_are_copied_to_the_gpu():
    order, device = GlobalOrder(160, 8, seed=4), torch.device("cuda")
    source = TrainingLoader(Numbers(160), order, 2, device)
    batches = list(source)
    assert source._slots.memory.is_pinned()
    for batch, plan in zip(batches, epoch_of(order, 0), strict=True):
        assert {tensor.device.type for tensor in batch[:3]} == {"cuda"}
        assert_as_planned(batch, plan)
