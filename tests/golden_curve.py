"""The run that is recorded in tests/golden/loss_curve.json: 100 training steps in one process, in float32.

python tests/golden_curve.py    # overwrites the file; use it only after an intended change of the arithmetic
"""

import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CURVE = ROOT / "tests" / "golden" / "loss_curve.json"
IDENTITIES, IMAGES = 40, 10
SETTINGS = [
    "dataset=custom", "teacher=mobilefacenet", "teacher_width=0.5", "pretrained_teacher_path=demo/teacher.pth",
    "embedding_size=128", "width=0.125", "batch_size=16", "num_epoch=4", "lr=0.004", "lr_milestones=[4]",
    "dtype=float32", "num_workers=1", "log_every=1", "val_eval_every_n_epoch=0", "eval_every_n_epoch=0",
]  # fmt: skip


def write_images(folder: Path) -> None:
    """Write a record set of smooth patterns, one per identity, with noise. Integers only, so equal on every machine."""
    from data.recordio import write_record_set

    rng = np.random.default_rng(0)
    patterns = rng.integers(40, 216, (IDENTITIES, 8, 8, 3)).repeat(14, axis=1).repeat(14, axis=2)  # [N, 112, 112, 3]
    labels = np.arange(IDENTITIES).repeat(IMAGES)
    images = (cv2.imencode(".png", np.uint8(patterns[y] + rng.integers(-40, 40, (112, 112, 3))))[1] for y in labels)
    write_record_set(folder, (image.tobytes() for image in images), labels, IDENTITIES)


def losses(folder: Path, *more: str) -> list[float]:
    """Run the training in `folder`; returns the loss of each step."""
    from conftest import run_script

    write_images(folder)
    done = run_script("train/train_AdaDistill.py", *SETTINGS, f"rec={folder}", f"output={folder / 'run'}", *more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        curve = losses(Path(name))
    CURVE.write_text(json.dumps([round(loss, 4) for loss in curve]) + "\n")
    print(f"{CURVE}: {len(curve)} losses from {curve[0]:.4f} to {curve[-1]:.4f}")
