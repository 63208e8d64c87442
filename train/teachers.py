"""The teacher in training: the frozen network, or a file with its embeddings of the whole training set."""

import os
import re
from typing import Any

import numpy as np
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
from data.teacher_cache_writer import Batches, EmbeddingWriter
from eval.embeddings import embed_batches
from train.wrapping import maybe_compile
from utils.about import describe_run
from utils.distributed import on_all_ranks, on_rank_0, rank, world_size
from utils.precision import cast_products, compute_type
from utils.weights import WeightsError

# Number of images per rank from which the teacher is compiled to embed a set: an estimate of when that pays off.
MIN_IMAGES_TO_COMPILE = 500_000


def build_live_teacher(cfg: EasyDict, device: torch.device, release: Release) -> nn.Module:
    """Build the frozen teacher on the device, channels-last, with its matrix products in the data type of the run.

    Its BatchNorms are folded into the layers before them, where that is exact. It is not compiled.
    """
    teacher = cast_products(fold_batch_norm(build_teacher(cfg, release)), compute_type(cfg.dtype, device))
    return teacher.to(device, memory_format=torch.channels_last)


def require_same_weights(release: Release, wanted: dict[str, Any]) -> None:
    """Raise WeightsError on every rank if a rank found other weights than rank 0. Every rank must call this.

    wanted: what rank 0's release.describe() returned, maybe without origins.
    """
    on_all_ranks(lambda: _require_same_weights(release, wanted))


def _require_same_weights(release: Release, wanted: dict[str, Any]) -> None:
    found = release.describe()
    different = [name for name in wanted if not name.endswith("origin") and found.get(name) != wanted[name]]
    if not different:
        return
    if different == ["landmarks_sha256"]:
        path, repository, revision = release.landmarks.weights, "landmarks_path", "landmarks_revision"
    else:
        path, repository, revision = release.weights, "pretrained_teacher_path", "teacher_revision"
    raise WeightsError(
        f"{path}: rank {rank()} found other weights than rank 0 ({', '.join(different)}); set {repository} to a "
        f"file that is the same on all nodes, or {revision} to one commit"
    )


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
    if missing := _require_named_origins(cfg, embeddings, wanted["teacher"]):
        notes += (f"the weights of the {missing} are not available: its embeddings were checked by its name only",)
    return embeddings, notes


def describe_embeddings(cfg: EasyDict, dataset: FaceDataset, weights_may_be_missing: bool = False) -> Description:
    """Describe the embeddings of this set by this teacher, as the file beside them states it.

    Raises MissingWeights if the teacher's weights are not available, unless they may be missing.
    """
    about = {"data": dataset.source}
    try:
        release = find_teacher(cfg)
    except MissingWeights as error:
        if not weights_may_be_missing:
            raise
        release = error.found
    # Without weights, even the network of a CVLFace release is unknown, because its model.yaml states it.
    teacher = release.describe() if release else {} if cfg.teacher in REPOSITORIES else {"network": cfg.teacher}
    for name, origin in (("teacher", "origin"), ("landmarks", "landmarks_origin")):
        if origin in teacher:
            about[name] = teacher.pop(origin)
    return {
        "embeddings": {"shape": [len(dataset), 2, cfg.embedding_size], "type": cfg.teacher_embeddings_type},
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
    require_same_weights(release, description["teacher"])
    teacher = build_live_teacher(cfg, device, release)
    dtype = torch.float32 if getattr(teacher, "always_float32", False) else compute_type(cfg.dtype, device)
    description["embeddings"]["computed_in"] = str(dtype).removeprefix("torch.")  # one type for the whole file
    description["about"]["run"] = describe_run()
    with EmbeddingWriter(path, description) as writer:
        done = len(dataset) - int(np.diff(writer.remaining).sum())
        bar = tqdm(total=len(dataset), initial=done, desc="teacher embeddings", unit="image", disable=rank() != 0)
        pays_off = np.diff(writer.share).sum() >= MIN_IMAGES_TO_COMPILE
        compiled_teacher = maybe_compile(teacher, cfg.compile, device) if pays_off else teacher

        def network(images: Tensor) -> Tensor:
            return (compiled_teacher if len(images) == cfg.val_batch_size else teacher)(images)

        batches = Batches(writer.share, cfg.val_batch_size)
        embedded = embed_batches(network, dataset, batches, device, dtype, num_workers=cfg.num_workers)
        for positions, embeddings in embedded:
            writer.write(int(positions[0]), torch.stack(embeddings, 1))
            bar.update(min(world_size() * len(positions), bar.total - bar.n))
        bar.close()
    return f"the teacher's weights: {teacher.loaded}"


def _named_teacher(cfg: EasyDict) -> tuple[str, str | None, str]:
    """(path, repository, revision) of the teacher in the config. Without a path, the repository counts."""
    path = cfg.pretrained_teacher_path
    if is_repository(path):
        return "", *split_repository(path)
    return path, cfg.teacher_repo_id or REPOSITORIES.get(cfg.teacher), cfg.teacher_revision


def _require_named_origins(cfg: EasyDict, embeddings: EmbeddingFile, compared: dict[str, Any]) -> str:
    """Raise EmbeddingError unless the config names the networks that made the file and whose weights are missing.

    compared: the section "teacher" of what the file was compared with. Returns the names of these networks.
    """
    about = embeddings.description.get("about", {})
    named = {}
    if "sha256" not in compared:
        named["teacher"] = _named_teacher(cfg)
    if "landmarks" in about and "landmarks_sha256" not in compared:
        named["landmarks"] = cfg.landmarks_path, cfg.landmarks_repo_id, cfg.landmarks_revision
    for name, (path, repository, revision) in named.items():
        origin, asked = str(about.get(name)), path or f"{repository}@{revision or 'main'}"
        if not _is_origin(origin, path, repository, revision):
            raise EmbeddingError(
                f"{embeddings.path}: embeddings by {origin}, but the config names {asked}, whose weights are not "
                f"available for a comparison; name the {name} that made the file, or download the weights"
            )
    return " and of its ".join(named).replace("landmarks", "landmark network")


def _is_origin(origin: str, path: str, repository: str | None, revision: str) -> bool:
    """Whether the origin, which is a path or repository@commit, is this path; without one, repository and revision."""
    if path:
        return origin == path
    found, _, commit = origin.rpartition("@")
    pinned = re.fullmatch("[0-9a-f]{40}", revision)
    return found == repository and (not pinned or commit == revision)
