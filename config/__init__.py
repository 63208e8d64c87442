"""Read, check and write configs. config/config.py explains how the layers of a config are combined."""

import os
import pprint
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from config.conflicts import DISTILLATION, Conflict, find_conflict
from config.paths import (
    ROOT,
    PathError,
    existing_input,
    input_path,
    is_repository,
    output_path,
    split_repository,
)
from config.rule import Rule, most_similar
from config.rules import REMOVED, RULES, benchmark_defaults, known_rules
from utils.errors import InputError

BASE = ROOT / "config" / "config.py"
LONGEST_OVERRIDE = 3000  # characters; Python's parser may exhaust the stack on much longer texts


class ConfigError(InputError):
    """The config cannot be used. The message names the key or file, what is allowed and what to do."""


def load_config(
    path: str | os.PathLike = BASE, overrides: Sequence[str] = (), conflicts: Sequence[Conflict] = DISTILLATION
) -> EasyDict:
    """Read and check a config. Nothing but the config files is opened.

    torch is not imported, unless `network` names a network of a library: the library then checks the name.

    Args:
        path: a Python file, which is executed; a relative path is found by `input_path`. It is a preset or a complete
            config. A preset has a dict `preset` of the keys that differ from config/config.py. If it builds on other
            presets, it also has `base`: the path of a preset relative to its own folder, or a list of paths, which are
            applied in this order. A complete config is a file like config/config.py: it has an EasyDict `config` of all
            keys and a dict `datasets`.
        overrides: strings of the form "key=value", as on the command line. The rule of the key in config/rules.py
            converts the value: "lr=0.1" becomes a float, "val_targets=lfw,cfp_fp" a list.
        conflicts: the contradictions between keys that are refused, from config/conflicts.py. By default all of them;
            a script that ignores some keys passes those that concern it.

    Returns:
        All keys with their values: the defaults, overridden by the entry of `datasets`, then by the preset, then by
        `overrides`. Paths are absolute (config/paths.py); empty paths stay empty.

    Raises:
        ConfigError: a file is missing or is not a config, a key is unknown, missing or no longer supported, a value is
            not allowed, or two keys contradict each other (config/conflicts.py).
    """
    rules = known_rules()
    complete, presets = _read_layers(_find_config(path))
    base, layers = complete or _read_file(BASE), [*presets.values(), _parse_overrides(overrides, rules)]
    datasets, defaults = base["datasets"], benchmark_defaults() | base["config"]
    cfg: dict[str, Any] = {}
    for layer in [defaults, _dataset_entry([defaults, *layers], datasets), *layers]:
        for key, value in layer.items():
            _require_known(key, rules)
            cfg[key] = value
    missing = [key for key in RULES if key not in cfg]
    if missing:
        raise ConfigError(f"{path}: the config lacks {', '.join(missing)}; copy them from config/config.py")
    cfg = EasyDict({key: _check_value(key, value, rules[key]) for key, value in cfg.items()})
    conflict = find_conflict(cfg, conflicts)
    if conflict:
        raise ConfigError(conflict)
    return cfg


def preset_files(path: str | os.PathLike) -> list[Path]:
    """The presets of which a config consists, in the order in which they are applied. Raises ConfigError."""
    return list(_read_layers(_find_config(path))[1])


def dump_config(cfg: EasyDict, note: str) -> str:
    """The text of a preset that sets every key of `cfg`, with the lines of `note` as comments at the top."""
    comment = "".join(f"# {line}\n" for line in note.splitlines())
    return f"{comment}\npreset = {pprint.pformat(dict(cfg), sort_dicts=False, width=110)}\n"


def _find_config(path: str | os.PathLike) -> Path:
    """The absolute path of a config file. Raises ConfigError."""
    try:
        return existing_input(path)
    except PathError as error:
        raise ConfigError(str(error)) from None


def _read_layers(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any] | None, dict[Path, dict[str, Any]]]:
    """Read the config file `path` and the files that it builds on. above: the presets that build on it.

    Returns the variables of the complete config at the bottom, None if no preset names one, and the dict of each preset
    by its path, in the order in which they are applied. A preset that several others build on is applied once.
    """
    if path.resolve() in above:
        raise ConfigError(f"{above[-1]}: `base` leads back to {path}; a preset cannot be its own base")
    variables = _read_file(path)
    if "config" in variables and "datasets" in variables:
        return variables, {}
    if not isinstance(variables.get("preset"), dict):
        raise ConfigError(f"{path}: neither a preset (a dict `preset`) nor a config (`config` and `datasets`)")
    bases = variables.get("base", [])
    complete, layers = None, {}
    for base in [bases] if isinstance(bases, str | os.PathLike) else bases:
        found, more = _read_layers(path.parent / base, (*above, path.resolve()))
        if found and complete:
            raise ConfigError(f"{path}: two files of `base` lead to complete configs; only one may")
        complete, layers = found or complete, layers | more
    return complete, layers | {path.resolve(): variables["preset"]}


def _read_file(path: Path) -> dict[str, Any]:
    """The variables of a config file, which is executed. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    if b"\0" in path.read_bytes():
        raise ConfigError(f"{path}: has zero bytes, as UTF-16 has; save it as UTF-8")
    try:
        variables = runpy.run_path(str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}: line {error.lineno} is not valid Python: {error.msg}") from error
    _refuse_removed(path, variables)
    return variables


def _refuse_removed(path: Path, variables: Mapping[str, Any]) -> None:
    """Raise ConfigError if a config file states keys that earlier versions had, as the config.py of an old run does."""
    stated = {**variables.get("config", {}), **dict(variables.get("preset") or {})}
    if removed := [key for key in REMOVED if key in stated]:
        fixes = "; ".join(f"{key}: {REMOVED[key]}" for key in removed)
        raise ConfigError(f"{path}: no longer keys: {', '.join(removed)}; remove them ({fixes})")


def _parse_overrides(overrides: Sequence[str], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The values of strings "key=value", by key."""
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: not an override; write key=value")
        if len(text) > LONGEST_OVERRIDE:
            raise ConfigError(
                f"{text[:40]!r}...: an override of {len(text)} characters (at most {LONGEST_OVERRIDE} are allowed); "
                "write the value in a preset"
            )
        _require_known(key, rules)
        values[key] = rules[key].parse(value)
    return values


def _dataset_entry(layers: Sequence[Mapping[str, Any]], datasets: Mapping[str, dict]) -> dict[str, Any]:
    """The entry of `datasets` for the last value of the key `dataset` in the layers."""
    names = [layer["dataset"] for layer in layers if "dataset" in layer]
    if not names:
        return {}
    name = _check_value("dataset", names[-1], RULES["dataset"])
    if name not in datasets:
        similar = most_similar(name, datasets)
        suggestion = f", the most similar is {similar!r}" if similar else ""
        raise ConfigError(f"dataset = {name!r}: no such entry{suggestion}; the entries are {', '.join(datasets)}")
    return datasets[name]


def _check_value(key: str, value: Any, rule: Rule) -> Any:
    """Return the value, normalised and with absolute paths. Raises ConfigError if its rule does not allow it."""
    value = rule.normalise(value)
    if not rule.allows(value):
        raise ConfigError(f"{key} = {value!r}: {rule.refusal(value)}")
    if not (rule.is_path and value):
        return value
    absolute = output_path if rule.is_output else input_path
    try:
        if rule.or_repository and is_repository(value):
            split_repository(value)
            return value
        return [str(absolute(path)) for path in value] if isinstance(value, list) else str(absolute(value))
    except PathError as error:
        raise ConfigError(f"{key} = {error}") from None


def _require_known(key: str, rules: Mapping[str, Rule]) -> None:
    """Raise ConfigError if there is no such key."""
    if key in REMOVED:
        raise ConfigError(f"{key}: no longer a key; {REMOVED[key]}")
    if key not in rules:
        similar = most_similar(str(key), rules)
        suggestion = f", the most similar is {similar!r} ({rules[similar].allowed})" if similar else ""
        raise ConfigError(f"{key}: no such key{suggestion}; docs/config.md lists all keys")
