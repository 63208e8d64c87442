"""Two machines: two torchrun agents on this one, which find each other through a port and share the file system."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import LONG, ROOT
from evaluation_sets import FULL, flags, score
from runs import assert_same_checkpoint, descendants, heed_signals, metrics, send, tensors, train, wait_for_step

TRAIN = "train/train_AdaDistill.py"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def start_agents(tmp_path) -> Iterator[Callable[..., list[subprocess.Popen]]]:
    """start_agents(script, *arguments, restarts=0): start a script on two agents with one rank each.

    Agent i prints to `agent<i>.txt`. The first one has the store through which agents and ranks find each other.
    """
    agents: list[subprocess.Popen] = []

    def start(script: str, *arguments: str | Path, restarts: int = 0) -> list[subprocess.Popen]:
        port = free_port()
        for number in range(2):
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
                "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", f"--rdzv_conf=is_host={number == 0}",
                "--local_addr=127.0.0.1", f"--max-restarts={restarts}", str(ROOT / script), *map(str, arguments),
            ]  # fmt: skip
            with open(tmp_path / f"agent{number}.txt", "wb") as output:
                agents.append(
                    subprocess.Popen(
                        command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                        preexec_fn=heed_signals,
                    )
                )  # fmt: skip
        return agents

    yield start
    for agent in agents:
        if agent.poll() is None:
            send(signal.SIGKILL, [agent.pid, *descendants(agent.pid)])
            agent.wait()


def printed(folder: Path) -> list[str]:
    return [(folder / f"agent{number}.txt").read_text() for number in range(2)]


def require_success(agents: list[subprocess.Popen], folder: Path) -> None:
    assert [agent.wait(timeout=120) for agent in agents] == [0, 0], "\n".join(printed(folder))[-6000:]


@pytest.fixture(scope="module")
def settings(small_run) -> list[str]:
    more = ["batch_size=4", "val_eval_every_n_epoch=0", "checkpoint_every=4", "max_steps=12", "rank_timeout=20"]
    return [*small_run, *more, "shard_centers=on"]


@pytest.fixture(scope="module")
def one_machine(settings, tmp_path_factory) -> Path:
    """The output of a run with two ranks on one machine."""
    output = tmp_path_factory.mktemp("one_machine")
    train(TRAIN, settings, output, ranks=2)
    return output


@pytest.mark.parametrize("is_restarted", [True, *([False] if LONG else [])])
def test_a_run_on_two_machines_is_bit_equal_to_one_on_one_machine(
    start_agents, settings, one_machine, tmp_path, is_restarted
):
    """Also if a rank is killed: torchrun then starts the ranks of both machines again, and they resume together."""
    output = tmp_path / "run"
    agents = start_agents(TRAIN, *settings, f"output={output}", "resume=auto", restarts=1)
    if is_restarted:
        wait_for_step(agents[0], output, 60)
        send(signal.SIGKILL, descendants(agents[1].pid)[:1])
    require_success(agents, tmp_path)
    assert_same_checkpoint(one_machine, output, 12)
    assert metrics(output) == metrics(one_machine)
    first, second = printed(tmp_path)
    assert is_restarted == ("rank 1 (process " in first)
    assert "connectFullMesh" not in first + second and "did not find each other" not in first + second


@pytest.mark.parametrize("lost", [1, *([0] if LONG else [])])
def test_a_machine_that_is_lost_is_named_by_the_other_within_the_timeout(start_agents, settings, tmp_path, lost):
    """Without the first machine, the store is lost as well: then its address is all that is known."""
    endless = ["num_epoch=10000", "max_steps=60000", "checkpoint_every=0"]
    agents = start_agents(TRAIN, *settings, *endless, f"output={tmp_path / 'run'}")
    wait_for_step(agents[0], tmp_path / "run", 60)
    start = time.monotonic()
    send(signal.SIGKILL, [agents[lost].pid, *descendants(agents[lost].pid)])
    assert agents[1 - lost].wait(timeout=60) != 0
    assert time.monotonic() - start < 60, "the run ended long after the timeout"
    named = rf"rank 1 \(process \d+ on {socket.gethostname()}\) died" if lost else r"on 127\.0\.0\.1:\d+, has ended"
    assert re.search(rf"error \(rank {1 - lost}\): .*{named}", printed(tmp_path)[1 - lost])


def test_an_evaluation_on_two_machines_has_the_results_of_one_process(start_agents, root, checkpoints, tmp_path):
    arguments = ["--checkpoint", checkpoints / "5backbone.pth", *flags(root)]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    score(FULL, *arguments, "--results-json", one)
    require_success(start_agents(FULL, *arguments, "--results-json", two), tmp_path)
    first, second = (json.loads(path.read_text()) for path in (one, two))
    assert first.pop("about")["val_flip"] == second.pop("about")["val_flip"]  # it also states the number of ranks
    assert first["verification"] and first["ijb"] and first["tinyface"]
    first, second = (dict(tensors(content)) for content in (first, second))
    assert first.keys() == second.keys()
    for name, value in first.items():  # thresholds differ by rounding: other images are in a batch
        assert second[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
