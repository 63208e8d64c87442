"""Clocks: images per second come from the time that passed; a system clock that jumps back changes no result."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import assert_same_checkpoint, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import std as tqdm_std

from config import load_config
from data.dataset import build_dataset
from train import loop, run_log
from train.loop import Trainer
from train.run_log import RunLog
from train.tasks import Standalone

SHORT = [
    "batch_size=4",
    "accumulate_steps=2",
    "num_workers=0",
    "val_targets=[]",
]  # 8 images per step, 6 steps per epoch


def train(settings: list[str], output: Path, *more: str) -> None:
    """Train in this process, whose clocks a test can replace."""
    cfg = load_config(overrides=[*settings, *SHORT, f"output={output}", *more])
    dataset = build_dataset(cfg)
    Trainer(cfg, Standalone(cfg, torch.device("cpu")), dataset, torch.device("cpu")).run()


def logged_rates(folder: Path) -> dict[str, float]:
    """Images per second by step, from the log."""
    lines = [line.split() for line in (folder / "training.log").read_text().splitlines() if " step " in line]
    return {line[line.index("step") + 1]: float(line[-1]) for line in lines if "images/s" in line}


def test_images_per_second_are_the_images_of_all_passes_and_ranks_over_the_time_since_the_last_line(
    small_run, tmp_path, monkeypatch
):
    seconds = itertools.count(step=2.0)  # 2 s between two readings of the clock
    monkeypatch.setattr(run_log, "time", SimpleNamespace(perf_counter=seconds.__next__, time=time.time))
    train(small_run, tmp_path, "log_every=3", "max_steps=7")
    assert logged_rates(tmp_path) == {"3": 3 * 8 / 2, "6": 3 * 8 / 2, "7": 1 * 8 / 2}


def test_images_per_second_include_the_time_in_which_the_device_finishes_its_steps(small_run, tmp_path, monkeypatch):
    """The host waits for a GPU when it reads the statistics of a step. Here, only this wait takes time: 4 s."""
    now = [0.0]

    def read_later(values: dict[str, torch.Tensor]) -> dict[str, float]:
        now[0] += 4
        return {name: float(value) for name, value in values.items()}

    monkeypatch.setattr(run_log, "time", SimpleNamespace(perf_counter=lambda: now[0], time=time.time))
    monkeypatch.setattr(loop, "mean_over_ranks", read_later)
    train(small_run, tmp_path, "max_steps=2", "log_every=1")
    assert logged_rates(tmp_path) == {"1": 8 / 4, "2": 8 / 4}


def test_a_run_under_a_clock_that_jumps_back_gives_the_same_result(small_run, tmp_path, monkeypatch):
    train(small_run, tmp_path / "steady", "max_steps=7")
    now, advance = [time.time()], RunLog.advance

    def jump_and_advance(log: RunLog) -> None:
        now[0] -= 3600
        advance(log)

    monkeypatch.setattr(RunLog, "advance", jump_and_advance)  # every step jumps back by an hour
    for module in (time, tqdm_std):
        monkeypatch.setattr(module, "time", lambda: now[0])
    train(small_run, tmp_path / "back", "max_steps=4")
    train(small_run, tmp_path / "back", "max_steps=7", "resume=auto")
    assert_same_checkpoint(tmp_path / "steady", tmp_path / "back", 7)
    assert metrics(tmp_path / "steady") == metrics(tmp_path / "back")
    losses = EventAccumulator(str(tmp_path / "back" / "tensorboard")).Reload().Scalars("training/loss")
    assert [event.step for event in losses] == list(range(1, 8))


@pytest.mark.parametrize("jump", [5, 0, -3600])
def test_tensorboard_shows_the_resumed_part_also_after_the_clock_has_jumped_back(tmp_path, monkeypatch, jump):
    start = time.time()
    for run, (first, last) in enumerate([(0, 10), (6, 12), (8, 11)]):
        monkeypatch.setattr(time, "time", lambda run=run: start + jump * run)
        log = RunLog(tmp_path, 12)
        log.open(first)
        for step in range(first + 1, last + 1):
            log.metrics(step, "training", {"loss": 10.0 * run + step})
        log.close()
    losses = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("training/loss")
    expected = {step: step + 10 * ((step > 6) + (step > 8)) for step in range(1, 12)}
    assert {event.step: event.value for event in losses} == expected and len(losses) == 11
