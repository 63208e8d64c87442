"""The extractor of embeddings, compared with a network computed by hand."""

from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from eval import embeddings as extractor
from eval.embeddings import embed

CPU = torch.device("cpu")


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
    """A linear layer on all pixels, so that a flipped image has another embedding. It records the batch sizes."""

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
    """The float64 embeddings of both views of uint8 [N, 112, 112, 3]."""
    weight = network.weight.detach().numpy().astype(np.float64)
    views = []
    for view in (images, images[:, :, ::-1]):
        x = (view.astype(np.float64) - 127.5) / 127.5
        views.append(x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ weight)
    return views


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_embedding_is_the_sum_of_both_views_and_its_norm_is_their_mean_length(num_workers):
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
def test_an_incomplete_last_batch_changes_nothing(batch_size):
    images, network = Images(9), TinyNetwork()
    expected = embed(network, images, CPU, batch_size=9)
    embeddings = embed(network, images, CPU, batch_size=batch_size)
    np.testing.assert_allclose(embeddings.features, expected.features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(embeddings.norms, expected.norms, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_embedding_does_not_change_the_mode_of_the_network(training):
    network = TinyNetwork().train(training)
    embed(network, Images(2), CPU)
    assert network.training is training


def test_a_gpu_computes_the_next_batch_while_the_embeddings_of_the_last_one_are_copied(monkeypatch):
    """The GPU is a fake: it logs when it gets a batch, and when the host waits for the copy of a batch."""
    log = []

    class Embeddings(NamedTuple):
        first: int  # position in the batch

        def to(self, device, non_blocking):
            assert device == "cpu" and non_blocking
            return self

    class Stream:
        def __init__(self, device):
            assert device.type == "cuda"

        def record_event(self):
            return SimpleNamespace(synchronize=partial(log.append, f"arrived {log[-1][-1]}"))

    def compute(network, batch, device, dtype, flip):
        log.append(f"computed {batch[0]}")
        return [Embeddings(batch[0])]

    def read(images, batches, num_workers, pin_memory):
        assert pin_memory
        return zip(batches, batches, strict=True)

    monkeypatch.setattr(extractor, "decoded_batches", read)
    monkeypatch.setattr(extractor, "embed_views", compute)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for positions, views in extractor.embed_batches(None, None, [[0, 1], [2, 3], [4]], torch.device("cuda")):
        log.append(f"used {positions[0]}")
        assert views == [Embeddings(positions[0])]
    assert log == [
        "computed 0", "computed 2", "arrived 0", "used 0", "computed 4", "arrived 2", "used 2", "arrived 4", "used 4"
    ]  # fmt: skip
