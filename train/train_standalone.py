"""Train a network with trained class centers and no teacher: the baseline student, or a teacher of one's own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train import cli


def make_task(cfg, device):
    """The student by itself: see train.loop.Task."""
    from train.tasks import Standalone

    return Standalone(cfg, device)


if __name__ == "__main__":
    cli.main(__doc__, make_task)
