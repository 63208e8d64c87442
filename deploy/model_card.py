"""The model card, README.md of a model on the hub: deploy/model_card.md, filled in, and the metrics."""

import re
from pathlib import Path
from string import Template

from easydict import EasyDict
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from backbones.teacher import REPOSITORIES
from config.paths import HUB, is_repository, split_repository
from data.teacher_cache import read_description
from deploy.hub_folder import LIBRARY, ONNX
from eval.protocol import AllMetrics
from eval.protocols import PROTOCOLS
from eval.report import markdown, methods_table
from utils.errors import InputError

TEXT = Path(__file__).with_name("model_card.md")
CODE = "https://github.com/rayyichen310/adadistill_with_adaface_loss"
TASKS = {
    "verification": "Face verification",
    "ijb": "Face verification of templates",
    "tinyface": "Face identification",
}
DATA_SETS = {"emoreIresNet": "MS1MV2", "CASIA_WebFace": "CASIA-WebFace"} | {
    name: name for name in ("MS1MV3", "Glint360K", "WebFace4M", "WebFace12M", "WebFace42M", "Idifface")
}
# Keys of the config that the card states.
TRAINING_KEYS = (
    "loss", "m", "s", "centers", "adaptive_alpha", "use_geom_margin", "geom_margin", "geom_margin_k", "feature_kd",
    "batch_size", "accumulate_steps", "num_epoch", "lr", "lr_schedule", "seed",
)  # fmt: skip


def model_card(
    cfg: EasyDict,
    script: str | None,
    network: nn.Module,
    metrics: AllMetrics,
    name: str,
    license: str | None,
    on_hub: bool,
) -> str:
    """The text of README.md.

    script: what trained the network, as `training_script` says; name: owner/name if the model
    goes to the hub (`on_hub`), or else any name. Paths of this machine are not stated.
    """
    title = name.rpartition("/")[2]
    text = Template(TEXT.read_text(encoding="utf-8")).substitute(
        name=title,
        dimensions=cfg.embedding_size,
        network=cfg.network,
        parameters=f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f}",
        packages=" huggingface_hub" if on_hub else "",
        import_hub="from huggingface_hub import hf_hub_download" if on_hub else "",
        onnx=f'hf_hub_download("{name}", "{ONNX}")' if on_hub else f'"{ONNX}"',
        source=f"{HUB}{name}" if on_hub else "FOLDER",
        code=CODE,
        method=_method(cfg, script),
        settings=_settings(cfg) if script else "",
        data=_training_data(cfg) if script else "Not stated.",
        table=markdown(methods_table("", {title: metrics}, "model")),
        groups="See the sets of RFW above." if _has_groups(metrics) else "That was not measured for this network.",
        licence=_licence(license),
    )
    distilled = ["knowledge-distillation"] if script == "train_AdaDistill" else []
    front_matter = ModelCardData(
        license=license,
        library_name=LIBRARY,
        pipeline_tag="image-feature-extraction",
        tags=["face-recognition", "face-verification", *distilled, "onnx", cfg.network],
        model_name=title,
        eval_results=eval_results(metrics),
    )
    return f"---\n{front_matter.to_yaml()}\n---\n{text}"


def eval_results(metrics: AllMetrics) -> list[EvalResult]:
    """The metrics that should be high or low, with the values that tables show, not rounded; the others are left out,
    and so are rates for which a set has too few impostor pairs."""
    found = []
    for protocol, targets in metrics.items():
        task = TASKS.get(protocol, "Face recognition")
        for target, values in targets.items():
            for metric, value in values.items():
                display = PROTOCOLS[protocol].display(metric)
                if value is None or display.better is None or display.mark(values):
                    continue
                found.append(
                    EvalResult(
                        task_type=task.lower().replace(" ", "-"),
                        task_name=task,
                        dataset_type=target,
                        dataset_name=target,
                        metric_type=metric,
                        metric_name=display.label(metric),
                        metric_value=display.scale * value,
                    )
                )
    return found


def training_script(config_path: Path) -> str | None:
    """train_AdaDistill or train_standalone: what wrote the config of a run; None for any other config."""
    beginning = config_path.read_text(encoding="utf-8")[:2000]
    found = re.search(r"^# command: .*?(train_AdaDistill|train_standalone)\.py", beginning, re.MULTILINE)
    return found and found[1]


def _settings(cfg: EasyDict) -> str:
    rows = "\n".join(f"| `{key}` | `{cfg[key]}` |" for key in TRAINING_KEYS)
    return f"| setting | value |\n|---|---|\n{rows}\n\n"


def _method(cfg: EasyDict, script: str | None) -> str:
    if script is None:
        return "Not stated: the config of this model is not that of the output folder of a training run."
    if script == "train_standalone":
        return f"Trained as a classifier, without a teacher, by the [training code]({CODE})."
    several = len(cfg.teacher_embeddings) > 1
    whose = "frozen teachers" if several else "a frozen teacher"
    averages = {"ema": "running averages", "mean": "means"}
    centers = f"{averages[cfg.centers]} of the embeddings of {whose}" if cfg.centers in averages else "the teacher's"
    projection = ""
    if cfg.teacher_projection != "none":
        whose = "teachers'" if several else "teacher's"
        projection = f" The {whose} embeddings were projected to {cfg.embedding_size} dimensions by PCA."
    return (
        f"Trained by AdaDistill (Boutros, Štruc, Damer; ECCV 2024) with the [training code]({CODE}): as a classifier "
        f"whose class centers are {centers}. {_teachers(cfg) if several else f'Teacher: {_teacher(cfg)}.'}{projection} "
        "With `use_geom_margin` and AdaFace, the margin grows where the teacher is confident and the student lags "
        "behind."
    )


def _teacher(cfg: EasyDict) -> str:
    """The teacher's network and the repository of its weights, or the name of their file."""
    path, repository = cfg.pretrained_teacher_path, cfg.teacher_repo_id or REPOSITORIES.get(cfg.teacher)
    if is_repository(path):
        path, repository = "", split_repository(path)[0]
    return _named(cfg.teacher, path, repository)


def _teachers(cfg: EasyDict) -> str:
    """The teachers that made the files of embeddings, as their descriptions say, and their shares."""
    weights = cfg.teacher_cosine_weights or [1] * len(cfg.teacher_embeddings)
    listed = [
        f"{_teacher_of(Path(path))} ({weight / sum(weights):.0%})"
        for path, weight in zip(cfg.teacher_embeddings, weights, strict=True)
    ]
    return f"Teachers, with their shares in the cosine: {', '.join(listed)}."


def _teacher_of(path: Path) -> str:
    """The teacher that made a file of embeddings; without its description, the name of the file."""
    try:
        description = read_description(path)
    except InputError:
        return f"that of `{path.name}`"
    origin = str(description.get("about", {}).get("teacher", ""))
    repository = re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}", origin)
    network = str(description.get("teacher", {}).get("network"))
    return _named(network, "" if repository else origin, repository and repository[1])


def _named(network: str, path: str, repository: str | None) -> str:
    if path or not repository:
        return f"`{network}`" + (f" (`{Path(path).name}`)" if path else "")
    return f"`{network}` ([{repository}](https://huggingface.co/{repository}))"


def _training_data(cfg: EasyDict) -> str:
    folders = [cfg.data_path] if cfg.db_file_format == "folder" else cfg.rec
    names = " and ".join(f"`{Path(folder).name}`" for folder in folders)
    if len(folders) == 1:
        names = DATA_SETS.get(cfg.dataset, names)
    counts = [
        f"{cfg[key]:,} {word}" for key, word in (("num_image", "images"), ("num_classes", "identities")) if cfg[key]
    ]
    size = f" ({' of '.join(counts)})" if counts else ""
    return f"{names}{size}: faces aligned to 112 x 112 pixels. The images are not part of this repository."


def _has_groups(metrics: AllMetrics) -> bool:
    return any(target.lower().startswith("rfw") for targets in metrics.values() for target in targets)


def _licence(license: str | None) -> str:
    terms = "The training images and the teacher have their own terms, which may not allow every use of these weights."
    if license is None:
        return f"No licence has been chosen, so nobody else may use the weights yet. {terms}"
    return f"`{license}`. {terms}"
