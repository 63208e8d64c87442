"""Closed-set identification on TinyFace: rank-k rates of low-resolution probes against a gallery with distractors."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.arrow_set import TemplateSet
from data.template_metadata import TEXTS
from eval.drawing import COLORS, MARKERS, add_legend, new_axes, plot_rates_by_norm
from eval.embeddings import Embeddings
from eval.identification import nearest_mate_ranks
from eval.metrics import rank_k_rate, unit_length
from eval.protocol import Arrays, Column, Display, Metrics, Protocol, SetPlot, StepPlot
from utils.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = (1, 5, 20)
LAST_RANK_DRAWN = 50
LISTS = ("probe_paths", "gallery_paths", "distractor_paths")  # of metadata.pt


class TinyFaceError(InputError):
    """Lists, names or embeddings that cannot be scored; the message names what is wrong and where."""


def evaluate_identification(
    embeddings: np.ndarray, image_paths: Sequence[str], metadata: dict[str, Sequence[str]]
) -> Metrics:
    """Search every probe that has a mate in the gallery -> {"rank-1": percent, "rank-5": ..., "rank-20": ...}.

    embeddings [N, D] (image + flip, raw); image_paths [N]; metadata: `probe_paths`, `gallery_paths` and
    `distractor_paths`. Their images are found by file name without folder and extension. The identity is the file name
    up to the first "_". Distractors belong to the gallery and match nobody. A probe counts at rank k if fewer than k
    images of other identities are at least as near (by cosine) as its nearest mate.

    Raises TinyFaceError if two images or two list entries have the same name, if a listed image is missing, if no probe
    has a mate, or if an embedding is not finite.
    """
    return score_identification(embeddings, image_paths, metadata)[0]


def score_identification(
    embeddings: np.ndarray, image_paths: Sequence[str], metadata: dict[str, Sequence[str]]
) -> tuple[Metrics, Arrays]:
    """The metrics of `evaluate_identification`, and the arrays that they are computed from.

    Arrays: probe int [P], the rows of the probes that have a mate; rank int [P], of their nearest mates, from 1.
    """
    names = [_name(path) for path in image_paths]
    if len(embeddings) != len(names):
        raise TinyFaceError(f"{len(embeddings)} embeddings for {len(names)} image_paths; expected one per image")
    _check_unique(names, "image_paths")
    probes, gallery, distractors = ([_name(path) for path in metadata[part]] for part in LISTS)
    _check_unique([*probes, *gallery, *distractors], "probe_paths, gallery_paths and distractor_paths")
    position = {name: row for row, name in enumerate(names)}
    absent = [name for name in (*probes, *gallery, *distractors) if name not in position]
    if absent:
        raise TinyFaceError(f"{len(absent)} listed images are not in image_paths: {', '.join(absent[:5])}")

    number = {identity: row for row, identity in enumerate(dict.fromkeys(map(_identity, gallery)))}
    probes = [name for name in probes if _identity(name) in number]
    if not probes:
        raise TinyFaceError("no probe has a mate in gallery_paths; identities are file names up to the first '_'")
    rows = [position[name] for name in probes]
    rank = nearest_mate_ranks(
        _unit_rows(embeddings, rows),
        _unit_rows(embeddings, [position[name] for name in (*gallery, *distractors)]),
        probe_identities=np.array([number[_identity(name)] for name in probes]),
        gallery_identities=np.array([number[_identity(name)] for name in gallery] + [-1] * len(distractors)),
    )
    return {f"rank-{k}": rank_k_rate(rank, k) for k in RANKS}, {"probe": np.array(rows), "rank": rank}


def _name(path: str) -> str:
    """The file name without folder and extension; a name whose only dot is its first character has no extension."""
    name = path[path.rfind("/") + 1 :]
    stem = name[: name.rfind(".")] if "." in name else name
    return stem if stem.strip(".") else name


def _identity(name: str) -> str:
    return name.split("_", 1)[0]


def _check_unique(names: list[str], where: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise TinyFaceError(
            f"{len(repeated)} file names occur more than once in {where}: {', '.join(repeated[:5])}; images are found "
            "by file name without folder and extension, so each name must be unique"
        )


def _unit_rows(embeddings: np.ndarray, rows: list[int]) -> np.ndarray:
    """The embeddings at `rows`, float64 [len(rows), D], of length 1."""
    listed = np.asarray(embeddings)[rows]
    finite = np.isfinite(listed).all(axis=1)
    if not finite.all():
        raise TinyFaceError(f"the embedding of image {rows[int(finite.argmin())]} is not a finite number")
    return unit_length(listed)


def _open(path: Path) -> TemplateSet:
    return TemplateSet(path, per_image={"image_paths": TEXTS}, others=dict.fromkeys(LISTS, TEXTS))


def _score(images: TemplateSet, embeddings: Embeddings) -> tuple[Metrics, Arrays]:
    metrics, arrays = score_identification(embeddings.features, images.metadata["image_paths"], images.metadata)
    arrays["norm"] = embeddings.norms[arrays["probe"]]
    return metrics, arrays


def _plot_cmc(metrics: Metrics, arrays: Arrays) -> "Figure":
    axes = new_axes("rank", "identification rate [%]")
    ranks = np.arange(1, LAST_RANK_DRAWN + 1)
    rates = 100 * (arrays["rank"][:, None] <= ranks).mean(axis=0)
    axes.plot(ranks, rates, color=COLORS[0], label=f"{len(arrays['rank'])} probes")
    for number, k in enumerate(RANKS):
        rate, style = metrics[f"rank-{k}"], MARKERS[number]
        axes.plot([k], [rate], style, color=COLORS[number + 1], label=f"rank-{k}: {rate:.2f} %", clip_on=False)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    return add_legend(axes)


def _plot_norms(metrics: Metrics, arrays: Arrays) -> "Figure":
    label = "rank-1 identification rate [%]"
    return plot_rates_by_norm("embedding norm of the probe", label, arrays["norm"], arrays["rank"] == 1)


PROTOCOL = Protocol(
    open=_open,
    score=_score,
    columns=[Column("rank-1", " rank-1"), Column("rank-5", " rank-5")],
    displays={f"rank-{k}": Display() for k in RANKS},
    plots={
        "cmc": SetPlot("identification rate against rank", _plot_cmc),
        "norm": SetPlot("outcome by embedding norm", _plot_norms),
    },
    step_plots={
        "rank": StepPlot("rank-1 identification rate over steps", "rank-1 identification rate [%]", {"rank-1": ""})
    },
)
