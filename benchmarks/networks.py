"""Speed of the networks alone, by memory format and with torch.compile.

    python benchmarks/networks.py student --batch 384 --calls 10    # on a GPU
    python benchmarks/networks.py teacher --batch 384 --calls 10    # on a GPU
    python benchmarks/networks.py embedding --images 20000 num_workers=12    # on a GPU

student: forward and backward pass in channels-last and in contiguous format; then its depthwise convolutions, in GB/s
of the bytes that must be moved, compared with a copy of the input. teacher: forward pass, and how well the compiled
network agrees with the eager one; for a teacher with KP-RPE, also the network that finds its key points. embedding:
what an evaluation does, from records to the embeddings of images and mirror images. Times are medians over
rounds, of one alternative after the other. Weights are random.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

from backbones import build_backbone, find_teacher
from benchmarks.timing import median_seconds
from benchmarks.training_inputs import make_inputs
from config import load_config
from data.dataset import build_dataset
from data.images import SIZE
from eval.embeddings import embed
from train.batchnorm import replace_batch_norms
from train.teachers import build_live_teacher
from train.wrapping import should_compile
from utils.about import describe_run
from utils.errors import exit_on_input_error
from utils.precision import compute_type, forbid_tf32

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=TABLES, help="what to measure")
    parser.add_argument("--batch", type=int, default=64, help="batch size of all but embedding (default: 64)")
    parser.add_argument("--images", type=int, default=256, help="images to embed (default: 256)")
    parser.add_argument("--calls", type=int, default=1, help="calls of each alternative in a round (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="number of measured rounds (default: 3)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config, such as teacher=NAME")
    args = parser.parse_intermixed_args()
    torch.backends.cudnn.benchmark = True  # as in training, like the next line
    forbid_tf32()
    cfg = load_config(overrides=["dataset=custom", *args.overrides])
    print(f"{describe_run()}, {torch.get_num_threads()} CPU thread(s)\n")
    TABLES[args.what](cfg, args)


def student(cfg: EasyDict, args: argparse.Namespace) -> None:
    """Print the time of the student's forward and backward pass, and the speed of its depthwise convolutions."""
    print("| memory format | student | ms | images/s |\n|---|---|---|---|", flush=True)

    def row(name: str, how: str, network: nn.Module, run: Callable) -> None:
        step = partial(_forward_and_backward, cfg, network, run, _noise(args.batch, FORMATS[name]))
        seconds = median_seconds({name: step}, DEVICE, args.rounds, args.calls)[name]
        print(f"| {name} | {how} | {1000 * seconds:.2f} | {args.batch / seconds:,.0f} |", flush=True)

    networks = {}
    for name, memory_format in FORMATS.items():
        network = replace_batch_norms(build_backbone(cfg), synchronised=False)
        networks[name] = network.to(DEVICE, memory_format=memory_format)
        row(name, "eager", networks[name], networks[name])
    if should_compile(cfg.compile, DEVICE):  # last, because it takes longest; in the format of training only
        name, network = next(iter(networks.items()))
        row(name, "compiled", network, torch.compile(network, dynamic=False))
    print()
    _depthwise(cfg, args)


def _forward_and_backward(cfg: EasyDict, network: nn.Module, run: Callable, images: Tensor) -> None:
    with _autocast(cfg):
        output = run(images)
    output.sum().backward()
    network.zero_grad()


def _depthwise(cfg: EasyDict, args: argparse.Namespace) -> None:
    """Print the GB/s of the student's depthwise convolutions, once for each shape."""
    dtype = compute_type(cfg.dtype, DEVICE)
    network, shapes = build_backbone(cfg).to(DEVICE).eval(), {}

    def remember(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        shapes.setdefault((inputs[0].shape, conv.stride), conv)

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.register_forward_hook(remember)
    with torch.no_grad():
        network(_noise(2, torch.channels_last))
    print(
        "| channels, size, stride | memory format | forward GB/s | backward GB/s | copy GB/s |\n|---|---|---|---|---|"
    )
    for ((_, channels, size, _), stride), conv in shapes.items():
        for name, memory_format in FORMATS.items():
            x = torch.randn(args.batch, channels, size, size, device=DEVICE, dtype=dtype)
            x = x.contiguous(memory_format=memory_format).requires_grad_()
            weight = conv.weight.detach().to(dtype, memory_format=memory_format).requires_grad_()
            y = F.conv2d(x, weight, stride=stride, padding=conv.padding, groups=channels)
            gradient, target = torch.ones_like(y), torch.empty_like(x, requires_grad=False)
            steps = {
                "forward": partial(F.conv2d, x.detach(), weight.detach(), None, stride, conv.padding, 1, channels),
                "backward": partial(torch.autograd.grad, y, (x, weight), gradient, retain_graph=True),
                "copy": partial(target.copy_, x.detach()),
            }
            # Backward reads the gradient of y for each of its two results, reads x, and writes the gradient of x.
            moved = dict(forward=x.nbytes + y.nbytes, backward=2 * x.nbytes + 2 * y.nbytes, copy=2 * x.nbytes)
            times = median_seconds(steps, DEVICE, args.rounds, args.calls)
            speeds = " | ".join(f"{moved[step] / seconds / 1e9:,.0f}" for step, seconds in times.items())
            print(f"| {channels}, {size}x{size}, {stride[0]} | {name} | {speeds} |", flush=True)


def teacher(cfg: EasyDict, args: argparse.Namespace) -> None:
    """Print the time of the teacher's forward pass."""
    with tempfile.TemporaryDirectory() as folder:
        settings, _ = make_inputs(Path(folder), 1, 1, args.overrides)
        network = _live_teacher(settings)
    images = _noise(args.batch, torch.channels_last)
    print("| teacher | how | ms | images/s | smallest cosine to eager |\n|---|---|---|---|---|", flush=True)
    with torch.no_grad():
        eager = _embed(cfg, network, images).float()
        ways = _eager_and_compiled(cfg, network)
        if hasattr(network, "landmarks"):
            ways["eager, key points only"] = network.landmarks
        for how, run in ways.items():
            step = partial(_embed, cfg, run, images)
            found = step().float()
            cosine = f"{F.cosine_similarity(found, eager).min():.5f}" if found.shape == eager.shape else ""
            seconds = median_seconds({how: step}, DEVICE, args.rounds, args.calls)[how]
            speed = f"{1000 * seconds:.2f} | {args.batch / seconds:,.1f}"
            print(f"| {cfg.teacher} | {how} | {speed} | {cosine} |", flush=True)


def _embed(cfg: EasyDict, run: Callable, images: Tensor) -> Tensor:
    with _autocast(cfg):
        return run(images)


def embedding(cfg: EasyDict, args: argparse.Namespace) -> None:
    """Print the speed of embedding images and their mirror images from records."""
    print("| network | batch | workers | images/s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        settings, _ = make_inputs(Path(folder), args.images, args.images, args.overrides)
        dataset, dtype = build_dataset(load_config(overrides=settings)), compute_type(cfg.dtype, DEVICE)
        student = build_backbone(cfg).to(DEVICE, memory_format=torch.channels_last)
        for name, network in {cfg.network: student, cfg.teacher: _live_teacher(settings)}.items():
            step = partial(embed, network, dataset, DEVICE, cfg.val_batch_size, dtype, num_workers=cfg.num_workers)
            speed = args.images / median_seconds({name: step}, DEVICE, args.rounds)[name]
            print(f"| {name} | {cfg.val_batch_size} | {cfg.num_workers} | {speed:,.0f} |", flush=True)


def _live_teacher(settings: list[str]) -> nn.Module:
    """The teacher as training uses it, without compiling it."""
    cfg = load_config(overrides=settings)
    return build_live_teacher(cfg, DEVICE, find_teacher(cfg))


def _eager_and_compiled(cfg: EasyDict, network: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    compiled = {"compiled": torch.compile(network, dynamic=False)} if should_compile(cfg.compile, DEVICE) else {}
    return {"eager": network, **compiled}


def _autocast(cfg: EasyDict) -> torch.autocast:
    dtype = compute_type(cfg.dtype, DEVICE)
    return torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32)


def _noise(batch: int, memory_format: torch.memory_format) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, device=DEVICE).contiguous(memory_format=memory_format)


TABLES = {table.__name__: table for table in (student, teacher, embedding)}


if __name__ == "__main__":
    with exit_on_input_error():
        main()
