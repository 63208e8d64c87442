"""A file with YuNet's inputs and outputs, which "finds" a face wherever a photo has a red mark. OpenCV runs it.

It stands for the real model, which is not part of the repository, so tests with it show nothing about how well faces
are found, but all that OpenCV and this repository do with what is found.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MARK = 8  # pixels of the side of a mark, whose corner lies on a multiple of them
STRIDES = 8, 16, 32
BOX = 24  # pixels of the side of a box


def write_yunet(path: Path, points: np.ndarray) -> Path:
    """points: of a face relative to the corner of its mark, in pixels, [5, 2]. Only pure red scores 1."""
    nodes, initializers, outputs = [], [], []

    def constant(name: str, value: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(value, name))
        return name

    for stride in STRIDES:
        nodes.append(helper.make_node("AveragePool", ["input"], [f"mean_{stride}"], kernel_shape=[stride] * 2,
                                      strides=[stride] * 2))  # fmt: skip
        red = np.array([-0.5, -0.5, 1]) / 255 * (stride == MARK)
        values = {  # name -> (weights of blue, green and red, bias) for each number that is predicted
            "cls": [(red, 0)],
            "obj": [(red, 0)],
            "bbox": [(red * 0, value) for value in (0, 0, np.log(BOX / stride), np.log(BOX / stride))],
            "kps": [(red * 0, value / stride) for value in points.ravel()],
        }
        for name, rows in values.items():
            key = f"{name}_{stride}"
            weights = np.stack([row for row, _ in rows])[..., None, None].astype(np.float32)
            bias = np.array([value for _, value in rows], np.float32)
            inputs = [f"mean_{stride}", constant(f"{key}_weight", weights), constant(f"{key}_bias", bias)]
            nodes.append(helper.make_node("Conv", inputs, [f"{key}_map"], kernel_shape=[1, 1]))
            nodes.append(helper.make_node("Transpose", [f"{key}_map"], [f"{key}_last"], perm=[0, 2, 3, 1]))
            shape = constant(f"{key}_shape", np.array([1, -1, len(rows)], np.int64))
            nodes.append(helper.make_node("Reshape", [f"{key}_last", shape], [key]))
            outputs.append(helper.make_tensor_value_info(key, TensorProto.FLOAT, [1, None, len(rows)]))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "marks", [image], outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
