"""Results of run_full_eval.py that must be those of the weights at hand."""

import json
from pathlib import Path
from typing import NamedTuple

from eval.protocol import AllMetrics
from eval.report import read_json
from utils.errors import InputError

AGAIN = "score the checkpoint again: eval/run_full_eval.py --results-json"


class OwnResults(NamedTuple):
    """metrics: by protocol and set; flip: whether embeddings are the sum of image and mirror image."""

    metrics: AllMetrics
    flip: bool


def read_results(path: str, checksum: str) -> OwnResults:
    """Read a file of results. checksum: SHA-256 of the weights.

    Raises InputError if the file has no metrics, or if they are not known to be those of these weights.
    """
    metrics = read_json(path, protocols=()).metrics
    about = json.loads(Path(path).read_bytes())["about"]
    scored = about.get("checkpoint_sha256") if isinstance(about, dict) else None
    if not scored:
        raise InputError(f"{path}: does not state the checksum of the checkpoint; {AGAIN}")
    if scored != checksum:
        raise InputError(
            f"{path}: results of other weights (sha256 {str(scored)[:16]}) than these ({checksum[:16]}), so they say "
            f"nothing about them; {AGAIN}"
        )
    if not any(metrics.values()):
        raise InputError(f"{path}: has no metrics; score the checkpoint on at least one set")
    return OwnResults(metrics, about.get("val_flip") != "False")
