"""Benchmarks run at a small size and print their tables; test_on_gpu.py runs the others."""

import sys

import pytest

from benchmarks import augmentation, disk, head, step
from benchmarks import input as reading
from data.augment import NUMBERS

SMALL = ["teacher=cvlface_ir18", "width=0.125", "dtype=float32"]


@pytest.fixture
def table(monkeypatch, capsys):
    """Runs a benchmark with arguments and returns the rows of its table as lists of cells, without the header."""

    def run(module, *arguments: str) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
        module.main()
        printed = capsys.readouterr().out
        assert "versions: Python" in printed and "device: " in printed
        rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
        return rows[1:]

    return run


def test_the_head_benchmark_prints_its_table(table):
    rows = table(head, "--batch=8", "--classes=3000", "--rounds=1", "--no-plain")
    assert [row[2] for row in rows] == ["the two products", "this repository"]
    assert float(rows[1][4]) > 0 and float(rows[1][5]) < 0.1


def test_the_head_benchmark_compares_sizes_of_blocks(table):
    rows = table(head, "--batch=8", "--classes=3000", "--rounds=1", "--no-plain", "--block", "1000", "2000")
    assert [row[2] for row in rows[1:]] == ["this repository, blocks of 1,000", "this repository, blocks of 2,000"]


def test_the_input_benchmark_prints_its_table(table):
    rows = table(reading, "--images=64", "--batch=16", "--workers", "1", "--rounds=1")
    assert [row[0] for row in rows] == [
        "OpenCV alone", "plain, 1 worker", "this repository, 0 workers", "this repository, 1 worker"
    ]  # fmt: skip
    assert float(rows[0][2]) == 1 and all(float(row[2]) > 0 for row in rows)


def test_the_disk_benchmark_prints_its_table(table, tmp_path):
    rows = table(disk, f"--folder={tmp_path}", "--images=20000", "--bytes=100", "--window=6000")
    every = [[f"blocks of {block}", "19,968", "2.0"] for block in (16, 4)]
    assert [row[:3] for row in rows] == [["permutation", "384", "0.0"], *every]
    assert all(float(row[4]) >= 0 for row in rows) and not list(tmp_path.iterdir())


def test_the_step_benchmark_prints_its_table(table):
    rows = table(step, *SMALL, "--batch=4", "--classes=50", "--rounds=1", "--teacher", "cached", "live")
    names = ["student alone", "this repository", "plain"]
    assert [row[2:4] for row in rows] == [[teacher, name] for teacher in ("cached", "live") for name in names]
    assert all(float(row[6]) > 0 for row in rows)


def test_the_augmentation_benchmark_prints_its_table(table):
    rows = table(augmentation, "--batch=4", "--rounds=1", "width=0.125")
    assert [row[0] for row in rows] == ["student", "copy", *NUMBERS, "all together"]
    assert float(rows[0][3]) == float(rows[1][2]) == 1 and all(float(row[1]) > 0 for row in rows[2:])
