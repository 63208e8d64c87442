"""The centers of a sharded head in a checkpoint: the folder <step>centers.dcp, with a safetensors file of each rank.

Torch's distributed checkpoint library (DCP) writes it on all ranks at once, and reads it on any number of ranks. The
tensors are `centers` [C, D] and, if they are trained with momentum, `momentum` [C, D].
"""

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from train.checkpoint import SHARDS, Shards
from utils.distributed import collective, from_all_ranks, on_all_ranks, on_rank_0, rank
from utils.errors import InputError, describe_error
from utils.files import sha256


def write_shards(output: str | os.PathLike, step: int, slices: dict[str, Tensor], classes: int) -> Shards:
    """Write slices [n, D] of all ranks to a temporary folder in `output`. Every rank must call it.

    classes: the number of rows of all slices of one name. Raises OSError on every rank.
    """
    folder = Path(output, f".{step}{SHARDS}.{on_rank_0(os.getpid)}.part")
    on_rank_0(lambda: shutil.rmtree(folder, ignore_errors=True))
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    tensors = {name: _part_of_whole(value.detach().cpu(), classes) for name, value in slices.items()}
    try:
        with _quiet(), collective():
            dcp.save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
        sums = {}
        for part in from_all_ranks(on_all_ranks(lambda: _own_sums(folder))):
            sums.update(part)
        on_rank_0(lambda: _require_files(folder, sums))
    except (CheckpointException, OSError) as error:
        on_rank_0(lambda: shutil.rmtree(folder, ignore_errors=True))
        raise (_as_os_error(error) if isinstance(error, CheckpointException) else error) from error
    return Shards(folder, sums)


def _own_sums(folder: Path) -> dict[str, str]:
    """The checksums of the files that this rank wrote, whose names have its number."""
    files = sorted(path for path in folder.glob("*.safetensors") if int(re.search(r"\d+", path.name)[0]) == rank() + 1)
    return {path.name: sha256(path) for path in files}


def _require_files(folder: Path, names: dict[str, str]) -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise OSError(
            f"{folder}: rank 0 does not see {', '.join(missing)}, which another rank wrote; with shard_centers, output "
            "must be a folder that all machines share"
        )


def read_shards(output: str | os.PathLike, step: int, owned: range | None) -> dict[str, Tensor]:
    """The rows `owned` of each tensor, or all rows if it is None, by name, in host memory. Every rank must call it.

    `owned` must be a split by `heads.sharded.owned_classes`. Raises InputError if files are broken.
    """
    folder = Path(output, f"{step}{SHARDS}")
    found = on_all_ranks(lambda: _described(folder))
    tensors = {}
    for name, tensor in found.items():
        rows, size = tensor.size
        own = torch.empty(rows if owned is None else len(owned), size, dtype=tensor.properties.dtype)
        tensors[name] = own if owned is None else _part_of_whole(own, rows)
    try:
        with _quiet(), collective():
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise InputError(f"{folder}: broken: {_as_os_error(error)}; resume from an older step") from error
    return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in tensors.items()}


def _described(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Shape and type of each tensor in the folder, by name. Raises InputError."""
    try:
        return HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # safetensors, json and torch have no common class of errors for broken files
        raise InputError(f"{folder}: broken ({error}); resume from an older step") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that a process alone saves or loads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _part_of_whole(rows: Tensor, classes: int) -> Tensor:
    """This rank's rows [n, D] as a part of a tensor [classes, D] that is split over the ranks."""
    if not dist.is_initialized():
        return rows
    mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu")
    shape, stride = (classes, rows.shape[1]), (rows.shape[1], 1)
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def _as_os_error(error: CheckpointException) -> OSError:
    """The ranks' errors in one line."""
    reasons = {f"rank {number}: {describe_error(failure)}" for number, (failure, _) in error.failures.items()}
    return OSError("; ".join(sorted(reasons)))
