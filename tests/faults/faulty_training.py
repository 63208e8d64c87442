"""train_AdaDistill.py with a fault. FAULT=what:first:last:rank: in the forward passes first to last of this rank.

FAULT=hang_evaluation:0:0:rank: in every evaluation. FAULT=die_saving:first:last:rank and disk_full_saving: when this
rank writes its shards for the first to last time. FAULT=hang_with_delay:...: the next rank also sleeps for 6 s, and
continues.
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from config import load_config
from train.arguments import parse_arguments
from utils.errors import exit_on_input_error


def nan_loss(output):
    return output._replace(loss=output.loss * float("nan"))


def nan_gradient(output):
    output.loss.register_hook(lambda gradient: gradient * float("nan"))
    return output


def hang(output):
    time.sleep(1000)


def die(output):
    os.kill(os.getpid(), signal.SIGKILL)


def stop(output):
    os.kill(os.getpid(), signal.SIGSTOP)


AFTER = {function.__name__: function for function in (nan_loss, nan_gradient, hang, die, stop)}
AFTER["hang_with_delay"] = hang


def die_saving():
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full_saving():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")


SAVING = {function.__name__: function for function in (die_saving, disk_full_saving)}  # of shards


def main():
    args = parse_arguments(__doc__)
    cfg = load_config(args.config, args.overrides)

    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    from data.dataset import build_dataset
    from eval import embeddings
    from train.loop import Trainer
    from train.tasks import Distillation
    from utils.distributed import process_group, rank

    what, first, last, faulty_rank = os.environ["FAULT"].split(":")

    class Faulty(Distillation):
        passes = 0

        def forward(self, batch):
            self.passes += 1
            is_faulty_pass = int(first) <= self.passes <= int(last)
            self.is_faulty = is_faulty_pass and rank() == int(faulty_rank)
            output = super().forward(batch)
            if is_faulty_pass and what == "hang_with_delay" and rank() == int(faulty_rank) + 1:
                time.sleep(6)
            return AFTER[what](output) if self.is_faulty and what in AFTER else output

        def _teacher_embeddings(self, batch):
            teacher = super()._teacher_embeddings(batch)
            return teacher * float("nan") if self.is_faulty and what == "nan_teacher" else teacher

    def hang_if_faulty(*arguments):
        if rank() == int(faulty_rank):
            print("hangs in evaluation", flush=True)
            time.sleep(1000)

    if what == "hang_evaluation":
        embeddings.embed_views = hang_if_faulty

    if what in SAVING:
        saves, write = [], HuggingFaceStorageWriter.write_data

        def write_with_fault(*arguments):
            saves.append(None)
            if rank() == int(faulty_rank) and int(first) <= len(saves) <= int(last):
                SAVING[what]()
            return write(*arguments)

        HuggingFaceStorageWriter.write_data = write_with_fault

    Faulty.__name__ = Distillation.__name__  # so that train_AdaDistill.py can resume the run
    with process_group(timeout=cfg.rank_timeout) as device:
        dataset = build_dataset(cfg)
        Trainer(cfg, Faulty(cfg, dataset, device), dataset, device).run()


if __name__ == "__main__":
    with exit_on_input_error():
        main()
