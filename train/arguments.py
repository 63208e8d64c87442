"""The command line of the training scripts. This module does not import torch, so `--help` is fast."""

import argparse

from config import BASE


def parse_arguments(description: str) -> argparse.Namespace:
    """Read `--config FILE` and the overrides `key=value` from the command line."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="One process: python SCRIPT. Several GPUs: torchrun --standalone --nproc_per_node=2 SCRIPT. "
        "docs/config.md lists the keys, their meanings and their allowed values.",
    )
    parser.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config keys, for example batch_size=64")
    return parser.parse_intermixed_args()
