"""The evaluation sets that a script works on: opened once, and decoded once where memory was set aside for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.images import SIZE
from eval.embeddings import KeptImages
from utils.distributed import on_all_ranks, rank
from utils.errors import InputError


class Sets:
    """Opened sets by protocol and target, from one checkpoint to the next.

    cache_gb: how many 10^9 bytes of decoded images are kept, by all ranks of a machine together: each keeps its share.
    """

    def __init__(self, cache_gb: float = 0.0) -> None:
        self._room = int(cache_gb * 1e9)
        self._opened: dict[tuple[str, str], Any] = {}
        self._kept: dict[tuple[str, str], Any] = {}

    def open(self, name: str, target: str, opener: Callable[[Path], Any], path: Path) -> Any:
        """The set, opened by `opener` on all ranks at the first call. Raises the error of one that is broken."""
        return _once(self._opened, (name, target), lambda: opener(path))

    def pixels(self, name: str, target: str, batch_size: int, num_workers: int) -> tuple[Any, int]:
        """What `embed` takes for an opened set: its images, and the processes that it needs to decode them.

        The first call decodes a set that the memory has room for, on all ranks, and raises what it finds broken.
        """
        images = self._opened[name, target]

        def keep() -> KeptImages | None:
            size = len(images) * SIZE * SIZE * 3
            if size <= self._room:
                self._room -= size
                return KeptImages(images, batch_size, num_workers, target)
            if self._room and rank() == 0:
                tqdm.write(f"{target}: {size / 1e9:.1f} GB decoded, more than is left of --cache-gb; decoded anew")
            return None

        kept = _once(self._kept, (name, target), keep)
        return (images, num_workers) if kept is None else (kept, 0)


def _once(known: dict[tuple[str, str], Any], key: tuple[str, str], make: Callable[[], Any]) -> Any:
    """What `make` gave on all ranks at the first call; the error that it raised then is raised again."""
    if key not in known:
        try:
            known[key] = on_all_ranks(make)
        except (InputError, OSError) as error:
            known[key] = error
    if isinstance(known[key], Exception):
        raise known[key]
    return known[key]
