"""Read weights files without executing anything in them."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from utils.errors import InputError
from utils.file_kinds import describe_other_kind
from utils.files import sha256

# Checkpoints of training frameworks, such as AdaFace's release, contain objects of these frameworks besides weights.
_FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "argparse.Namespace")
# Errors of the loaders whose message helps the user.
_CLEAR_ERRORS = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError)

CHECKSUMS = "sha256.txt"  # <step>sha256.txt beside a checkpoint: the checksums of its files


class _Placeholder:
    """Replaces a class of a framework that a file refers to. It accepts any arguments and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class WeightsError(InputError):
    """A weights file cannot be read or does not fit the network. The message names the file and what to do."""


def read_state_dicts(path: str | os.PathLike) -> dict[str, dict[str, Tensor]]:
    """Every state dict (a dict of tensors by name) in a .safetensors or torch file, by the name of its entry.

    The name is "" if the file is itself a state dict. Raises WeightsError.
    """
    content = read_weights_file(path)
    states = dict(_state_dicts(content))
    if not states:
        found = type(content).__name__
        if isinstance(content, dict):
            others = {key: type(value).__name__ for key, value in content.items() if not isinstance(value, Tensor)}
            listed = [f"{key} ({kind})" for key, kind in others.items()]
            found = f"a dict with {', '.join(listed[:3]) or 'nothing in it'}"
        raise WeightsError(
            f"{path}: contains {found} (expected a state dict: a dict of tensors by name); save the network again with "
            "`torch.save(network.state_dict(), FILE)`"
        )
    size = os.path.getsize(path)
    for state in states.values():
        for name, value in state.items():
            if value.layout != torch.strided or value.is_meta or value.is_quantized or value.nbytes > size:
                raise WeightsError(
                    f"{path}: {name} is not a plain tensor, or larger than the file; save it as a contiguous tensor"
                )
    return states


def _state_dicts(content: Any, entry: str = "", levels: int = 2) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (name, state dict) for `content` or, if it is another dict, for its entries down to `levels`."""
    if not isinstance(content, dict) or not content:
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield entry, content
    elif levels:
        for key, value in content.items():
            if isinstance(key, str):
                yield from _state_dicts(value, f"{entry}.{key}" if entry else key, levels - 1)


def step_in_name(name: str) -> int | None:
    """The step at the beginning of a file name such as 15163backbone.pth, or None."""
    digits = re.match(r"\d+", name)
    return int(digits[0]) if digits else None


def read_weights_file(path: str | os.PathLike) -> Any:
    """The content of a .safetensors or torch file, on the CPU: tensors and plain values (weights_only).

    Objects of training frameworks become empty placeholders. Raises WeightsError if the file refers to any other class
    or function, is broken, or differs from its checksum in the file of checksums in its folder.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: {_describe_missing(Path(path))}")
    if sums := _violated_checksums(Path(path)):
        raise WeightsError(
            f"{path}: broken: cut short or changed after it was written ({sums.name} has another checksum "
            "for it); use another file"
        )
    if kind := describe_other_kind(path, torch_file=True):
        raise WeightsError(f"{path}: not a weights file, but {kind}")
    try:
        return load_file(path) if path.endswith(".safetensors") else _load_torch_file(path)
    except Exception as error:  # torch's errors for bytes that are not a pickle have no common base class
        clear = str(error) and isinstance(error, _CLEAR_ERRORS) and not isinstance(error, OSError)
        reason = str(error).splitlines()[0] if clear else "cut short or damaged"
        raise WeightsError(
            f"{path}: not a weights file that can be read without executing it ({reason}); download it again, or save "
            "only the state dict where it was made: `torch.save(network.state_dict(), FILE)`"
        ) from error


def _describe_missing(path: Path) -> str:
    """What is wrong with a path that names no file, and what to do."""
    if path.is_dir():
        return "a folder; name the weights file in it"
    if not path.parent.is_dir():
        return (
            "no such file, and no such folder; check the path (relative ones are looked for in the current folder, "
            "then in the repository root; a repository of the Hugging Face hub is hf://owner/name)"
        )
    names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    similar = get_close_matches(path.name, names, cutoff=0.5)
    return f"no such file; check the path (similar names there: {', '.join(similar) or 'none'})"


def _violated_checksums(path: Path) -> Path | None:
    """The file of checksums in the folder of this file, if its checksum for this file differs; else None."""
    sums = path.with_name(f"{step_in_name(path.name)}{CHECKSUMS}")
    if not sums.is_file():
        return None
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    return sums if any(line.endswith(f"  {path.name}") and line[:64] != sha256(path) for line in lines) else None


def refuse_inflated(path: str | os.PathLike) -> None:
    """Raise UnpicklingError for a zip archive whose entries claim more bytes than the file has.

    Files of torch.save and np.savez are never compressed. Loaders allocate as many bytes as an entry claims before they
    read it, so a small file could fill the memory.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > os.path.getsize(path):
            raise pickle.UnpicklingError(f"its entries claim {claimed} bytes, more than the file has")


def _load_torch_file(path: str) -> Any:
    """torch.load, with placeholders for objects of training frameworks. Raises UnpicklingError."""
    refuse_inflated(path)
    try:
        return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        foreign = [name for name in names if not name.startswith(_FRAMEWORKS)]
        if foreign or not names:
            reason = f"it refers to {', '.join(foreign)}" if foreign else "torch.save did not write it"
            raise pickle.UnpicklingError(reason) from None
        try:
            with torch.serialization.safe_globals([(_Placeholder, name) for name in names]):
                return torch.load(path, "cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise pickle.UnpicklingError(f"it holds objects of {', '.join(names)}; save only its state_dict") from None
