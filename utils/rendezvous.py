"""Where the ranks find each other, also after torchrun has restarted them on several machines."""

import os
import time
import uuid
from typing import Any

import torch.distributed as dist


def find_ranks() -> tuple[dict[str, Any], str]:
    """The arguments of init_process_group, and a text that is the same on all ranks and new in each attempt.

    An attempt is the time from a start of the ranks to their next restart. torchrun keeps its store in between, with
    the addresses of the ranks that ended, so each attempt uses a prefix of its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # then rank 0 makes a new store
        return {}, ""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    numbers = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    attempt = agree_on_attempt(dist.PrefixStore("attempts", store), numbers["rank"], numbers["world_size"])
    return {"store": dist.PrefixStore(attempt, store), **numbers}, attempt


def agree_on_attempt(store: dist.Store, rank: int, ranks: int) -> str:
    """A text that all ranks of this attempt get, and no others. Waits until all of them have called this.

    The store may have entries of earlier attempts. torchrun's TORCHELASTIC_RESTART_COUNT is no such text: it counts the
    failures of one machine only.

    Each process announces itself. Rank 0 invites those that it finds, which may have ended. A process accepts only an
    invitation to itself. When all have accepted, they start.
    """
    own = uuid.uuid4().hex
    store.set(f"process{rank}", own)
    names = ("process", "invitation", "acceptance")
    processes, invitations, accepted = ([f"{name}{r}" for r in range(ranks)] for name in names)
    invited: list[bytes] = []
    while True:
        if rank == 0:
            invited = [process + b" " + own.encode() for process in store.multi_get(processes)]
            store.multi_set(invitations, invited)
        invitation = store.get(invitations[rank]).decode()  # waits for the first one
        if invitation.startswith(own):
            store.set(accepted[rank], invitation)
            if rank == 0 and store.check(accepted) and store.multi_get(accepted) == invited:
                store.set("start", own)
            attempt = invitation.split()[1]
            if store.check(["start"]) and store.get("start").decode() == attempt:
                return attempt
        time.sleep(0.02)
