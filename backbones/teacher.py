"""Find the weights of a teacher on disk or on the Hugging Face hub, and load them. No code is downloaded."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml
from easydict import EasyDict
from torch import nn

from backbones.hub import MissingWeights, download
from utils.files import sha256
from utils.weights import WeightsError, load_strictly, read_state_dict

__all__ = ["REPOSITORIES", "MissingWeights", "Release", "find_cvlface", "find_plain", "load"]

REPOSITORIES = {
    "cvlface_ir18": "minchul/cvlface_adaface_ir18_webface4m",
    "cvlface_ir50": "minchul/cvlface_adaface_ir50_webface4m",
    "cvlface_ir101": "minchul/cvlface_adaface_ir101_webface12m",
}
WEIGHTS, DESCRIPTION = "model.safetensors", "pretrained_model/model.yaml"
_NAMES = [name.removeprefix("cvlface_") for name in REPOSITORIES]  # in model.yaml
_SUPPORTED = f"(expected {', '.join(_NAMES)}); take an IR release, such as {REPOSITORIES['cvlface_ir50']}"


class Release(NamedTuple):
    """The weights of a teacher, and how to load them.

    network: name in the table NETWORKS; weights: the file; origin: where the file came from; prefix: the beginning of
    the key names in the file, which the key names of the network do not have; left_out: beginnings of the names of keys
    that are not loaded; bgr: whether the weights were trained on BGR images.
    """

    network: str
    weights: Path
    origin: str
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    bgr: bool = False

    def describe(self) -> dict[str, str]:
        """Network, checksum and colours, which distinguish these weights from all others, and their origin."""
        colours = "BGR" if self.bgr else "RGB"
        return {"network": self.network, "sha256": sha256(self.weights), "colours": colours, "origin": self.origin}


def find_plain(cfg: EasyDict) -> Release:
    """The state dict in the file `pretrained_teacher_path`, with the key names of the network. Raises WeightsError."""
    path = cfg.pretrained_teacher_path
    if not path:
        raise WeightsError(
            f"pretrained_teacher_path: not set (teacher = {cfg.teacher!r} needs it); set it to the weights file"
        )
    return Release(cfg.teacher, _existing(Path(path)), path)


def find_cvlface(cfg: EasyDict) -> Release:
    """A CVLFace release in a folder or on the Hugging Face hub, or a checkpoint of AdaFace. Raises WeightsError.

    The model.yaml of a release names the network and its colours; cfg.teacher is then ignored. For a checkpoint of
    AdaFace, cfg.teacher names the network, and the colours are BGR.
    """
    path = Path(cfg.pretrained_teacher_path)
    if not cfg.pretrained_teacher_path:
        repository = cfg.teacher_repo_id or REPOSITORIES[cfg.teacher]
        return _find_on_hub(repository, cfg.teacher_revision or "main", cfg.teacher_cache or None)
    if path.is_dir():
        network, bgr = _described_network(_existing(path / DESCRIPTION))
        return Release(network, _existing(path / WEIGHTS), str(path), "model.net.", bgr=bgr)
    if path.suffix == ".safetensors":
        raise WeightsError(
            f"{path}: a file of a release (expected its folder, with {WEIGHTS} and {DESCRIPTION}, which names the "
            "network and its colours); set pretrained_teacher_path to the folder"
        )
    return Release(cfg.teacher, _existing(path), str(path), "model.", ("head.",), bgr=True)


def _find_on_hub(repository: str, revision: str, cache: str | None) -> Release:
    """Download the description first, because it shows whether the network is supported; then the weights."""
    if "vit" in re.split(r"[\W_]+", repository.lower().rpartition("/")[2]):
        raise WeightsError(f"{repository}: a vision transformer {_SUPPORTED}")
    files = WEIGHTS, DESCRIPTION
    description = download(repository, DESCRIPTION, revision, cache, files)
    network, bgr = _described_network(description)
    commit = description.parents[1].name  # the cache keeps files under snapshots/<commit>
    weights = download(repository, WEIGHTS, commit, cache, files)  # of the same commit, even if the branch has moved
    return Release(network, weights, f"{repository}@{commit}", "model.net.", bgr=bgr)


def load(network: nn.Module, release: Release, embedding_size: int, width: float) -> None:
    """Copy the weights of the release into `network`, which was built with this embedding size and width.

    Raises WeightsError if a key, a shape or a value does not fit.
    """
    prefix = release.prefix
    state = {
        key.removeprefix(prefix) if key.startswith(prefix) else f"{key}, without {prefix}": value
        for key, value in read_state_dict(release.weights).items()
        if not key.startswith(release.left_out)
    }
    for key, expected in network.state_dict().items():  # the only matrix of these networks is their last layer
        given = state.get(key)
        if expected.ndim == 2 and given is not None and given.ndim == 2 and len(given) != len(expected):
            raise WeightsError(
                f"{release.weights}: the teacher's embeddings have {len(given)} dimensions ({key} is "
                f"{list(given.shape)}; expected {list(expected.shape)}), the student's {embedding_size}; "
                f"set embedding_size={len(given)}"
            )
    hint = f"These must be the weights of {release.network} with teacher_width = {width}"
    load_strictly(network, state, str(release.weights), hint)
    if release.bgr:
        network.bgr = True


def _existing(path: Path) -> Path:
    """The path. Raises MissingWeights if there is no such file."""
    if not path.is_file():
        raise MissingWeights(
            f"{path}: no such file; set pretrained_teacher_path to a weights file, or to the folder of a CVLFace "
            f"release with {WEIGHTS} and {DESCRIPTION}"
        )
    return path


def _described_network(path: Path) -> tuple[str, bool]:
    """The network's name in the table NETWORKS, and whether it takes BGR, from the model.yaml of a release."""
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not YAML ({str(error).splitlines()[0]}); download it again") from error
    values = content if isinstance(content, dict) else {}
    name, color_space = values.get("name"), values.get("color_space")
    if name not in _NAMES:
        raise WeightsError(f"{path}: name is {name!r} {_SUPPORTED}")
    if color_space not in ("RGB", "BGR"):
        raise WeightsError(f"{path}: color_space is {color_space!r} (expected RGB or BGR); take another release")
    return f"cvlface_{name}", color_space == "BGR"
