"""Which rank caused an error: the heartbeats of three ranks in one process, with a store of their own."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from utils import heartbeat
from utils.heartbeat import Heartbeat


@pytest.fixture
def ended() -> threading.Event:
    """Set once a heartbeat ends its process."""
    return threading.Event()


@pytest.fixture
def ranks(monkeypatch, ended) -> Iterator[list[Heartbeat]]:
    """Three ranks in the same activity, with short times."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.05)
    monkeypatch.setattr(heartbeat, "SILENCE", 1.0)
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: ended.set())
    started = [Heartbeat(rank, 3, timeout=100.0) for rank in range(3)]
    for each in started:
        each.report_activity(7, "forward and backward", has_collectives=True)
    yield started
    for each in started:
        each.stop()


def find(*failing: Heartbeat, in_collective: bool) -> list[str | None]:
    """Call find_lost_ranks on these ranks at the same time, and return the results.

    The calls are not in the main thread, because there they would change how the tests react to signals.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda each: each.find_lost_ranks(in_collective), failing))


@pytest.mark.parametrize("in_collective", [True, False])
def test_a_rank_without_heartbeats_is_named(ranks, in_collective):
    ranks[1].stop()
    for found in find(ranks[0], ranks[2], in_collective=in_collective):
        assert found.startswith("rank 1 (process ") and "died, or was stopped: last seen at step 7" in found
        assert "into forward and backward" in found and "rank 0" not in found and "rank 2" not in found


def test_a_rank_that_hangs_is_named_and_ended(ranks, ended):
    for each in (ranks[0], ranks[2]):
        each.report_activity(8, "evaluation")
    for found in find(ranks[0], ranks[2], in_collective=True):
        assert found.startswith("rank 1 (process ") and "hangs: last seen at step 7" in found
    assert ended.wait(5)


def test_a_rank_that_notices_late_is_waited_for_and_not_named(ranks, ended):
    """Rank 2 began to wait 1.5 s later than rank 0, so its collective also fails 1.5 s later."""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ranks[0].find_lost_ranks, True)
        time.sleep(1.5)
        late = pool.submit(ranks[2].find_lost_ranks, True)
        for found in (first.result(), late.result()):
            assert found.startswith("rank 1 (process ") and "hangs" in found
            assert "rank 0" not in found and "rank 2" not in found
    assert ended.wait(5)


def test_a_rank_that_was_found_to_hang_and_has_ended_is_still_reported_as_hanging(ranks, ended):
    ranks[0]._store.set("must_end1", "")
    assert ended.wait(5)
    ranks[1].stop()
    for found in find(ranks[0], ranks[2], in_collective=True):
        assert found.startswith("rank 1 (process ") and "hangs" in found and "died" not in found


def test_two_ranks_that_hang_are_both_named_once_the_others_had_time_to_notice(ranks, monkeypatch):
    monkeypatch.setattr(heartbeat, "LATE", 1.0)
    (found,) = find(ranks[0], in_collective=True)
    assert "rank 1 (process " in found and "; or rank 2 (process " in found and "rank 0" not in found


def test_an_error_of_this_rank_alone_blames_no_other_rank(ranks, ended):
    assert find(ranks[0], in_collective=False) == [None]
    assert not ended.is_set()


def test_a_rank_that_ends_with_its_own_error_is_named_by_the_others(ranks):
    assert find(ranks[0], in_collective=False) == [None]
    for found in find(ranks[1], ranks[2], in_collective=True):
        assert found.startswith("rank 0 (process ") and "ended with an error of its own: last seen at step 7" in found


def test_the_same_error_on_all_ranks_blames_no_rank(ranks, ended):
    assert find(*ranks, in_collective=False) == [None] * 3
    assert not ended.is_set()


def test_an_error_after_the_timeout_of_a_collective_of_torchs_own_blames_the_ranks_that_did_not_come(ranks):
    ranks[0]._timeout = 0.0
    (found,) = find(ranks[0], in_collective=False)
    assert "rank 1 (process " in found and "rank 2 (process " in found and "hangs" in found


def test_an_error_after_long_work_without_collectives_blames_no_rank(ranks, ended):
    ranks[0]._timeout = 0.0
    ranks[0].report_activity(8, "evaluation")
    assert find(ranks[0], in_collective=False) == [None]
    assert not ended.is_set()


def test_the_same_error_on_some_ranks_first_blames_no_rank(ranks, ended):
    assert find(ranks[0], ranks[2], in_collective=False) == [None, None]
    assert not ended.is_set()


def test_a_collective_that_fails_on_all_ranks_is_reported_as_such(ranks):
    assert find(*ranks, in_collective=True) == ["a collective failed on all ranks"] * 3


def test_a_rank_that_never_started_is_named(ranks):
    ranks[0]._ranks = 4
    (found,) = find(ranks[0], in_collective=True)
    assert found == "rank 3 did not start"
