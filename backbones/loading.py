"""Load weights files into networks. Prefixes and other names of the keys are understood; no weight stays random."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.weights import WeightsError, read_state_dicts

# A key that only one kind of network has -> what it is. The first ones are no networks of this repository.
_FOREIGN = {
    "conv_sep.layers.0.weight": "arcface_torch's MobileFaceNet, which is the network of this repository only if its "
    "scale is 1 (then with width = 1.0); mbf and mbf_large have scale 2 and 4, and other groups",
    "dw_conv.depthwise.weight": "foamliu's MobileFaceNet, with ReLU6 instead of PReLU; no width makes it fit",
    "dw_conv1.conv.weight": "Xiaoccer's MobileFaceNet, for images of 112 x 96 pixels; no width makes it fit",
}
_KNOWN = {
    "attn.qkv.weight": "a vision transformer",
    "layer4.0.prelu.weight": "an IResNet of InsightFace",
    "body.0.res_layer.0.weight": "an IR network such as CVLFace's",
    "conv_6_sep.conv.weight": "a MobileFaceNet",
    "kernel": "a header file, which holds class centers; the network is in <step>backbone.pth",
}
_COUNTER = "num_batches_tracked"  # of BatchNorm; PyTorch takes 0 for it if it is missing


class KeyNames(NamedTuple):
    """How other code bases name the keys of a network.

    others: code base -> function from a key of the network to the key there; folded: additional keys, each with a key
    of the network that has the same shape; fold: from a state dict with the additional keys to one without them.
    """

    others: Mapping[str, Callable[[str], str]] = MappingProxyType({})
    folded: Mapping[str, str] = MappingProxyType({})
    fold: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


class _Expected(NamedTuple):
    """What the file must have: the name of the network, and the shapes of its tensors and of the additional keys."""

    network: str
    shapes: dict[str, list[int]]
    key_names: KeyNames


class _Reading(NamedTuple):
    """One way to read a file: the keys that begin with `prefix` in the state dict `entry`, named as in `code_base`.

    names: key of the network -> its name there; given: the tensors with the prefix, by their name without it; others:
    the keys without the prefix.
    """

    entry: str
    prefix: str
    code_base: str
    names: dict[str, str]
    given: dict[str, Tensor]
    others: list[str]

    def describe(self) -> list[str]:
        entry = [f"found under {self.entry!r}"] if self.entry else []
        prefix = [f"prefix {self.prefix!r} removed"] if self.prefix else []
        return [*entry, *prefix, *([f"key names of {self.code_base}"] if self.code_base else [])]


def load_weights(network: nn.Module, path: str | os.PathLike, hint: str, new_last_layer: bool = False) -> str:
    """Copy the weights in a file into the network. Returns the prefix that was removed its keys.

    The file must have exactly one state dict and prefix such that the keys with this prefix are those of the network.
    Only num_batches_tracked may be missing. All shapes must agree, and all values must be finite. Otherwise raises
    WeightsError, with the differences and `hint` in its message. Other keys are left out. network.loaded says what was
    removed and what was left out.

    new_last_layer: if embeddings in the file only have another size, leave the last layer of the network as it is.
    """
    states = read_state_dicts(path)
    tensors, expected = network.state_dict(), _expected(network)
    key_names = expected.key_names
    readings = _readings(states, expected)
    fits = [reading for reading in readings if not _differences(reading, expected)]
    if not fits and new_last_layer:
        fits = [reading for reading in readings if _has_other_embedding_size(reading, expected)]
    if len(fits) > 1:
        found = " and ".join(", ".join(fit.describe()) or "without a prefix" for fit in fits)
        raise WeightsError(
            f"{path}: contains {len(fits)} networks that fit {expected.network} ({found}); save the state dict of the "
            "one that you want in a file of its own"
        )
    if not fits:
        raise WeightsError(f"{path}: {_describe_misfit(readings[0], states, expected, hint)}")
    fit = fits[0]
    resized = [key for key, *_ in _other_shapes(fit, expected)]
    state = {key: fit.given[name] for key, name in fit.names.items() if name in fit.given and key not in resized}
    _require_finite(path, state)
    changes = fit.describe()
    if resized:
        given, wanted = _embedding_sizes(_other_shapes(fit, expected))
        changes.append(
            f"its embeddings have {given} dimensions instead of {wanted}, so the last layer starts anew and "
            f"{', '.join(resized)} are left out"
        )
    if key_names.folded.keys() & state.keys():
        state = key_names.fold(state)
        changes.append("scale and offset of the last BatchNorm moved into its mean and the layer before it")
    others = {key: value for key, value in tensors.items() if key not in state}  # those of a new last layer, counters
    counters = {key: torch.zeros_like(value) for key, value in others.items() if key.endswith(_COUNTER)}
    if counters:
        changes.append(f"{_COUNTER} is not in the file and starts at 0")
    if left_out := [*(entry for entry in states if entry != fit.entry), *fit.others]:
        changes.append(f"{len(left_out)} left out ({_listed(left_out)})")
    network.load_state_dict({**state, **others, **counters})
    network.loaded = "; ".join([f"{len(state)} tensors", *changes])
    return fit.prefix


def embedding_size_of(network: nn.Module, path: str | os.PathLike) -> int | None:
    """The size of the embeddings of the weights in a file, if they fit the network but for another size; else None.

    Raises WeightsError if the file cannot be read.
    """
    expected = _expected(network)
    for reading in _readings(read_state_dicts(path), expected):
        if _has_other_embedding_size(reading, expected):
            return _embedding_sizes(_other_shapes(reading, expected))[0]
    return None


def _expected(network: nn.Module) -> _Expected:
    key_names = getattr(network, "key_names", KeyNames())
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    shapes |= {key: shapes[like] for key, like in key_names.folded.items()}
    return _Expected(type(network).__name__, shapes, key_names)


def _readings(states: dict[str, dict[str, Tensor]], expected: _Expected) -> list[_Reading]:
    """The ways to read the file in which it has all keys that the network needs; if there is none, the nearest one.

    Those with the most keys of the network come first.
    """
    found = []  # (number of keys of the network, names of its keys, and the other values of a reading)
    for code_base, rename in {"": str, **expected.key_names.others}.items():
        names = {key: rename(key) for key in expected.shapes}
        there = set(names.values())
        depth = 1 + max(name.count(".") for name in there)
        for entry, state in states.items():
            endings = ((key, ending) for key in state for ending in _endings(key, depth))
            counts = Counter(key.removesuffix(ending) for key, ending in endings if ending in there) or {"": 0}
            found += [(count, names, code_base, entry, prefix) for prefix, count in counts.items()]
    needed = sum(not key.endswith(_COUNTER) for key in expected.shapes) - len(expected.key_names.folded)
    found.sort(key=lambda reading: -reading[0])
    complete = [reading for reading in found if reading[0] >= needed] or found[:1]
    readings = []
    for _, names, code_base, entry, prefix in complete:
        state = states[entry]
        given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        others = [key for key in state if not key.startswith(prefix)]
        readings.append(_Reading(entry, prefix, code_base, names, given, others))
    return readings


def _endings(key: str, depth: int) -> list[str]:
    """The ends of a key that begin after a dot or at its start and have at most `depth` parts."""
    parts = key.rsplit(".", depth)
    return [".".join(parts[at:]) for at in range(max(0, len(parts) - depth), len(parts))]


def _differences(reading: _Reading, expected: _Expected) -> dict[str, list[str]]:
    """What keeps the weights from fitting the network: kind of difference -> keys."""
    given, there, folded = reading.given, set(reading.names.values()), expected.key_names.folded
    optional = () if any(reading.names[key] in given for key in folded) else folded
    differences = {
        "missing keys": [
            key
            for key, name in reading.names.items()
            if name not in given and key not in optional and not key.endswith(_COUNTER)
        ],
        # A key of the network that lacks the prefix makes the file ambiguous, so it counts as unexpected.
        "unexpected keys": [
            *(key for key in given if key not in there),
            *(f"{key}, without {reading.prefix}" for key in reading.others if key in there),
        ],
        "different shapes": [
            f"{key} is {shape}, but the network has {wanted}" for key, shape, wanted in _other_shapes(reading, expected)
        ],
    }
    return {kind: keys for kind, keys in differences.items() if keys}


def _other_shapes(reading: _Reading, expected: _Expected) -> list[tuple[str, list[int], list[int]]]:
    """(key, shape in the file, shape in the network) of the tensors whose shapes differ."""
    shapes = expected.shapes
    given = {key: list(reading.given[name].shape) for key, name in reading.names.items() if name in reading.given}
    return [(key, shape, shapes[key]) for key, shape in given.items() if shape != shapes[key]]


def _describe_misfit(reading: _Reading, states: dict[str, dict[str, Tensor]], expected: _Expected, hint: str) -> str:
    """What the file is, how it differs from the network under the nearest reading, and what to do."""
    keys = [key for state in states.values() for key in state]
    differences = _differences(reading, expected)
    only_shapes = list(differences) == ["different shapes"]
    if _has_other_embedding_size(reading, expected):
        given, wanted = _embedding_sizes(_other_shapes(reading, expected))
        return f"its embeddings have {given} dimensions, but embedding_size is {wanted}; set embedding_size={given}"
    if foreign := _identify(keys, _FOREIGN):
        return f"weights of another network, {foreign}. {hint}"
    known = None if only_shapes else _identify(keys, _KNOWN)
    what = f"looks like {known}; it does not fit" if known else "does not fit"
    listed = "; ".join(f"{kind}: {len(keys)} ({_listed(keys)})" for kind, keys in differences.items())
    misfit = f"{what} {expected.network}: {', '.join([*reading.describe(), listed])}. "
    if not only_shapes:
        misfit += "If keys differ, this is another network or only a part of one: the width does not change the keys. "
    return misfit + hint


def _has_other_embedding_size(reading: _Reading, expected: _Expected) -> bool:
    """Whether the weights would fit if the embeddings of the network had another size."""
    only_shapes = list(_differences(reading, expected)) == ["different shapes"]
    return only_shapes and _embedding_sizes(_other_shapes(reading, expected)) is not None


def _embedding_sizes(other: list[tuple[str, list[int], list[int]]]) -> tuple[int, int] | None:
    """(embedding size in the file, in the network) if that explains all these shapes, else None."""
    if any(not given or not wanted or given[1:] != wanted[1:] for _, given, wanted in other):
        return None
    sizes = {(given[0], wanted[0]) for _, given, wanted in other}
    has_matrix = any(len(given) == 2 for _, given, _ in other)  # the last layer; the others are convolutions
    return sizes.pop() if has_matrix and len(sizes) == 1 else None


def _require_finite(path: str | os.PathLike, state: dict[str, Tensor]) -> None:
    wrong = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise WeightsError(
            f"{path}: {len(wrong)} tensors not finite ({_listed(wrong)}); the file is damaged, or its training "
            "diverged: use another file"
        )


def _identify(keys: list[str], kinds: dict[str, str]) -> str | None:
    """The kind of network that has one of the keys, under any prefix if the key has parts."""

    def has(name: str) -> bool:
        return any(key == name or ("." in name and key.endswith(f".{name}")) for key in keys)

    return next((kind for name, kind in kinds.items() if has(name)), None)


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
