"""The evaluation sets that a script uses: opened once, and decoded once if memory is set aside for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.images import SIZE
from eval.embeddings import DecodedImages
from utils.distributed import on_all_ranks, rank
from utils.errors import InputError

SetName = tuple[str, str]  # protocol, set


class Sets:
    """Opened sets, kept from one checkpoint to the next.

    cache_gb: how many 10^9 bytes of decoded images all ranks of a machine keep together; each keeps its share.
    """

    def __init__(self, cache_gb: float = 0.0) -> None:
        self._bytes_left = int(cache_gb * 1e9)
        self._opened: dict[SetName, Any] = {}
        self._decoded: dict[SetName, Any] = {}

    def open(self, name: str, target: str, opener: Callable[[Path], Any], path: Path) -> Any:
        """The set, which `opener` opens on all ranks at the first call. Raises its error if the set is broken."""
        return _remember(self._opened, (name, target), lambda: opener(path))

    def decoded(self, name: str, target: str, batch_size: int, num_workers: int) -> tuple[Any, int]:
        """The arguments of `embed` for an opened set: its images, and the number of processes that decode them.

        The first call decodes the whole set on all ranks if the memory is large enough, and raises an error if an image
        is broken.
        """
        images = self._opened[name, target]

        def decode() -> DecodedImages | None:
            size = len(images) * SIZE * SIZE * 3
            if size <= self._bytes_left:
                self._bytes_left -= size
                return DecodedImages(images, batch_size, num_workers, target)
            if self._bytes_left and rank() == 0:
                tqdm.write(
                    f"{target}: {size / 1e9:.1f} GB decoded, more than is left of --cache-gb; "
                    "it is decoded again for every checkpoint"
                )
            return None

        decoded = _remember(self._decoded, (name, target), decode)
        return (images, num_workers) if decoded is None else (decoded, 0)


def _remember(known: dict[SetName, Any], name: SetName, make: Callable[[], Any]) -> Any:
    """The result of `make`, which all ranks call the first time only; an error is remembered and raised again."""
    if name not in known:
        try:
            known[name] = on_all_ranks(make)
        except (InputError, OSError) as error:
            known[name] = error
    if isinstance(known[name], Exception):
        raise known[name]
    return known[name]
