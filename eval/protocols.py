"""The benchmarks by name, and the evaluation that all of them share: find the sets, embed the images, score them.

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
from eval.sets import EvaluationSet, SetCache
from utils.distributed import on_all_ranks, on_rank_0, rank
from utils.errors import InputError, describe_error
from utils.files import atomic_write

PROTOCOLS: dict[str, Protocol] = names.resolve(names.PROTOCOLS)


class Results(NamedTuple):
    """The results of an evaluation.

    metrics: protocol -> set -> metric -> value; arrays: protocol -> set -> name -> array, from which the metrics are
    computed; absent: "protocol.set: path" of sets that do not exist; failed: "protocol.set: reason" of sets that could
    not be scored; warnings: "protocol.set: warning" of sets whose metrics need care.
    """

    metrics: dict[str, dict[str, Metrics]]
    arrays: dict[str, dict[str, Arrays]]
    absent: list[str]
    failed: list[str]
    warnings: list[str]


def build_evaluation_sets(cfg: EasyDict, protocols: Iterable[str] = tuple(PROTOCOLS)) -> list[EvaluationSet]:
    """The sets of these protocols that the config names, in the order of the protocols."""
    sets = []
    for name in protocols:
        protocol, prefix = PROTOCOLS[name], names.key_prefix(name)
        for target in cfg[f"{prefix}_targets"]:
            evaluation_set = EvaluationSet(
                name,
                target,
                paths=tuple(Path(cfg[f"{prefix}_{protocol.root}"], file.format(target)) for file in protocol.files),
                batch_size=cfg[f"{prefix}_batch_size"],
                num_workers=cfg[f"{prefix}_num_workers"],
                flip=cfg[f"{prefix}_flip"],
                epochs_between=cfg[protocol.every],
            )
            sets.append(evaluation_set)
    return sets


def due(sets: Iterable[EvaluationSet], epoch: int) -> list[EvaluationSet]:
    """The sets that training evaluates after `epoch` epochs; at epoch 0, all sets that it ever evaluates."""
    return [
        evaluation_set
        for evaluation_set in sets
        if evaluation_set.epochs_between and epoch % evaluation_set.epochs_between == 0
    ]


def open_images(sets: Iterable[EvaluationSet], cache: SetCache, protocol: str, target: str) -> Any:
    """The images of the set with this protocol and target, which must exist. Call it on every rank."""
    evaluation_set = next(candidate for candidate in sets if candidate.key == (protocol, target))
    return cache.open(evaluation_set, PROTOCOLS[protocol].open, evaluation_set.find())


def evaluate(
    network: nn.Module,
    sets: Iterable[EvaluationSet],
    device: torch.device,
    dtype: torch.dtype,
    cache: SetCache | None = None,
    embeddings_folder: str | os.PathLike | None = None,
) -> Results:
    """Score the network on these sets, each by its protocol.

    Call it on every rank; each embeds its share of the images. Rank 0 gets all results, the other ranks only `absent`
    and `failed`. A set that is broken (InputError or OSError) does not stop the evaluation of the others.

    cache: keeps opened sets for the next call. embeddings_folder: rank 0 writes the embeddings to this folder, as
    <protocol>.<set>.npy, float32 [N, D].
    """
    cache = cache or SetCache()
    results = Results({}, {}, [], [], [])
    for evaluation_set in sets:
        protocol, target = evaluation_set.protocol, evaluation_set.target
        path = on_rank_0(evaluation_set.find)
        if path is None:
            results.absent.append(evaluation_set.describe_absent())
            continue
        try:
            images = cache.open(evaluation_set, PROTOCOLS[protocol].open, path)
            embeddings = _embed_set(network, evaluation_set, cache, device, dtype)
            scored = on_all_ranks(partial(_score_set, protocol, target, images, embeddings, embeddings_folder))
        except (InputError, OSError) as error:
            results.failed.append(f"{evaluation_set.result_name}: {describe_error(error)}")
            continue
        if scored is not None:
            metrics, arrays = scored
            results.metrics.setdefault(protocol, {})[target] = metrics
            results.arrays.setdefault(protocol, {})[target] = arrays
            results.warnings.extend(warnings_of(evaluation_set, images))
    add_summaries(results)
    return results


def add_summaries(results: Results) -> None:
    """Add the summaries of the protocols (see `Protocol`), in the place of sets, except where a set has their name."""
    for protocol, targets in results.metrics.items():
        for name, summarise in PROTOCOLS[protocol].summaries.items():
            summary = summarise(targets)
            if summary is not None and name not in targets:
                targets[name], warnings = summary
                warnings = [f"{protocol}.{name}: {warning}" for warning in warnings]
                results.warnings.extend(warning for warning in warnings if warning not in results.warnings)


def warnings_of(evaluation_set: EvaluationSet, images: Any) -> list[str]:
    """One "protocol.set: warning" for each thing that readers of this set's metrics must know.

    images: the opened set.
    """
    warn = PROTOCOLS[evaluation_set.protocol].warn
    return [] if warn is None else [f"{evaluation_set.result_name}: {warning}" for warning in warn(images)]


def _embed_set(
    network: nn.Module, evaluation_set: EvaluationSet, cache: SetCache, device: torch.device, dtype: torch.dtype
) -> Embeddings:
    images, num_workers = cache.decoded(evaluation_set)
    batch_size, flip = evaluation_set.batch_size, evaluation_set.flip
    return embed(network, images, device, batch_size, dtype, flip, num_workers, title=evaluation_set.target)


def _score_set(
    protocol: str, target: str, images: Any, embeddings: Embeddings, folder: str | os.PathLike | None
) -> tuple[Metrics, Arrays] | None:
    """Metrics and arrays on rank 0, None on the others; the embeddings are written to `folder` unless it is None."""
    if rank() != 0:
        return None
    if folder is not None:
        _write_array(embeddings_file(folder, protocol, target), embeddings.features)
    return PROTOCOLS[protocol].score(images, embeddings)


def _write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file. np.save does not notice a disk that is too full for the last 4 KB."""
    array = np.ascontiguousarray(array)
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def embeddings_file(folder: str | os.PathLike, protocol: str, target: str) -> Path:
    """The file for the embeddings of a set. It is directly in the folder, whatever the name of the set is."""
    return Path(folder, f"{protocol}.{target}.npy".replace("/", "_"))


def flatten(metrics: Mapping[str, Mapping[str, Metrics]]) -> Metrics:
    """The metrics by their result names in CSV files and logs, "protocol.set.metric"."""
    return {
        f"{protocol}.{target}.{metric}": value
        for protocol, targets in metrics.items()
        for target, values in targets.items()
        for metric, value in values.items()
    }
