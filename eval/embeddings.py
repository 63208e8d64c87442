"""Extraction of embeddings, which every protocol uses."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from data.images import SIZE, to_input
from data.workers import decoded_batches
from utils.distributed import max_over_ranks, on_all_ranks, rank, sum_over_ranks, world_size
from utils.errors import InputError


class Embeddings(NamedTuple):
    """Embeddings of N images.

    features: float32 [N, D], network(image) + network(flipped image); norms: float32 [N], the mean length of these two
    embeddings.
    """

    features: np.ndarray
    norms: np.ndarray


class DecodedImages(Dataset):
    """The images of this rank's batches (see `embed`), decoded once and kept in memory as uint8 [n, 112, 112, 3]."""

    def __init__(self, images: Dataset, batch_size: int, num_workers: int, title: str) -> None:
        batches = batches_of_rank(len(images), batch_size)
        share = np.concatenate([np.arange(0), *batches])
        self._length = len(images)
        self._row = np.zeros(self._length, dtype=np.int64)
        self._row[share] = np.arange(len(share))
        self._pixels = torch.empty(len(share), SIZE, SIZE, 3, dtype=torch.uint8)
        bar = tqdm(total=len(share), desc=f"decoding {title}", unit="image", disable=rank() != 0, leave=False)
        for positions, batch in decoded_batches(images, batches, num_workers):
            self._pixels[self._row[positions]] = batch
            bar.update(len(positions))
        bar.close()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        return self._pixels[self._row[positions]]


def batches_of_rank(count: int, batch_size: int) -> list[np.ndarray]:
    """The positions, 0 to count - 1, of this rank's batches. Each of n ranks takes every n-th batch."""
    starts = range(rank() * batch_size, count, world_size() * batch_size)
    # Arrays, because torch turns ranges into lists when it pins memory.
    return [np.arange(start, min(start + batch_size, count)) for start in starts]


@torch.inference_mode()
def embed_batches(
    network: Callable[[Tensor], Tensor],
    images: Dataset,
    batches: Sequence[Sequence[int]] | Sampler,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    flip: bool = True,
    num_workers: int = 0,
) -> Iterator[tuple[Sequence[int], list[Tensor]]]:
    """Yield, for each batch, its positions and a list of embeddings, float32 [n, D] in host memory: those of the images
    and, with `flip`, those of their mirror images.

    images: images[positions] gives uint8 [n, 112, 112, 3]. The mode of the network (training or eval) is not changed.
    The next batch is sent to a GPU before the host waits for the embeddings of the last one.
    """
    on_gpu = device.type == "cuda"
    pending = deque()  # batches whose embeddings may not have arrived yet
    for positions, batch in decoded_batches(images, batches, num_workers, pin_memory=on_gpu):
        views = embed_views(network, batch, device, dtype, flip)
        copies = [view.to("cpu", non_blocking=True) for view in views]  # from a GPU, to pinned memory
        pending.append((positions, copies, torch.cuda.current_stream(device).record_event() if on_gpu else None))
        if len(pending) == (2 if on_gpu else 1):
            yield _wait_for_copy(*pending.popleft())
    yield from starmap(_wait_for_copy, pending)


def _wait_for_copy(
    positions: Sequence[int], copies: list[Tensor], copied: torch.cuda.Event | None
) -> tuple[Sequence[int], list[Tensor]]:
    """Positions and embeddings of a batch, once they are in host memory."""
    if copied is not None:
        copied.synchronize()
    return positions, copies


@torch.inference_mode()
def embed_views(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    flip: bool = True,
) -> list[Tensor]:
    """A list of embeddings, float32 [n, D] on the device: those of `images`, uint8 [n, 112, 112, 3] RGB, and, with
    `flip`, those of their mirror images."""
    x = to_input(images, None, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return [network(view).float() for view in ([x, x.flip(3)] if flip else [x])]


def embed(
    network: nn.Module,
    images: Dataset,
    device: torch.device,
    batch_size: int = 128,
    dtype: torch.dtype = torch.float32,
    flip: bool = True,
    num_workers: int = 0,
    title: str = "embedding",
) -> Embeddings:
    """Embed every image of `images` in eval mode; images[positions] gives uint8 [n, 112, 112, 3].

    Under torchrun, each of n ranks embeds every n-th batch, and all ranks get the whole result. The batches, and so the
    results, do not depend on the number of ranks. Without `flip`, features are network(image) and norms their lengths.
    An InputError or OSError of any rank is raised on all ranks. Raises InputError for embeddings that are not finite.
    """

    def embed_share() -> tuple[Tensor | None, Tensor | None]:
        return _embed_share(network, images, device, batch_size, dtype, flip, num_workers, title)

    features, norms = on_all_ranks(embed_share)
    if world_size() > 1:
        features, norms = _merge_shares(features, norms, len(images))
    broken = (~features.isfinite().all(1)).nonzero()
    if len(broken):
        raise InputError(f"{title}: the embedding of image {int(broken[0])} is not finite; the weights are broken")
    return Embeddings(features.numpy(), norms.numpy())


@torch.inference_mode()
def _embed_share(
    network: nn.Module, images: Dataset, device: torch.device, batch_size: int, dtype: torch.dtype, flip: bool,
    num_workers: int, title: str,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Features [N, D] and norms [N]. Rows of other ranks' batches are 0. (None, None) for a rank without a batch."""
    batches = batches_of_rank(len(images), batch_size)
    was_training = network.training
    network.eval()
    features = norms = None
    bar = tqdm(total=len(images), desc=title, unit="image", disable=rank() != 0, leave=False)
    for positions, views in embed_batches(network, images, batches, device, dtype, flip, num_workers):
        if features is None:
            features = torch.zeros(len(images), views[0].shape[1])
            norms = torch.zeros(len(images))
        rows = torch.from_numpy(positions)
        features[rows] = torch.stack(views).sum(0)
        norms[rows] = torch.stack([view.norm(dim=1) for view in views]).mean(0)
        bar.update(min(world_size() * len(positions), bar.total - bar.n))  # the last batches of ranks may be shorter
    bar.close()
    network.train(was_training)
    return features, norms


def _merge_shares(features: Tensor | None, norms: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Sum over ranks. Each row is non-zero on one rank only, so the sum is that row, bit for bit."""
    size = max_over_ranks(0 if features is None else features.shape[1])  # a rank without a batch does not know it
    features = torch.zeros(count, size) if features is None else features
    norms = torch.zeros(count) if norms is None else norms
    sum_over_ranks(features)
    sum_over_ranks(norms)
    return features, norms
