"""Find the rank that died or hangs. Each rank regularly writes what it is doing to a store that all ranks can read."""

import json
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from utils.errors import InputError

INTERVAL = 1.0  # seconds between two heartbeats
SILENCE = 4 * INTERVAL  # seconds without a heartbeat, after which a process counts as dead or stopped
LATE = 60.0  # seconds, at most, by which some ranks may notice a failed collective later than others


class RankLost(InputError):
    """A rank died or hangs. The message names the rank, its last step and what it was doing."""


class Activity(NamedTuple):
    """What a rank is doing. `number` counts activities; all ranks have the same activities in the same order.

    has_collectives: whether torch itself runs collectives during the activity, whose errors have no type of their own.
    """

    number: int
    step: int
    name: str
    has_collectives: bool
    since: float  # time.monotonic()


class Heartbeat:
    """A thread that writes the heartbeats of this rank to the store through which the ranks found each other.

    The thread also ends this process if another rank found that this one hangs. timeout: seconds after which a
    collective fails; attempt: a text that is new each time torchrun restarts the ranks, because it keeps the store.
    """

    def __init__(self, rank: int, ranks: int, timeout: float, attempt: str = "") -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))
        self._store = dist.PrefixStore(f"heartbeat{attempt}", store)
        self._host = f"{host}:{port}"
        self._rank, self._ranks, self._timeout = rank, ranks, timeout
        self._activity = Activity(0, 0, "starting", False, time.monotonic())
        self._stopped, self._activity_changed = threading.Event(), threading.Event()
        self._write(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def report_activity(self, step: int, name: str, has_collectives: bool = False) -> None:
        """Record that this rank begins an activity at `step`. All ranks must report the same ones in the same order."""
        self._activity = Activity(self._activity.number + 1, step, name, has_collectives, time.monotonic())
        self._activity_changed.set()

    def stop(self) -> None:
        """End the thread. Call it before the process ends."""
        self._stopped.set()
        self._activity_changed.set()
        self._thread.join(timeout=10)  # a thread that uses the store while Python exits would abort the process

    def find_lost_ranks(self, in_collective: bool) -> str | None:
        """After an error on this rank: which ranks caused it, in words, or None if this rank caused it itself.

        in_collective: whether the error is known to come from a collective. If not, other ranks count as the cause only
        if one of them died or ended, or if a collective of torch's own may have timed out in the current activity.
        Ranks that call this method never count as the cause. This takes SILENCE seconds, and ends a rank that hangs. If
        several ranks may hang, it takes up to LATE seconds more, until only one is left: ranks that began to wait later
        call this method later.
        """
        busy = time.monotonic() - self._activity.since
        in_collective = in_collective or (self._activity.has_collectives and busy >= self._timeout)
        deadline = time.monotonic() + SILENCE + min(LATE, self._timeout)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # report before the launcher ends the remaining ranks
        try:
            last = self._read()
            if ended := self._ranks_with("ended"):
                return "; ".join(_describe(r, last[r], "ended with an error of its own:") for r in ended)
            self._store.set(f"failed{self._rank}", "")
            while True:
                before = last
                time.sleep(SILENCE)
                last, failed = self._read(), self._ranks_with("failed")
                suspects = [r for r in range(self._ranks) if r not in failed]
                if hanging := self._ranks_with("must_end"):  # another rank found them; they may have ended since
                    break
                silent = [r for r in suspects if before[r].get("beat") == last[r].get("beat")]
                if silent:
                    return "; ".join(_describe(r, last[r], "died, or was stopped:") for r in silent)
                if not in_collective:
                    self._store.set(f"ended{self._rank}", "")
                    return None
                if len(suspects) < 2 or time.monotonic() >= deadline:
                    slowest = min((last[r]["activity"] for r in suspects), default=0)
                    hanging = [r for r in suspects if last[r]["activity"] == slowest]
                    for r in hanging:
                        self._store.set(f"must_end{r}", "")
                    break
        except (dist.DistError, RuntimeError):
            if not in_collective:
                return None
            return (
                f"the store through which the ranks find each other, on {self._host}, has ended, and with it torchrun "
                "and the ranks on that machine; see their output"
            )
        return "; or ".join(_describe(r, last[r], "hangs:") for r in hanging) or "a collective failed on all ranks"

    def _ranks_with(self, state: str) -> list[int]:
        """The ranks for which a rank has recorded this state in the store."""
        return [r for r in range(self._ranks) if self._store.check([f"{state}{r}"])]

    def _read(self) -> list[dict]:
        """The last heartbeat of each rank; {} for a rank without one."""
        return [json.loads(self._store.get(str(r))) if self._store.check([str(r)]) else {} for r in range(self._ranks)]

    def _write(self, beat: int) -> None:
        """Write heartbeat number `beat` to the store, with the activity of this rank and its process."""
        now = self._activity
        activity = {"activity": now.number, "step": now.step, "name": now.name}
        activity["seconds"] = time.monotonic() - now.since
        process = {"host": socket.gethostname(), "pid": os.getpid()}
        self._store.set(str(self._rank), json.dumps({"beat": beat, **activity, **process}))

    def _run(self) -> None:
        beat = 0
        while not self._stopped.is_set():
            self._activity_changed.wait(INTERVAL)
            self._activity_changed.clear()
            beat += 1
            try:
                self._write(beat)
                if self._store.check([f"must_end{self._rank}"]):
                    message = f"error (rank {self._rank}): this rank hangs; see the output of the rank that found it"
                    print(message, file=sys.stderr, flush=True)
                    os._exit(1)
            except (dist.DistError, RuntimeError):
                return  # the store is gone, because the process that held it ended


def _describe(rank: int, last: dict, fate: str) -> str:
    """A description of a rank, for error messages: what happened to it (`fate`), and its last heartbeat."""
    if not last:
        return f"rank {rank} did not start"
    return (
        f"rank {rank} (process {last['pid']} on {last['host']}) {fate} last seen at step {last['step']}, "
        f"{last['seconds']:.0f} s into {last['name']}; see its own output, and for a killed process the kernel's log "
        "(out of memory?)"
    )
