"""Embed the training set and its mirror images with the teacher, once: the file `teacher_embeddings` to train from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import load_config
from config.conflicts import DATA
from train.arguments import parse_arguments
from utils.errors import InputError, exit_on_input_error


def main() -> None:
    args = parse_arguments(__doc__)
    cfg = load_config(args.config, args.overrides, DATA)
    if not cfg.teacher_embeddings:
        raise InputError("teacher_embeddings: name the file to make, as in teacher_embeddings=output/teacher/ir50.npy")

    # Imported only now: --help and a wrong key are answered at once, without torch.
    from data.dataset import build_dataset
    from train.teachers import build_cached_teacher
    from utils.distributed import process_group, rank

    with process_group(timeout=cfg.rank_timeout) as device:
        dataset = build_dataset(cfg)
        _, notes = build_cached_teacher(cfg, dataset, device)
        if rank() == 0:
            print("\n".join(notes))


if __name__ == "__main__":
    with exit_on_input_error():
        main()
