"""Images a second of training with the live teacher, and from its embeddings in a file: the whole loop, input included.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/teacher_cache.py    # 3 to 4 minutes on 2 CPU cores
    python benchmarks/teacher_cache.py batch_size=384 num_workers=12 --images 61440 --steps 200    # on a GPU

Trains on drawn faces in a record set that claims MS1MV2's number of identities, under a teacher of random weights:
neither changes the arithmetic. Live and cached runs take turns; a figure is all images over all time after the
first steps, so steps that waited for input count. On a GPU take many more images than the workers read ahead.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from safetensors.torch import save_file

from backbones import NETWORKS
from config import load_config
from utils.make_demo_data import encoded_face
from utils.make_rec import write_record_set
from utils.run_log import describe_run

IDENTITIES = 85_742  # MS1MV2
WARM_UP = 2  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="in the record set, embedded once (default: 64)")
    parser.add_argument("--steps", type=int, default=8, help=f"of each run, the first {WARM_UP} not counted")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind (default: 2)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys of the config, as teacher=cvlface_ir101"
    )
    args = parser.parse_args()
    given = ["dataset=custom", "batch_size=32", "num_workers=1", *args.overrides]
    with tempfile.TemporaryDirectory() as folder:
        settings = [*given, *_make_inputs(Path(folder), args.images, load_config(overrides=given))]
        cached = f"teacher_embeddings={folder}/teacher.npy"
        done = _run("cache_teacher.py", *settings, cached)
        rates: dict[str, list[float]] = {"live": [], "cached": []}
        for number in range(args.rounds):
            for kind, more in (("live", []), ("cached", [cached])):
                output = Path(folder, f"{kind}{number}")
                _run("train_AdaDistill.py", *settings, *more, f"output={output}", f"max_steps={args.steps}")
                lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
                rates[kind] += [line["images_per_second"] for line in lines[WARM_UP:]]
        cfg = load_config(Path(folder, "live0", "config.py"))
    live, fast = (statistics.harmonic_mean(rates[kind]) for kind in ("live", "cached"))
    print(f"\n{describe_run()}, {torch.get_num_threads()} CPU thread(s)")
    print(f"{done}\n")
    print(f"teacher {cfg.teacher}, student {cfg.network}, batch {cfg.batch_size}, {IDENTITIES} identities, {cfg.dtype}")
    print("| training step | images/s | ratio |\n|---|---|---|")
    print(f"| live teacher | {live:.1f} | 1 |\n| cached embeddings | {fast:.1f} | {fast / live:.2f} |")


def _make_inputs(folder: Path, images: int, cfg) -> list[str]:
    """A record set, a teacher in a CVLFace release's layout, and the overrides that name them."""
    faces = [encoded_face((0, number, 0, 0.3)) for number in range(images)]
    write_record_set(folder, faces, list(range(images)), IDENTITIES)
    network = NETWORKS[cfg.teacher](cfg)
    (folder / "pretrained_model").mkdir()
    name = cfg.teacher.removeprefix("cvlface_")
    (folder / "pretrained_model" / "model.yaml").write_text(f"name: {name}\ncolor_space: RGB\n")
    save_file({f"model.net.{key}": value for key, value in network.state_dict().items()}, folder / "model.safetensors")
    return [
        f"rec={folder}", f"pretrained_teacher_path={folder}", "num_epoch=1000000", "log_every=1",
        "val_eval_every_n_epoch=0", "eval_every_n_epoch=0", "checkpoint_every=0", "keep_checkpoints=1",
    ]  # fmt: skip


def _run(script: str, *settings: str) -> str:
    """The last line that the script prints. Its progress is shown."""
    command = [sys.executable, str(ROOT / "train" / script), *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + f"{script} failed")
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
