"""Train a network with trained class centers and no teacher: the baseline student, or a teacher of your own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import load_config
from config.conflicts import STANDALONE
from train.arguments import parse_arguments
from utils.errors import exit_on_input_error


def main() -> None:
    args = parse_arguments(__doc__)
    cfg = load_config(args.config, args.overrides, STANDALONE)

    # Imported here, so that --help and errors in the config appear at once, without loading torch.
    from data.dataset import build_dataset
    from train.loop import Trainer
    from train.resume import notes_on_moved_run
    from train.tasks import Standalone
    from utils.distributed import process_group

    with process_group(timeout=cfg.rank_timeout) as device:
        dataset = build_dataset(cfg)
        task = Standalone(cfg, device)
        task.notes += notes_on_moved_run(args.config, cfg.output)
        trainer = Trainer(cfg, task, dataset, device)
        trainer.run()


if __name__ == "__main__":
    with exit_on_input_error():
        main()
