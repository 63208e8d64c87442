"""Time and memory of a step of the head, forward and backward: cosines, margin, cross-entropy, movement of centers.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/head.py    # half a minute on 2 CPU cores
    python benchmarks/head.py --batch 512 --classes 2000000 --dtype bfloat16 --no-plain --rounds 3    # 15 GB of memory
    python benchmarks/head.py --batch 384 1536 --classes 85742 1000000    # on a GPU

The floor is the two matrix products that no head can do without, embeddings by centers and probabilities by centers, in
the type that this processor multiplies in. The plain head (benchmarks/plain.py) computes in float32. Memory is what a
step takes beyond what is kept: the centers in float32 and, in our head, the unit centers in the type of its products.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.memory import forget_peak, peak
from benchmarks.plain import make_plain
from config import load_config
from heads import build_head
from heads.cross_entropy import product_type
from utils.about import describe_run
from utils.precision import compute_type

DIMENSIONS = 512
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128], help="images a step (default: 128)")
    parser.add_argument("--classes", type=int, nargs="+", default=[85_742], help="default: 85742, those of MS1MV2")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="of ours")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each kind, taken in turns (default: 7)")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain head out")
    parser.add_argument("--memory", choices=["ours", "plain"], help="measure this one's memory alone, in this process")
    args = parser.parse_args()
    dtype = compute_type(args.dtype, DEVICE)
    if args.memory:
        print(json.dumps(memory(args.memory, args.batch[0], args.classes[0], dtype)))
        return
    print(f"{describe_run()}, {torch.get_num_threads()} CPU thread(s)\n")
    print("| batch | classes | head | ms | x the products | GB beyond the centers |\n|---|---|---|---|---|---|")
    kinds = ["ours"] if args.no_plain else ["ours", "plain"]
    for classes in args.classes:
        for batch in args.batch:
            used = {kind: f"{_child(kind, batch, classes, args.dtype) / 1e9:.2f}" for kind in kinds}
            steps = {"the two products": products(batch, classes, dtype)}
            steps |= {kind: head_step(kind, batch, classes, dtype) for kind in kinds}
            times = in_turns(steps, args.rounds)
            del steps
            torch.cuda.empty_cache()
            for kind, seconds in times.items():
                ratio = seconds / times["the two products"]
                print(f"| {batch} | {classes:,} | {kind} | {1000 * seconds:.1f} | {ratio:.2f} | {used.get(kind, '')} |")


def in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each step, after one of each that does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def products(batch: int, classes: int, dtype: torch.dtype) -> Callable[[], None]:
    """Embeddings [B, D] by centers, and probabilities [B, C] by centers, into memory that is there."""
    centers = torch.randn(classes, DIMENSIONS, dtype=dtype, device=DEVICE)
    centers = centers.to(product_type(centers))
    embeddings = torch.randn(batch, DIMENSIONS, dtype=centers.dtype, device=DEVICE)
    logits = torch.empty(batch, classes, dtype=centers.dtype, device=DEVICE)
    gradient = torch.empty_like(embeddings)

    def step() -> None:
        torch.mm(embeddings, centers.t(), out=logits)
        torch.mm(logits, centers, out=gradient)

    return step


def head_step(kind: str, batch: int, classes: int, dtype: torch.dtype) -> Callable[[], None]:
    """A step of the head in training, from the student's embeddings to their gradient; unit centers are there."""
    dtype = dtype if kind == "ours" else torch.float32
    cfg = load_config(overrides=["dataset=custom", f"num_classes={classes}", f"embedding_size={DIMENSIONS}"])
    head = build_head(cfg).to(DEVICE)
    if kind == "plain":
        make_plain(head)
    student, teacher = torch.randn(2, batch, DIMENSIONS, device=DEVICE)
    labels = torch.randint(0, classes, (batch,), device=DEVICE)
    autocast = {"device_type": DEVICE.type, "dtype": dtype, "enabled": dtype != torch.float32}

    def step() -> None:
        with torch.autocast(**autocast):
            head(student.clone().requires_grad_(), teacher, labels).loss.backward()

    with torch.autocast(**autocast):
        head.unit_centers.get(head.centers)
    return step


def memory(kind: str, batch: int, classes: int, dtype: torch.dtype) -> float:
    """The most bytes that steps hold beyond what is kept between them."""
    step = head_step(kind, batch, classes, dtype)
    forget_peak()
    before = peak()
    step()
    step()
    return peak() - before


def _child(kind: str, batch: int, classes: int, dtype: str) -> float:
    """`memory` in a process of its own."""
    command = [
        sys.executable, __file__, f"--memory={kind}", f"--batch={batch}", f"--classes={classes}", f"--dtype={dtype}"
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{kind}: failed")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
