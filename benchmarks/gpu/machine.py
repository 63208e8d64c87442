"""Print what this machine is: card, versions, and what is missing. On a GPU, a small function is compiled."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch

from train.wrapping import missing_for_compiling
from utils.about import processor, run_facts


def main() -> None:
    """What this machine is; on a GPU, a small function is compiled."""
    on_gpu = torch.cuda.is_available()
    facts = {"device": "cpu"}
    if on_gpu:
        card = torch.cuda.get_device_properties(0)
        facts = {
            "device": "cuda",
            "card": f"{card.name}, {card.total_memory / 1e9:.0f} GB, capability {card.major}.{card.minor}, "
            f"{card.multi_processor_count} multiprocessors; {torch.cuda.device_count()} card(s)",
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
            "CUDA, cuDNN, NCCL": f"{torch.version.cuda}, {torch.backends.cudnn.version()}, "
            f"{'.'.join(map(str, torch.cuda.nccl.version()))}",
            "missing for torch.compile": ", ".join(missing_for_compiling(torch.device("cuda", 0))) or "nothing",
        }
    facts |= {
        "versions": run_facts()["versions"],
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "CPU": processor(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "system": platform.platform(),
    }
    print("| fact | value |\n|---|---|")
    for name, value in facts.items():
        print(f"| {name} | {value} |", flush=True)
    if on_gpu and not missing_for_compiling(torch.device("cuda", 0)):
        start, x = time.perf_counter(), torch.arange(5.0, device="cuda")
        torch.testing.assert_close(torch.compile(lambda x: 2 * x.sin() + 1)(x), 2 * x.sin() + 1)
        print(f"| compiling a small function | {time.perf_counter() - start:.1f} s |")


def _output(*command: str) -> str:
    """The first line that a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return next(iter(done.stdout.splitlines()), "unknown")


if __name__ == "__main__":
    main()
