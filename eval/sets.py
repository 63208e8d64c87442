"""Evaluation sets: where each one is and how it is embedded, and a cache that opens and decodes each one only once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.images import SIZE
from eval.embeddings import DecodedImages
from utils.distributed import on_all_ranks, rank
from utils.errors import InputError
from utils.files import checksum, size_text


class EvaluationSet(NamedTuple):
    """A set that the config names. It may not exist.

    protocol: the name of its benchmark in config/names.py; target: its name in the config key `<prefix>_targets`;
    paths: where it may be; the first path that exists is used; batch_size, num_workers and flip: how it is embedded;
    epochs_between: the number of epochs between its evaluations during training, 0 for never.
    """

    protocol: str
    target: str
    paths: tuple[Path, ...]
    batch_size: int
    num_workers: int
    flip: bool
    epochs_between: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """(protocol, target), which no other set of the config has."""
        return self.protocol, self.target

    @property
    def result_name(self) -> str:
        """What result names, messages and file names of this set begin with, such as "verification.lfw"."""
        return f"{self.protocol}.{self.target}"

    def find(self) -> Path | None:
        """The path of the set; None if it does not exist."""
        return next((path for path in self.paths if os.path.exists(path)), None)

    def version(self) -> dict[str, Any]:
        """What the results of this set depend on, besides the network. The set must exist.

        files: a checksum of the names, sizes and modification times of its files; it changes when the set changes, but
        not when it is moved.
        """
        path = self.find()
        files = [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]
        stated = sorted(
            (str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
            if file.is_file()
        )
        return {"files": checksum([repr(stated).encode()]), "flip": self.flip}

    def describe_absent(self) -> str:
        """How results name this set if it does not exist: with the first of its possible paths."""
        return f"{self.result_name}: {self.paths[0]}"


class SetCache:
    """Keeps opened sets, and decoded images as far as the memory allows, from one checkpoint to the next.

    cache_gb: how many 10^9 bytes of decoded images all ranks of a machine keep together; each rank keeps its share.
    """

    def __init__(self, cache_gb: float = 0.0) -> None:
        self._bytes_left = int(cache_gb * 1e9)
        self._opened: dict[EvaluationSet, Any] = {}
        self._decoded: dict[EvaluationSet, Any] = {}

    def open(self, evaluation_set: EvaluationSet, opener: Callable[[Path], Any], path: Path) -> Any:
        """The images of the set. The first call runs opener(path) on all ranks. Raises its error, at every call, if
        the set is broken."""
        return _remember(self._opened, evaluation_set, lambda: opener(path))

    def decoded(self, evaluation_set: EvaluationSet) -> tuple[Any, int]:
        """(images, number of worker processes) for `embed`, of a set that `open` has opened.

        If the memory is large enough, the first call decodes the whole set on all ranks, and no workers are needed
        afterwards. It raises an error if an image is broken.
        """
        images = self._opened[evaluation_set]

        def decode() -> DecodedImages | None:
            size = len(images) * SIZE * SIZE * 3
            target = evaluation_set.target
            if size <= self._bytes_left:
                self._bytes_left -= size
                return DecodedImages(images, evaluation_set.batch_size, evaluation_set.num_workers, target)
            if self._bytes_left and rank() == 0:
                tqdm.write(
                    f"{target}: {size_text(size)} decoded, more than is left of --cache-gb; "
                    "it is decoded again for every checkpoint"
                )
            return None

        decoded = _remember(self._decoded, evaluation_set, decode)
        return (images, evaluation_set.num_workers) if decoded is None else (decoded, 0)


def _remember(results: dict[EvaluationSet, Any], evaluation_set: EvaluationSet, make: Callable[[], Any]) -> Any:
    """The result of make(), which all ranks run at the first call only. Its error is remembered and raised again."""
    if evaluation_set not in results:
        try:
            results[evaluation_set] = on_all_ranks(make)
        except (InputError, OSError) as error:
            results[evaluation_set] = error
    if isinstance(results[evaluation_set], Exception):
        raise results[evaluation_set]
    return results[evaluation_set]
