"""The log of a run on a terminal, and the picture of its curves."""

import fcntl
import os
import re
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from train.curves import draw_curves
from train.run_log import RunLog

COLUMNS = 60


def written_to_terminal(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> str:
    """What `act` writes to standard output and error, which are a pseudo terminal."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, COLUMNS, 0, 0))
    with open(slave, "w", encoding="utf-8") as out, open(os.dup(slave), "w", encoding="utf-8") as error:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", error)
            act()
        written = os.read(master, 1 << 16).decode()
    os.close(master)
    return written


def rows_on_screen(written: str) -> list[str]:
    """What a terminal shows after it received this text: its rows, without spaces at their ends."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\r|\n|\x1b\[A|[^\r\n\x1b]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif part == "\x1b[A":
            row -= 1
        else:
            rows[row] = rows[row].ljust(column)[:column] + part + rows[row][column + len(part) :]
            column += len(part)
    return [text.rstrip() for text in rows]


def test_lines_of_the_log_stand_above_the_progress_bar(monkeypatch, tmp_path: Path):
    def train() -> None:
        log = RunLog(tmp_path, total_steps=3)
        log.open(0)
        log.line("before")
        for step in (1, 2, 3):
            log.advance()
            log.postfix(loss=f"{step}")
            log.line(f"step {step}\nmore")
        log.close()

    *rows, bar, end = rows_on_screen(written_to_terminal(monkeypatch, train))
    texts = [re.sub(r"^\d{4}-\S+ \S+ ", "", row) for row in rows]
    assert texts == ["before", "step 1", "more", "step 2", "more", "step 3", "more"]
    assert bar.startswith("training: 100%") and "3/3" in bar and "loss=3" in bar and len(bar) <= COLUMNS and not end


def test_curves_have_titles_and_no_panel_of_zeros():
    entries = [
        {"step": step, "kind": "training", "epoch": 0.1, "loss": 9 - step, "grad_norm": step, "bad_steps": 0, "time": 5}
        for step in (1, 2)
    ]
    entries.append({"step": 2, "kind": "evaluation", "verification.lfw.Accuracy-Flip": 0.9})
    figure = draw_curves("my_run", entries)
    assert [axes.get_title() for axes in figure.axes if axes.lines] == ["loss", "grad_norm", "accuracy [%]"]
    assert figure.get_suptitle() == "my_run: curves of the run"
    assert figure.get_supxlabel() == "step (always 0, not drawn: bad_steps)"
    assert draw_curves("empty", []).get_supxlabel() == "step"
