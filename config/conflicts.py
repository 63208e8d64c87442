"""Combinations of keys that contradict each other. Only those that the config alone shows are checked here."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from easydict import EasyDict

from config import names


class Conflict(NamedTuple):
    """`applies(cfg)`: whether the config has this conflict; `message`: the keys, the reason and what to do."""

    applies: Callable[[EasyDict], bool]
    message: str


def _augments(cfg: EasyDict) -> bool:
    return any(cfg[key] > 0 for key in cfg if key.endswith("_augmentation_prob"))


DATA = [
    Conflict(
        lambda cfg: cfg.db_file_format == "rec" and not cfg.rec,
        "db_file_format = 'rec' needs rec, a folder with train.rec, train.idx and property, or several; set rec, or "
        "db_file_format=folder and data_path",
    ),
    Conflict(
        lambda cfg: cfg.db_file_format == "folder" and not cfg.data_path,
        "db_file_format = 'folder' needs data_path, a folder with one folder of images per identity; set data_path, or "
        "db_file_format=rec",
    ),
    Conflict(
        lambda cfg: cfg.sample > 0 and cfg.db_file_format != "folder",
        "sample above 0 needs db_file_format = 'folder', because record sets are always read completely; set "
        "sample=0, or db_file_format=folder",
    ),
]
EMBEDDINGS = [
    Conflict(
        lambda cfg: cfg.teacher_cosine_weights and len(cfg.teacher_cosine_weights) != len(cfg.teacher_embeddings),
        "teacher_cosine_weights needs one number for each file of teacher_embeddings; set as many, or "
        "teacher_cosine_weights=[] for equal weights",
    ),
]
TEACHER = [
    Conflict(
        lambda cfg: (
            names.TEACHERS[cfg.teacher] in (names.WEIGHTS_FILE, names.ONNX_FILE)
            and not cfg.pretrained_teacher_path
            and not (cfg.teacher_repo_id and cfg.teacher != "onnx")
            and not cfg.teacher_embeddings
        ),
        "a teacher other than cvlface_* needs pretrained_teacher_path, its weights file; set it, or set "
        "teacher_embeddings to a file of its embeddings, or teacher_repo_id to a repository of deploy/to_hub.py",
    ),
    Conflict(
        lambda cfg: cfg.teacher == "onnx" and not cfg.teacher_embeddings,
        "teacher = 'onnx' needs teacher_embeddings, because onnxruntime cannot be a part of the training step: every "
        "batch would wait for a copy to host memory and back; set teacher_embeddings to the .npy file to make",
    ),
    Conflict(
        lambda cfg: cfg.teacher_embeddings and cfg.teacher_view == "same" and _augments(cfg),
        "teacher_embeddings has embeddings of images without augmentation, but teacher_view = 'same' and an "
        "augmentation probability (such as photometric_augmentation_prob) above 0 ask for embeddings of "
        "augmented images; set teacher_view=clean, or the probabilities to 0, or run the teacher: teacher_embeddings=",
    ),
    Conflict(
        lambda cfg: cfg.centers == "fixed" and not cfg.pretrained_teacher_header_path,
        "centers = 'fixed' needs pretrained_teacher_header_path, the header.pth with the teacher's class centers; set "
        "it, or centers=ema",
    ),
    Conflict(
        lambda cfg: cfg.centers == "mean" and not cfg.teacher_embeddings,
        "centers = 'mean' needs the embeddings of the whole training set before the first step; set teacher_embeddings "
        "to the file to make, or centers=ema",
    ),
    Conflict(
        lambda cfg: cfg.confidence_centers == "mean" and not cfg.teacher_embeddings,
        "confidence_centers = 'mean' needs the embeddings of the whole training set before the first step; set "
        "teacher_embeddings to the file to make, or confidence_centers=moving",
    ),
    Conflict(
        lambda cfg: cfg.teacher_projection != "none" and not cfg.teacher_embeddings,
        "teacher_projection is fitted to the embeddings of the whole training set, so it needs them in a file; set "
        "teacher_embeddings to the file to make, or teacher_projection=none",
    ),
    Conflict(
        lambda cfg: cfg.centers == "fixed" and (cfg.teacher_projection != "none" or len(cfg.teacher_embeddings) > 1),
        "centers = 'fixed' has centers in the space of one teacher, without a projection; set centers=ema, or one file "
        "as teacher_embeddings and teacher_projection=none",
    ),
    Conflict(
        lambda cfg: (
            cfg.norm_source == "teacher" and (cfg.teacher_projection != "none" or len(cfg.teacher_embeddings) > 1)
        ),
        "norm_source = 'teacher' needs the norms of one teacher's raw embeddings, which a projection and several "
        "teachers do not keep; set norm_source=student, or one file as teacher_embeddings and teacher_projection=none",
    ),
]
SAMPLING = [
    Conflict(
        lambda cfg: cfg.sample_rate < 1 and cfg.shard_centers == "off",
        "sample_rate below 1 is part of the head whose centers can be split over the ranks; set shard_centers=auto, or "
        "sample_rate=1",
    ),
]
BATCH = [
    Conflict(
        lambda cfg: cfg.batch_size == 1 and not cfg.sync_bn,
        "batch_size = 1 needs sync_bn = True and several ranks, because BatchNorm needs two images; raise batch_size, "
        "or set sync_bn=True",
    ),
]


RESUMING = [
    Conflict(
        lambda cfg: cfg.global_step > 0 and cfg.resume == "auto",
        "global_step above 0 and resume = 'auto' ask for two different checkpoints (that step and the newest one); set "
        "resume=none, or global_step=0",
    ),
]

# The conflicts that concern a script. Training without a teacher ignores the teacher's keys, evaluation all of them.
DISTILLATION = [*DATA, *EMBEDDINGS, *TEACHER, *BATCH, *RESUMING]
STANDALONE = [*DATA, *SAMPLING, *BATCH, *RESUMING]


def find_conflict(cfg: EasyDict, conflicts: Sequence[Conflict]) -> str | None:
    """The message of the first of `conflicts` in a config whose values are allowed one by one; None if it has none."""
    return next((conflict.message for conflict in conflicts if conflict.applies(cfg)), None)
