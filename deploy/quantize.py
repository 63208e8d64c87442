"""Turn a float32 file of deploy/export_onnx.py into an int8 file, which onnxruntime and OpenVINO run.

    python deploy/quantize.py --config output/lfw/config.py --model lfw.onnx --output lfw.int8.onnx

Several schemes are calibrated on images of the training set and compared with float32 on a verification set. If none of
them is as accurate as the limits ask, layers that cost accuracy stay in float. If that does not help either, no file is
written.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from easydict import EasyDict

from config import BASE, load_config
from utils.errors import InputError, exit_on_input_error
from utils.packages import require_packages

if TYPE_CHECKING:
    import onnx

    from data.bin_set import VerificationSet

# An int8 network is written only if it keeps these limits.
LARGEST_LOSS = 0.003  # of accuracy
MEAN_COSINE, WORST_COSINE = 0.98, 0.93  # to float32, over all images of the set

RUNTIMES = "onnxruntime", "openvino"
ROUNDS = {1: 60, 32: 7}  # of timing, by batch size


class Candidate(NamedTuple):
    """A network that was tried, and how it compares with float32 on a verification set. Fractions."""

    name: str
    model: "onnx.ModelProto"
    accuracy: float
    mean: float = 1.0
    worst: float = 1.0

    def __str__(self) -> str:
        return f"accuracy {100 * self.accuracy:.2f} %, cosine to float32 {self.mean:.4f}, at worst {self.worst:.4f}"


class Comparison:
    """Compares networks with the float32 network on the images of a verification set."""

    def __init__(self, model: "onnx.ModelProto", images: "VerificationSet") -> None:
        self.images = images
        self.expected = self._embed(model, "float32")
        self.accuracy = self._accuracy(self.expected)

    def _embed(self, model: "onnx.ModelProto", title: str) -> np.ndarray:
        from deploy.runtimes import embed_set, in_onnxruntime

        return embed_set(in_onnxruntime(model.SerializeToString()), self.images, title)

    def _accuracy(self, embeddings: np.ndarray) -> float:
        from eval.verification import evaluate_pairs

        return evaluate_pairs(embeddings, self.images.is_same)["Accuracy-Flip"]

    def try_out(self, name: str, model: "onnx.ModelProto") -> Candidate:
        """Embed the set, and report the result."""
        from deploy.pixels import cosines

        embeddings = self._embed(model, name)
        found = cosines(embeddings, self.expected)
        candidate = Candidate(name, model, self._accuracy(embeddings), float(found.mean()), float(found.min()))
        print(f"{name}: {candidate}", flush=True)
        return candidate

    def accepts(self, candidate: Candidate) -> bool:
        is_close = candidate.mean >= MEAN_COSINE and candidate.worst >= WORST_COSINE
        return is_close and candidate.accuracy >= self.accuracy - LARGEST_LOSS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="FILE.onnx", help="float32 file of deploy/export_onnx.py")
    add("--output", required=True, metavar="FILE.onnx", help="file to write")
    add("--config", default=str(BASE), help="config that names the training set, such as <output>/config.py (default: "
        "config/config.py)")  # fmt: skip
    add("--runtime", choices=RUNTIMES, default=RUNTIMES[0], help="the runtime that the file shall be fast in; both run "
        "it (default: onnxruntime)")  # fmt: skip
    add("--images", type=int, default=300, metavar="N", help="training images to calibrate on (default: 300)")
    add("--set", metavar="FILE.bin", help="verification set to compare on (default: the first of val_targets that "
        "exists)")  # fmt: skip
    add("overrides", nargs="*", metavar="key=value", help="keys of the config, such as rec=FOLDER")
    args = parser.parse_intermixed_args()
    if Path(args.output).suffix != ".onnx":
        raise InputError(f"--output {args.output}: must end in .onnx")
    if args.images < 1:
        raise InputError(f"--images {args.images}: must be at least 1")
    return args


def main() -> None:
    args = parse_arguments()
    cfg = load_config(args.config, args.overrides, conflicts=())
    require_packages("int8", "deploy.txt", "onnx", "onnxruntime")

    # Imported here so that --help and errors in the config come at once.
    from data.bin_set import read_bin
    from deploy.activations import split_prelu
    from deploy.exported_model import copy_of, describe, facts_of
    from deploy.int8 import read_float_export
    from deploy.sample_images import verification_set
    from utils.files import atomic_write, size_text

    exported = read_float_export(args.model)
    file = verification_set(cfg, args.set)
    if file is None:
        raise InputError("no verification set to compare on; name one with --set FILE.bin")
    images, pixels = read_bin(file), calibration_images(cfg, args.images)

    for_openvino = args.runtime == "openvino"
    split = copy_of(exported)
    if (left := split_prelu(split)) and not for_openvino:
        print(f"warning: {left} PReLUs stay in float, which makes int8 slow in onnxruntime", file=sys.stderr)
    comparison = Comparison(exported, images)
    print(f"float32: accuracy {100 * comparison.accuracy:.2f} % on {file}", flush=True)
    tried, chosen = search(exported if for_openvino else split, pixels, comparison, for_openvino)
    floats = [Candidate("float32, as exported", exported, comparison.accuracy)]
    if split.graph.node != exported.graph.node:
        floats.append(Candidate("float32, PReLU in parts", split, comparison.accuracy))
    print_table([*floats, *tried], images)
    if chosen is None:
        raise InputError(
            f"no int8 network keeps {100 * (comparison.accuracy - LARGEST_LOSS):.2f} % accuracy and a cosine to "
            f"float32 of {MEAN_COSINE} ({WORST_COSINE} at worst); no file was written. Try more --images, or train "
            "with activation=leaky_relu"
        )
    quantization = {
        "scheme": chosen.name,
        "runtime": args.runtime,
        "calibrated_on": f"{len(pixels)} training images",
        "set": file.name,
        "accuracy": {"float32": comparison.accuracy, "int8": chosen.accuracy},
        "cosine_to_float32": {"mean": chosen.mean, "worst": chosen.worst},
    }
    describe(chosen.model, {**facts_of(exported), "quantization": quantization})
    output = Path(args.output)
    with atomic_write(output) as stream:
        stream.write(chosen.model.SerializeToString())
    print(f"written: {output} ({size_text(output.stat().st_size)}), {chosen.name}")


def calibration_images(cfg: EasyDict, count: int) -> np.ndarray:
    """Evenly spaced images of the training set, uint8 RGB [n, 112, 112, 3] with n <= count."""
    from data.dataset import build_dataset
    from deploy.sample_images import spread

    try:
        dataset = build_dataset(cfg)
    except (InputError, OSError) as error:
        raise InputError(
            f"no training set to calibrate on: {error}. Name one: --config <output>/config.py, or rec=FOLDER "
            "num_classes=None num_image=None"
        ) from error
    return dataset[spread(len(dataset), count)].numpy()


def search(
    model: "onnx.ModelProto", pixels: np.ndarray, comparison: Comparison, for_openvino: bool
) -> tuple[list[Candidate], Candidate | None]:
    """What was tried, and the network to write or None. Each step is reported.

    model: float32, with PReLUs in parts unless `for_openvino`; pixels: uint8 RGB [N, 112, 112, 3] to calibrate on.
    """
    from deploy.activations import equalise_channels
    from deploy.exported_model import copy_of
    from deploy.int8 import METHODS, calibrate, largest_values, layers, quantize, rank_layers

    equal = copy_of(model)
    equalise_channels(equal, largest_values(model, pixels))
    schemes = [("int8, min-max", model, "min-max"), *((f"int8, equalised, {name}", equal, name) for name in METHODS)]
    tried, ranges = [], {}
    for name, network, method in schemes:
        ranges[name] = calibrate(network, pixels, method)
        tried.append(comparison.try_out(name, quantize(network, ranges[name], (), for_openvino)))
        if network is equal and comparison.accepts(tried[-1]):
            break  # percentiles take minutes
    best = max(tried, key=lambda candidate: candidate.mean)
    if accepted := [candidate for candidate in tried if comparison.accepts(candidate)]:
        # All have the same nodes, and so the same speed.
        return tried, max(accepted, key=lambda candidate: candidate.worst)

    network = next(network for name, network, _ in schemes if name == best.name)
    ranked = rank_layers(network, ranges[best.name], pixels, for_openvino)
    for name, cosine in ranked:
        print(f"{name} in float: cosine {cosine:.4f} on the calibration images", flush=True)
    nodes, count = layers(network), 1
    while count <= len(ranked) // 2:
        in_float = [name for name, _ in ranked[:count]]
        kept = [node for name in in_float for node in nodes[name]]
        title = f"{best.name}, {count} layers in float ({', '.join(in_float)})"
        tried.append(comparison.try_out(title, quantize(network, ranges[best.name], kept, for_openvino)))
        if comparison.accepts(tried[-1]):
            return tried, tried[-1]
        count *= 2
    return tried, None


def print_table(candidates: list[Candidate], images: "VerificationSet") -> None:
    """Accuracy, cosines and milliseconds with one thread, as a Markdown table."""
    from deploy.runtimes import has_openvino, in_onnxruntime, in_openvino, pixels_of, time_in_turns

    runtimes = {"onnxruntime": in_onnxruntime} | ({"OpenVINO": in_openvino} if has_openvino() else {})
    times = {}
    for runtime, load in runtimes.items():
        runs = {candidate.name: load(candidate.model.SerializeToString(), 1) for candidate in candidates}
        for batch, rounds in ROUNDS.items():
            pixels = pixels_of(images, np.arange(batch) % len(images))
            times[runtime, batch] = time_in_turns(runs, pixels, rounds)
    columns = ["network", "accuracy", "mean cosine", "worst", *(f"{runtime}, batch {size}" for runtime, size in times)]
    print(f"\nmilliseconds with one thread, medians\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, _, accuracy, mean, worst in candidates:
        medians = " | ".join(f"{np.median(values[name]):.1f}" for values in times.values())
        print(f"| {name} | {100 * accuracy:.2f} | {mean:.4f} | {worst:.4f} | {medians} |")
    print(flush=True)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
