"""The teacher in training: the frozen network, or a file with its embeddings of the whole training set."""

import os
import re

import torch
from easydict import EasyDict
from torch import Tensor, nn
from tqdm import tqdm

from backbones import build_teacher, find_teacher
from backbones.folding import fold_batch_norm
from backbones.teacher import REPOSITORIES, MissingWeights, Release
from config.paths import is_repository, split_repository
from data.dataset import FaceDataset
from data.images import PREPROCESSING
from data.teacher_cache import Description, EmbeddingError, EmbeddingFile
from data.teacher_cache_writer import EmbeddingWriter
from eval.embeddings import batches_of_rank, embed_batches
from train.wrapping import maybe_compile
from utils.about import describe_run
from utils.distributed import on_rank_0, rank, world_size
from utils.precision import cast_products, compute_type

# Number of images per rank from which the teacher is compiled to embed a set: an estimate of when that pays off.
MIN_IMAGES_TO_COMPILE = 500_000


def build_live_teacher(cfg: EasyDict, device: torch.device, release: Release) -> nn.Module:
    """Build the frozen teacher on the device, channels-last, with its matrix products in the data type of the run.

    Its BatchNorms are folded into the layers before them, where that is exact. It is not compiled.
    """
    teacher = cast_products(fold_batch_norm(build_teacher(cfg, release)), compute_type(cfg.dtype, device))
    return teacher.to(device, memory_format=torch.channels_last)


def build_cached_teacher(
    cfg: EasyDict, dataset: FaceDataset, device: torch.device
) -> tuple[EmbeddingFile, tuple[str, ...]]:
    """Open the file `teacher_embeddings`, one of one teacher; make it first if it is missing. Every rank must call it.

    Returns the file and lines for the log. Raises EmbeddingError if the file belongs to another teacher, other images
    or another preprocessing. If the teacher's weights are not available, the file must have been made from the same
    path, or from the same repository and commit, that the config names.
    """
    (path,) = cfg.teacher_embeddings
    exists = on_rank_0(lambda: os.path.exists(path))
    wanted = on_rank_0(lambda: describe_embeddings(cfg, dataset, weights_may_be_missing=exists))
    loaded = () if exists else (_embed_dataset(cfg, dataset, device, path, wanted),)
    embeddings = EmbeddingFile(path, wanted)
    notes = (f"teacher: {embeddings.summary()}", *loaded)
    if "sha256" not in wanted["teacher"]:
        _require_named_origins(cfg, embeddings)
        notes += ("the teacher's weights are not available: its embeddings were checked by its name only",)
    return embeddings, notes


def describe_embeddings(cfg: EasyDict, dataset: FaceDataset, weights_may_be_missing: bool = False) -> Description:
    """Describe the embeddings of this set by this teacher, as the file beside them states it.

    Raises MissingWeights if the teacher's weights are not available, unless they may be missing.
    """
    about = {"data": dataset.source}
    try:
        teacher = find_teacher(cfg).describe()
        about["teacher"] = teacher.pop("origin")
        if "landmarks_origin" in teacher:
            about["landmarks"] = teacher.pop("landmarks_origin")
    except MissingWeights:
        if not weights_may_be_missing:
            raise
        # For a CVLFace release even the network is unknown, because its model.yaml states it.
        teacher = {} if cfg.teacher in REPOSITORIES else {"network": cfg.teacher}
    return {
        "embeddings": {"shape": [len(dataset), 2, cfg.embedding_size], "type": "float16"},
        "teacher": teacher,
        "data": {"images": len(dataset), "fingerprint": dataset.fingerprint},
        "preprocessing": PREPROCESSING,
        "about": about,
    }


def _embed_dataset(
    cfg: EasyDict, dataset: FaceDataset, device: torch.device, path: str, description: Description
) -> str:
    """Embed the images that the file still lacks. Each rank takes its share of the batches.

    Returns a line for the log about the teacher's weights.
    """
    torch.backends.cudnn.benchmark = True  # the batches have one shape
    release = find_teacher(cfg)
    found = release.describe()
    if any(found.get(name) != value for name, value in description["teacher"].items()):
        raise EmbeddingError(
            f"{release.weights}: not the weights that rank 0 found; set teacher_revision to one commit"
        )
    teacher = build_live_teacher(cfg, device, release)
    dtype = torch.float32 if getattr(teacher, "always_float32", False) else compute_type(cfg.dtype, device)
    description["embeddings"]["computed_in"] = str(dtype).removeprefix("torch.")  # one type for the whole file
    description["about"]["run"] = describe_run()
    with EmbeddingWriter(path, description) as writer:
        done = len(dataset) - len(writer.remaining)
        bar = tqdm(total=len(dataset), initial=done, desc="teacher embeddings", unit="image", disable=rank() != 0)
        batches = [writer.remaining[rows] for rows in batches_of_rank(len(writer.remaining), cfg.val_batch_size)]
        pays_off = sum(map(len, batches)) >= MIN_IMAGES_TO_COMPILE
        compiled_teacher = maybe_compile(teacher, cfg.compile, device) if pays_off else teacher

        def network(images: Tensor) -> Tensor:
            return (compiled_teacher if len(images) == cfg.val_batch_size else teacher)(images)

        embedded = embed_batches(network, dataset, batches, device, dtype, num_workers=cfg.num_workers)
        for positions, embeddings in embedded:
            writer.write(positions, torch.stack(embeddings, 1))
            bar.update(min(world_size() * len(positions), bar.total - bar.n))
        bar.close()
    return f"the teacher's weights: {teacher.loaded}"


def _named_teacher(cfg: EasyDict) -> tuple[str, str | None, str]:
    """(path, repository, revision) of the teacher in the config. Without a path, the repository counts."""
    path = cfg.pretrained_teacher_path
    if is_repository(path):
        return "", *split_repository(path)
    return path, cfg.teacher_repo_id or REPOSITORIES.get(cfg.teacher), cfg.teacher_revision


def _require_named_origins(cfg: EasyDict, embeddings: EmbeddingFile) -> None:
    """Raise EmbeddingError unless the config names the teacher, and its landmark network, that made the file."""
    about = embeddings.description.get("about", {})
    named = {"teacher": _named_teacher(cfg)}
    if "landmarks" in about:
        named["landmarks"] = cfg.landmarks_path, cfg.landmarks_repo_id, ""
    for name, (path, repository, revision) in named.items():
        origin, asked = str(about.get(name)), path or f"{repository}@{revision or 'main'}"
        if not _is_origin(origin, path, repository, revision):
            raise EmbeddingError(
                f"{embeddings.path}: embeddings by {origin}, but the config names {asked}, whose weights are not "
                f"available for a comparison; name the {name} that made the file, or download the weights"
            )


def _is_origin(origin: str, path: str, repository: str | None, revision: str) -> bool:
    """Whether the origin, which is a path or repository@commit, is this path; without one, repository and revision."""
    if path:
        return origin == path
    found, _, commit = origin.rpartition("@")
    pinned = re.fullmatch("[0-9a-f]{40}", revision)
    return found == repository and (not pinned or commit == revision)
