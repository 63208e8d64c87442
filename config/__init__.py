"""Read the config: config.py, then the data set's entry, then a preset, then key=value overrides."""

import difflib
import os
import pprint
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from config.rules import REMOVED, RULES
from utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "config" / "config.py"
LONGEST_OVERRIDE = 3000  # characters; of much longer ones Python's parser may exhaust the stack


class ConfigError(InputError):
    """A config that cannot be used: the message names the key, what is allowed and where it was set."""


def load_config(path: str | os.PathLike = BASE, overrides: Sequence[str] = ()) -> EasyDict:
    """Read and check the config.

    path: a preset (a Python file whose dict `preset` states what differs from config/config.py, on top of the
    preset file that its `base` names, if any), or a whole config like config/config.py (an EasyDict `config` and a
    dict `datasets`). overrides: texts "key=value". Order: config.py, the entry of `datasets` that `dataset` names,
    the presets, the overrides. Paths come back absolute. Raises ConfigError.
    """
    base, layers = _read_layers(Path(path))
    layers.append(_parse_overrides(overrides))
    cfg, datasets = dict(base["config"]), base["datasets"]
    for layer in layers:
        cfg["dataset"] = dataset = layer.get("dataset", cfg["dataset"])
    if not RULES["dataset"].check(dataset):
        raise ConfigError(f"dataset = {dataset!r}: allowed is {RULES['dataset'].allowed()}")
    if dataset not in datasets:
        known = ", ".join(datasets)
        raise ConfigError(f"dataset = {dataset!r}: no such entry{_nearest(dataset, datasets)}; there are {known}")
    for layer in [datasets[dataset], *layers]:
        for key, value in layer.items():
            _known(key)
            cfg[key] = value
    for key, value in cfg.items():
        _known(key)
        rule = RULES[key]
        if isinstance(value, tuple):  # as good as a list
            cfg[key] = value = list(value)
        if not rule.check(value):
            raise ConfigError(f"{key} = {value!r}: allowed is {rule.allowed()}")
        if rule.path and value:
            cfg[key] = str(ROOT / _expand(key, value))
    missing = [key for key in RULES if key not in cfg]
    if missing:
        raise ConfigError(f"{path}: the config lacks {', '.join(missing)}; config/config.py has every key")
    return EasyDict(cfg)


def dump_config(cfg: EasyDict, note: str) -> str:
    """The text of a preset that states every key of `cfg`, with `note` as comments above it."""
    comment = "".join(f"# {line}\n" for line in note.splitlines())
    return f"{comment}\npreset = {pprint.pformat(dict(cfg), sort_dicts=False, width=110)}\n"


def _read_layers(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The namespace of the whole config at the bottom, and the presets above it, lowest first."""
    layers, seen = [], []
    while True:
        if not path.is_file():
            raise ConfigError(f"{path}: no such config file")
        try:
            names = runpy.run_path(str(path))
        except SyntaxError as error:
            raise ConfigError(f"{path}: line {error.lineno} is no Python: {error.msg}") from error
        if "config" in names and "datasets" in names:
            return names, layers
        if not isinstance(names.get("preset"), dict):
            raise ConfigError(f"{path}: neither a preset (a dict `preset`) nor a config (`config` and `datasets`)")
        layers.insert(0, names["preset"])
        seen.append(path.resolve())
        path = path.parent / names["base"] if "base" in names else BASE
        if path.resolve() in seen:
            raise ConfigError(f"{seen[-1]}: `base` leads back to {path}")


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: an override is key=value")
        if len(text) > LONGEST_OVERRIDE:
            raise ConfigError(f"{text[:40]!r}...: an override of {len(text)} characters; at most {LONGEST_OVERRIDE}")
        _known(key)
        values[key] = RULES[key].parse(value)
    return values


def _known(key: str) -> None:
    if key in REMOVED:
        raise ConfigError(f"{key}: no longer a key; {REMOVED[key]}")
    if key not in RULES:
        key = str(key)
        raise ConfigError(f"{key}: no such key{_nearest(key, RULES)}; config/config.py lists them all")


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    name = name[:100]  # of what is longer none is near, and to find that out takes long
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    if not close:
        return ""
    nearest = lower[close[0]]
    return f", the nearest is {nearest!r}" + (f" ({RULES[nearest].allowed()})" if nearest in RULES else "")


def _expand(key: str, text: str) -> str:
    try:
        expanded = os.path.expanduser(os.path.expandvars(text))
    except ValueError:  # of the name of a user
        expanded = "\0"
    if "\0" in expanded:
        raise ConfigError(f"{key} = {text!r}: no path; it holds a character that no path has")
    if "$" in expanded:
        raise ConfigError(f"{key} = {text!r}: the environment variable in it is not set; set it or write the path out")
    return expanded
