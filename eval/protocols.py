"""The protocols in one table, and the one way through them: find the sets, embed the images, score, collect."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict
from torch import nn

from data.arrow_set import INTEGERS, NUMBERS, TEXTS, ArrowVerificationSet, TemplateSet
from data.bin_set import BinError, VerificationSet, read_bin
from data.nist_set import NistSet, is_nist
from eval.embeddings import Embeddings, embed
from eval.ijb import score_templates
from eval.sets import Sets
from eval.tinyface import score_identification
from eval.verification import FOLDS, score_pairs
from utils.distributed import on_all_ranks, on_rank_0, rank
from utils.errors import InputError
from utils.files import atomic_write

# Of a figure; None: there is no such number (a threshold above every score).
Figures = dict[str, float | None]
Arrays = dict[str, np.ndarray]


class Column(NamedTuple):
    """A figure of tables that set methods side by side: `label` over it, after the set's name; the figure `spread`
    follows in brackets."""

    figure: str
    label: str = ""
    spread: str = ""


class Protocol(NamedTuple):
    """How the sets of a protocol are found, opened, scored and put into tables.

    prefix: of its config keys (`<prefix>_targets`, `<prefix>_batch_size`, ...); root: the config key of its folder;
    every: the config key of the epochs between its evaluations during training, 0 for never;
    files: where a target, `{}`, lies in the root, the first that is there; open: path -> images (a dataset as embed()
    takes); score: -> figures by name, and the arrays that they rest on; columns: its figures in tables of methods.
    """

    prefix: str
    root: str
    every: str
    files: tuple[str, ...]
    open: Callable[[Path], Any]
    score: Callable[[Any, Embeddings], tuple[Figures, Arrays]]
    columns: tuple[Column, ...]


def _open_pairs(path: Path) -> VerificationSet | ArrowVerificationSet:
    pairs = ArrowVerificationSet(path) if path.is_dir() else read_bin(path)
    if len(pairs.is_same) < FOLDS:
        raise BinError(f"{path}: {len(pairs.is_same)} pairs; the protocol's {FOLDS} folds need one each")
    return pairs


def _score_pairs(pairs: VerificationSet, embeddings: Embeddings) -> tuple[Figures, Arrays]:
    figures, arrays = score_pairs(embeddings.features, pairs.is_same)
    arrays["norm"] = embeddings.norms.reshape(-1, 2)
    return {**figures, "XNorm": float(embeddings.norms.mean())}, arrays


_TPR = "Norm:True_Det:True_tpr_at_fpr_"
_IMAGES = {"faceness_scores": NUMBERS, "templates": INTEGERS, "medias": INTEGERS}
_PAIRS = {"label": INTEGERS, "p1": INTEGERS, "p2": INTEGERS}
_LISTS = dict.fromkeys(["probe_paths", "gallery_paths", "distractor_paths"], TEXTS)


def _open_templates(path: Path) -> TemplateSet | NistSet:
    return NistSet(path) if is_nist(path) else TemplateSet(path, per_image=_IMAGES, others=_PAIRS)


def _score_templates(images: TemplateSet | NistSet, embeddings: Embeddings) -> tuple[Figures, Arrays]:
    return score_templates(embeddings.features, *(images.metadata[name] for name in (*_IMAGES, *_PAIRS)))


def _open_tinyface(path: Path) -> TemplateSet:
    return TemplateSet(path, per_image={"image_paths": TEXTS}, others=_LISTS)


def _score_identification(images: TemplateSet, embeddings: Embeddings) -> tuple[Figures, Arrays]:
    figures, arrays = score_identification(embeddings.features, images.metadata["image_paths"], images.metadata)
    arrays["norm"] = embeddings.norms[arrays["probe"]]
    return figures, arrays


# A new protocol is one module with a pure function of arrays, and one line here.
PROTOCOLS: dict[str, Protocol] = {
    "verification": Protocol(
        "val", "val_rec", "val_eval_every_n_epoch", ("{}.bin", "{}"), _open_pairs, _score_pairs,
        (Column("Accuracy-Flip", spread="Accuracy-Std"),),
    ),
    "ijb": Protocol(
        "ijb", "ijb_root", "eval_every_n_epoch", ("{}",), _open_templates, _score_templates,
        (Column(f"{_TPR}0.0001", " 1e-4"), Column(f"{_TPR}1e-05", " 1e-5")),
    ),
    "tinyface": Protocol(
        "tinyface", "tinyface_root", "eval_every_n_epoch", ("{}",), _open_tinyface, _score_identification,
        (Column("rank-1", " rank-1"), Column("rank-5", " rank-5")),
    ),
}  # fmt: skip


def due(cfg: EasyDict, epoch: int) -> list[str]:
    """Names of the protocols that training evaluates after `epoch` epochs; at 0, all that it ever evaluates."""
    every = {name: cfg[protocol.every] for name, protocol in PROTOCOLS.items() if cfg[f"{protocol.prefix}_targets"]}
    return [name for name, interval in every.items() if interval and epoch % interval == 0]


class Results(NamedTuple):
    """figures: protocol -> target -> name -> number; arrays: the same, what the figures rest on; absent: "protocol.
    target: path" of sets that are not there; failed: "protocol.target: reason" of those that could not be scored."""

    figures: dict[str, dict[str, Figures]]
    arrays: dict[str, dict[str, Arrays]]
    absent: list[str]
    failed: list[str]


def wanted(cfg: EasyDict, names: Iterable[str]) -> list[tuple[str, str]]:
    """(protocol, target) of the sets that the config names for the protocols `names`."""
    return [(name, target) for name in names for target in cfg[f"{PROTOCOLS[name].prefix}_targets"]]


def find(cfg: EasyDict, name: str, target: str) -> Path | None:
    """Where a set lies, None where it is absent."""
    protocol = PROTOCOLS[name]
    places = [Path(cfg[protocol.root], file.format(target)) for file in protocol.files]
    return next((place for place in places if os.path.exists(place)), None)


def absence(cfg: EasyDict, name: str, target: str) -> str:
    """How results call a set that is absent: with the place where it was looked for first."""
    protocol = PROTOCOLS[name]
    return f"{name}.{target}: {Path(cfg[protocol.root], protocol.files[0].format(target))}"


def open_set(cfg: EasyDict, name: str, target: str, sets: Sets) -> Any:
    """The images of a set that is there. Every rank must call it."""
    return sets.open(name, target, PROTOCOLS[name].open, find(cfg, name, target))


def evaluate(
    network: nn.Module,
    cfg: EasyDict,
    names: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    sets: Sets | None = None,
    embeddings_folder: str | os.PathLike | None = None,
) -> Results:
    """Score the network by the protocols `names` on the sets that the config names.

    Every rank must call it and embeds its share; rank 0 has the figures, the others only what is absent or failed. A
    set that is broken (InputError or OSError) fails alone. sets: where opened sets are kept for the next call.
    embeddings_folder: rank 0 writes the embeddings there, as <protocol>.<target>.npy, float32 [N, D].
    """
    sets = sets or Sets()
    results = Results({}, {}, [], [])
    for name, target in wanted(cfg, names):
        path = on_rank_0(partial(find, cfg, name, target))
        if path is None:
            results.absent.append(absence(cfg, name, target))
            continue
        try:
            images = sets.open(name, target, PROTOCOLS[name].open, path)
            embeddings = _embed_set(network, cfg, name, target, sets, device, dtype)
            scored = on_all_ranks(partial(_score_set, name, target, images, embeddings, embeddings_folder))
        except (InputError, OSError) as error:
            results.failed.append(f"{name}.{target}: {error}")
            continue
        if scored is not None:
            figures, arrays = scored
            results.figures.setdefault(name, {})[target] = figures
            results.arrays.setdefault(name, {})[target] = arrays
    return results


def _embed_set(
    network: nn.Module, cfg: EasyDict, name: str, target: str, sets: Sets, device: torch.device, dtype: torch.dtype
) -> Embeddings:
    def setting(key: str) -> Any:
        return cfg[f"{PROTOCOLS[name].prefix}_{key}"]

    batch_size = setting("batch_size")
    images, num_workers = sets.pixels(name, target, batch_size, setting("num_workers"))
    return embed(network, images, device, batch_size, dtype, setting("flip"), num_workers, title=target)


def _score_set(
    name: str, target: str, images: Any, embeddings: Embeddings, folder: str | os.PathLike | None
) -> tuple[Figures, Arrays] | None:
    """Figures and arrays on rank 0, None on the others; the embeddings are written to the folder, if one is named."""
    if rank() != 0:
        return None
    if folder is not None:
        with atomic_write(embeddings_file(folder, name, target)) as file:
            np.save(file, embeddings.features)
    return PROTOCOLS[name].score(images, embeddings)


def embeddings_file(folder: str | os.PathLike, name: str, target: str) -> Path:
    """Where the embeddings of a set go: in the folder itself, whatever the set is called."""
    return Path(folder, f"{name}.{target}.npy".replace("/", "_"))


def flat(figures: dict[str, dict[str, Figures]]) -> Figures:
    """{"protocol.target.name": number}, as result names are written in CSV and logs."""
    return {
        f"{protocol}.{target}.{name}": number
        for protocol, targets in figures.items()
        for target, numbers in targets.items()
        for name, number in numbers.items()
    }
