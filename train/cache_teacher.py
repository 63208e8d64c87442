"""Embed the training images and their mirror images with the teacher, and write the file `teacher_embeddings`.

With `teacher_projection`, also fit the projection to `embedding_size`, and write its file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import load_config
from config.conflicts import DATA, EMBEDDINGS
from train.arguments import parse_arguments
from utils.errors import InputError, exit_on_input_error


def main() -> None:
    args = parse_arguments(__doc__)
    cfg = load_config(args.config, args.overrides, [*DATA, *EMBEDDINGS])
    if not cfg.teacher_embeddings:
        raise InputError("teacher_embeddings: name the file to make, for example output/teacher/ir50.npy")

    # Imported here, so that --help and errors in the config appear at once, without loading torch.
    from data.dataset import build_dataset
    from train.projection import build_embeddings
    from utils.distributed import process_group, rank

    with process_group(timeout=cfg.rank_timeout) as device:
        dataset = build_dataset(cfg)
        _, notes = build_embeddings(cfg, dataset, device)
        if rank() == 0:
            print("\n".join((*dataset.notes, *notes)))


if __name__ == "__main__":
    with exit_on_input_error():
        main()
