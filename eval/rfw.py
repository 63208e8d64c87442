"""RFW (Racial Faces in-the-Wild, Wang et al., ICCV 2019): how accuracy differs between its four groups.

Each group is a verification set of its own. This module only summarises their accuracies.
"""

import re
from collections.abc import Mapping

import numpy as np

from eval.protocol import Display, Metrics

GROUPS = ("African", "Asian", "Caucasian", "Indian")
# As the authors name the files (African_test.bin), and usual variations (rfw_african.bin).
_NAME = re.compile(rf"(?:rfw[_-]?)?({'|'.join(GROUPS)})(?:[_-]test)?", re.IGNORECASE)

DISPLAYS = {
    **{group: Display(100, better=None) for group in GROUPS},
    "Accuracy-Mean": Display(100, title="mean accuracy [%] (std over groups)", companion="Accuracy-Std"),
    "Accuracy-Gap": Display(100, title="highest minus lowest accuracy [points]", better=min),
    "SER": Display(digits=3, unit="", title="skewed error ratio: highest / lowest error", better=min),
}


def summarise(sets: Mapping[str, Metrics]) -> tuple[Metrics, list[str]] | None:
    """The metrics of all groups together, and warnings about groups that are missing; None for fewer than two groups.

    sets: the metrics of the verification sets, by name. African, Asian, Caucasian and Indian: the accuracy of the
    group, None if it was not scored. Accuracy-Mean, Accuracy-Std (population deviation) and Accuracy-Gap (highest minus
    lowest): over the groups that were scored, fractions. SER: the highest error divided by the lowest (Wang and Deng,
    CVPR 2020), None if the lowest is 0.
    """
    accuracy: Metrics = dict.fromkeys(GROUPS)
    for target, metrics in sets.items():
        match = _NAME.fullmatch(target)
        if match and accuracy[match[1].capitalize()] is None:
            accuracy[match[1].capitalize()] = metrics.get("Accuracy-Flip")
    scored = np.array([value for value in accuracy.values() if value is not None])
    if len(scored) < 2:
        return None
    errors = 1 - scored
    missing = [group for group, value in accuracy.items() if value is None]
    warning = f"computed without {' and '.join(missing)}, so it cannot be compared with results of all four groups"
    summary = {
        **accuracy,
        "Accuracy-Mean": float(scored.mean()),
        "Accuracy-Std": float(scored.std()),
        "Accuracy-Gap": float(np.ptp(scored)),
        "SER": float(errors.max() / errors.min()) if errors.min() > 0 else None,
    }
    return summary, [warning] if missing else []
