"""The command line of the training scripts. Nothing here imports torch, so `--help` and a wrong key answer at once."""

import argparse

from config import BASE


def parse_arguments(description: str) -> argparse.Namespace:
    """Read `--config FILE` and the overrides `key=value` from the command line."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="One process: python SCRIPT. Several GPUs: torchrun --standalone --nproc_per_node=2 SCRIPT. "
        "docs/config.md lists the keys, their meaning and the values that they allow.",
    )
    parser.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config, as in batch_size=64")
    return parser.parse_args()
