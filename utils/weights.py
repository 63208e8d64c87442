"""Weights from files: read without executing anything, loaded strictly, refused with the difference named."""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from utils.errors import InputError
from utils.files import sha256

# Training frameworks leave references to classes of theirs beside the weights, as in AdaFace's release.
_FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "argparse.Namespace")
_READABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError)  # with their text


class _Nothing:
    """Stands for a class of a framework that a file refers to: takes what the file says of it and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class WeightsError(InputError):
    """A weights file that cannot be read or does not fit the network; the message names the file and the fix."""


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch file (weights_only; a "state_dict" in it is opened)."""
    state = read_weights_file(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict (a dict of tensors by name), but {type(state).__name__}")
    room = os.path.getsize(path)
    for name, value in state.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.nbytes > room:
            raise WeightsError(f"{path}: {name} is no plain tensor, or larger than the file; save it contiguous")
    return state


def step_in_name(name: str) -> int | None:
    """The step that a file name such as 15163backbone.pth begins with; None where it begins with none."""
    digits = re.match(r"\d+", name)
    return int(digits[0]) if digits else None


def read_weights_file(path: str | os.PathLike) -> Any:
    """What a .safetensors or torch file holds, on the CPU: tensors and plain values (weights_only).

    Objects of the frameworks above come as empty ones; a file that refers to anything else is refused.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such weights file")
    if sums := _differs_from(Path(path)):
        raise WeightsError(f"{path}: broken: cut short or changed since it was written, as {sums.name} beside it says")
    try:
        return load_file(path) if path.endswith(".safetensors") else _load_torch_file(path)
    except Exception as error:  # what torch raises on bytes that are no pickle has no common base
        known = str(error) and isinstance(error, _READABLE)
        reason = str(error).splitlines()[0] if known else "garbled"
        raise WeightsError(f"{path}: not a weights file that can be read without executing it ({reason})") from error


def _differs_from(path: Path) -> Path | None:
    """The checksums that a run wrote beside a file of a checkpoint, where the file is not as they say."""
    step = re.match(r"\d+", path.name)
    sums = path.with_name(f"{step[0]}sha256.txt") if step else None
    if sums is None or not sums.is_file():
        return None
    lines = sums.read_text(errors="replace").splitlines()
    return sums if any(line.endswith(f"  {path.name}") and line[:64] != sha256(path) for line in lines) else None


def refuse_inflated(path: str | os.PathLike) -> None:
    """Raise UnpicklingError for a zip archive with more in it than its size: compressed, or the same bytes twice.

    torch.save and np.savez store entries as they are; loaders take the room that an entry claims before they read it.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > os.path.getsize(path):
            raise pickle.UnpicklingError(f"its entries claim {claimed} bytes, more than the file has")


def _load_torch_file(path: str) -> Any:
    refuse_inflated(path)
    try:
        return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        strange = [name for name in names if not name.startswith(_FRAMEWORKS)]
        if strange or not names:
            reason = f"it refers to {', '.join(strange)}" if strange else "it is no file that torch.save wrote"
            raise pickle.UnpicklingError(reason) from None
        try:
            with torch.serialization.safe_globals([(_Nothing, name) for name in names]):
                return torch.load(path, "cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise pickle.UnpicklingError(f"it holds objects of {', '.join(names)}: save its state_dict alone") from None


def load_strictly(network: nn.Module, state: dict[str, Tensor], source: str, hint: str) -> None:
    """Copy `state` into `network`, every key accounted for. Raises WeightsError: `source`, the difference, `hint`."""
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {list(state[key].shape)} where the network has {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    problems = [
        f"{len(found)} {word} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for word, found in (
            ("keys missing", missing),
            ("keys unexpected", unexpected),
            ("shapes differ", shapes),
            ("tensors not finite", broken),
        )
        if found
    ]
    if problems:
        raise WeightsError(f"{source}: does not fit {type(network).__name__}: {'; '.join(problems)}. {hint}")
    network.load_state_dict(state)
