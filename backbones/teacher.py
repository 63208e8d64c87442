"""Fetches a teacher's weights and loads them strictly; no code comes with them."""

from pathlib import Path

import yaml
from easydict import EasyDict
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn

from utils.weights import WeightsError, load_strictly, read_state_dict

REPOSITORIES = {
    "cvlface_ir18": "minchul/cvlface_adaface_ir18_webface4m",
    "cvlface_ir50": "minchul/cvlface_adaface_ir50_webface4m",
    "cvlface_ir101": "minchul/cvlface_adaface_ir101_webface12m",
}
_FIT = (
    "teacher, teacher_width, embedding_size and pretrained_teacher_path must name one network, and teacher and student "
    "share embedding_size"
)


def load_plain(network: nn.Module, cfg: EasyDict) -> None:
    """A state dict with the network's own key names, from the file `pretrained_teacher_path`."""
    path = cfg.pretrained_teacher_path
    if not path:
        raise WeightsError(f"teacher = {cfg.teacher!r} needs pretrained_teacher_path, its weights file")
    _load(network, read_state_dict(path), path)


def load_cvlface(network: nn.Module, cfg: EasyDict) -> None:
    """A CVLFace release (a local folder, or a Hugging Face repository) or AdaFace's own checkpoint (BGR)."""
    path = Path(cfg.pretrained_teacher_path) if cfg.pretrained_teacher_path else _download(cfg)
    if path.is_dir():
        weights, description = path / "model.safetensors", path / "pretrained_model" / "model.yaml"
        if not description.is_file():
            raise WeightsError(f"{description}: missing; a CVLFace release has it beside model.safetensors")
        network.bgr = _color_space(description, cfg.teacher.removeprefix("cvlface_")) == "BGR"
        _load(network, _without_prefix(read_state_dict(weights), "model.net."), str(weights))
    else:
        network.bgr = True
        state = {key: value for key, value in read_state_dict(path).items() if not key.startswith("head.")}
        _load(network, _without_prefix(state, "model."), str(path))


def _color_space(description: Path, network: str) -> str:
    """RGB or BGR, as a release's model.yaml says; the file must describe `network`, where it names one."""
    try:
        content = yaml.safe_load(description.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeightsError(f"{description}: not YAML ({str(error).splitlines()[0]}); fetch it again") from error
    color_space = content.get("color_space") if isinstance(content, dict) else None
    if color_space not in ("RGB", "BGR"):
        raise WeightsError(f"{description}: color_space is {color_space!r} where RGB or BGR is needed")
    if content.get("name", network) != network:
        raise WeightsError(
            f"{description}: the network is {content['name']!r}; set teacher to its name here, not {network!r}"
        )
    return color_space


def _download(cfg: EasyDict) -> Path:
    repository = cfg.teacher_repo_id or REPOSITORIES[cfg.teacher]
    if "vit" in repository.lower():
        raise WeightsError(
            f"{repository}: a ViT, which is none of our networks; take an IR one, as {REPOSITORIES[cfg.teacher]}"
        )
    files = ["model.safetensors", "pretrained_model/model.yaml"]
    try:
        return Path(snapshot_download(repository, cache_dir=cfg.teacher_cache or None, allow_patterns=files))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"{repository}: cannot be fetched ({str(error).splitlines()[0]}). Where there is a network run "
            f"`hf download {repository} {' '.join(files)} --local-dir FOLDER` and set pretrained_teacher_path = FOLDER"
        ) from error


def _without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _load(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    load_strictly(network, state, source, _FIT)
