"""What both training scripts share: the command line, the process group, and the order in which a run is put up."""

import argparse
from collections.abc import Callable
from typing import Any

from config import BASE, load_config
from utils.errors import clear_errors


def main(description: str, make_task: Callable[..., Any]) -> None:
    """Read the config and train the task that `make_task(cfg, device)` gives."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="One process: python SCRIPT. Several GPUs: torchrun --standalone --nproc_per_node=2 SCRIPT. "
        "The keys, their meaning and allowed values are in config/config.py.",
    )
    parser.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config, as batch_size=64")
    args = parser.parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.overrides)

        import torch  # after the config: --help and a wrong key answer at once

        from train.loop import Trainer
        from utils.dataset import build_dataset
        from utils.distributed import process_group

        with process_group() as device:
            torch.manual_seed(cfg.seed)
            dataset = build_dataset(cfg)
            Trainer(cfg, make_task(cfg, device), dataset, device).run()
