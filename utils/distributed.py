"""What the code knows about ranks: start and end, gathers, and the broadcast of rank 0's buffers."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import InputError
from utils.heartbeat import Heartbeat, RankLost

TIMEOUT = 1800.0  # seconds
_TO_JOIN = 300.0  # seconds for the ranks to find each other, which torchrun starts together
_LATER = 120.0  # seconds by which GPUs wait longer: what they wait for is to be told before NCCL ends the process
_heartbeat: Heartbeat | None = None
_host_group: dist.ProcessGroup | None = None  # for what goes through host memory; None: the default group


def rank() -> int:
    """This process's rank; 0 where there is one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the work; 1 where there is one."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(kind: str | None = None, timeout: float = TIMEOUT) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and leave them at the end; gives this rank's device.

    kind: "cpu" or "cuda"; None takes GPUs where there are some. GPUs use NCCL, one GPU a rank; CPUs use gloo.
    timeout: seconds after which a rank that the others wait for is given up. Raises RankLost, which names it, and
    InputError for a worker of a DataLoader that was killed.
    """
    global _heartbeat, _host_group
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = torch.cuda.is_available() if kind is None else kind == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise InputError("torch sees no GPU here: leave the device out, or name cpu")
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise InputError(
            f"rank {local_rank} of this machine has no GPU of its own: {torch.cuda.device_count()} visible; "
            "lower --nproc_per_node or widen CUDA_VISIBLE_DEVICES"
        )
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        limit = timedelta(seconds=timeout + _LATER * on_gpu)
        with _or_else_exit(min(timeout, _TO_JOIN)):
            backend, place = "cpu:gloo,cuda:nccl" if on_gpu else "gloo", _place_of_this_attempt()
            dist.init_process_group(backend, timeout=limit, **place)
            _host_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if on_gpu else None
        _heartbeat = Heartbeat(rank(), world_size())
    try:
        yield device
    except RuntimeError as error:
        if "DataLoader worker" in str(error):  # torch raises it wherever this process is
            raise InputError(
                f"{str(error).rstrip('. ')}; where memory is short (dmesg tells), lower num_workers"
            ) from error
        if _heartbeat is None or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise RankLost(_heartbeat.verdict()) from error
    finally:
        if _heartbeat is not None:
            _heartbeat.stop()
    if dist.is_initialized():  # not after an error: the other ranks may be inside a collective
        dist.destroy_process_group()
        _heartbeat = _host_group = None


def _place_of_this_attempt() -> dict[str, Any]:
    """Where the ranks find each other, in words of init_process_group.

    torchrun keeps its store when it starts ranks again, and with it the addresses of those that ended: each attempt
    gets names of its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False)
    attempt = f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    numbers = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    return {"store": dist.PrefixStore(attempt, store), **numbers}


@contextmanager
def _or_else_exit(seconds: float) -> Iterator[None]:
    """End this process where the block takes longer."""

    def give_up() -> None:
        where = f"error (rank {os.environ.get('RANK')})"
        print(f"{where}: the ranks did not find each other within {seconds:.0f} s", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def report_activity(step: int, what: str) -> None:
    """This rank begins with `what` at `step`: what the others say of it should it hang or die. Alike on all ranks."""
    if _heartbeat is not None:
        _heartbeat.report_activity(step, what)


def all_gather(tensor: Tensor) -> Tensor:
    """[n, ...] of each rank -> [ranks * n, ...], in rank order; no gradient flows. Shapes must be equal."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def mean_over_ranks(values: dict[str, Tensor]) -> dict[str, float]:
    """0-d tensors by name -> their means over ranks as numbers; the same on every rank."""
    stacked = torch.stack([value.detach().double() for value in values.values()])
    if world_size() > 1:
        dist.all_reduce(stacked)
    return dict(zip(values, (stacked / world_size()).tolist(), strict=True))


def barrier() -> None:
    """Wait until every rank is here; not for what GPUs are still doing."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1), group=_host_group)


def from_rank_0(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_rank_0(function: Callable[[], Any]) -> Any:
    """What `function` gives on rank 0, on every rank; an InputError or OSError that it raises, every rank raises."""
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
    """What `function` gives on this rank; an InputError or OSError that it raises on some rank, every rank raises.

    So a file that only one rank finds broken leaves no other waiting. Every rank must call it.
    """
    result, error = None, None
    try:
        result = function()
    except (InputError, OSError) as caught:
        error = caught
    if world_size() > 1:
        errors = [None] * world_size()
        dist.all_gather_object(errors, error)
        error = next((one for one in errors if one is not None), None)
    if error is not None:
        raise error
    return result


@torch.no_grad()
def broadcast_buffers(module: nn.Module) -> None:
    """Overwrite the buffers of every rank with rank 0's."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


class Agreement:
    """Lets all ranks learn of the wishes of any of them in the same step, without waiting for the device.

    They are posted at the start of a step, summed in host memory beside it, and read at the step's end.
    """

    def post(self, *wishes: bool) -> None:
        """This rank's wishes; every rank must post in every step, as many."""
        self._wishes = torch.tensor(wishes, dtype=torch.int32)
        self._work = dist.all_reduce(self._wishes, group=_host_group, async_op=True) if world_size() > 1 else None

    def read(self) -> list[bool]:
        """True for each wish that some rank has."""
        if self._work is not None:
            self._work.wait()
        return self._wishes.bool().tolist()
