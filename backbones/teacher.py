"""Finds a teacher's weights, says what they belong to, and loads them strictly; no code comes with them."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml
from easydict import EasyDict
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

from utils.files import sha256
from utils.weights import WeightsError, load_strictly, read_state_dict

REPOSITORIES = {
    "cvlface_ir18": "minchul/cvlface_adaface_ir18_webface4m",
    "cvlface_ir50": "minchul/cvlface_adaface_ir50_webface4m",
    "cvlface_ir101": "minchul/cvlface_adaface_ir101_webface12m",
}
WEIGHTS, DESCRIPTION = "model.safetensors", "pretrained_model/model.yaml"
_OURS = [name.removeprefix("cvlface_") for name in REPOSITORIES]
_NONE_OF_OURS = f"none of ours ({', '.join(_OURS)}); take an IR release, such as {REPOSITORIES['cvlface_ir50']}"
_TOKEN = "set the environment variable HF_TOKEN to a token of your account, or run `hf auth login`"
# What went wrong at the hub and what helps, the most particular error first.
_HUB_ERRORS = {
    GatedRepoError: f"is gated: accept its terms on its page, then {_TOKEN}",
    RevisionNotFoundError: "has no revision {revision!r}: teacher_revision is a branch, a tag or a commit of it",
    RepositoryNotFoundError: f"does not exist or is private: check teacher_repo_id; for a private one {_TOKEN}",
    HFValidationError: "is no repository's name, which is owner/name: check teacher_repo_id",
    LocalEntryNotFoundError: "is not in the cache, and the hub cannot be reached ({error}). {by_hand}",
    EntryNotFoundError: "has no {file}, so it is no CVLFace release: check teacher_repo_id and teacher_revision",
    HfHubHTTPError: f"is refused by the hub ({{error}}). Where that is 401, {_TOKEN}. {{by_hand}}",
    OSError: "cannot be fetched ({error}). {by_hand}",
    HTTPError: "cannot be fetched ({error}). {by_hand}",  # a connection that breaks is no OSError
    RuntimeError: "cannot be fetched ({error}). {by_hand}",  # nor is what hf_xet raises
}
# What another try, or another machine, would not get either.
_MISNAMED = (RevisionNotFoundError, HFValidationError)


class MissingWeights(WeightsError):
    """The weights are neither here nor to be had; the message says why, and how to get them."""


class Release(NamedTuple):
    """A teacher's weights, found.

    network: the name in backbones.NETWORKS of what they are the weights of; weights: their file; origin: where that
    came from; prefix: what its key names start with; left_out: the start of the names of keys that are no part of the
    network; bgr: whether the network takes BGR.
    """

    network: str
    weights: Path
    origin: str
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    bgr: bool = False

    def identity(self) -> dict[str, str]:
        """What tells these weights from any others, and where they came from, as words."""
        colours = "BGR" if self.bgr else "RGB"
        return {"network": self.network, "sha256": sha256(self.weights), "colours": colours, "origin": self.origin}


def find_plain(cfg: EasyDict) -> Release:
    """A state dict with the network's own key names, in the file `pretrained_teacher_path`."""
    path = cfg.pretrained_teacher_path
    if not path:
        raise WeightsError(f"teacher = {cfg.teacher!r} needs pretrained_teacher_path, its weights file")
    return Release(cfg.teacher, _existing(Path(path)), path)


def find_cvlface(cfg: EasyDict) -> Release:
    """A CVLFace release (a local folder, or a Hugging Face repository) or AdaFace's own checkpoint (BGR).

    A release's model.yaml says which network it is, whatever `teacher` says; of a checkpoint `teacher` does.
    """
    path = Path(cfg.pretrained_teacher_path)
    if not cfg.pretrained_teacher_path:
        return _fetch(cfg)
    if path.is_dir():
        network, bgr = _described(_existing(path / DESCRIPTION))
        return Release(network, _existing(path / WEIGHTS), str(path), "model.net.", bgr=bgr)
    if path.suffix == ".safetensors":
        raise WeightsError(
            f"{path}: name the folder that holds {WEIGHTS} and {DESCRIPTION}, which says network and colours"
        )
    return Release(cfg.teacher, _existing(path), str(path), "model.", ("head.",), bgr=True)


def load(network: nn.Module, release: Release, cfg: EasyDict) -> None:
    """Copy the release's weights into `network`, every key accounted for. Raises WeightsError."""
    prefix = release.prefix
    state = {
        key.removeprefix(prefix) if key.startswith(prefix) else f"{key}, without {prefix}": value
        for key, value in read_state_dict(release.weights).items()
        if not key.startswith(release.left_out)
    }
    for key, value in network.state_dict().items():  # the one matrix of each of our networks is its last layer
        found = state.get(key)
        if value.ndim == 2 and found is not None and found.ndim == 2 and found.shape[0] != value.shape[0]:
            raise WeightsError(
                f"{release.weights}: the teacher's embeddings have {found.shape[0]} dimensions ({key} is "
                f"{list(found.shape)}, not {list(value.shape)}) and the student's {cfg.embedding_size}; they must be "
                f"equal: set embedding_size={found.shape[0]}"
            )
    hint = f"These must be the weights of {release.network}"
    load_strictly(network, state, str(release.weights), f"{hint} with teacher_width = {cfg.teacher_width}")
    if release.bgr:
        network.bgr = True


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise MissingWeights(
            f"{path}: no such file; pretrained_teacher_path is a weights file, or a folder with a CVLFace release's "
            f"{WEIGHTS} and {DESCRIPTION}"
        )
    return path


def _described(path: Path) -> tuple[str, bool]:
    """The name in NETWORKS of the network that a release's model.yaml states, and whether it takes BGR."""
    name, color_space = _read_description(path)
    if name not in _OURS:
        raise WeightsError(f"{path}: name is {name!r}, {_NONE_OF_OURS}")
    if color_space not in ("RGB", "BGR"):
        raise WeightsError(f"{path}: color_space is {color_space!r} where RGB or BGR is needed")
    return f"cvlface_{name}", color_space == "BGR"


def _read_description(path: Path) -> tuple[object, object]:
    """`name` and `color_space` of a model.yaml; None for what it does not state."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not YAML ({str(error).splitlines()[0]}); fetch it again") from error
    return (content.get("name"), content.get("color_space")) if isinstance(content, dict) else (None, None)


def _fetch(cfg: EasyDict) -> Release:
    """The two files of a repository, from the hub or from its cache: the description first, for it may refuse."""
    repository = cfg.teacher_repo_id or REPOSITORIES[cfg.teacher]
    if "vit" in re.split(r"[\W_]+", repository.lower().rpartition("/")[2]):
        raise WeightsError(f"{repository}: a vision transformer, {_NONE_OF_OURS}")
    description = _fetch_file(cfg, repository, DESCRIPTION, cfg.teacher_revision or "main")
    network, bgr = _described(description)
    commit = description.parents[1].name  # the cache keeps files under snapshots/<commit>
    weights = _fetch_file(cfg, repository, WEIGHTS, commit)
    return Release(network, weights, f"{repository}@{commit}", "model.net.", bgr=bgr)


def _fetch_file(cfg: EasyDict, repository: str, file: str, revision: str) -> Path:
    try:
        return Path(hf_hub_download(repository, file, revision=revision, cache_dir=cfg.teacher_cache or None))
    except tuple(_HUB_ERRORS) as error:
        text = next(text for kind, text in _HUB_ERRORS.items() if isinstance(error, kind))
        by_hand = (
            "Where there is a network run "
            f"`hf download {repository} {WEIGHTS} {DESCRIPTION} --revision {revision} --local-dir FOLDER`, copy FOLDER "
            "here and set pretrained_teacher_path=FOLDER"
        )
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        words = text.format(revision=revision, file=file, error=reason, by_hand=by_hand)
        kind = WeightsError if isinstance(error, _MISNAMED) else MissingWeights
        raise kind(f"{repository}: {words}") from error
