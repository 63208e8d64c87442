"""An exported ONNX file or a checkpoint -> embeddings of aligned faces."""

from collections.abc import Mapping

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor, nn

from backbones import build_backbone
from backbones.model_folder import weights_file
from backbones.onnx_teacher import OnnxNetwork, find
from deploy.arguments import is_onnx
from deploy.pixels import UNIT_LENGTH
from eval.embeddings import embed_views
from utils.errors import InputError
from utils.files import sha256
from utils.precision import compute_type


class Embedder:
    """Aligned faces, uint8 [n, 112, 112, 3] RGB -> embeddings, float32 [n, D], not normalised.

    network: takes images in [-1, 1], in eval mode; checksum: SHA-256 of the checkpoint, None if it is not known;
    difference: why its cosines are not those that an evaluation of the checkpoint measures; "" if they are.
    """

    def __init__(
        self,
        network: nn.Module,
        checksum: str | None,
        difference: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.checksum, self.difference = checksum, difference
        self._network, self._device, self._dtype = network, device, dtype

    def __call__(self, faces: np.ndarray, flip: bool = True) -> np.ndarray:
        """flip: as evaluation does by default, embed the mirror images too, and add both embeddings."""
        views = embed_views(self._network, torch.from_numpy(faces), self._device, self._dtype, flip)
        embeddings: Tensor = torch.stack(views).sum(0).cpu()
        if not embeddings.isfinite().all():
            raise InputError("the model gives embeddings that are not finite: its weights are broken; export it again")
        return embeddings.numpy()


def build_embedder(cfg: EasyDict, model: str, device: torch.device) -> Embedder:
    """model: an ONNX file, or the weights of the network that cfg describes. Raises InputError."""
    dtype = compute_type(cfg.dtype, device)
    if is_onnx(model):
        # The other keys are about a teacher of the config.
        own = EasyDict(cfg, pretrained_teacher_path=model, onnx_mean=None, onnx_std=None, onnx_colours="RGB")
        network = OnnxNetwork(find(own)).eval()
        facts = network.metadata
        return Embedder(network, facts.get("checkpoint_sha256"), _difference(facts), device, dtype)
    network = build_backbone(cfg).eval().to(device, memory_format=torch.channels_last)
    return Embedder(network, sha256(weights_file(cfg.init_from)), "", device, dtype)


def _difference(facts: Mapping[str, str]) -> str:
    if "quantization" in facts:
        return "an int8 file"
    if facts.get("output") == UNIT_LENGTH:
        return "exported with --normalize, which changes the sum of image and mirror image"
    return ""
