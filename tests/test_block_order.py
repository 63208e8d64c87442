"""The order that a disk can read in large pieces: a permutation for any ranks and start, in which identities mix."""

import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from runs import SCRIPTS, assert_same_checkpoint, train
from training_sets import write_cvlface_set

from config import load_config
from data import loader
from data.dataset import FaceDataset, RecordDataset
from data.joined_set import JoinedDataset
from data.loader import GlobalOrder, TrainingLoader
from data.recordio import RecordWriter
from data.shuffle import Shuffle

IMAGES, WINDOW = 1003, 250  # the last block has 11 images; 5 windows
BLOCK = 16


def epoch_of(order, epoch=0, first=0):
    order.start_at(epoch, first)
    return list(order)


def positions_of(plans):
    return np.concatenate([plan.positions for plan in plans])


def blocks_read(plans):
    return blocks_of(np.concatenate([plan.ahead for plan in plans])).tolist()


def blocks_of(ranges):
    """The numbers of the blocks that have these images."""
    starts, stops = ranges.T
    assert (starts % BLOCK == 0).all() and (stops - starts <= BLOCK).all()
    return starts // BLOCK


@pytest.mark.parametrize("images", [5, 16, 250, 251, 1000, IMAGES])
def test_an_epoch_is_a_permutation_and_epochs_and_seeds_differ(images):
    shuffles = [Shuffle(images, seed, epoch, WINDOW, BLOCK) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    read = [shuffle.images(0, images) for shuffle in shuffles]
    assert all(np.array_equal(np.sort(positions), np.arange(images)) for positions, _ in read)
    assert not np.array_equal(read[0][0], read[1][0]) and not np.array_equal(read[0][0], read[2][0])
    again = Shuffle(images, 0, 0, WINDOW, BLOCK).images(0, images)
    assert np.array_equal(read[0][0], again[0]) and np.array_equal(read[0][1], again[1])


@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_blocks_of_other_sizes(block):
    shuffle = Shuffle(IMAGES, 0, 0, WINDOW, block)
    positions = shuffle.images(0, IMAGES)[0]
    assert np.array_equal(np.sort(positions), np.arange(IMAGES))
    for number, blocks in enumerate(shuffle.blocks):
        images = np.concatenate([np.arange(*images) for images in shuffle.ranges(blocks)])
        window = positions[shuffle.starts[number] : shuffle.starts[number + 1]]
        assert np.array_equal(np.sort(window), images) and len(images) <= WINDOW + 2 * block
    order = GlobalOrder(IMAGES, 20, 3, window=WINDOW, block=block)
    ahead = np.concatenate([plan.ahead for plan in epoch_of(order)])
    assert (np.diff(ahead) <= block).all() and len(np.unique(ahead[:, 0])) > 0.97 * IMAGES / block


def test_any_range_of_an_epoch_is_the_same_however_it_is_reached():
    positions, flips = Shuffle(IMAGES, 3, 2, WINDOW, BLOCK).images(0, IMAGES)
    assert 400 < flips.sum() < 600 and not np.array_equal(flips[:200], flips[208:408])
    shuffle = Shuffle(IMAGES, 3, 2, WINDOW, BLOCK)
    for start, stop in ((990, 1003), (0, 1), (200, 800), (5, 250)):
        part = shuffle.images(start, stop)
        assert np.array_equal(part[0], positions[start:stop]) and np.array_equal(part[1], flips[start:stop])


def test_the_whole_set_is_permuted_as_before_if_there_is_no_window():
    generator = np.random.default_rng((3, 2))
    expected = generator.permutation(IMAGES), generator.integers(0, 2, IMAGES, dtype=np.uint8).astype(bool)
    assert all(map(np.array_equal, Shuffle(IMAGES, 3, 2).images(0, IMAGES), expected))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batches_and_the_blocks_of_one_process(monkeypatch, ranks):
    whole = epoch_of(GlobalOrder(IMAGES, 20, 3, draws=2, window=WINDOW, block=BLOCK), 1, 7)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loader, "world_size", lambda: ranks)
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        shares.append(epoch_of(GlobalOrder(IMAGES, 20 // ranks, 3, draws=2, window=WINDOW, block=BLOCK), 1, 7))
    for plan, *parts in zip(whole, *shares, strict=True):
        for field in ("positions", "flips", "draws"):
            assert np.array_equal(getattr(plan, field), np.concatenate([getattr(part, field) for part in parts]))
        assert sorted(plan.ahead.tolist()) == sorted(np.concatenate([part.ahead for part in parts]).tolist())


@pytest.mark.parametrize("first", [0, 1, 7, 30, 49])
def test_a_resumed_epoch_continues_in_the_same_order(first):
    whole = epoch_of(GlobalOrder(IMAGES, 20, 3, draws=2, window=WINDOW, block=BLOCK), 1)
    rest = epoch_of(GlobalOrder(IMAGES, 20, 3, draws=2, window=WINDOW, block=BLOCK), 1, first)
    assert len(rest) == 50 - first and np.array_equal(positions_of(rest), positions_of(whole[first:]))
    assert all(np.array_equal(one.draws, other.draws) for one, other in zip(rest, whole[first:], strict=True))


@pytest.mark.parametrize("first", [0, 3, 11, 12, 37])
def test_every_block_is_read_ahead_once_and_before_its_window(first):
    order = GlobalOrder(IMAGES, 20, 3, window=WINDOW, block=BLOCK)
    plans, shuffle = epoch_of(order, 1, first), Shuffle(IMAGES, 3, 1, WINDOW, BLOCK)
    current = shuffle.window_at(20 * first)
    following = Shuffle(IMAGES, 3, 2, WINDOW, BLOCK).blocks[0]
    read = blocks_read(plans)
    needed = [set(blocks.tolist()) for blocks in [*shuffle.blocks[current:], following]]
    # The incomplete last batch is not used, so a few blocks of the next epoch are left out.
    assert len(read) >= sum(map(len, needed)) - 2
    assert set(read[: len(needed[0])]) == needed[0]
    counts = np.bincount(read, minlength=63)
    expected = np.bincount([block for blocks in needed[:-1] for block in blocks], minlength=63)
    assert (counts >= expected).all() and (counts <= expected + np.bincount(following, minlength=63)).all()
    known: set[int] = set()
    for number, plan in enumerate(plans, start=first):  # a batch may need what is read with it, at the earliest
        window = shuffle.window_at(20 * number)
        if number > first and window > current and 20 * number == shuffle.starts[window]:
            assert set(shuffle.blocks[window].tolist()) <= known
        known |= set(blocks_of(plan.ahead).tolist())
        assert {int(position) // BLOCK for position in plan.positions} <= known


def same_identity(labels, start, stop, batch):
    """The expected number of pairs of one identity in a batch drawn from labels[start:stop]."""
    counts = np.bincount(labels[start:stop]).astype(float)
    size = stop - start
    return batch * (batch - 1) / 2 * (counts * (counts - 1)).sum() / (size * (size - 1))


@pytest.mark.parametrize(("per_identity", "distinct"), [(68, 0.93), (20, 0.95)])  # as in MS1MV2 and WebFace42M
def test_identities_mix_although_the_records_are_sorted_by_identity(per_identity, distinct):
    """With the default window, nearly all images of a batch on eight GPUs are of different people."""
    images, batch, window = 5_000_000, 8 * 384, load_config().order_window
    labels = np.arange(images) // per_identity
    shuffle = Shuffle(images, 0, 0, window)
    mixed = labels[shuffle.images(0, int(shuffle.starts[1]))[0]]
    pairs = same_identity(mixed, 0, len(mixed), batch)
    counted = [np.bincount(mixed[k : k + batch]) for k in range(0, 100 * batch, batch)]
    assert np.mean([(counts * (counts - 1)).sum() / 2 for counts in counted]) == pytest.approx(pairs, rel=0.05)
    assert pairs < same_identity(labels, 0, images, batch) + 0.05 * batch
    assert np.mean([(counts > 0).sum() for counts in counted]) > distinct * batch
    sorted_order = np.bincount(labels[:batch])  # without shuffling
    assert (sorted_order * (sorted_order - 1)).sum() / 2 > 200 * pairs


def test_the_tables_of_a_set_with_42_million_images_are_small():
    tracemalloc.start()
    shuffle = Shuffle(42_474_557, 0, 0, 2**19)
    shuffle.images(10**7, 10**7 + 384)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 90e6 and peak < 180e6  # the permutation of the whole set takes 340 MB


@pytest.fixture
def advised(monkeypatch):
    """The ranges of positions that a set was told to read ahead."""
    ranges = []
    monkeypatch.setattr(FaceDataset, "read_ahead", lambda self, start, stop: ranges.append((self.source, start, stop)))
    return ranges


def test_a_joined_set_passes_the_parts_of_a_range_to_its_sets(advised):
    class Part(FaceDataset):
        def __init__(self, source, images):
            self.source, self.images, self.num_classes = source, images, 1

        def __len__(self):
            return self.images

    joined = JoinedDataset([Part("a", 10), Part("b", 3), Part("c", 20)])
    for start, stop in ((0, 16), (9, 11), (13, 29), (10, 13)):
        joined.read_ahead(start, stop)
    assert advised == [("a", 0, 10), ("b", 0, 3), ("c", 0, 3), ("a", 9, 10), ("b", 0, 1), ("c", 0, 16), ("b", 0, 3)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_reads_the_images_of_the_order(tmp_path, num_workers):
    dataset = RecordDataset(write_cvlface_set(tmp_path / "set", np.arange(70) % 7, 7))
    order = GlobalOrder(70, 8, seed=4, window=32, block=BLOCK)
    batches = list(TrainingLoader(dataset, order, num_workers, torch.device("cpu")))
    plans = epoch_of(order)
    assert len(batches) == 8 and max(blocks_read(plans)) == 4  # block 4 has 6 images
    for batch, plan in zip(batches, plans, strict=True):
        assert batch.labels.tolist() == (plan.positions % 7).tolist()


def test_read_ahead_covers_the_records_and_leaves_files_in_another_order_alone(tmp_path, monkeypatch):
    for name, keys in (("sorted", range(40)), ("mixed", reversed(range(40)))):
        (tmp_path / name).mkdir()
        with RecordWriter(tmp_path / name / "train") as writer:
            for key in keys:
                writer.write(key, 0.0, os.urandom(5000))
    ranges = []

    class Map:
        def madvise(self, option, start, length):
            ranges.append((start, start + length))

    for name in ("sorted", "mixed"):
        dataset = RecordDataset(tmp_path / name)
        offsets, size = dataset.reader._offsets, dataset.reader.size
        monkeypatch.setattr(dataset.reader, "_mapped", Map)
        dataset.read_ahead(16, 32)
        dataset.read_ahead(32, 40)
        if name == "sorted":
            assert ranges == [(offsets[16] // 4096 * 4096, offsets[32]), (offsets[32] // 4096 * 4096, size)]
    assert len(ranges) == 2


def test_a_run_in_blocks_resumes_bit_equal(small_run, tmp_path):
    blocks = [*small_run, "val_targets=[]", "order=blocks", "order_window=16"]
    train(SCRIPTS[1], [*blocks, "max_steps=9", "checkpoint_every=8"], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    train(SCRIPTS[1], [*blocks, "max_steps=9", "num_workers=0", "global_step=8"], tmp_path / "parts")
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts", 9)
