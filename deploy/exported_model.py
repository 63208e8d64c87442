"""A network as an ONNX model that takes raw pixels, and its comparison with the network in torch."""

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from easydict import EasyDict
from onnx import helper
from torch import Tensor, nn

from backbones import build_backbone
from backbones.folding import fold_batch_norm
from backbones.model_folder import SETTINGS
from data.images import SIZE
from deploy.pixels import UNIT_LENGTH, OfPixels, cosines
from deploy.sample_images import sample_images
from eval.protocol import AllMetrics
from utils.errors import InputError

INPUT, OUTPUT = "input", "embedding"
BATCHES = 1, 7, 64  # sizes that are compared
LARGEST_DIFFERENCE = 1e-5  # of a cosine from 1


def to_onnx(network: nn.Module, unit_length: bool = False, half: bool = False) -> onnx.ModelProto:
    """The model: float32 [N, 3, 112, 112] -> float32 [N, D], for any N.

    network: on the CPU, in eval mode; `half` converts it to float16. The names of the first two nodes tell
    InsightFace's ArcFaceONNX that the model normalises pixels itself.
    """
    images = torch.zeros(2, 3, SIZE, SIZE)  # two, because torch.export takes a size of 1 for a constant
    wrapped = OfPixels(network, unit_length, torch.float16 if half else torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code
        program = torch.onnx.export(
            wrapped, (images,), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )  # fmt: skip
    model = program.model_proto
    _write_out_hard_sigmoids(model, np.float16 if half else np.float32)
    _name_normalisation(model)
    _remove_traces(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _write_out_hard_sigmoids(model: onnx.ModelProto, dtype: type[np.floating]) -> None:
    """Replace each HardSigmoid by what it stands for, clip(alpha x + beta, 0, 1), with constants of the dtype.

    OpenCV 5.0 gives the product of a HardSigmoid and a larger tensor the shape of the HardSigmoid: in the
    squeeze-and-excitation blocks of MobileNetV3, one pixel remains. The embeddings are wrong, without an error.
    """
    nodes = []
    for node in model.graph.node:
        if node.op_type != "HardSigmoid":
            nodes.append(node)
            continue
        (entry,), (result,) = node.input, node.output
        values = {
            "alpha": 0.2,
            "beta": 0.5,
            **{option.name: option.f for option in node.attribute},
            "zero": 0,
            "one": 1,
        }
        alpha, beta, zero, one = (f"{result}_{name}" for name in values)
        constants = (onnx.numpy_helper.from_array(dtype(value), f"{result}_{name}") for name, value in values.items())
        model.graph.initializer.extend(constants)
        nodes += [
            helper.make_node("Mul", [entry, alpha], [f"{result}_scaled"]),
            helper.make_node("Add", [f"{result}_scaled", beta], [f"{result}_shifted"]),
            helper.make_node("Clip", [f"{result}_shifted", zero, one], [result]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _name_normalisation(model: onnx.ModelProto) -> None:
    for kind in ("Sub", "Mul"):
        node = next(node for node in model.graph.node if node.op_type == kind)
        node.name = f"{kind}_pixels"


def _remove_traces(model: onnx.ModelProto) -> None:
    """Remove where each node comes from in the source code, which torch adds, with the paths of this machine."""
    for described in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del described.metadata_props[:]


class Export(NamedTuple):
    """model: as `to_onnx` made it; source: the images that were compared, in words; differences: by batch size."""

    model: onnx.ModelProto
    source: str
    differences: dict[int, float]

    def __str__(self) -> str:
        listed = ", ".join(f"{value:.1e} at batch {size}" for size, value in self.differences.items())
        return f"{self.source}: the cosine between onnxruntime and torch differs from 1 by at most {listed}"


def export(
    cfg: EasyDict,
    network: nn.Module,
    images: str | None = None,
    unit_length: bool = False,
    half: bool = False,
    change: Callable[[onnx.ModelProto], Any] = lambda model: None,
) -> Export:
    """Export the weights cfg.init_from, and compare the model with `network`, which has these weights too.

    images: see `sample_images`; change: what else changes the model before it is compared. Raises InputError if the
    embeddings differ.
    """
    model = to_onnx(fold_batch_norm(build_backbone(cfg).eval()), unit_length, half)
    change(model)
    pixels, source = sample_images(cfg, images, max(BATCHES))
    exported = Export(model, source, largest_differences(model, network, pixels))
    require_same(exported.differences)
    return exported


def facts(
    cfg: EasyDict, checksum: str, exported: Export, unit_length: bool, metrics: AllMetrics | None
) -> dict[str, Any]:
    """What the metadata of every exported file say. They contain no paths. checksum: SHA-256 of the checkpoint."""
    known = {
        "checkpoint_sha256": checksum,
        "config": {key: cfg[key] for key in SETTINGS},
        "input": "float32 [N, 3, 112, 112], RGB, 0 to 255",
        "output": UNIT_LENGTH if unit_length else "float32 [N, D], not normalised",
        "difference_from_torch": {"images": exported.source, "largest": exported.differences},
    }
    return known if metrics is None else {**known, "results": metrics}


def describe(model: onnx.ModelProto, facts: Mapping[str, Any]) -> None:
    """Store the facts in the model's metadata: texts as they are, anything else as JSON."""
    texts = {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}
    helper.set_model_props(model, texts)


def facts_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's metadata."""
    return {entry.key: entry.value for entry in model.metadata_props}


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def largest_differences(model: onnx.ModelProto, network: nn.Module, pixels: Tensor) -> dict[int, float]:
    """For each batch size: by how much the cosine between embeddings by onnxruntime and by torch differs from 1.

    network: takes images in [-1, 1]; pixels: uint8 RGB [64, 112, 112, 3]. Raises InputError if onnxruntime cannot run
    the model.
    """
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = pixels.permute(0, 3, 1, 2).float().contiguous()
    found = {}
    for size in BATCHES:
        batch = pixels[:size]
        with torch.inference_mode():
            expected = network((batch - 127.5) / 127.5).numpy()
        embeddings = session.run([OUTPUT], {INPUT: batch.numpy()})[0]
        found[size] = float(np.abs(1 - cosines(embeddings, expected)).max())
    return found


def require_same(differences: Mapping[int, float]) -> None:
    """Raise InputError if the model's embeddings differ too much from torch's."""
    wrong = {size: value for size, value in differences.items() if not value <= LARGEST_DIFFERENCE}
    if wrong:
        listed = ", ".join(f"{value:.1e} at batch {size}" for size, value in wrong.items())
        raise InputError(
            f"the exported model gives other embeddings than torch: cosines differ from 1 by {listed} (at most "
            f"{LARGEST_DIFFERENCE:.0e}); no file was written. Try it without --fp16, or another version of torch"
        )
