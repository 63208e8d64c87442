"""Ranks that torchrun started again agree on a new attempt, whatever the earlier ones left in the store."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch.distributed as dist

from utils.rendezvous import agree_on_attempt


def start(pool: ThreadPoolExecutor, store: dist.Store, *ranks: int, of: int) -> list[Future]:
    """Let these ranks call agree_on_attempt, each with a connection of its own."""
    connections = [dist.TCPStore("127.0.0.1", store.port, is_master=False) for _ in ranks]
    calls = zip(connections, ranks, strict=True)
    return [pool.submit(agree_on_attempt, connection, rank, of) for connection, rank in calls]


def test_all_ranks_get_one_text_and_another_one_in_the_next_attempt():
    store, attempts = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), []
    with ThreadPoolExecutor() as pool:
        for ranks in (3, 3, 2, 4):  # torchrun may restart fewer or more
            found = {call.result(10) for call in start(pool, store, *range(ranks), of=ranks)}
            assert len(found) == 1
            attempts += found
    assert len(set(attempts)) == 4


def test_a_rank_that_comes_late_is_waited_for_though_the_store_has_an_older_process_of_it():
    """Rank 2 of the last attempt ended; the new one is still importing torch."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor() as pool:
        earlier = {call.result(10) for call in start(pool, store, 0, 1, 2, of=3)}
        first = start(pool, store, 0, 1, of=3)
        time.sleep(0.3)
        assert not any(done.done() for done in first)
        late = start(pool, store, 2, of=3)
        found = {call.result(10) for call in [*first, *late]}
        assert len(found) == 1 and found != earlier
