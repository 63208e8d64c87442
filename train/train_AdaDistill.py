"""Train the student under the frozen teacher by AdaDistill."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train import cli


def make_task(cfg, device):
    """The student under the teacher: see train.loop.Task."""
    from train.tasks import Distillation

    return Distillation(cfg, device)


if __name__ == "__main__":
    cli.main(__doc__, make_task)
