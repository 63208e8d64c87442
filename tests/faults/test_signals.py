"""Signals: during an evaluation they end the run at once; SIGHUP saves, unless nohup made the run ignore it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from runs import assert_same_checkpoint, heed_signals, metrics, train
from test_interruption import descendants

TRAIN, FAULTY = "train/train_AdaDistill.py", "tests/faults/faulty_training.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def start(*command: str | Path, output: Path) -> subprocess.Popen:
    """Start a command that prints to a file beside `output`."""
    with open(output.with_suffix(".txt"), "ab") as printed:
        return subprocess.Popen(
            list(map(str, command)), stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=heed_signals,
        )  # fmt: skip


def wait_for(process: subprocess.Popen, output: Path, text: str) -> None:
    """Wait until the process has printed a text."""
    deadline = time.monotonic() + 120
    while text not in output.with_suffix(".txt").read_text():
        assert time.monotonic() < deadline and process.poll() is None, output.with_suffix(".txt").read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_evaluation_at_once_and_the_resumed_run_repeats_it(small_run, tmp_path, monkeypatch, number):
    settings, output = small_run, tmp_path / "run"
    monkeypatch.setenv("FAULT", "hang_evaluation:0:0:0")
    process = start(sys.executable, ROOT / FAULTY, *settings, f"output={output}", output=output)
    wait_for(process, output, "hangs in evaluation")
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == 128 + number
    printed = output.with_suffix(".txt").read_text()
    assert "stopped at step 6" in printed and "Traceback" not in printed
    assert (output / "6sha256.txt").exists() and len(metrics(output)) == 6
    if number == signal.SIGHUP:
        train(TRAIN, settings, output, "resume=auto")
        train(TRAIN, settings, tmp_path / "uninterrupted")
        assert_same_checkpoint(tmp_path / "uninterrupted", output, 12)
        assert metrics(output) == metrics(tmp_path / "uninterrupted")


def test_a_closed_terminal_does_not_end_a_run_under_nohup(small_run, tmp_path):
    output = tmp_path / "run"
    process = start("nohup", sys.executable, ROOT / TRAIN, *small_run, f"output={output}", output=output)
    wait_for(process, output, "step 2 ")
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(timeout=100) == 0
    assert "done at step 12" in output.with_suffix(".txt").read_text()


def test_torchrun_under_nohup_passes_sighup_on_and_the_ranks_save(small_run, tmp_path):
    """torchrun handles SIGHUP, and so replaces what nohup has set."""
    output = tmp_path / "run"
    settings = [*small_run, "batch_size=4", "num_epoch=60", f"output={output}"]
    process = start("nohup", sys.executable, *TORCHRUN, ROOT / TRAIN, *settings, output=output)
    wait_for(process, output, "step 2 ")
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=60)
    step = max(line["step"] for line in metrics(output))
    assert (output / f"{step}sha256.txt").exists()
    assert f"stopped at step {step}" in output.with_suffix(".txt").read_text()


def test_torchrun_can_be_told_to_ignore_a_closed_terminal(small_run, tmp_path):
    """As docs/reliability.md says."""
    output = tmp_path / "run"
    ignoring = [*TORCHRUN, "--signals-to-handle=SIGINT,SIGTERM"]
    settings = [*small_run, "batch_size=4", f"output={output}"]
    process = start("nohup", sys.executable, *ignoring, ROOT / TRAIN, *settings, output=output)
    wait_for(process, output, "step 2 ")
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(timeout=100) == 0
    assert "done at step 12" in output.with_suffix(".txt").read_text()


def test_workers_end_with_a_main_process_that_is_killed_during_an_evaluation(small_run, tmp_path, monkeypatch):
    output = tmp_path / "run"
    monkeypatch.setenv("FAULT", "hang_evaluation:0:0:0")
    many = [*small_run, "val_batch_size=2", "val_num_workers=2"]  # the workers wait to hand over their next batches
    process = start(sys.executable, ROOT / FAULTY, *many, f"output={output}", output=output)
    wait_for(process, output, "hangs in evaluation")
    time.sleep(1)
    workers = descendants(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)
    assert len(workers) >= 2


def test_a_signal_to_one_rank_during_an_evaluation_stops_all_ranks(small_run, tmp_path, monkeypatch):
    output = tmp_path / "run"
    monkeypatch.setenv("FAULT", "hang_evaluation:0:0:0")
    settings = [*small_run, "batch_size=4", "num_workers=0", "val_num_workers=0", f"output={output}"]
    process = start(sys.executable, *TORCHRUN, ROOT / FAULTY, *settings, output=output)
    wait_for(process, output, "hangs in evaluation")
    (rank_0,) = (p for p in descendants(process.pid) if b"\0RANK=0\0" in Path(f"/proc/{p}/environ").read_bytes())
    os.kill(rank_0, signal.SIGTERM)
    process.wait(timeout=60)
    printed = output.with_suffix(".txt").read_text()
    assert "stopped at step 6" in printed and "error (rank" not in printed, printed
