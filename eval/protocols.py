"""The benchmarks by name, and the one way through all of them: find the sets, embed the images, score, collect.

A new benchmark is one module with a `PROTOCOL` (see eval/protocol.py) and one line in config/names.py.
"""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict
from torch import nn

from config import names
from eval.embeddings import Embeddings, embed
from eval.protocol import Arrays, Metrics, Protocol
from eval.sets import Sets
from utils.distributed import on_all_ranks, on_rank_0, rank
from utils.errors import InputError
from utils.files import atomic_write

PROTOCOLS: dict[str, Protocol] = names.resolve(names.PROTOCOLS)


class Results(NamedTuple):
    """What an evaluation gives.

    metrics: protocol -> set -> name -> value; arrays: protocol -> set -> name -> array, from which the metrics are
    computed; absent: "protocol.set: path" of sets that do not exist; failed: "protocol.set: reason" of sets that could
    not be scored; warnings: "protocol.set: warning" of sets whose metrics need care.
    """

    metrics: dict[str, dict[str, Metrics]]
    arrays: dict[str, dict[str, Arrays]]
    absent: list[str]
    failed: list[str]
    warnings: list[str]


def due(cfg: EasyDict, epoch: int) -> list[str]:
    """Names of the protocols that training evaluates after `epoch` epochs; at 0, all that it ever evaluates."""
    every = {name: cfg[protocol.every] for name, protocol in PROTOCOLS.items() if cfg[f"{protocol.prefix}_targets"]}
    return [name for name, interval in every.items() if interval and epoch % interval == 0]


def configured_sets(cfg: EasyDict, protocols: Iterable[str]) -> list[tuple[str, str]]:
    """(protocol, set) for each set that the config names for these protocols."""
    return [(name, target) for name in protocols for target in cfg[f"{PROTOCOLS[name].prefix}_targets"]]


def find_set(cfg: EasyDict, name: str, target: str) -> Path | None:
    """The path of a set of the protocol `name`; None if it does not exist."""
    return next((path for path in _possible_paths(cfg, name, target) if os.path.exists(path)), None)


def describe_absent(cfg: EasyDict, name: str, target: str) -> str:
    """How results name a set that does not exist: with the first place where it was looked for."""
    return f"{name}.{target}: {_possible_paths(cfg, name, target)[0]}"


def _possible_paths(cfg: EasyDict, name: str, target: str) -> list[Path]:
    protocol = PROTOCOLS[name]
    return [Path(cfg[protocol.root], file.format(target)) for file in protocol.files]


def open_set(cfg: EasyDict, name: str, target: str, sets: Sets) -> Any:
    """The images of a set that exists. Call it on every rank."""
    return sets.open(name, target, PROTOCOLS[name].open, find_set(cfg, name, target))


def evaluate(
    network: nn.Module,
    cfg: EasyDict,
    protocols: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    sets: Sets | None = None,
    embeddings_folder: str | os.PathLike | None = None,
) -> Results:
    """Score the network by these protocols on the sets that the config names.

    Call it on every rank; each embeds its share of the images. Rank 0 gets all results, the others only what is absent
    or failed. A set that is broken (InputError or OSError) does not stop the others. sets: keeps opened sets for the
    next call. embeddings_folder: rank 0 writes the embeddings there, as <protocol>.<set>.npy, float32 [N, D].
    """
    sets = sets or Sets()
    results = Results({}, {}, [], [], [])
    for name, target in configured_sets(cfg, protocols):
        path = on_rank_0(partial(find_set, cfg, name, target))
        if path is None:
            results.absent.append(describe_absent(cfg, name, target))
            continue
        try:
            images = sets.open(name, target, PROTOCOLS[name].open, path)
            embeddings = _embed_set(network, cfg, name, target, sets, device, dtype)
            scored = on_all_ranks(partial(_score_set, name, target, images, embeddings, embeddings_folder))
        except (InputError, OSError) as error:
            results.failed.append(f"{name}.{target}: {error}")
            continue
        if scored is not None:
            metrics, arrays = scored
            results.metrics.setdefault(name, {})[target] = metrics
            results.arrays.setdefault(name, {})[target] = arrays
            results.warnings.extend(warnings_of(name, target, images))
    return results


def warnings_of(name: str, target: str, images: Any) -> list[str]:
    """ "protocol.set: warning" for everything that readers of the metrics of this opened set must know."""
    warn = PROTOCOLS[name].warn
    return [] if warn is None else [f"{name}.{target}: {warning}" for warning in warn(images)]


def _embed_set(
    network: nn.Module, cfg: EasyDict, name: str, target: str, sets: Sets, device: torch.device, dtype: torch.dtype
) -> Embeddings:
    def setting(key: str) -> Any:
        return cfg[f"{PROTOCOLS[name].prefix}_{key}"]

    batch_size = setting("batch_size")
    images, num_workers = sets.decoded(name, target, batch_size, setting("num_workers"))
    return embed(network, images, device, batch_size, dtype, setting("flip"), num_workers, title=target)


def _score_set(
    name: str, target: str, images: Any, embeddings: Embeddings, folder: str | os.PathLike | None
) -> tuple[Metrics, Arrays] | None:
    """Metrics and arrays on rank 0, None on the others; the embeddings are written to `folder` unless it is None."""
    if rank() != 0:
        return None
    if folder is not None:
        with atomic_write(embeddings_file(folder, name, target)) as file:
            np.save(file, embeddings.features)
    return PROTOCOLS[name].score(images, embeddings)


def embeddings_file(folder: str | os.PathLike, name: str, target: str) -> Path:
    """The file for the embeddings of a set, directly in the folder, whatever the name of the set is."""
    return Path(folder, f"{name}.{target}.npy".replace("/", "_"))


def flat(metrics: Mapping[str, Mapping[str, Metrics]]) -> Metrics:
    """{"protocol.set.name": value}, the result names of CSV files and logs."""
    return {
        f"{protocol}.{target}.{name}": value
        for protocol, targets in metrics.items()
        for target, values in targets.items()
        for name, value in values.items()
    }
