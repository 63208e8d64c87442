"""Results as people and programs read them: a table on the screen, JSON in a file."""

import json
import os

from eval.protocols import Results
from utils.files import written_whole


def table(results: Results) -> str:
    """A row a set: accuracies in percent with their deviation over folds, other figures as they are."""
    lines = [f"{'set':32} {'figure':42} {'value':>10}"]
    for protocol, targets in results.figures.items():
        for target, figures in targets.items():
            if protocol == "verification":
                accuracy, deviation = 100 * figures["Accuracy-Flip"], 100 * figures["Accuracy-Std"]
                lines.append(f"{target:32} {'accuracy [%] (std over folds)':42} {accuracy:7.2f} ({deviation:.2f})")
                lines.append(f"{target:32} {'mean norm of embeddings':42} {figures['XNorm']:10.4f}")
                continue
            for name, value in figures.items():
                lines.append(f"{target:32} {name:42} {'-' if value is None else format(value, '10.4f'):>10}")
    lines += [f"absent: {where}" for where in results.absent]
    return "\n".join(lines)


def write_json(path: str | os.PathLike, results: Results, about: dict[str, str]) -> None:
    """Figures nested by protocol, target and name; `absent` sets and `about` (checkpoint, command) beside them."""
    content = {**results.figures, "absent": results.absent, "about": about}
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
