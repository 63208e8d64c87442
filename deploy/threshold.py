"""The threshold that an evaluation measured for a false accept rate (FAR), and the verdict on a pair at it."""

import json
from pathlib import Path
from typing import NamedTuple

from eval.bootstrap import FALSE_ACCEPTS_FOR_INTERVAL, Estimate
from eval.metrics import is_measurable
from eval.protocol import IMPOSTOR_PAIRS, INTERVAL_ENDS, Metrics
from eval.report import read_json
from eval.verification import ALL_FARS
from utils.errors import InputError

_AGAIN = "score the checkpoint again: eval/run_full_eval.py --results-json"


class Threshold(NamedTuple):
    """What a set says about a FAR.

    threshold, a cosine, and tar, a fraction: with the ends of their intervals where the set is large enough; impostors:
    the number of its impostor pairs; flip: whether its embeddings are of image plus mirror image.
    """

    target: str
    far: float
    threshold: Estimate
    tar: Estimate
    impostors: int
    flip: bool

    def describe(self) -> str:
        """Threshold, set, FAR, TAR and intervals, in one line."""
        text = f"threshold {self.threshold.value:.4f}"
        if self.threshold.low is not None and self.threshold.high is not None:
            text += f" (95 % interval {self.threshold.low:.4f} to {self.threshold.high:.4f})"
        else:
            needed = round(FALSE_ACCEPTS_FOR_INTERVAL / self.far)
            text += f" (no interval: that needs {needed:,} impostor pairs)"
        text += f", measured on {self.target} with {self.impostors:,} impostor pairs at FAR {self.far:g}"
        return f"{text}; it accepts {100 * self.tar.value:.2f} % of the pairs of one person there"

    def verdict(self, cosine: float) -> str:
        """Whether a pair with this cosine shows the same person, and whether that is uncertain."""
        same = cosine >= self.threshold.value
        low, high = self.threshold.low, self.threshold.high
        unsure = low is not None and high is not None and low <= cosine <= high
        doubt = ", but the cosine is within the interval of the threshold, so this is uncertain" if unsure else ""
        return ("same person" if same else "different people") + doubt


def read_threshold(path: str, target: str | None, far: float, checksum: str | None) -> Threshold:
    """The threshold in a file of results of run_full_eval.py.

    target: the verification set; None: the only one. checksum: SHA-256 of the checkpoint of the model that is used.
    Raises InputError if the results are those of other weights, or if the set cannot support a verdict.
    """
    if far not in ALL_FARS:
        raise InputError(f"--far {far:g}: not measured; choose one of {', '.join(f'{known:g}' for known in ALL_FARS)}")
    results = read_json(path, protocols=())
    about = json.loads(Path(path).read_bytes())["about"]
    _require_weights(path, about.get("checkpoint_sha256") if isinstance(about, dict) else None, checksum)
    sets = {name: found for name, found in results.metrics.get("verification", {}).items() if IMPOSTOR_PAIRS in found}
    if target is None and len(sets) == 1:
        (target,) = sets
    if target not in sets:
        known = ", ".join(sets) or "none"
        wanted = f"no verification set {target}" if target else "several verification sets, or none"
        raise InputError(f"{path}: {wanted} (it has {known}); name one with --set")
    return _threshold_of(path, target, far, sets[target], about.get("val_flip") != "False")


def _require_weights(path: str, scored: str | None, checksum: str | None) -> None:
    if not scored:
        raise InputError(f"{path}: does not state the checksum of the checkpoint; {_AGAIN}")
    if not checksum:
        raise InputError(
            f"--results {path}: the model does not state the checksum of its checkpoint, so it is unknown whether the "
            "thresholds are its own; export it with deploy/export_onnx.py, or leave out --results"
        )
    if scored != checksum:
        raise InputError(
            f"{path}: thresholds of other weights (sha256 {scored[:16]}) than those of the model ({checksum[:16]}), so "
            f"they say nothing about it; {_AGAIN}"
        )


def _threshold_of(path: str, target: str, far: float, metrics: Metrics, flip: bool) -> Threshold:
    impostors = int(metrics[IMPOSTOR_PAIRS])
    if not is_measurable(far, impostors):
        raise InputError(
            f"{path}: {target} has {impostors:,} impostor pairs, too few for FAR {far:g}, which needs "
            f"{round(1 / far):,}; name a higher --far, or score a larger set"
        )
    threshold, tar = (
        Estimate(*(metrics.get(name + end) for end in ("", *INTERVAL_ENDS)))
        for name in (f"thresh_at_FAR_{far}", f"TAR_at_FAR_{far}")
    )
    if threshold.value is None or tar.value is None:
        raise InputError(f"{path}: has no threshold of {target} for FAR {far:g}; {_AGAIN}")
    return Threshold(target, far, threshold, tar, impostors, flip)
