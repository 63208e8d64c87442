"""Write <step>header.pth, the file with all class centers, from the shards of a run whose centers are split over ranks.

    python tools/gather_header.py output/AdaDistill --step 15163

It has the public layout: `kernel` [D, C], and the margin's statistics. The centers of one step must fit in memory.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder of the run")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    args = parser.parse_args()

    # Imported here, so that --help appears at once, without loading torch.
    from train.checkpoint import CheckpointError, add_header, complete_steps, has_shards, load, require_intact
    from train.shards import read_shards
    from utils.files import size_text

    steps = [step for step in complete_steps(args.output) if has_shards(args.output, step)]
    step = args.step if args.step is not None else max(steps, default=None)
    if step not in steps:
        found = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"{args.output}: no checkpoint of step {step} with shards; steps with shards: {found}")
    require_intact(args.output, step)
    margin = load(args.output, step).state["margin"]
    centers = read_shards(args.output, step, owned=None)["centers"]
    path = add_header(args.output, step, {"kernel": centers.t(), **margin})
    print(f"written: {path}: kernel {list(centers.t().shape)}, {size_text(path.stat().st_size)}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
