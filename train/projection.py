"""The teacher's embeddings in training, from one or several files, with or without a projection to another size."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor

from backbones import find_teacher, teacher_embedding_size
from data.dataset import FaceDataset
from data.images import PREPROCESSING
from data.pairs import sample_pairs, sample_positions
from data.teacher_cache import (
    EmbeddingError,
    EmbeddingFile,
    TeacherEmbeddings,
    differences,
    read_description,
    shape_of,
)
from data.teacher_projection import (
    RUN_COPY,
    JoinedEmbeddings,
    Projection,
    describe_changes,
    describe_projection,
    fit_projection,
    read_projection,
    second_moment,
    write_projection,
)
from train.teachers import build_cached_teacher
from utils.about import describe_run
from utils.distributed import on_rank_0
from utils.errors import describe_error
from utils.files import checksum

PAIRS, RUNS = 10_000, 2_000  # at most this many pairs, from this many runs of images, show how cosines change
IGNORED = (
    "several teachers: teacher, teacher_width, teacher_repo_id, teacher_revision, pretrained_teacher_path and "
    "landmarks_* are ignored, because each file states which teacher made it"
)


def build_embeddings(
    cfg: EasyDict, dataset: FaceDataset, device: torch.device, run_folder: Path | None = None
) -> tuple[TeacherEmbeddings, tuple[str, ...]]:
    """Open the files `teacher_embeddings`, and find or fit the projection to cfg.embedding_size. For every rank.

    A single file is made first if it is missing. run_folder: the folder of the run, in which a run that is resumed has
    a copy of its projection; None for no run. Returns the embeddings and lines for the log. Raises EmbeddingError if a
    file is missing, is broken or does not belong to this teacher and these images, or if the sizes do not fit.
    """
    paths, is_projected = cfg.teacher_embeddings, cfg.teacher_projection != "none"
    if len(paths) == 1 and not is_projected:
        return build_cached_teacher(cfg, dataset, device)
    weights = cfg.teacher_cosine_weights or [1] * len(paths)
    shares = [weight / sum(weights) for weight in weights]
    if len(paths) == 1:
        file, notes = build_cached_teacher(_with_own_size(cfg), dataset, device)
        files = [file]
    else:
        files = _open_files(paths, dataset)
        notes = (*_describe_files(files, shares), IGNORED)
    joined = JoinedEmbeddings(files, shares)
    if cfg.embedding_size > joined.dimensions or (not is_projected and cfg.embedding_size < joined.dimensions):
        sizes = " + ".join(str(file.dimensions) for file in files)
        raise EmbeddingError(
            f"{', '.join(paths)}: embeddings of {sizes} dimensions, but embedding_size is "
            f"{cfg.embedding_size}; set embedding_size={joined.dimensions}, or a smaller one and teacher_projection=pca"
        )
    if not is_projected:
        return joined, notes
    if (found := on_rank_0(lambda: _find(cfg, joined, run_folder))) is None:
        moment = second_moment(joined, len(dataset))
        found = on_rank_0(lambda: _fit(cfg, joined, moment, dataset, run_folder))
    projection, how = found
    note = f"projection of the teacher's embeddings {describe_projection(projection.description)}; {how}"
    return JoinedEmbeddings(files, shares, projection), (*notes, note)


def projection_path(cfg: EasyDict, shares: tuple[float, ...]) -> Path:
    """The file of the projection, beside the first file of embeddings: ir50.pca128.safetensors.

    For several files, the name has all their names, their shares unless they are equal, and a checksum of their folders
    unless they lie in one.
    """
    paths = [Path(path) for path in cfg.teacher_embeddings]
    name, folders = "+".join(path.stem for path in paths), [str(path.parent) for path in paths]
    if len(set(shares)) > 1:
        name += "." + "+".join(f"{share:.3g}" for share in shares)
    if len(set(folders)) > 1:
        name += "." + checksum(["\n".join(folders).encode()])[:8]
    return paths[0].with_name(f"{name}.pca{cfg.embedding_size}.safetensors")


def _with_own_size(cfg: EasyDict) -> EasyDict:
    """The config with the size of the teacher's own embeddings: from the file, or else from the teacher's weights."""

    def size() -> int:
        (path,) = cfg.teacher_embeddings
        if os.path.exists(path):
            return shape_of(read_description(Path(path)))[2]
        return teacher_embedding_size(cfg, find_teacher(cfg))

    return EasyDict(cfg, embedding_size=on_rank_0(size))


def _open_files(paths: list[str], dataset: FaceDataset) -> list[EmbeddingFile]:
    """The files of several teachers, each of which must be complete and belong to this training set."""
    images = {"images": len(dataset), "fingerprint": on_rank_0(lambda: dataset.fingerprint)}
    for path in paths:
        if not os.path.exists(path):
            raise EmbeddingError(
                f"{path}: no such file; with several teachers, make the file of each one first: "
                f"python train/cache_teacher.py teacher_embeddings={path}, with the keys of the set and of the teacher"
            )
    return [EmbeddingFile(path, {"data": images, "preprocessing": PREPROCESSING}) for path in paths]


def _describe_files(files: list[EmbeddingFile], shares: list[float]) -> Iterator[str]:
    for file, share in zip(files, shares, strict=True):
        yield f"{share:.1%} of the teacher's cosine: {file.summary()}"


def _find(cfg: EasyDict, joined: JoinedEmbeddings, run_folder: Path | None) -> tuple[Projection, str] | None:
    """The projection, and where it is from: the copy of a run that is resumed, or the file beside the embeddings."""
    wanted, path = joined.describe(cfg.embedding_size), projection_path(cfg, joined.shares)
    copy = run_folder and run_folder / RUN_COPY
    if copy and copy.exists() and (cfg.resume == "auto" or cfg.global_step > 0):
        projection = read_projection(copy, f"remove it, and the run takes {path}, which it needs unchanged")
        # Otherwise the run in this folder had other embeddings. If it is resumed, it is refused later.
        if not differences(projection.description, wanted):
            return projection, f"from {copy}"
    if not path.exists():
        return None
    projection = read_projection(path)
    if different := differences(projection.description, wanted):
        raise EmbeddingError(
            f"{path}: fitted to other embeddings: {'; '.join(different)}. Remove this file to fit it again"
        )
    return projection, f"from {path}"


def _fit(
    cfg: EasyDict, joined: JoinedEmbeddings, moment: Tensor, dataset: FaceDataset, run_folder: Path | None
) -> tuple[Projection, str]:
    """A new projection, and where it is stored: beside the embeddings, or only with the run."""
    matrix, energy = fit_projection(moment, cfg.embedding_size)
    rng = np.random.default_rng(0)
    positions = sample_positions(len(dataset), RUNS, rng)
    pairs = sample_pairs(positions, dataset.read_labels(positions), PAIRS, rng)
    about = {"energy": energy, "cosines": describe_changes(joined, matrix, pairs), "run": describe_run()}
    projection = Projection(matrix, {**joined.describe(cfg.embedding_size), "about": about})
    path = projection_path(cfg, joined.shares)
    try:
        write_projection(path, projection)
    except OSError as error:
        if run_folder is None:
            raise
        return projection, f"fitted now; stored only with the run ({describe_error(error)})"
    return projection, f"fitted now; stored in {path}"
