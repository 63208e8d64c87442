"""Pictures of a run: the first batch with its labels, and the curves of the loss and of what it is made of."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from utils.files import atomic_write


def save_preview(path: str | os.PathLike, x: Tensor, labels: Tensor, columns: int = 8, rows: int = 8) -> None:
    """A PNG of the first images of a batch as the student sees them, [B, 3, H, W] in [-1, 1], labels under them."""
    images = (127.5 * x[: rows * columns].permute(0, 2, 3, 1) + 127.5).round().byte().cpu().numpy()
    tiles = []
    for image, label in zip(images, labels.tolist(), strict=False):
        strip = np.full((16, image.shape[1], 3), 255, dtype=np.uint8)
        cv2.putText(strip, str(label), (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(np.vstack([image, strip]))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    grid = np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])
    with atomic_write(path) as file:
        file.write(cv2.imencode(".png", cv2.cvtColor(grid, cv2.COLOR_RGB2BGR))[1].tobytes())


def save_curves(metrics: str | os.PathLike, path: str | os.PathLike) -> None:
    """A PNG with a panel for each value that metrics.jsonl holds from training, and one for accuracies."""
    from matplotlib.figure import Figure  # slow to import, needed once a run

    entries = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    training = [entry for entry in entries if entry["kind"] == "training"]
    evaluations = [entry for entry in entries if entry["kind"] == "evaluation"]
    names = [name for name in (training[0] if training else {}) if name not in ("step", "kind", "epoch", "time")]
    accuracies = sorted({name for entry in evaluations for name in entry if name.endswith("Accuracy-Flip")})
    columns = 4
    rows = -(-(len(names) + bool(accuracies)) // columns) or 1
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    panels = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for name, panel in zip(names, panels, strict=False):
        panel.plot([entry["step"] for entry in training], [entry[name] for entry in training], linewidth=1)
        panel.set_title(name)
    if accuracies:
        panel = next(panels)
        for name in accuracies:
            points = [(entry["step"], 100 * entry[name]) for entry in evaluations if name in entry]
            panel.plot(*zip(*points, strict=True), marker="o", label=name.split(".")[1])
        panel.set_title("accuracy [%]")
        panel.legend()
    for panel in panels:
        panel.set_axis_off()
    figure.supxlabel("step")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
