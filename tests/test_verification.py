"""Pair verification against the protocol written out the slow way, and the extractor against a network by hand."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from eval.embeddings import embed
from eval.verification import evaluate_pairs, roc_figures, score_pairs, squared_distances

CPU = torch.device("cpu")


def slow_figures(embeddings, is_same):
    """Ten-fold accuracy and its deviation, pair by pair and threshold by threshold in plain Python."""

    def unit(row):
        length = math.sqrt(math.fsum(value * value for value in row))
        return [value / length for value in row]

    rows = [unit(row) for row in embeddings.astype(np.float64).tolist()]
    count = len(is_same)
    distances = [
        math.fsum((a - b) ** 2 for a, b in zip(rows[2 * i], rows[2 * i + 1], strict=True)) for i in range(count)
    ]
    sizes = [count // 10 + (1 if fold < count % 10 else 0) for fold in range(10)]
    accuracies, start = [], 0
    for size in sizes:
        test = range(start, start + size)
        start += size
        train = [i for i in range(count) if i not in test]
        best, most = None, -1
        for step in range(400):
            right = sum((distances[i] < step / 100) == bool(is_same[i]) for i in train)
            if right > most:
                best, most = step / 100, right
        accuracies.append(sum((distances[i] < best) == bool(is_same[i]) for i in test) / size)
    mean = sum(accuracies) / 10
    return mean, math.sqrt(sum((value - mean) ** 2 for value in accuracies) / 10)


def random_pairs(count, size, seed):
    """Embeddings whose same pairs lie nearer, with much overlap, and of all lengths."""
    rng = np.random.default_rng(seed)
    is_same = rng.random(count) < 0.5
    first = rng.standard_normal((count, size))
    second = rng.standard_normal((count, size)) + np.where(is_same, 0.5, 0.0)[:, None] * first
    embeddings = np.stack([first, second], axis=1).reshape(2 * count, size) * rng.uniform(0.1, 9, (2 * count, 1))
    return embeddings.astype(np.float32), is_same


def pairs_at(distances):
    """Embeddings in the plane whose pairs have the given squared distances."""
    angles = 2 * np.arcsin(np.sqrt(np.array(distances)) / 2)
    second = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.stack([np.tile([1.0, 0.0], (len(angles), 1)), second], axis=1).reshape(-1, 2)


class Images(Dataset):
    def __init__(self, count, seed=0):
        self.images = torch.from_numpy(
            np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, positions):
        return self.images[list(positions)]


class TinyNetwork(nn.Module):
    """Weighs every pixel on its own, so that a flipped image has another embedding; counts the batches."""

    def __init__(self, size=5):
        super().__init__()
        weight = np.random.default_rng(1).standard_normal((3 * 112 * 112, size)) / 112
        self.weight = nn.Parameter(torch.from_numpy(weight).float())
        self.dropout = nn.Dropout(0.5)
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return self.dropout(x.flatten(1) @ self.weight)


def by_hand(network, images):
    """(both views' float64 embeddings) of uint8 [N, 112, 112, 3]."""
    weight = network.weight.detach().numpy().astype(np.float64)
    views = []
    for view in (images, images[:, :, ::-1]):
        x = (view.astype(np.float64) - 127.5) / 127.5
        views.append(x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ weight)
    return views


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [10, 100, 117])
def test_the_figures_are_those_of_the_protocol_written_out(count, seed):
    embeddings, is_same = random_pairs(count, 16, seed)
    mean, deviation = slow_figures(embeddings, is_same)
    figures = evaluate_pairs(embeddings, is_same)
    assert figures["Accuracy-Flip"] == pytest.approx(mean, abs=1e-12)
    assert figures["Accuracy-Std"] == pytest.approx(deviation, abs=1e-12)
    assert count == 10 or 0.5 < mean < 1


@pytest.mark.parametrize("seed", range(6))
def test_tar_auc_and_eer_are_those_of_counting(seed):
    rng = np.random.default_rng(seed)
    is_same = np.append([True, False], rng.random(1198) < 0.4)
    scores = (rng.standard_normal(1200) + 1.5 * is_same).round(1 if seed % 2 else 9)  # with many ties and with none
    genuine, impostor = scores[is_same], scores[~is_same]
    points = [(np.mean(impostor >= t), np.mean(genuine >= t)) for t in [np.inf, *np.unique(scores)[::-1]]]
    figures = roc_figures(is_same, scores)
    for wanted in (1e-3, 1e-2):
        assert figures[f"TAR_at_FAR_{wanted}"] == max(tar for far, tar in points if far <= wanted)
    wins = [np.mean((value > impostor) + 0.5 * (value == impostor)) for value in genuine]
    assert figures["AUC"] == pytest.approx(np.mean(wins), abs=1e-12)
    crossings = []  # of the lines between the points with FAR = 1 - TAR, found by bisection
    for (far_0, tar_0), (far_1, tar_1) in itertools.pairwise(points):
        if far_0 + tar_0 < 1 <= far_1 + tar_1:
            low, high = 0.0, 1.0
            for _ in range(60):
                middle = (low + high) / 2
                here = far_0 + middle * (far_1 - far_0) + tar_0 + middle * (tar_1 - tar_0)
                low, high = (middle, high) if here < 1 else (low, middle)
            crossings.append(far_0 + low * (far_1 - far_0))
    assert [figures["EER"]] == pytest.approx(crossings, abs=1e-12)


def test_pairs_told_apart_without_a_fault_have_no_equal_error():
    figures = roc_figures(np.array([True, False] * 50), np.array([0.6, 0.5] * 50))
    assert figures == {"TAR_at_FAR_0.001": 1, "TAR_at_FAR_0.01": 1, "AUC": 1, "EER": 0}


def test_pairs_of_one_kind_have_no_curve():
    assert set(roc_figures(np.ones(10, dtype=bool), np.arange(10)).values()) == {None}


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_is_called_the_same_by_the_threshold_of_its_fold(seed):
    embeddings, is_same = random_pairs(107, 16, seed)
    figures, arrays = score_pairs(embeddings, is_same)
    unit = embeddings / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    cosines = (unit[0::2] * unit[1::2]).sum(1)
    assert arrays["score"] == pytest.approx(cosines, abs=1e-12)
    fold = np.repeat(np.arange(10), [11] * 7 + [10] * 3)
    assert arrays["decision"].tolist() == (cosines > arrays["threshold"][fold]).tolist()
    right = arrays["decision"] == arrays["is_same"]
    assert figures["Accuracy-Flip"] == pytest.approx(np.mean([right[fold == f].mean() for f in range(10)]))


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_the_protocol_with_many_equal_distances(seed):
    rng = np.random.default_rng(seed)
    distances = rng.choice([0.105, 0.505, 0.995, 1.505, 3.005], 103)
    is_same = rng.random(103) < 1 - distances / 4
    embeddings = pairs_at(distances)
    figures = evaluate_pairs(embeddings, is_same)
    assert (figures["Accuracy-Flip"], figures["Accuracy-Std"]) == pytest.approx(slow_figures(embeddings, is_same))


def test_of_equally_good_thresholds_the_first_counts():
    # Any threshold of 0.31 .. 2.90 parts the others. Fold 0 alone has a same pair at 1.0: right only at a later one.
    distances, is_same = [0.305, 2.905] * 50, [True, False] * 50
    distances[0] = 1.005
    figures = evaluate_pairs(pairs_at(distances), is_same)
    assert figures["Accuracy-Flip"] == pytest.approx((0.9 + 9) / 10)
    assert figures["Accuracy-Std"] == pytest.approx(0.03)


def test_the_same_means_less_than_the_threshold():
    # Equal embeddings have distance 0, which is not below threshold 0.00 but below 0.01.
    embeddings = np.repeat(np.random.default_rng(0).standard_normal((20, 8)), 2, axis=0)
    for is_same in ([True] * 20, [False] * 20):
        figures = evaluate_pairs(embeddings, is_same)
        assert (figures["Accuracy-Flip"], figures["Accuracy-Std"]) == (1, 0)


def test_the_lengths_of_embeddings_do_not_matter():
    embeddings, is_same = random_pairs(60, 12, 3)
    lengths = np.random.default_rng(1).uniform(0.01, 100, (120, 1))
    assert evaluate_pairs(embeddings * lengths, is_same) == pytest.approx(evaluate_pairs(embeddings, is_same))


def test_an_embedding_of_length_zero_stays_at_zero():
    distances = squared_distances(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]))
    assert distances.dtype == np.float64
    assert distances.tolist() == pytest.approx([1.0, 0.0])


def test_six_thousand_pairs_are_scored_within_a_second():
    embeddings, is_same = random_pairs(6000, 512, 0)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        evaluate_pairs(embeddings, is_same)
        times.append(time.perf_counter() - start)
    assert min(times) < 1


@pytest.mark.parametrize(("rows", "pairs"), [(18, 9), (0, 0), (40, 10), (39, 20), (20, 20)])
def test_too_few_pairs_or_rows_that_do_not_fit_are_told(rows, pairs):
    with pytest.raises(ValueError, match=rf"{rows} embeddings for {pairs} pairs"):
        evaluate_pairs(np.ones((rows, 4)), np.ones(pairs, dtype=bool))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_embedding_is_the_sum_of_both_views_and_its_norm_their_mean_length(num_workers):
    images, network = Images(7), TinyNetwork()
    embeddings = embed(network, images, CPU, batch_size=3, num_workers=num_workers)
    plain, flipped = by_hand(network, images.images.numpy())
    assert embeddings.features.dtype == embeddings.norms.dtype == np.float32
    assert embeddings.features.shape == (7, 5)
    np.testing.assert_allclose(embeddings.features, plain + flipped, rtol=1e-4, atol=1e-4)
    lengths = (np.linalg.norm(plain, axis=1) + np.linalg.norm(flipped, axis=1)) / 2
    np.testing.assert_allclose(embeddings.norms, lengths, rtol=1e-4, atol=1e-4)
    assert not np.allclose(plain, flipped, atol=1e-2)
    assert network.batches == [3, 3, 3, 3, 1, 1]


def test_an_embedding_without_flip_is_that_of_the_image():
    images, network = Images(4), TinyNetwork()
    embeddings = embed(network, images, CPU, flip=False)
    plain, _ = by_hand(network, images.images.numpy())
    np.testing.assert_allclose(embeddings.features, plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(embeddings.norms, np.linalg.norm(plain, axis=1), rtol=1e-4, atol=1e-4)
    assert network.batches == [4]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_a_batch_that_is_partly_filled_changes_nothing(batch_size):
    images, network = Images(9), TinyNetwork()
    expected = embed(network, images, CPU, batch_size=9)
    embeddings = embed(network, images, CPU, batch_size=batch_size)
    np.testing.assert_allclose(embeddings.features, expected.features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(embeddings.norms, expected.norms, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_embedding_leaves_the_network_in_the_mode_it_had(training):
    network = TinyNetwork().train(training)
    embed(network, Images(2), CPU)
    assert network.training is training


def test_batches_come_through_torchs_pinning_of_memory_as_they_went_in(monkeypatch):
    """On a GPU every batch passes torch's pin_memory, which rebuilds containers; here, without copying tensors."""
    from torch.utils.data._utils.pin_memory import pin_memory

    from data import loader

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, positions):
            return torch.tensor([int(position) for position in positions], dtype=torch.uint8).view(-1, 1, 1, 1)

    monkeypatch.setattr(loader, "raised", lambda batches: map(pin_memory, batches))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: tensor)
    found = embed(torch.nn.Flatten(), Images(), torch.device("cpu"), batch_size=2)
    assert np.allclose(found.features[:, 0], 2 * (np.arange(5) - 127.5) / 127.5)
