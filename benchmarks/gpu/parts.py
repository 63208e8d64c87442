"""The commands that benchmarks/on_gpu.sh runs, most valuable first."""

from typing import NamedTuple


class Part(NamedTuple):
    """A command with a time limit.

    title: for the report; seconds: the limit at full size; full: the arguments for Python; quick: those at tiny sizes,
    or "" for those of `full` with --quick; needs: what the part cannot run without, keys of `unavailable`.
    """

    name: str
    title: str
    seconds: float
    full: str
    quick: str = ""
    needs: tuple[str, ...] = ()


CHECK, TRAIN_LFW = "benchmarks/gpu/checks.py", "benchmarks/gpu/train_lfw.py"
TINY = "teacher=cvlface_ir18 width=0.125"
LFW = "compile=off num_workers={workers}"  # compiling would take longer than these short runs
PARTS = [
    Part("machine", "versions, compiler, Triton", 40, *2 * ("benchmarks/gpu/machine.py",)),
    Part(
        "steps", "steps in each data type that never wait for the device; losses compared with a CPU", 75,
        f"{CHECK} steps",
    ),
    Part(
        "safety", "a compiled student, a step that is not finite, save and resume", 140,
        f"{CHECK} safety",
    ),
    Part(
        "step", "a training step, MS1MV2's 85,742 classes", 120,
        "benchmarks/step.py --batch 384 1536 --classes 85742 --steps 10 --no-plain",
        f"benchmarks/step.py --batch 8 --classes 300 --rounds 1 {TINY}",
    ),
    Part(
        "step_2m", "a training step, two million classes", 110,
        "benchmarks/step.py --batch 384 1536 --classes 2000000 --steps 10 --no-plain",
        f"benchmarks/step.py --batch 8 --classes 500 --rounds 1 --no-plain {TINY}",
    ),
    Part(
        "head", "the head alone, by classes per block", 100,
        "benchmarks/head.py --batch 384 1536 --classes 85742 2000000 --block 16384 32768 65536 --no-plain --rounds 5",
        "benchmarks/head.py --batch 8 --classes 300 --block 128 --no-plain --rounds 1",
    ),
    Part(
        "student", "the student alone, by memory format", 100,
        "benchmarks/networks.py student --batch 384 --calls 10",
        "benchmarks/networks.py student --batch 4 --rounds 1 width=0.125",
    ),
    Part(
        "teacher", "the live teacher, eager and compiled", 90,
        "benchmarks/networks.py teacher --batch 384 --calls 10",
        "benchmarks/networks.py teacher --batch 4 --rounds 1 teacher=cvlface_ir18",
    ),
    Part(
        "epoch", "the whole training loop from records", 100,
        "benchmarks/epoch.py --no-plain batch_size=384 num_workers={workers} profile=5 --images 96000 --steps 200",
        f"benchmarks/epoch.py batch_size=2 num_workers=1 profile=1 --images 16 --classes 50 --steps 6 {TINY}",
    ),
    Part(
        "embedding", "embedding images from records", 40,
        "benchmarks/networks.py embedding --images 20000 --rounds 1 num_workers={workers}",
        f"benchmarks/networks.py embedding --images 4 --rounds 1 num_workers=1 {TINY}",
    ),
    Part(
        "memory", "peak memory of two steps and a checkpoint, two million classes", 90,
        f"{CHECK} memory",
    ),
    Part(
        "rank", "one rank under torchrun (NCCL)", 40,
        f"-m torch.distributed.run --standalone --nproc_per_node=1 {CHECK} rank",
    ),
    Part(
        "tests", "the tests that need a GPU", 50,
        "-m pytest -m gpu", "-m pytest -m gpu", needs=("a GPU", "pytest"),
    ),
    Part(
        "lfw_teacher", "12 epochs on real faces, with the teacher", 75,
        f"{TRAIN_LFW} train/train_AdaDistill.py num_epoch=12 {LFW} output={{out}}/lfw_teacher",
        needs=("FACE_DATA",),
    ),
    Part(
        "lfw_alone", "12 epochs on real faces, without a teacher", 75,
        f"{TRAIN_LFW} train/train_standalone.py num_epoch=12 {LFW} output={{out}}/lfw_alone",
        needs=("FACE_DATA",),
    ),
]  # fmt: skip
