"""Train the student under the frozen teacher by AdaDistill."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train import cli


def run(cfg, dataset, device):
    """The student under the teacher: see train.loop.Trainer."""
    from train.loop import Trainer
    from train.tasks import Distillation

    Trainer(cfg, Distillation(cfg, dataset, device), dataset, device).run()


if __name__ == "__main__":
    cli.main(__doc__, run)
