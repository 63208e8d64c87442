"""Time of each augmentation, compared with a copy of the images and with the student's forward and backward pass.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/augmentation.py    # 1 minute on 2 CPU cores
    python benchmarks/augmentation.py --batch 384 --calls 10    # on a GPU

An augmentation is computed for all images of the batch, whatever its probability is, so its time does not depend on the
probability. A copy reads and writes each pixel once, which every augmentation must do. Times are medians over rounds in
which all alternatives take turns.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from backbones import build_backbone
from benchmarks.timing import median_seconds
from config import load_config
from data.augment import DRAWS, NUMBERS, Augmentation
from data.images import SIZE, to_input
from train.prelu import replace_prelus
from train.wrapping import maybe_compile, should_compile
from utils.about import describe_run
from utils.precision import compute_type

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="batch size (default: 64)")
    parser.add_argument("--calls", type=int, default=1, help="calls of each alternative in a round (default: 1)")
    parser.add_argument("--rounds", type=int, default=9, help="number of measured rounds (default: 9)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config, such as dtype=bfloat16")
    args = parser.parse_intermixed_args()
    print(f"{describe_run()}, {torch.get_num_threads()} CPU thread(s)\n")
    torch.backends.cudnn.benchmark = True  # as in training
    times = median_seconds(alternatives(args.batch, args.overrides), DEVICE, args.rounds, args.calls)
    print(f"| {args.batch} images | ms | x copy | x student |\n|---|---|---|---|")
    for name, seconds in times.items():
        ratios = f"{seconds / times['copy']:.1f} | {seconds / times['student']:.3f}"
        print(f"| {name} | {1000 * seconds:.1f} | {ratios} |")


def alternatives(batch: int, overrides: list[str]) -> dict[str, Callable[[], object]]:
    """What is measured, by name, all for the same batch of random pixels."""
    cfg = load_config(overrides=["dataset=custom", *overrides])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    x, draws = to_input(pixels, None, DEVICE), torch.rand(batch, DRAWS, generator=generator).to(DEVICE)
    network = build_backbone(cfg).train()
    if DEVICE.type == "cpu" and not should_compile(cfg.compile, DEVICE):
        network = replace_prelus(network)  # as in training
    network = maybe_compile(network.to(DEVICE, memory_format=torch.channels_last), cfg.compile, DEVICE)
    dtype = compute_type(cfg.dtype, DEVICE)

    def student() -> None:
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            output = network(x)
        output.sum().backward()
        network.zero_grad()

    changes = {name: Augmentation({name: 0.5}, DEVICE) for name in NUMBERS}
    changes["all together"] = Augmentation(dict.fromkeys(NUMBERS, 0.5), DEVICE)
    augmentations = {name: partial(augment, x, draws) for name, augment in changes.items()}
    return {"student": student, "copy": x.clone, **augmentations}


if __name__ == "__main__":
    main()
