"""Ranks: how they start and end, and the collectives that the repository uses."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import InputError, WorkerError
from utils.heartbeat import Heartbeat, RankLost
from utils.memory import keep_freed_memory
from utils.precision import forbid_tf32
from utils.rendezvous import find_ranks

TIMEOUT = 1800.0  # seconds
JOIN_TIMEOUT = 300.0  # seconds for the ranks, which torchrun starts together, to find each other
NCCL_EXTRA = 120.0  # seconds added to NCCL's timeout, so that gloo reports a lost rank before NCCL ends the process
# Newer versions of torch renamed it, and warn of the old name.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_heartbeat: Heartbeat | None = None
_host_group: dist.ProcessGroup | None = None  # for tensors in host memory; None: the default group
_watched: list[BaseProcess] = []  # worker processes of this process


class CollectiveError(RuntimeError):
    """A collective failed, because another rank ended or did not take part in time."""


@contextmanager
def collective() -> Iterator[None]:
    """Raise CollectiveError if a collective of torch in this block fails."""
    try:
        yield
    except RuntimeError as error:  # gloo has no error type of its own
        raise CollectiveError(str(error)) from error


def watch_workers(processes: Iterable[BaseProcess]) -> None:
    """Remember these workers instead of those of the last call."""
    _watched[:] = processes


def killed_worker() -> str | None:
    """A message about a worker that was killed or failed; None if all are running or ended normally."""
    for process in _watched:
        if process.exitcode:  # None while it runs, negative after a signal
            end = f"was killed by signal {-process.exitcode}" if process.exitcode < 0 else "failed"
            hint = "if memory was short (see dmesg), lower num_workers"
            if process.exitcode == -signal.SIGBUS:
                hint = "a data file was cut short while it was being read: fetch the data set again"
            return f"the worker process {process.pid} {end}; {hint}"
    return None


def rank() -> int:
    """The rank of this process; 0 if there is no process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks; 1 if there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_share() -> slice:
    """The share of this rank, among the ranks of its machine, in work that each machine does once: items[share]."""
    return slice(int(os.environ.get("LOCAL_RANK", 0)), None, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextmanager
def process_group(device: str | None = None, timeout: float = TIMEOUT) -> Iterator[torch.device]:
    """Join the other ranks if torchrun started this process, and leave them at the end. Yields this rank's device.

    device: "cpu" or "cuda"; None: GPUs if there are any. Ranks on GPUs use NCCL, one GPU per rank; ranks on CPUs use
    gloo. On GPUs, float32 is computed without TF32. timeout: seconds that ranks wait for each other in a collective.
    Raises RankLost if another rank died or hangs, WorkerError if a worker process was killed, and InputError if this
    rank cannot use the device.
    """
    global _heartbeat, _host_group
    own_device = _choose_device(device)
    if own_device.type == "cpu":
        keep_freed_memory()
    forbid_tf32()
    if "WORLD_SIZE" in os.environ:
        _join(own_device.type == "cuda", timeout)
    try:
        yield own_device
    except (torch.OutOfMemoryError, WorkerError):
        raise
    except RuntimeError as error:
        if killed := killed_worker():  # torch then raises a RuntimeError, at any point of the program
            raise WorkerError(killed) from error
        in_collective = isinstance(error, CollectiveError | dist.DistError)
        lost = _heartbeat.find_lost_ranks(in_collective) if _heartbeat is not None else None
        if lost is None:
            raise
        if not in_collective:
            traceback.print_exception(error)  # it may be an error of this program after all
        raise RankLost(lost if in_collective else f"{lost}. This rank ended with: {error}") from error
    finally:
        if _heartbeat is not None:
            _heartbeat.stop()
    if dist.is_initialized():  # not after an error: the other ranks may be inside a collective
        dist.destroy_process_group()
        _heartbeat = _host_group = None


def _choose_device(kind: str | None) -> torch.device:
    """This rank's device. Raises InputError."""
    if kind == "cpu" or (kind is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("torch sees no GPU here: leave the device out, or name cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"rank {local_rank} of this machine has no GPU of its own: {torch.cuda.device_count()} visible; "
            "lower --nproc_per_node or widen CUDA_VISIBLE_DEVICES"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _join(on_gpu: bool, timeout: float) -> None:
    """Find the other ranks, and start the heartbeat of this rank."""
    global _heartbeat, _host_group
    limit = timedelta(seconds=timeout + NCCL_EXTRA * on_gpu)
    with _exit_after(min(timeout, JOIN_TIMEOUT)):
        where, attempt = find_ranks()
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=limit, **where)
        _host_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if on_gpu else None
    _heartbeat = Heartbeat(rank(), world_size(), timeout, attempt)


@contextmanager
def _exit_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer than `seconds`. The calls of torch in it cannot be interrupted."""

    def end() -> None:
        name = f"error (rank {os.environ.get('RANK')})"
        print(f"{name}: the ranks did not find each other within {seconds:.0f} s", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def report_activity(step: int, name: str, has_collectives: bool = False) -> None:
    """Record what this rank is doing at `step`, for the report if it hangs or dies. Call it on every rank.

    has_collectives: whether torch itself runs collectives during the activity, as DistributedDataParallel does.
    """
    if _heartbeat is not None:
        _heartbeat.report_activity(step, name, has_collectives)


def all_gather(tensor: Tensor) -> Tensor:
    """[n, ...] of each rank -> [ranks * n, ...], in the order of ranks, without gradient. All shapes must be equal."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with collective():
        dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_gather_rows(*tensors: Tensor) -> list[Tensor]:
    """`all_gather` of several tensors [n, ...] in one collective. Their types and sizes of rows may differ."""
    if world_size() == 1:
        return [tensor.detach() for tensor in tensors]
    rows = [tensor.detach().reshape(len(tensor), -1).view(torch.uint8) for tensor in tensors]
    gathered = all_gather(torch.cat(rows, 1)).split([row.shape[1] for row in rows], 1)
    return [
        part.contiguous().view(tensor.dtype).view(-1, *tensor.shape[1:])
        for part, tensor in zip(gathered, tensors, strict=True)
    ]


def mean_over_ranks(values: dict[str, Tensor]) -> dict[str, float]:
    """0-d tensors by name -> their means over the ranks, on every rank."""
    stacked = torch.stack([value.detach().double() for value in values.values()])
    if world_size() > 1:
        with collective():
            dist.all_reduce(stacked)
    return dict(zip(values, (stacked / world_size()).tolist(), strict=True))


def sum_over_ranks(tensor: Tensor) -> None:
    """In place, the sum of a tensor over the ranks, on every rank. Shapes must be equal."""
    if world_size() > 1:
        with collective():
            dist.all_reduce(tensor)


def max_of_ranks(tensor: Tensor) -> Tensor:
    """The elementwise maximum of a tensor over the ranks, on every rank. Shapes must be equal."""
    largest = tensor.clone()
    if world_size() > 1:
        with collective():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def rows_of_sum(tensor: Tensor) -> Tensor:
    """This rank's rows [B, ...] of the sum over the ranks of tensors [ranks * B, ...]."""
    if world_size() == 1:
        return tensor
    rows = torch.empty_like(tensor[: len(tensor) // world_size()])
    with collective():
        _reduce_scatter(rows, tensor.contiguous())
    return rows


def rows_on_rank_0(rows: Tensor, total: int) -> Tensor | None:
    """All ranks' rows [n, ...], `total` of them, one after another, on the CPU of rank 0; None on the other ranks."""
    rows = rows.detach().cpu().contiguous()
    if world_size() == 1:
        return rows
    counts = from_all_ranks(len(rows))
    with collective():
        if rank() != 0:
            dist.send(rows, 0, group=_host_group)
            return None
        result = rows.new_empty(total, *rows.shape[1:])
        for source, part in enumerate(result.split(counts)):
            part.copy_(rows) if source == 0 else dist.recv(part, source, group=_host_group)
    return result


def max_over_ranks(number: int) -> int:
    """The largest of the ranks' numbers, on every rank."""
    return int(max_of_ranks(torch.tensor([number])))


def barrier() -> None:
    """Wait until every rank has called this. Does not wait for GPUs."""
    if world_size() > 1:
        with collective():
            dist.all_reduce(torch.zeros(1), group=_host_group)


def from_rank_0(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    with collective():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def on_rank_0(function: Callable[[], Any]) -> Any:
    """Call `function` on rank 0. Every rank returns its value, or raises the InputError or OSError that it raised."""
    result = None
    if rank() == 0:
        try:
            result = function()
        except (InputError, OSError) as error:
            result = error
    result = from_rank_0(result)
    if isinstance(result, Exception):
        raise result
    return result


def on_all_ranks(function: Callable[[], Any]) -> Any:
    """Call `function` on every rank and return this rank's value. Every rank must call this.

    An InputError, OSError or KeyboardInterrupt on any rank is raised on every rank, so that no rank waits for one that
    has left.
    """
    result, error = None, None
    try:
        result = function()
    except (InputError, OSError, KeyboardInterrupt) as caught:
        error = caught
    error = next((e for e in from_all_ranks(error) if e is not None), None)
    if error is not None:
        raise error
    return result


def from_all_ranks(value: Any) -> list[Any]:
    """The values of all ranks, in their order, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        with collective():
            dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast_buffers(module: nn.Module) -> None:
    """Overwrite the buffers of the module with those of rank 0."""
    if world_size() > 1:
        with collective():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


class Agreement:
    """Tells all ranks, in the same step, which requests any rank made. It does not wait for the device.

    Requests (for example to stop) are posted at the start of a step, summed in host memory, and read at its end.
    """

    def __init__(self) -> None:
        self._requests = torch.zeros(0, dtype=torch.int32)
        self._work: dist.Work | None = None

    def post(self, *requests: bool) -> None:
        """This rank's requests. Every rank must post the same number of them in every step."""
        self._requests = torch.tensor(requests, dtype=torch.int32)
        self._work = None
        if world_size() > 1:
            with collective():
                self._work = dist.all_reduce(self._requests, group=_host_group, async_op=True)

    def read(self) -> list[bool]:
        """For each request, whether any rank made it."""
        if self._work is not None:
            with collective():
                self._work.wait()
        return self._requests.bool().tolist()
