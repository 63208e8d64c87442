"""Teachers in ONNX files, such as the networks of InsightFace's model packs (w600k_r50.onnx), run by onnxruntime.

In training, they are for embeddings that are computed once and stored (`teacher_embeddings`): a batch passes through
host memory.
"""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

from backbones.teacher import Release, find_file
from data.images import SIZE
from utils.errors import describe_error
from utils.file_kinds import describe_other_kind
from utils.weights import WeightsError

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_FIRST_NODES = 8  # in which InsightFace looks for the layers that normalise pixels


def find(cfg: EasyDict) -> Release:
    """The ONNX file `pretrained_teacher_path`, and what its network takes as input. Raises WeightsError.

    Scale: an input is (pixel - mean) / std. Where `onnx_mean` and `onnx_std` are None, it follows from the names of the
    first nodes, by the rule of InsightFace's Python package: if one begins with Sub or _minus and one with Mul or _mul,
    the network normalises raw pixels itself (mean 0, std 1); otherwise both are 127.5. Raises MissingWeights if there
    is no such file.
    """
    release = find_file(cfg)
    if missing := [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]:
        raise WeightsError(
            f"{release.weights}: reading it needs {' and '.join(missing)}; run `pip install -r requirements/deploy.txt`"
        )
    model = _read(release.weights)
    names = [node.name for node in model.graph.node[:_FIRST_NODES]]
    normalises = all(any(name.startswith(kind) for name in names) for kind in (("Sub", "_minus"), ("Mul", "_mul")))
    mean, std = (0.0, 1.0) if normalises else (127.5, 127.5)
    scale = (mean if cfg.onnx_mean is None else cfg.onnx_mean, std if cfg.onnx_std is None else cfg.onnx_std)
    return release._replace(bgr=cfg.onnx_colours == "BGR", scale=tuple(map(float, scale)))


def _read(path: Path) -> "ModelProto":
    """The model in the file. Raises WeightsError if there is none, or if weights are in other files."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("it has no nodes")
    except Exception as error:  # those of protobuf and of onnx have no common base class
        reason = describe_other_kind(path)
        reason = describe_error(error) if reason is None or "ONNX" in reason else reason
        raise WeightsError(f"{path}: not a complete ONNX model ({reason}); download or export it again") from error
    try:
        with TemporaryDirectory() as empty:  # so that every tensor that is elsewhere is missing
            onnx.load_external_data_for_model(model, empty)
    except Exception as error:  # onnx's own, which depend on its version
        raise WeightsError(
            f"{path}: some of its weights are in other files, so its checksum does not identify it; write one file: "
            "`python -c \"import onnx; onnx.save(onnx.load('OLD.onnx'), 'NEW.onnx')\"`"
        ) from error
    return model


class OnnxNetwork(nn.Module):
    """RGB images [B, 3, 112, 112] in [-1, 1] -> embeddings [B, embedding_size], in float32 on the same device.

    embedding_size: what the file must have; None: any. On a GPU, it runs by onnxruntime's CUDA provider. Raises
    WeightsError if the file is not such a network; the message states its inputs and outputs.
    """

    always_float32 = True

    def __init__(self, release: Release, embedding_size: int | None = None) -> None:
        super().__init__()
        self._path, self._mean, self._std = release.weights, *release.scale
        self._bgr = release.bgr
        self._session, self._device = self._open(torch.device("cpu")), torch.device("cpu")
        self._check_signature()
        try:
            shape = self(torch.zeros(2, 3, SIZE, SIZE)).shape
        except Exception as error:  # onnxruntime's have no common base class
            raise self._refusal(f"it fails with two images ({describe_error(error)})") from error
        if len(shape) != 2 or embedding_size not in (None, shape[1]):
            wanted = "dimensions" if embedding_size is None else embedding_size
            raise self._refusal(f"it gives {list(shape)} for two images (expected [2, {wanted}])")
        self.embedding_size = shape[1]

    @property
    def loaded(self) -> str:
        """What the network takes and gives, and where it runs; for the log."""
        scale = "raw pixels" if (self._mean, self._std) == (0, 1) else f"(pixel - {self._mean:g}) / {self._std:g}"
        colours = "BGR" if self._bgr else "RGB"
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        return f"{self._signature()}; takes {scale}, {colours}; onnxruntime on {provider}"

    @property
    def metadata(self) -> dict[str, str]:
        """The texts that the file's writer stored in it, by name."""
        return self._session.get_modelmeta().custom_metadata_map

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        if x.device != self._device:
            self._session, self._device = self._open(x.device), x.device
        entry = self._session.get_inputs()[0]
        pixels = (x.float() * 127.5 + 127.5).round()  # exact again
        batch = ((pixels.flip(1) if self._bgr else pixels) - self._mean) / self._std
        count = len(batch)
        step = entry.shape[0] if isinstance(entry.shape[0], int) else count
        batch = F.pad(batch, (0, 0) * 3 + (0, -count % step)).cpu().numpy().astype(_TYPES[entry.type])
        parts = [self._session.run(None, {entry.name: part})[0] for part in np.split(batch, len(batch) // step)]
        return torch.from_numpy(np.concatenate(parts)[:count]).float().to(x.device)

    def _open(self, device: torch.device) -> "InferenceSession":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; its warnings are about how graphs were exported
        providers = ["CPUExecutionProvider"]
        if device.type == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}))
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise WeightsError(
                    f"{self._path}: this onnxruntime runs on CPUs only, which would take very long; run `pip uninstall "
                    "onnxruntime && pip install onnxruntime-gpu`, or hide the GPU: CUDA_VISIBLE_DEVICES="
                )
        try:
            return onnxruntime.InferenceSession(self._path, options, providers)
        except Exception as error:  # onnxruntime's have no common base class
            raise WeightsError(
                f"{self._path}: onnxruntime cannot run it ({describe_error(error)}); export it for this version of "
                "onnxruntime, or install another one"
            ) from error

    def _check_signature(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise self._refusal("a face network has one input and one output")
        shape = inputs[0].shape
        fits = len(shape) == 4 and all(
            size == wanted or not isinstance(size, int) for size, wanted in zip(shape[1:], (3, SIZE, SIZE), strict=True)
        )
        if not fits or inputs[0].type not in _TYPES:
            raise self._refusal(f"a face network takes float images [N, 3, {SIZE}, {SIZE}]")
        if len(outputs[0].shape) not in (0, 2):  # 0: not stated
            raise self._refusal("a face network gives embeddings [N, dimensions]")

    def _signature(self) -> str:
        def words(values: list) -> str:
            return ", ".join(f"{v.name} {v.type} [{', '.join(str(size) for size in v.shape)}]" for v in values)

        return f"{words(self._session.get_inputs())} -> {words(self._session.get_outputs())}"

    def _refusal(self, reason: str) -> WeightsError:
        return WeightsError(f"{self._path}: not a face network: {reason}; its signature is {self._signature()}")
