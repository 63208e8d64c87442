"""Who hangs, who died: each rank leaves a sign of life and what it is doing where the others can read it."""

import json
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from utils.errors import InputError

INTERVAL = 1.0  # seconds between signs of life
_PATIENCE = 4 * INTERVAL  # without one, a process is dead or stopped


class RankLost(InputError):
    """A rank died or hangs; the message names it, its last step and what it was doing."""


class Heartbeat:
    """Signs of life of this rank, by a thread, in the store through which the ranks found each other.

    A rank whose main thread hangs ends itself once another rank has given it up.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))
        # A restart by torchrun finds the store as the try before left it.
        self._store = dist.PrefixStore(f"heartbeat{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        self._rank, self._ranks = rank, ranks
        self._now = (0, 0, "starting", time.monotonic())  # marks so far, step, what, since
        self._stopped, self._news = threading.Event(), threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def report_activity(self, step: int, what: str) -> None:
        """This rank begins with `what` at `step`; every rank must say the same in the same order."""
        self._now = (self._now[0] + 1, step, what, time.monotonic())
        self._news.set()

    def stop(self) -> None:
        """End the thread: the process is about to."""
        self._stopped.set()
        self._news.set()
        self._thread.join(timeout=10)  # one that is in the store when Python ends would abort the process

    def verdict(self) -> str:
        """To be called where a collective failed: which rank is to blame, found within some seconds. A rank that hangs
        is ended by it. Those that call it too are not to blame."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends the ranks that are left: not yet
        try:
            self._store.set(f"failed{self._rank}", "")
            before = self._read()
            time.sleep(_PATIENCE)
            after = self._read()
            suspects = [r for r in range(self._ranks) if not self._store.check([f"failed{r}"])]
            silent = [r for r in suspects if before[r].get("beat") == after[r].get("beat")]
            if silent:
                return "; ".join(_words(r, after[r], "died, or was stopped:") for r in silent)
            last = min((after[r]["marks"] for r in suspects), default=0)
            behind = [r for r in suspects if after[r]["marks"] == last]
            for r in behind:
                self._store.set(f"given up{r}", "")
        except (dist.DistError, RuntimeError):
            return "another rank ended, and with it the store by which ranks find each other: see its own error"
        return "; or ".join(_words(r, after[r], "hangs:") for r in behind) or "a collective failed on all ranks"

    def _read(self) -> list[dict]:
        return [json.loads(self._store.get(str(r))) if self._store.check([str(r)]) else {} for r in range(self._ranks)]

    def _beat(self, number: int) -> None:
        marks, step, what, since = self._now
        about = {"beat": number, "marks": marks, "step": step, "what": what, "seconds": time.monotonic() - since}
        place = {"host": socket.gethostname(), "pid": os.getpid()}
        self._store.set(str(self._rank), json.dumps({**about, **place}))

    def _run(self) -> None:
        number = 0
        while not self._stopped.is_set():
            self._news.wait(INTERVAL)
            self._news.clear()
            number += 1
            try:
                self._beat(number)
                if self._store.check([f"given up{self._rank}"]):
                    print(
                        f"error (rank {self._rank}): given up by another rank, see there", file=sys.stderr, flush=True
                    )
                    os._exit(1)
            except (dist.DistError, RuntimeError):
                return  # the store is gone: so is the rank or the launcher that holds it


def _words(rank: int, last: dict, fate: str) -> str:
    if not last:
        return f"rank {rank} did not start"
    return (
        f"rank {rank} (process {last['pid']} on {last['host']}) {fate} last seen at step {last['step']}, "
        f"{last['seconds']:.0f} s into {last['what']}; see its own output, and for a killed process the kernel's log "
        "(out of memory?)"
    )
