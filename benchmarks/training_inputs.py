"""Drawn faces and a teacher with random weights for the benchmarks: the speed does not depend on either."""

from pathlib import Path

import numpy as np
import torch
from easydict import EasyDict
from safetensors.torch import save_file
from torch import nn

from backbones import NETWORKS
from backbones.cvlface_landmarks import LandmarkNetwork
from config import load_config
from data.dataset import build_dataset
from data.recordio import write_record_set
from data.teacher_cache_writer import Batches, EmbeddingWriter
from demo.make_demo_data import encoded_face
from train.teachers import describe_embeddings
from utils.errors import InputError

MS1MV2_IMAGES = 5_822_653
MS1MV2_IDENTITIES = 85_742


def make_inputs(folder: Path, images: int, classes: int, given: list[str]) -> tuple[list[str], str]:
    """Write a record set of `images` images and `classes` identities, a teacher's weights, and its embeddings.

    given: overrides of the config, which may name the teacher. Weights and embeddings are random. Returns all overrides
    for a run with the live teacher, and one more override for a run with the embeddings from the file. Raises
    InputError for an ONNX teacher.
    """
    cfg = load_config(overrides=["dataset=custom", *given])
    if cfg.teacher not in NETWORKS:
        raise InputError(f"teacher={cfg.teacher}: the benchmarks make random weights for teachers that torch runs only")
    faces = [encoded_face((0, number, 0, 0.3)) for number in range(min(images, 512))]
    labels = np.arange(images) * classes // images
    write_record_set(folder, (faces[number % len(faces)] for number in range(images)), labels, classes)
    (folder / "pretrained_model").mkdir()
    name = cfg.teacher.removeprefix("cvlface_").removesuffix("_kprpe")
    kprpe = "rpe_config: {}\n" if cfg.teacher.endswith("_kprpe") else ""
    description = f"name: {name}\ncolor_space: RGB\n{kprpe}"
    (folder / "pretrained_model" / "model.yaml").write_text(description, encoding="utf-8")
    _save_weights(NETWORKS[cfg.teacher](EasyDict(cfg, network=cfg.teacher)), folder / "model.safetensors")
    _save_weights(LandmarkNetwork(), folder / "landmarks.safetensors")
    settings = [
        "dataset=custom", *given, f"rec={folder}", f"pretrained_teacher_path={folder}",
        f"landmarks_path={folder / 'landmarks.safetensors'}", "num_epoch=1000000", "val_eval_every_n_epoch=0",
        "eval_every_n_epoch=0", "checkpoint_every=0", "keep_checkpoints=1",
    ]  # fmt: skip
    path = folder / "teacher.npy"
    cfg = load_config(overrides=settings)
    with EmbeddingWriter(path, describe_embeddings(cfg, build_dataset(cfg))) as writer:
        for positions in Batches(writer.share, 4096):
            writer.write(int(positions[0]), torch.randn(len(positions), 2, cfg.embedding_size))
    return settings, f"teacher_embeddings={path}"


def _save_weights(network: nn.Module, path: Path) -> None:
    save_file({f"model.net.{key}": value for key, value in network.state_dict().items()}, path)
