"""The threshold that an evaluation measured for a false accept rate (FAR), and the verdict on a pair at it."""

from typing import NamedTuple

from deploy.results import AGAIN, read_results
from eval.bootstrap import FALSE_ACCEPTS_FOR_INTERVAL, Estimate
from eval.metrics import is_measurable
from eval.protocol import IMPOSTOR_PAIRS, INTERVAL_ENDS, Metrics
from eval.verification import ALL_FARS
from utils.errors import InputError


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
    if not checksum:
        raise InputError(
            f"--results {path}: the model does not state the checksum of its checkpoint, so it is unknown whether the "
            "thresholds are its own; export it with deploy/export_onnx.py, or leave out --results"
        )
    metrics, flip = read_results(path, checksum)
    sets = {name: found for name, found in metrics.get("verification", {}).items() if IMPOSTOR_PAIRS in found}
    if not sets:
        raise InputError(f"{path}: has no thresholds, because no verification set was scored; {AGAIN}")
    if target is None and len(sets) == 1:
        (target,) = sets
    if target not in sets:
        wanted = f"no verification set {target}" if target else "several verification sets"
        raise InputError(f"{path}: {wanted} (it has {', '.join(sets)}); name one with --set")
    return _threshold_of(path, target, far, sets[target], flip)


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
        raise InputError(f"{path}: has no threshold of {target} for FAR {far:g}; {AGAIN}")
    return Threshold(target, far, threshold, tar, impostors, flip)
