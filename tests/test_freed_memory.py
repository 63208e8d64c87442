"""On a CPU, training and evaluation reuse the memory of freed tensors, instead of having the kernel clear it again."""

import subprocess
import sys

from conftest import ROOT

# Fill and free a tensor of 64 MB ten times, and print how many of its pages the kernel had to provide each time.
PAGES = """
import resource, torch
from utils.distributed import process_group

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10

print(pages())
with process_group("cpu"):
    pages()
    print(pages())
"""


def test_training_reuses_freed_memory():
    printed = subprocess.run([sys.executable, "-c", PAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, during = map(float, printed.split())
    assert during < 10 < before
