"""Find the weights of a teacher on disk or on the Hugging Face hub, and load them. No code is downloaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

import yaml
from easydict import EasyDict
from torch import nn

from backbones.hub import Keys, MissingWeights, commit_of, download
from backbones.loading import load_weights
from backbones.model_folder import KIND, find_model, is_model
from config.paths import HUB
from utils.file_kinds import describe_other_kind
from utils.files import sha256
from utils.weights import WeightsError

__all__ = [
    "REPOSITORIES",
    "MissingWeights",
    "Release",
    "find_cvlface",
    "find_file",
    "find_landmarks",
    "find_plain",
    "load",
]

REPOSITORIES = {
    "cvlface_ir18": "minchul/cvlface_adaface_ir18_webface4m",
    "cvlface_ir50": "minchul/cvlface_adaface_ir50_webface4m",
    "cvlface_ir101": "minchul/cvlface_adaface_ir101_webface12m",
    "cvlface_vit_small": "minchul/cvlface_adaface_vit_small_webface4m",
    "cvlface_vit_base": "minchul/cvlface_adaface_vit_base_webface4m",
    "cvlface_vit_base_kprpe": "minchul/cvlface_adaface_vit_base_kprpe_webface4m",
}
PLAIN = {"SE": False, "activation": "prelu"}  # of teachers, unless a folder of deploy/to_hub.py says otherwise
WEIGHTS, DESCRIPTION = "model.safetensors", "pretrained_model/model.yaml"
LANDMARK_NETWORK = "cvlface_dfa_mobilenet"
# The name in model.yaml, and whether it has the entry rpe_config -> the network. CVLFace calls its vision transformers
# "small" and "base".
_NETWORKS = {(name.removeprefix("cvlface_"), False): name for name in REPOSITORIES if "kprpe" not in name}
_NETWORKS |= {("small", False): "cvlface_vit_small", ("base", False): "cvlface_vit_base"}
_NETWORKS |= {("base", True): "cvlface_vit_base_kprpe", ("vit_base", True): "cvlface_vit_base_kprpe"}
_SUPPORTED = (
    f"(expected {', '.join(dict.fromkeys(name for name, _ in _NETWORKS))}; with rpe_config: base); take another "
    f"release, such as {REPOSITORIES['cvlface_ir50']}"
)
_CVLFACE_KEYS = Keys("pretrained_teacher_path=FOLDER", "teacher_repo_id", "teacher_revision", "CVLFace release")
_LANDMARK_KEYS = Keys("landmarks_path=FOLDER", "landmarks_repo_id", "landmarks_revision", "landmark network of CVLFace")
_TEACHER_KEYS = Keys(
    "pretrained_teacher_path=FOLDER", "teacher_repo_id (or pretrained_teacher_path)",
    "teacher_revision (or what follows @)", KIND,
)  # fmt: skip


class Release(NamedTuple):
    """The weights of a teacher, and how to load them.

    network: name in the table NETWORKS; weights: the file; origin: where the file came from; bgr: whether the weights
    were trained on BGR images; prefix: the end that the prefix of the keys must have, because it shows that the file is
    AdaFace's; "" for no condition; settings: SE and activation of the network; scale: mean
    and std of an ONNX network's input, (pixel - mean) / std; landmarks: the weights of the network that finds its key
    points, if it needs them.
    """

    network: str
    weights: Path
    origin: str
    bgr: bool = False
    prefix: str = ""
    settings: Mapping[str, Any] = PLAIN
    scale: tuple[float, float] | None = None
    landmarks: Optional["Release"] = None

    def describe(self) -> dict[str, Any]:
        """What distinguishes this teacher from all others (network, checksums, colours, ...), and its origin."""
        colours = "BGR" if self.bgr else "RGB"
        described = {"network": self.network, "sha256": sha256(self.weights), "colours": colours, "origin": self.origin}
        described |= {key: value for key, value in self.settings.items() if value != PLAIN[key]}
        if self.scale:
            described["scale"] = "(pixel - {}) / {}".format(*self.scale)
        if self.landmarks:
            described["landmarks_sha256"] = sha256(self.landmarks.weights)
            described["landmarks_origin"] = self.landmarks.origin
        return described


def find_file(cfg: EasyDict) -> Release:
    """The weights file `pretrained_teacher_path`, for the network cfg.teacher. Raises WeightsError."""
    path = cfg.pretrained_teacher_path
    if not path:
        raise WeightsError(
            f"pretrained_teacher_path: not set (teacher = {cfg.teacher!r} needs it); set it to the weights file"
        )
    return Release(cfg.teacher, existing(Path(path)), path)


def find_plain(cfg: EasyDict) -> Release:
    """The weights of the network cfg.teacher: a file, or a folder or repository of deploy/to_hub.py.

    Without `pretrained_teacher_path`, the repository is `teacher_repo_id`. Raises WeightsError; for a folder or
    repository also if its network is not the one that cfg.teacher and cfg.teacher_width name.
    """
    source = cfg.pretrained_teacher_path
    if not source and cfg.teacher_repo_id:
        source = f"{HUB}{cfg.teacher_repo_id}" + (f"@{cfg.teacher_revision}" if cfg.teacher_revision else "")
    if not is_model(source):
        return find_file(cfg)
    model = find_model(source, _TEACHER_KEYS, cfg.teacher_cache or None)
    model.require({"network": ("teacher", cfg.teacher), "width": ("teacher_width", cfg.teacher_width)})
    settings = {key: model.settings[key] for key in PLAIN}
    return Release(cfg.teacher, model.weights, model.origin, settings=settings)


def find_cvlface(cfg: EasyDict) -> Release:
    """A CVLFace release in a folder or on the Hugging Face hub, or a checkpoint of AdaFace. Raises WeightsError.

    The model.yaml of a release names the network and its colours; cfg.teacher is then ignored. For a checkpoint of
    AdaFace, cfg.teacher names the network, and the colours are BGR. A network with KP-RPE comes with its landmark
    network. A folder or repository of deploy/to_hub.py is read as by `find_plain`.
    """
    path = cfg.pretrained_teacher_path
    if is_model(path) and not Path(path, DESCRIPTION).is_file():
        return find_plain(cfg)
    release = _find_release(cfg)
    if not release.network.endswith("kprpe"):
        return release
    try:
        return release._replace(landmarks=find_landmarks(cfg))
    except MissingWeights as error:
        error.found = release
        raise


def _find_release(cfg: EasyDict) -> Release:
    path = Path(cfg.pretrained_teacher_path)
    if not cfg.pretrained_teacher_path:
        repository = cfg.teacher_repo_id or REPOSITORIES[cfg.teacher]
        return _find_on_hub(repository, cfg.teacher_revision or "main", cfg.teacher_cache or None)
    if path.is_dir():
        network, bgr = _described_network(existing(path / DESCRIPTION))
        return Release(network, existing(path / WEIGHTS), str(path), bgr)
    if path.suffix == ".safetensors":
        raise WeightsError(
            f"{path}: a file of a release (expected its folder, with {WEIGHTS} and {DESCRIPTION}, which names the "
            "network and its colours); set pretrained_teacher_path to the folder"
        )
    return Release(cfg.teacher, existing(path), str(path), bgr=True, prefix="model.")


def _find_on_hub(repository: str, revision: str, cache: str | None) -> Release:
    """Download the description first, because it shows whether the network is supported; then the weights."""
    files = WEIGHTS, DESCRIPTION
    description = download(repository, DESCRIPTION, revision, cache, files, _CVLFACE_KEYS)
    network, bgr = _described_network(description)
    commit = commit_of(description, DESCRIPTION)
    # Of the same commit, even if the branch has moved.
    weights = download(repository, WEIGHTS, commit, cache, files, _CVLFACE_KEYS)
    return Release(network, weights, f"{repository}@{commit}", bgr)


def find_landmarks(cfg: EasyDict) -> Release:
    """CVLFace's landmark network in a file, in a folder or on the hub. Raises WeightsError."""
    if not cfg.landmarks_path:
        repository, revision = cfg.landmarks_repo_id, cfg.landmarks_revision or "main"
        weights = download(repository, WEIGHTS, revision, cfg.teacher_cache or None, (WEIGHTS,), _LANDMARK_KEYS)
        return Release(LANDMARK_NETWORK, weights, f"{repository}@{commit_of(weights, WEIGHTS)}")
    path = Path(cfg.landmarks_path)
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise MissingWeights(
            f"{weights}: no such file; set landmarks_path to the weights of CVLFace's landmark network ({WEIGHTS}) or "
            "to their folder"
        )
    return Release(LANDMARK_NETWORK, weights, str(path))


def load(network: nn.Module, release: Release, width: float) -> None:
    """Copy the weights of the release, without its landmark network, into `network`, which was built with this width.

    Raises WeightsError if a key, a shape or a value does not fit, or if the colours of the weights are unknown.
    """
    hint = f"Use weights of {release.network}"
    if release.network == "mobilefacenet":
        hint += f" with teacher_width = {width}"
    prefix = load_weights(network, release.weights, hint)
    if not prefix.endswith(release.prefix):
        raise WeightsError(
            f"{release.weights}: the keys have {f'the prefix {prefix!r}' if prefix else 'no prefix'} (expected "
            f"{release.prefix!r}, as in AdaFace's files, which take BGR), so the colours are unknown; put the weights "
            f"into a folder as {WEIGHTS}, with {DESCRIPTION}, which names the network and its colours"
        )
    if release.bgr:
        network.bgr = True


def existing(path: Path) -> Path:
    """The path. Raises MissingWeights if there is no such file."""
    if not path.is_file():
        raise MissingWeights(
            f"{path}: no such file; set pretrained_teacher_path to a weights file, or to the folder of a CVLFace "
            f"release with {WEIGHTS} and {DESCRIPTION}"
        )
    return path


def _described_network(path: Path) -> tuple[str, bool]:
    """The network's name in the table NETWORKS, and whether it takes BGR, from the model.yaml of a release."""
    if kind := describe_other_kind(path):
        raise WeightsError(f"{path}: not a description of a release, but {kind}")
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not YAML ({str(error).splitlines()[0]}); download it again") from error
    values = content if isinstance(content, dict) else {}
    name, color_space = values.get("name"), values.get("color_space")
    kprpe = values.get("rpe_config") is not None
    network = _NETWORKS.get((str(name), kprpe))
    if network is None:
        raise WeightsError(f"{path}: name is {name!r}{' with rpe_config' if kprpe else ''} {_SUPPORTED}")
    if color_space not in ("RGB", "BGR"):
        raise WeightsError(f"{path}: color_space is {color_space!r} (expected RGB or BGR); take another release")
    return network, color_space == "BGR"
