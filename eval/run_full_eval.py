"""Score a checkpoint of the student (or any network of backbones.NETWORKS) on the sets that the config names."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import BASE, load_config
from utils.errors import InputError, clear_errors


def arguments() -> argparse.Namespace:
    """The command line; what is not given there comes from the config."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Other keys of the config follow as key=value, for example network=iresnet50 embedding_size=512. "
        "With several GPUs launch it by torchrun: the images are shared out and the figures stay the same.",
    )
    parser.add_argument("--checkpoint", required=True, help="the student's weights, <step>backbone.pth")
    parser.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    parser.add_argument("--val-data", help="folder with the .bin sets (config: val_rec)")
    parser.add_argument("--val-targets", help="names of .bin sets, as lfw,cfp_fp (config: val_targets)")
    parser.add_argument("--val-batch-size", help="images a forward pass (config: val_batch_size)")
    parser.add_argument("--results-json", help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any other key of the config")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    given = {"val_rec": args.val_data and os.path.abspath(args.val_data), "val_targets": args.val_targets,
             "val_batch_size": args.val_batch_size, "init_from": os.path.abspath(args.checkpoint)}  # fmt: skip
    cfg = load_config(args.config, [*args.overrides, *(f"{key}={value}" for key, value in given.items() if value)])

    import torch  # after the config: --help and a wrong key answer at once

    from backbones import build_backbone
    from eval.protocols import enabled, evaluate
    from eval.report import table, write_json
    from utils.distributed import process_group, rank
    from utils.precision import compute_type
    from utils.run_log import describe_run

    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; leave --device out or name cpu")
    with process_group(args.device) as device:
        network = build_backbone(cfg).to(device, memory_format=torch.channels_last)
        results = evaluate(network, cfg, enabled(cfg), device, compute_type(cfg.dtype, device))
        if rank() == 0:
            print(table(results))
            if not results.figures:
                raise InputError(
                    "none of the sets is there: name their folders (--val-data, ijb_root=, tinyface_root=) and targets"
                )
            if args.results_json:
                about = {"checkpoint": args.checkpoint, "config": args.config, "run": describe_run()}
                write_json(args.results_json, results, about)
                print(f"written: {args.results_json}")


if __name__ == "__main__":
    with clear_errors():
        main()
