"""Measures the times of alternatives in turns, because a shared machine is not equally fast at all times."""

import statistics
import time
from collections.abc import Callable

import torch

from utils.memory import keep_freed_memory


def median_seconds(
    alternatives: dict[str, Callable[[], object]], device: torch.device, rounds: int, calls: int = 1
) -> dict[str, float]:
    """Return the median seconds of one call of each alternative.

    Each round calls every alternative `calls` times. A first round is not counted.
    """
    if device.type == "cpu":
        keep_freed_memory()  # as training and evaluation do
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds + 1):
        for name, call in alternatives.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}
