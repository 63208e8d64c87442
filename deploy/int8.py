"""An exported network in int8: calibration and quantisation by onnxruntime, and the layers that cost accuracy."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import CalibrationDataReader, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry
from tqdm import tqdm

from deploy.activations import links
from deploy.exported_model import INPUT, copy_of, facts_of
from deploy.pixels import cosines
from deploy.runtimes import in_onnxruntime
from utils.errors import InputError

CHUNK = 8  # images per batch of calibration
PERCENTILE = 99.99
METHODS = {
    "min-max": (CalibrationMethod.MinMax, {}),
    f"percentile {PERCENTILE}": (CalibrationMethod.Percentile, {"percentile": PERCENTILE}),
}
NORMALISATION = "Sub_pixels", "Mul_pixels"  # nodes that stay in float
LAYERS = "Conv", "Gemm", "MatMul"


class Chunks(CalibrationDataReader):
    """Calibration images, float32 [n, 3, 112, 112], in the form that onnxruntime's calibration reads."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.batches = iter([{INPUT: pixels}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def read_export(path: str) -> onnx.ModelProto:
    """Read a file of deploy/export_onnx.py or deploy/quantize.py. Raises InputError for any other file."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        model = onnx.load_from_string(content)
    except DecodeError:
        raise InputError(f"{path}: is no ONNX file; name a file of deploy/export_onnx.py") from None
    if [entry.name for entry in model.graph.input] != [INPUT] or "checkpoint_sha256" not in facts_of(model):
        raise InputError(f"{path}: is no file of deploy/export_onnx.py; export the checkpoint with it")
    return model


def read_float_export(path: str) -> onnx.ModelProto:
    """Read a float32 file of deploy/export_onnx.py. Raises InputError for any other file."""
    model = read_export(path)
    if (precision := precision_of(model)) != "float32":
        raise InputError(f"{path}: is in {precision}; name the float32 file of deploy/export_onnx.py")
    return model


def precision_of(model: onnx.ModelProto) -> str:
    """float32, float16 or int8."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    halves = any(entry.data_type == TensorProto.FLOAT16 for entry in model.graph.initializer)
    return "float16" if halves else "float32"


def chunks(pixels: np.ndarray, title: str) -> Iterator[np.ndarray]:
    """Batches of uint8 RGB [N, 112, 112, 3] as float32 [n, 3, 112, 112]."""
    for start in tqdm(range(0, len(pixels), CHUNK), desc=title, leave=False):
        yield np.ascontiguousarray(pixels[start : start + CHUNK].transpose(0, 3, 1, 2), dtype=np.float32)


def largest_values(model: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """For each tensor before an activation between two convolutions: the largest absolute value by channel, [C].

    pixels: uint8 RGB [N, 112, 112, 3].
    """
    names = sorted({link.before for link in links(model)})
    if not names:
        return {}
    opened = copy_of(model)
    opened.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
    batches = chunks(pixels, "ranges of channels")
    found = [[np.abs(values).max((0, 2, 3)) for values in session.run(names, {INPUT: batch})] for batch in batches]
    return dict(zip(names, (np.max(values, axis=0) for values in zip(*found, strict=True)), strict=True))


def calibrate(model: onnx.ModelProto, pixels: np.ndarray, method: str) -> TensorsData:
    """The range of each tensor on images, uint8 RGB [N, 112, 112, 3], by one of METHODS."""
    kind, options = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        onnx.save(model, file)
        calibrator = create_calibrator(
            file, augmented_model_path=f"{folder}/augmented.onnx", calibrate_method=kind, extra_options=options
        )
        with redirect_stdout(StringIO()):  # it prints its progress
            for batch in chunks(pixels, f"calibration, {method}"):
                calibrator.collect_data(Chunks(batch))
            return calibrator.compute_data()


def quantize(
    model: onnx.ModelProto, ranges: TensorsData, in_float: Sequence[str] = (), for_openvino: bool = False
) -> onnx.ModelProto:
    """The model in int8 with a scale for each channel of the weights, as QuantizeLinear and DequantizeLinear nodes.

    in_float: nodes that stay in float; for_openvino: quantise nothing between a convolution and its activation, which
    OpenVINO computes together, PReLU included. Weights use 7 of 8 bits, because the int8 products of CPUs without VNNI
    overflow with more.
    """
    quantizer = QDQQuantizer(
        copy_of(model), per_channel=True, reduce_range=True, weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8, tensors_range=ranges, nodes_to_quantize=[],
        nodes_to_exclude=[*NORMALISATION, *in_float], op_types_to_quantize=list(QDQRegistry),
        extra_options={"OpTypesToExcludeOutputQuantization": ["Conv"]} if for_openvino else {},
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized = quantizer.model.model
    # InsightFace looks for these nodes among the first ones, to which the sort moves those of the weights.
    nodes = sorted(quantized.graph.node, key=lambda node: node.name not in NORMALISATION)
    quantized.graph.ClearField("node")
    quantized.graph.node.extend(nodes)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def layers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """The nodes of each layer by its name: a convolution or a matrix product, and what follows it up to the next one.

    The 1x1 convolution of a PReLU in parts belongs to the layer of the PReLU.
    """
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in LAYERS and not node.output[0].endswith("_scaled"):
            found[node.name] = []
        if found:
            found[next(reversed(found))].append(node.name)
    return found


def rank_layers(
    model: onnx.ModelProto, ranges: TensorsData, pixels: np.ndarray, for_openvino: bool = False
) -> list[tuple[str, float]]:
    """The layers and the mean cosine to float32 with this layer alone in float, the best first.

    pixels: uint8 RGB [N, 112, 112, 3].
    """
    batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    expected = in_onnxruntime(model.SerializeToString())(batch)
    found = []
    for name, nodes in tqdm(layers(model).items(), desc="cost of each layer", leave=False):
        run = in_onnxruntime(quantize(model, ranges, nodes, for_openvino).SerializeToString())
        found.append((name, float(cosines(run(batch), expected).mean())))
    return sorted(found, key=lambda entry: -entry[1])
