"""Time, memory and bytes sent of a pass of the head whose centers are split over ranks, which run on this machine.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/shards.py    # 3 minutes on 2 CPU cores
    python benchmarks/shards.py --trained --ranks 2
    python benchmarks/shards.py --classes 10000000 --dimensions 64 --ranks 4 --no-whole

A pass is the forward and backward pass of the head for a batch of every rank, and the update of the centers: by the
teacher's embeddings or, with --trained, by SGD. With two ranks it is compared with the head that has all centers on
each rank, in turns. Memory is the largest that a rank has had, against its part of the centers in float32 and in the
data type of the products plus 1 GB. Bytes are counted on the loopback interface, for all ranks together.
"""

import argparse
import functools
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from config import load_config
from heads import build_head, build_standalone_head
from heads.head import Head
from train.bad_steps import skippable_sgd
from train.wrapping import share_gradients
from utils.about import describe_run
from utils.distributed import barrier, rank

WHOLE, SHARDED = "whole", "split"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=2_000_000, help="number of classes (default: 2000000)")
    parser.add_argument("--dimensions", type=int, default=128, help="size of the embeddings (default: 128)")
    parser.add_argument("--batch", type=int, default=64, help="images per rank (default: 64)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks (default: 1 2 4)")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"], help="of the products")
    parser.add_argument("--rounds", type=int, default=7, help="timed passes (default: 7)")
    parser.add_argument("--trained", action="store_true", help="trained centers, as in train_standalone.py")
    parser.add_argument("--no-whole", action="store_true", help="do not measure the head with all centers")
    args = parser.parse_intermixed_args()
    print(describe_run())
    kind = "trained centers" if args.trained else "centers by running averages"
    print(
        f"{args.classes:,} classes, {args.dimensions} dimensions, {kind}, {args.batch} images per rank, {args.dtype}\n"
    )
    print("| ranks | centers | s per pass | x whole | GB of a rank | x its budget | MB sent per pass |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for ranks in args.ranks:
        compared = ranks == 2 and not args.no_whole
        forms = [WHOLE, SHARDED] if compared else [SHARDED]
        times = measure(args, ranks, forms)
        for form in forms:
            alone = measure(args, ranks, [form])[form] if compared else times[form]
            seconds, ratio = times[form]["seconds"], ""
            if compared:
                ratio = f"{seconds / times[WHOLE]['seconds']:.2f}"
            part = 1 if form == WHOLE else ranks
            copies = 4 * (3 if args.trained else 1) + torch.empty(0, dtype=getattr(torch, args.dtype)).itemsize
            budget = args.classes * args.dimensions * copies / part / 1e9 + 1
            gigabytes = alone["gigabytes"]
            print(f"| {ranks} | {form} | {seconds:.3f} | {ratio} | {gigabytes:.2f} | {gigabytes / budget:.2f} "
                  f"| {alone['megabytes']:.1f} |", flush=True)  # fmt: skip


def measure(args: argparse.Namespace, ranks: int, forms: list[str]) -> dict[str, dict[str, float]]:
    """Measure the forms in turns, in processes of their own. Returns seconds, gigabytes and megabytes of each form."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(functools.partial(work, args=args, ranks=ranks, forms=forms, folder=folder), nprocs=ranks)
        return json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))


def work(number: int, args: argparse.Namespace, ranks: int, forms: list[str], folder: str) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=number, world_size=ranks)
    passes = {form: Pass(args, form) for form in forms}
    times: dict[str, list[float]] = {form: [] for form in forms}
    sent: dict[str, list[int]] = {form: [] for form in forms}
    for _ in range(args.rounds + 2):
        for form in forms:
            barrier()
            before, start = loopback_bytes(), time.perf_counter()
            passes[form]()
            barrier()
            times[form].append(time.perf_counter() - start)
            sent[form].append(loopback_bytes() - before)
    peaks = [torch.zeros(1, dtype=torch.float64) for _ in range(ranks)]
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    dist.all_gather(peaks, torch.tensor([own], dtype=torch.float64))
    if rank() == 0:
        result = {
            form: {
                "seconds": statistics.median(times[form][2:]),
                "gigabytes": float(max(peaks)),
                "megabytes": statistics.median(sent[form][2:]) / 1e6,
            }
            for form in forms
        }
        Path(folder, "result.json").write_text(json.dumps(result), encoding="utf-8")
    dist.destroy_process_group()


class Pass:
    """One form of the head, and a batch of this rank that is the same in each pass."""

    def __init__(self, args: argparse.Namespace, form: str) -> None:
        setting = "on" if form == SHARDED else "off"
        settings = ["dataset=custom", f"num_classes={args.classes}", f"embedding_size={args.dimensions}"]
        cfg = load_config(overrides=[*settings, f"shard_centers={setting}"])
        self.head: Head = (build_standalone_head if args.trained else build_head)(cfg)
        self.module = self.head
        self.optimizer = None
        if args.trained:
            self.optimizer = skippable_sgd(list(self.head.parameters()), 0.01, 0.9, 5e-4)
            if form == WHOLE:
                self.module = share_gradients(self.head, torch.device("cpu"))
        generator = torch.Generator().manual_seed(rank())
        shape = (args.batch, args.dimensions)
        self.inputs = [20 * torch.randn(shape, generator=generator) for _ in range(1 if args.trained else 2)]
        self.labels = torch.randint(args.classes, (args.batch,), generator=generator)
        self.dtype = getattr(torch, args.dtype)

    def __call__(self) -> None:
        student, *teacher = self.inputs
        student = student.clone().requires_grad_()
        self.head.begin_step()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            output = self.module(student, *teacher, self.labels)
        output.loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.head.end_step(torch.tensor(False))


def loopback_bytes() -> int:
    """Bytes that were sent through the loopback interface so far, by all processes of this machine."""
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


if __name__ == "__main__":
    main()
