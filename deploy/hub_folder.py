"""Write the folder of a model for the Hugging Face hub. backbones/model_folder.py reads it."""

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

import onnx
import torch
from easydict import EasyDict
from safetensors.torch import save
from torch import nn

from backbones.model_folder import DESCRIPTION, INPUT, SETTINGS, WEIGHTS
from deploy.exported_model import describe, export, facts
from eval.protocol import AllMetrics
from utils.files import new_folder, write_text

ONNX, CARD = "model.onnx", "README.md"
LIBRARY = "adadistill"  # the library_name in config.json and in the card
MAY_REPLACE = (WEIGHTS, DESCRIPTION, ONNX, CARD)


def model_folder(path: str | os.PathLike) -> AbstractContextManager[Path]:
    """A `new_folder` for a model, which may replace one that deploy/to_hub.py made."""
    return new_folder(path, "deploy/to_hub.py", MAY_REPLACE, _is_ours)


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / DESCRIPTION).read_bytes())["library_name"] == LIBRARY
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def write_weights(folder: Path, network: nn.Module) -> None:
    """Write the state dict as model.safetensors."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(state, {"format": "pt"}))  # save_file would let only its owner read the file


def write_description(folder: Path, cfg: EasyDict) -> None:
    """Write config.json: what rebuilds the network, and what it takes, (pixel - mean) / std."""
    content = {"library_name": LIBRARY, **{key: cfg[key] for key in SETTINGS}, **INPUT}
    write_text(folder / DESCRIPTION, json.dumps(content, indent=1) + "\n")


def write_onnx(folder: Path, cfg: EasyDict, network: nn.Module, checksum: str, metrics: AllMetrics) -> str:
    """Write model.onnx, and return in words how far its embeddings are from those of `network`.

    checksum: of the checkpoint; metrics: both for the metadata. Raises InputError if the embeddings differ.
    """
    exported = export(cfg, network)
    versions = f"torch {torch.__version__}, onnx {onnx.__version__}"
    describe(exported.model, {**facts(cfg, checksum, exported, False, metrics), "versions": versions})
    (folder / ONNX).write_bytes(exported.model.SerializeToString())
    return str(exported)
