"""Embed the training set and its mirror images by the teacher, once: the file `teacher_embeddings` to train from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train import cli


def run(cfg, dataset, device):
    """Make the file, or go on with it, and say what it is."""
    from train.teachers import cached_teacher
    from utils.distributed import rank
    from utils.errors import InputError

    if not cfg.teacher_embeddings:
        raise InputError("teacher_embeddings: name the file to make, as teacher_embeddings=output/teacher/ir50.npy")
    _, notes = cached_teacher(cfg, dataset, device)
    if rank() == 0:
        print("\n".join(notes))


if __name__ == "__main__":
    cli.main(__doc__, run)
