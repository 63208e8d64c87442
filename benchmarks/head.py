"""Time and memory of one pass of the head: cosines, margin, cross-entropy, backward pass and update of the centers.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/head.py    # half a minute on 2 CPU cores
    python benchmarks/head.py --batch 512 --classes 2000000 --dtype bfloat16 --no-plain --rounds 3    # 15 GB of memory
    python benchmarks/head.py --batch 384 1536 --classes 85742 1000000 --block 16384 32768 65536    # on a GPU

Times are compared with the two matrix products that every head needs, embeddings by centers and probabilities by
centers, in the data type of this repository's head. Where torch.compile can be used (on GPUs, or with --compile on),
the head is measured with and without it. The plain head (benchmarks/plain.py) computes in float32. Memory is
the peak during a pass, minus what is kept between passes: the centers in float32 and, in this repository's head, the
unit centers in the data type of the products.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.plain import make_plain
from benchmarks.timing import median_seconds
from config import load_config
from heads import build_head
from heads.cross_entropy import CLASSES_PER_BLOCK, product_type
from train.wrapping import should_compile
from utils.about import describe_run
from utils.precision import compute_type

DIMENSIONS = 512
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRODUCTS, REPOSITORY, PLAIN = "the two products", "this repository", "plain"
COMPILED = f"{REPOSITORY}, compiled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128], help="batch sizes (default: 128)")
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[85_742], help="numbers of classes (default: 85742, as in MS1MV2)"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
        help="data type of this repository's head (default: auto, as for the config's dtype)",
    )  # fmt: skip
    parser.add_argument(
        "--block",
        type=int,
        nargs="+",
        default=[CLASSES_PER_BLOCK[DEVICE.type]],
        help="classes per block of this repository's head (default: that of a run on this device)",
    )
    parser.add_argument(
        "--compile",
        default="auto",
        choices=["auto", "on", "off"],
        help="measure the compiled head, too (default: auto, on GPUs)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of measured passes (default: 7)")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain head")
    parser.add_argument("--memory", choices=[REPOSITORY, COMPILED, PLAIN], help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    dtype = compute_type(args.dtype, DEVICE)
    if args.memory:
        print(step_memory(head_step(args.memory, args.batch[0], args.classes[0], dtype, args.block[0])))
        return
    print(f"{describe_run()}, {torch.get_num_threads()} CPU thread(s)\n")
    print("| batch | classes | head | ms | x the products | GB beyond the centers |\n|---|---|---|---|---|---|")
    ours = [REPOSITORY, COMPILED] if should_compile(args.compile, DEVICE) else [REPOSITORY]
    heads = {(f"{head}, blocks of {block:,}" if len(args.block) > 1 else head): (head, block)
             for block in args.block for head in ours}  # fmt: skip
    if not args.no_plain:
        heads[PLAIN] = (PLAIN, args.block[0])
    for classes in args.classes:
        for batch in args.batch:
            torch.compiler.reset()  # torch compiles a function for a limited number of shapes
            steps = {name: head_step(head, batch, classes, dtype, block) for name, (head, block) in heads.items()}
            if DEVICE.type == "cuda":
                memory = {name: step_memory(step) for name, step in steps.items()}
            else:  # in processes of their own, without the memory of the others and of the compiler
                memory = {
                    name: _memory_in_child(head, batch, classes, args.dtype, block)
                    for name, (head, block) in heads.items()
                    if head != COMPILED
                }
            steps = {PRODUCTS: products(batch, classes, dtype), **steps}
            times = median_seconds(steps, DEVICE, args.rounds)
            del steps
            torch.cuda.empty_cache()
            for name, seconds in times.items():
                ratio = seconds / times[PRODUCTS]
                size = f"{memory[name] / 1e9:.2f}" if name in memory else ""
                print(f"| {batch} | {classes:,} | {name} | {1000 * seconds:.1f} | {ratio:.2f} | {size} |", flush=True)


def products(batch: int, classes: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that multiplies embeddings [B, D] and probabilities [B, C] by centers, without allocations."""
    centers = torch.randn(classes, DIMENSIONS, dtype=dtype, device=DEVICE)
    centers = centers.to(product_type(centers))
    embeddings = torch.randn(batch, DIMENSIONS, dtype=centers.dtype, device=DEVICE)
    logits = torch.empty(batch, classes, dtype=centers.dtype, device=DEVICE)
    gradient = torch.empty_like(embeddings)

    def step() -> None:
        torch.mm(embeddings, centers.t(), out=logits)
        torch.mm(logits, centers, out=gradient)

    return step


def head_step(head_name: str, batch: int, classes: int, dtype: torch.dtype, block: int) -> Callable[[], None]:
    """Return a function that runs the head, from the student's embeddings to their gradient. Unit centers are ready."""
    dtype = torch.float32 if head_name == PLAIN else dtype
    cfg = load_config(overrides=["dataset=custom", "num_classes=1", f"embedding_size={DIMENSIONS}"])
    head = build_head(cfg).to(DEVICE)
    head.centers = torch.randn(classes, DIMENSIONS, device=DEVICE)  # millions of them take seconds on the host
    if head_name == PLAIN:
        make_plain(head)
    if head_name == COMPILED:
        head.softmax.compile_blocks()
    student, teacher = torch.randn(2, batch, DIMENSIONS, device=DEVICE)
    labels = torch.randint(0, classes, (batch,), device=DEVICE)
    autocast = {"device_type": DEVICE.type, "dtype": dtype, "enabled": dtype != torch.float32}

    def step() -> None:
        CLASSES_PER_BLOCK[DEVICE.type] = block
        with torch.autocast(**autocast):
            head(student.clone().requires_grad_(), teacher, labels).loss.backward()

    with torch.autocast(**autocast):
        head.unit_centers.get(head.centers)
    return step


def step_memory(step: Callable[[], None]) -> int:
    """Return the peak bytes of two passes, minus what is kept between them."""
    reset_peak()
    before = peak_bytes()
    step()
    step()
    return peak_bytes() - before


def _memory_in_child(head_name: str, batch: int, classes: int, dtype: str, block: int) -> int:
    """Run `step_memory` in a separate process."""
    command = [
        sys.executable, __file__, f"--memory={head_name}", f"--batch={batch}", f"--classes={classes}",
        f"--dtype={dtype}", f"--block={block}",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{head_name}: failed")
    return int(done.stdout)


if __name__ == "__main__":
    main()
