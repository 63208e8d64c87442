"""Write the folder of a model for the Hugging Face hub. backbones/model_folder.py reads it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from easydict import EasyDict
from safetensors.torch import save
from torch import nn

from backbones.model_folder import DESCRIPTION, INPUT, SETTINGS, WEIGHTS
from deploy.exported_model import describe, export, facts
from eval.protocol import AllMetrics
from utils.errors import InputError
from utils.files import write_text

ONNX, CARD = "model.onnx", "README.md"
LIBRARY = "adadistill"  # the library_name in config.json and in the card
MAY_REPLACE = {WEIGHTS, DESCRIPTION, ONNX, CARD}


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which gets the name `path` when the block ends without an error; else it is deleted.

    It replaces an empty folder and one that this function made. Raises InputError if `path` is anything else.
    """
    path = Path(os.path.abspath(path))
    _require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _require_replaceable(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir() or path.is_symlink():
        raise InputError(f"{path}: exists and is no folder; name another one")
    files = {file.name for file in path.iterdir()}
    if others := sorted(files - MAY_REPLACE):
        raise InputError(f"{path}: has other content ({', '.join(others[:3])}); name another folder")
    if files and not _is_ours(path / DESCRIPTION):
        raise InputError(f"{path}: deploy/to_hub.py did not make this folder; name another one")


def _is_ours(description: Path) -> bool:
    try:
        return json.loads(description.read_bytes())["library_name"] == LIBRARY
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
