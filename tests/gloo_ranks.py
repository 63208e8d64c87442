"""Runs a function on several ranks that gloo connects, in processes that share one import of torch."""

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(function: Callable, worlds: Sequence[int], folder: Path, *arguments: object) -> dict[int, list[Any]]:
    """For each number of ranks in `worlds`, what function(*arguments) returns on each of them. folder: an empty one."""
    multiprocessing.set_forkserver_preload(["torch"])  # importing it takes most of the time
    mp.start_processes(_work, (function, worlds, folder, arguments), max(worlds), start_method="forkserver")
    return {world: [torch.load(_result(folder, world, number)) for number in range(world)] for world in worlds}


def _work(number: int, function: Callable, worlds: Sequence[int], folder: Path, arguments: Sequence[object]) -> None:
    """Take part, as this process number, in each group that has as many ranks."""
    torch.set_num_threads(1)
    for world in worlds:
        if number < world:
            address = f"file://{folder}/init{world}"
            dist.init_process_group("gloo", init_method=address, rank=number, world_size=world)
            torch.save(function(*arguments), _result(folder, world, number))
            dist.barrier()
            dist.destroy_process_group()


def _result(folder: Path, world: int, number: int) -> Path:
    return folder / f"{world}_{number}.pt"
