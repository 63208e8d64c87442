"""Folders and repositories that deploy/to_hub.py made: config.json says which network it is, model.safetensors has its
weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from backbones.hub import Keys, MissingWeights, commit_of, download
from config.paths import is_repository, split_repository
from config.rules import RULES
from utils.file_kinds import describe_other_kind
from utils.weights import WeightsError

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
KIND = "model of deploy/to_hub.py"
# The keys of config.py that rebuild a network.
SETTINGS = ("network", "embedding_size", "width", "SE", "activation")
# What all networks of this repository take; config.json states it for other programs.
INPUT = {"colours": "RGB", "input_size": [112, 112], "mean": 127.5, "std": 127.5}
STUDENT_KEYS = Keys("init_from=FOLDER (or --checkpoint FOLDER)", "init_from or --checkpoint", "what follows @", KIND)


class Model(NamedTuple):
    """weights: the file; origin: the folder, or owner/name@commit; settings: the values of SETTINGS in config.json."""

    weights: Path
    origin: str
    settings: dict[str, Any]

    def require(self, wanted: Mapping[str, tuple[str, Any]]) -> None:
        """Raise WeightsError if the network is another one. wanted: setting -> (key of the config, its value)."""
        different = {name: key for name, (key, value) in wanted.items() if self.settings[name] != value}
        if different:
            stated = "; ".join(
                f"{name} is {self.settings[name]!r}, but {key} = {wanted[name][1]!r}" for name, key in different.items()
            )
            fix = " ".join(f"{key}={self.settings[name]}" for name, key in different.items())
            raise WeightsError(f"{self.origin}: not the network that the config names: {stated}; set {fix}")


def is_model(source: str) -> bool:
    """Whether the text names a repository, or a folder with a config.json."""
    return bool(source) and (is_repository(source) or Path(source, DESCRIPTION).is_file())


def find_settings(source: str, keys: Keys = STUDENT_KEYS, cache: str | None = None) -> dict[str, Any]:
    """The values of SETTINGS of a folder, or of a repository, whose config.json is downloaded. Raises WeightsError."""
    return _read_settings(_find_description(source, keys, cache)[0])


def find_model(source: str, keys: Keys = STUDENT_KEYS, cache: str | None = None) -> Model:
    """The network in a folder, or in a repository hf://owner/name[@revision], which is downloaded. Executes nothing.

    keys: what messages name; cache: the folder for downloads; None: the one of huggingface_hub. Raises WeightsError.
    """
    description, commit = _find_description(source, keys, cache)
    settings = _read_settings(description)
    if not commit:
        weights = description.with_name(WEIGHTS)
        if not weights.is_file():
            raise MissingWeights(f"{weights}: no such file, so the folder is not complete; copy it again")
        return Model(weights, source, settings)
    repository, _ = split_repository(source)
    weights = download(repository, WEIGHTS, commit, cache, (WEIGHTS, DESCRIPTION), keys)
    return Model(weights, f"{repository}@{commit}", settings)


def weights_file(source: str) -> Path:
    """The weights file in a folder or repository; `source` itself if it is a file. Raises WeightsError."""
    return find_model(source).weights if is_model(source) else Path(source)


def _find_description(source: str, keys: Keys, cache: str | None) -> tuple[Path, str]:
    """config.json, and the commit from which it was downloaded; "" for a folder."""
    if not is_repository(source):
        return Path(source, DESCRIPTION), ""
    repository, revision = split_repository(source)
    path = download(repository, DESCRIPTION, revision, cache, (WEIGHTS, DESCRIPTION), keys)
    return path, commit_of(path, DESCRIPTION)


def _read_settings(path: Path) -> dict[str, Any]:
    """The values of SETTINGS in a config.json; other entries are ignored. Raises WeightsError."""
    if kind := describe_other_kind(path):
        raise WeightsError(f"{path}: not a description of a network, but {kind}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not JSON; download it again, or make the folder again") from error
    if not isinstance(content, dict) or not set(SETTINGS) <= content.keys():
        missing = [key for key in SETTINGS if not isinstance(content, dict) or key not in content]
        raise WeightsError(
            f"{path}: lacks {', '.join(missing)}, so it describes no {KIND} (a CVLFace release is a "
            "teacher: teacher_repo_id names its repository); name another folder or repository"
        )
    wrong = {key: RULES[key].refusal(content[key]) for key in SETTINGS if not RULES[key].allows(content[key])}
    wrong |= {key: f"must be {value}" for key, value in INPUT.items() if content.get(key, value) != value}
    if wrong:
        stated = "; ".join(f"{key} = {repr(content[key])[:100]}: {reason}" for key, reason in wrong.items())
        raise WeightsError(f"{path}: describes a network that cannot be used here: {stated}")
    return {key: content[key] for key in SETTINGS}
