"""What the scripts here share: the command line, the config, the process group and the training set."""

import argparse
from collections.abc import Callable

from config import BASE, load_config
from utils.errors import exit_on_input_error


def main(description: str, run: Callable[..., None]) -> None:
    """Read the config, open the training set, and call run(cfg, dataset, device)."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="One process: python SCRIPT. Several GPUs: torchrun --standalone --nproc_per_node=2 SCRIPT. "
        "The keys, their meaning and allowed values are in config/config.py.",
    )
    parser.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config, as batch_size=64")
    args = parser.parse_args()
    with exit_on_input_error():
        cfg = load_config(args.config, args.overrides)

        # After the config: --help and a wrong key answer at once, without torch.
        import torch

        from data.dataset import build_dataset
        from utils.distributed import process_group

        with process_group(timeout=cfg.rank_timeout) as device:
            torch.backends.cudnn.benchmark = True  # the shapes of training are always the same
            run(cfg, build_dataset(cfg), device)
