"""Compare the speed of exported files on this CPU, in torch, onnxruntime and OpenVINO. Prints a Markdown table.

    python deploy/latency.py --model lfw.onnx lfw.int8.onnx --config output/lfw/config.py \\
        --checkpoint output/lfw/660backbone.pth --set lfw_heldout.bin

In each round, every network computes once, so that all suffer alike from what else the machine does.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from easydict import EasyDict

from config import BASE
from deploy.arguments import read_checkpoint_config
from utils.errors import InputError, exit_on_input_error
from utils.packages import require_packages

if TYPE_CHECKING:
    from deploy.runtimes import Run

BATCH = 32
ROUNDS = {1: 100, BATCH: 10}  # by batch size


class Network(NamedTuple):
    """A row of the table, except for the number of threads. size: bytes of the file."""

    runtime: str
    precision: str
    file: str
    size: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", required=True, metavar="FILE.onnx", help="files of deploy/export_onnx.py and "
        "deploy/quantize.py")  # fmt: skip
    add("--checkpoint", help="the weights that were exported, to be run in torch (default: torch is left out)")
    add("--config", default=str(BASE), help="config of the checkpoint, <output>/config.py (default: config/config.py)")
    add("--threads", default="1,2", metavar="N,N", help="numbers of threads (default: 1,2)")
    add("--set", metavar="FILE.bin", help="verification set for the accuracy (default: accuracy is left out)")
    add("overrides", nargs="*", metavar="key=value", help="keys of the config, such as network=iresnet50")
    args = parser.parse_intermixed_args()
    if not all(part.isdecimal() and int(part) for part in args.threads.split(",")):
        raise InputError(f"--threads {args.threads}: must be numbers from 1, such as 1,2")
    threads = [int(part) for part in args.threads.split(",")]
    cfg = None
    if args.checkpoint:
        cfg = read_checkpoint_config(args.config, args.checkpoint, args.overrides)
    require_packages("the comparison", "deploy.txt", "onnx", "onnxruntime")

    # Imported here so that --help and errors in the arguments come at once.
    from data.bin_set import read_bin
    from deploy.runtimes import embed_set, has_openvino, pixels_of, time_in_turns
    from deploy.sample_images import draw_patterns
    from eval.verification import evaluate_pairs
    from utils.about import describe_run

    print(describe_run())
    print(f"onnxruntime {version('onnxruntime')}")
    print(f"OpenVINO {version('openvino')}" if has_openvino() else
        "OpenVINO: skipped, not installed; run `pip install -r requirements/openvino.txt`")  # fmt: skip
    print(flush=True)
    images = read_bin(args.set) if args.set else None
    pixels = draw_patterns(BATCH).permute(0, 3, 1, 2).float().contiguous().numpy()
    if images is not None:
        pixels = pixels_of(images, np.arange(BATCH) % len(images))
    times, accuracy = {}, {}
    for count in threads:
        runs = load_all(args.model, cfg, count)
        for batch, rounds in ROUNDS.items():
            times[count, batch] = time_in_turns(runs, pixels[:batch], rounds)
        if images is not None and not accuracy:
            embeddings = {network: embed_set(run, images, network.runtime) for network, run in runs.items()}
            accuracy = {
                network: f"{100 * evaluate_pairs(values, images.is_same)['Accuracy-Flip']:.2f}"
                for network, values in embeddings.items()
            }
    print("| runtime | precision | file | MB | threads | ms, p50 | ms, p99 | images/s at 32 | accuracy |")
    print("|---|---|---|---|---|---|---|---|---|")
    for network in runs:
        for count in threads:
            single, batched = times[count, 1][network], np.median(times[count, BATCH][network])
            cells = [
                network.runtime, network.precision, network.file, f"{network.size / 1e6:.1f}", str(count),
                f"{np.median(single):.1f}", f"{np.percentile(single, 99):.1f}", f"{1000 * BATCH / batched:.0f}",
                accuracy.get(network, ""),
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |")


def load_all(paths: list[str], cfg: EasyDict | None, threads: int) -> dict[Network, "Run"]:
    """Everything that this machine can run: the checkpoint in torch, the files in onnxruntime and OpenVINO."""
    from deploy.int8 import precision_of, read_export
    from deploy.runtimes import has_openvino, in_onnxruntime, in_openvino, openvino_has_bfloat16

    runs = {} if cfg is None else load_checkpoint(cfg, threads)
    for path in paths:
        model = read_export(path)
        content, precision = model.SerializeToString(), precision_of(model)
        file = Path(path).name, Path(path).stat().st_size
        runs[Network("onnxruntime", precision, *file)] = in_onnxruntime(content, threads)
        if not has_openvino():
            continue
        runs[Network("OpenVINO", precision, *file)] = in_openvino(content, threads)
        if precision == "float32" and openvino_has_bfloat16():
            runs[Network("OpenVINO", "bfloat16", *file)] = in_openvino(content, threads, bfloat16=True)
    return runs


def load_checkpoint(cfg: EasyDict, threads: int) -> dict[Network, "Run"]:
    import torch

    from backbones import build_backbone
    from backbones.model_folder import weights_file
    from deploy.runtimes import in_torch

    network, file = build_backbone(cfg).eval(), Path(weights_file(cfg.init_from))
    described = file.name, file.stat().st_size
    return {
        Network("torch", str(dtype).removeprefix("torch."), *described): in_torch(network, threads, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }


if __name__ == "__main__":
    with exit_on_input_error():
        main()
