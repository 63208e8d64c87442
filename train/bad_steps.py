"""Steps that are not finite: skipped and counted on the device, and given up after too many in a row."""

from collections import deque
from typing import Any

import torch
from easydict import EasyDict
from torch import Tensor, nn

from utils.distributed import mean_over_ranks
from utils.errors import InputError


class TrainingError(InputError):
    """Training cannot go on; the message says at which step, and where to look."""


def skippable_sgd(parameters: list[nn.Parameter], cfg: EasyDict) -> torch.optim.SGD:
    """torch's fused SGD by the config, for `step_unless`."""
    optimizer = torch.optim.SGD(parameters, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay, fused=True)
    if cfg.momentum:  # torch would begin it with the first gradient, and leave it undefined where that is skipped
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def step_unless(bad: Tensor, optimizer: torch.optim.SGD) -> None:
    """A step where `bad`, a bool [] on the device, is false; else weights and momenta stay. Nothing waits for it."""
    optimizer.found_inf = bad.float()  # how torch's loss scaling has fused optimisers skip
    optimizer.step()


class BadSteps:
    """Counts skipped steps. Nothing waits for the device: the count in a row is known some steps later on a GPU."""

    def __init__(self, largest: int, device: torch.device) -> None:
        self._largest, self._device = largest, device
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # in a row, in all
        self._keep_total = torch.tensor([0, 1], device=device)
        self._names: list[str] = []
        self._last: Tensor | None = None  # of the last good step: its number and `_names`
        self._under_way: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._in_a_row = 0

    @property
    def total(self) -> Tensor:
        """How many there were in all, int64 []."""
        return self._counts[1]

    def add(self, bad: Tensor, step: int, stats: dict[str, Tensor]) -> None:
        """Step number `step` is done; `bad`, a bool [], says whether it was skipped; stats: 0-d tensors by name."""
        self._counts = torch.where(bad, self._counts + 1, self._counts * self._keep_total)
        self._names = list(stats)
        now = torch.stack([torch.full_like(bad, step, dtype=torch.float32), *(v.float() for v in stats.values())])
        self._last = torch.where(bad, torch.full_like(now, torch.nan) if self._last is None else self._last, now)
        event = torch.cuda.Event() if self._device.type == "cuda" else None
        self._under_way.append((self._counts[0].to("cpu", non_blocking=True), event))
        if event is not None:
            event.record()

    def too_many(self, wait: bool = False) -> bool:
        """Whether more than `largest` steps in a row were bad, by what has arrived from the device, or by all of it."""
        while self._under_way and (wait or self._under_way[0][1] is None or self._under_way[0][1].query()):
            counted, event = self._under_way.popleft()
            if wait and event is not None:
                event.synchronize()
            self._in_a_row = int(counted)
        return self._in_a_row > self._largest

    def error(self, step: int) -> TrainingError:
        """What to raise at `step`. Every rank must call it."""
        last = mean_over_ranks(dict(zip(["step", *self._names], self._last, strict=True)))
        good = last.pop("step")
        shown = " ".join(f"{name} {value:.4g}" for name, value in last.items())
        finite = f"the last good one, {good:.0f}, had {shown}" if good == good else "none was good before"
        return TrainingError(
            f"step {step}: the loss or gradient of the last {int(self._counts[0])} steps was not finite, more than "
            f"max_bad_steps = {self._largest} in a row; they were skipped, and {finite}. Usual causes: a learning rate "
            "too high for the batch, float16 where bfloat16 would do, a teacher or images that are broken "
            "(tools/check_data.py). See docs/troubleshooting.md, NaN loss"
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"in_a_row": self._counts[0], "total": self._counts[1], "names": self._names, "last": self._last}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._counts = torch.stack([state["in_a_row"], state["total"]]).to(self._device)
        self._names = state["names"]
        self._last = None if state["last"] is None else state["last"].to(self._device)
