"""Train on real faces with config/lfw.py, and print the accuracy after each epoch. Needs FACE_DATA.

python benchmarks/gpu/train_lfw.py train/train_AdaDistill.py num_epoch=12
python benchmarks/gpu/train_lfw.py --quick train/train_standalone.py    # three steps of a tiny student
"""

import argparse
import json
import math
import runpy
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from config import load_config
from config.conflicts import STANDALONE

TINY = ["batch_size=8", "width=0.125", "max_steps=3", "log_every=1", "val_num_workers=0", "run_eval_at_start=True"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", help="the training script")
    parser.add_argument("--quick", action="store_true", help="three steps of a tiny student")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config")
    args = parser.parse_intermixed_args()
    overrides = ["keep_checkpoints=1", "log_every=33", *args.overrides, *(TINY if args.quick else [])]
    output = load_config("config/lfw.py", overrides, STANDALONE).output
    sys.argv = [args.script, "--config", "config/lfw.py", *overrides]
    try:
        runpy.run_path(str(ROOT / args.script), run_name="__main__")
    finally:  # also after an error or a signal, for the epochs that have ended
        print_epochs(Path(output, "metrics.jsonl"))


def print_epochs(path: Path) -> None:
    """Print the accuracy of each evaluation in metrics.jsonl, with the loss and the speed of the steps before it."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    print("\n| step | accuracy [%] | loss, mean | images/s, median |\n|---|---|---|---|")
    losses, speeds = [], []
    for entry in map(json.loads, lines):
        values = {name: math.nan if value is None else value for name, value in entry.items()}
        if values["kind"] == "training":
            losses.append(values["loss"])
            speeds.append(values["images_per_second"])
            continue
        accuracy = next(value for name, value in values.items() if name.endswith("Accuracy-Flip"))
        before = f"{statistics.mean(losses):.2f} | {statistics.median(speeds):,.0f}" if losses else " | "
        print(f"| {values['step']} | {100 * accuracy:.2f} | {before} |", flush=True)
        losses, speeds = [], []


if __name__ == "__main__":
    main()
