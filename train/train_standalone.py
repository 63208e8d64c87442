"""Train a network with trained class centers and no teacher: the baseline student, or a teacher of one's own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train import cli


def run(cfg, dataset, device):
    """The student by itself: see train.loop.Trainer."""
    from train.loop import Trainer
    from train.tasks import Standalone

    Trainer(cfg, Standalone(cfg, device), dataset, device).run()


if __name__ == "__main__":
    cli.main(__doc__, run)
