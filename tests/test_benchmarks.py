"""The benchmarks at a small size: they run, and print the table that their figures are copied from."""

import sys

import pytest

from benchmarks import epoch, head, step
from benchmarks import input as reading

SMALL = ["teacher=cvlface_ir18", "width=0.125", "dtype=float32"]


@pytest.fixture
def table(monkeypatch, capsys):
    """Runs a benchmark with arguments; gives the rows of its table, a list of cells each, without the head."""

    def run(module, *arguments: str) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
        module.main()
        printed = capsys.readouterr().out
        assert "versions: Python" in printed and "device: " in printed
        rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
        return rows[1:]

    return run


def test_head(table):
    rows = table(head, "--batch=8", "--classes=3000", "--rounds=1", "--no-plain")
    assert [row[2] for row in rows] == ["the two products", "ours"]
    assert float(rows[1][4]) > 0 and float(rows[1][5]) < 0.1


def test_input(table):
    rows = table(reading, "--images=64", "--batch=16", "--workers", "1", "--rounds=1")
    assert [row[0] for row in rows] == ["OpenCV alone", "plain, 1 worker", "ours, 0 workers", "ours, 1 workers"]
    assert float(rows[0][2]) == 1 and all(float(row[2]) > 0 for row in rows)


def test_step(table):
    rows = table(step, *SMALL, "--batch=4", "--classes=50", "--rounds=1", "--teacher", "cached", "live")
    kinds = ["student alone", "ours", "plain"]
    assert [row[2:4] for row in rows] == [[teacher, kind] for teacher in ("cached", "live") for kind in kinds]
    assert all(float(row[6]) > 0 for row in rows)


def test_epoch(table):
    rows = table(epoch, "--images=12", "--classes=50", "--steps=3", "batch_size=4", *SMALL)
    assert [row[0] for row in rows] == ["plain, live teacher", "ours, live teacher", "ours, cached teacher"]
    rates, hours = ([float(row[column].replace(",", "")) for row in rows] for column in (1, 3))
    assert hours == pytest.approx([26 * 5_822_653 / 3600 / rate for rate in rates], rel=0.05)
