"""The protocols in one table, and the one way through them: find the sets, embed the images, score, collect."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from easydict import EasyDict
from torch import nn

from eval.embeddings import Embeddings, embed
from eval.ijb import evaluate_templates
from eval.tinyface import evaluate_identification
from eval.verification import FOLDS, evaluate_pairs
from utils.bin_file import BinError, VerificationSet, read_bin
from utils.distributed import rank
from utils.template_set import TemplateSet

# Of a figure; None: there is no such number (a threshold above every score).
Figures = dict[str, float | None]


class Protocol(NamedTuple):
    """How the sets of a protocol are found, opened and scored.

    prefix: of its config keys (`<prefix>_targets`, `<prefix>_batch_size`, ...); root: the config key of its folder;
    every: the config key of the epochs between its evaluations during training, 0 for never;
    file: where a target lies in the root; open: path -> images (a dataset as embed() takes);
    score: -> figures by name.
    """

    prefix: str
    root: str
    every: str
    file: Callable[[str], str]
    open: Callable[[Path], Any]
    score: Callable[[Any, Embeddings], Figures]


def _open_pairs(path: Path) -> VerificationSet:
    pairs = read_bin(path)
    if len(pairs.is_same) < FOLDS:
        raise BinError(f"{path}: {len(pairs.is_same)} pairs; the protocol's {FOLDS} folds need one each")
    return pairs


def _score_pairs(pairs: VerificationSet, embeddings: Embeddings) -> Figures:
    figures = evaluate_pairs(embeddings.features, pairs.is_same)
    return {**figures, "XNorm": float(embeddings.norms.mean())}


_IMAGES, _PAIRS = ("faceness_scores", "templates", "medias"), ("label", "p1", "p2")
_LISTS = ("probe_paths", "gallery_paths", "distractor_paths")


def _score_templates(images: TemplateSet, embeddings: Embeddings) -> Figures:
    return evaluate_templates(embeddings.features, *(images.metadata[name] for name in (*_IMAGES, *_PAIRS)))


def _score_identification(images: TemplateSet, embeddings: Embeddings) -> Figures:
    return evaluate_identification(embeddings.features, images.metadata["image_paths"], images.metadata)


_open_templates = partial(TemplateSet, per_image=_IMAGES, others=_PAIRS)
_open_tinyface = partial(TemplateSet, per_image=("image_paths",), others=_LISTS)

# A new protocol is one module with a pure function of arrays, and one line here.
PROTOCOLS: dict[str, Protocol] = {
    "verification": Protocol("val", "val_rec", "val_eval_every_n_epoch", "{}.bin".format, _open_pairs, _score_pairs),
    "ijb": Protocol("ijb", "ijb_root", "eval_every_n_epoch", "{}".format, _open_templates, _score_templates),
    "tinyface": Protocol(
        "tinyface", "tinyface_root", "eval_every_n_epoch", "{}".format, _open_tinyface, _score_identification
    ),
}


def enabled(cfg: EasyDict) -> list[str]:
    """Names of the protocols that the config does not switch off by `eval_<prefix> = False`."""
    return [name for name, protocol in PROTOCOLS.items() if cfg.get(f"eval_{protocol.prefix}", True)]


def due(cfg: EasyDict, epoch: int) -> list[str]:
    """Names of the enabled protocols that training evaluates after `epoch` epochs; at 0, all that it ever evaluates."""
    every = {name: cfg[PROTOCOLS[name].every] for name in enabled(cfg)}
    return [name for name, interval in every.items() if interval and epoch % interval == 0]


class Results(NamedTuple):
    """figures: protocol -> target -> name -> number; absent: "protocol.target: path" of sets that are not there."""

    figures: dict[str, dict[str, Figures]]
    absent: list[str]


def evaluate(
    network: nn.Module, cfg: EasyDict, names: Iterable[str], device: torch.device, dtype: torch.dtype
) -> Results:
    """Score the network by the protocols `names` on the sets that the config names.

    Every rank must call it and embeds its share; rank 0 has the figures, the others only what is absent.
    """
    results = Results({}, [])
    for name in names:
        protocol = PROTOCOLS[name]

        def setting(key: str, default: Any = None, prefix: str = protocol.prefix) -> Any:
            return cfg.get(f"{prefix}_{key}", default)

        for target in setting("targets"):
            path = Path(cfg[protocol.root], protocol.file(target))
            if not os.path.exists(path):
                results.absent.append(f"{name}.{target}: {path}")
                continue
            images = protocol.open(path)
            embeddings = embed(
                network, images, device, setting("batch_size"), dtype,
                setting("flip", True), setting("num_workers", cfg.num_workers), title=target,
            )  # fmt: skip
            if rank() == 0:
                results.figures.setdefault(name, {})[target] = protocol.score(images, embeddings)
    return results


def flat(figures: dict[str, dict[str, Figures]]) -> Figures:
    """{"protocol.target.name": number}, as result names are written in CSV and logs."""
    return {
        f"{protocol}.{target}.{name}": number
        for protocol, targets in figures.items()
        for target, numbers in targets.items()
        for name, number in numbers.items()
    }
