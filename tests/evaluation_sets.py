"""Small sets of every protocol, small checkpoints, and the evaluation scripts run in this process or under torchrun."""

import csv
import importlib
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from arrow_sets import COUNT, datasets, write_set
from conftest import run_script

from data.bin_set import write_bin
from demo.make_demo_data import encoded_face
from utils.errors import exit_on_input_error

FULL, BATCH, COMPARE = "eval/run_full_eval.py", "eval/run_batch_eval.py", "eval/compare.py"
IJB = {
    "faceness_scores": np.linspace(0.1, 1, COUNT), "templates": np.arange(COUNT) // 2, "medias": np.arange(COUNT),
    "label": np.array([1, 0, 0, 1]), "p1": np.array([0, 0, 1, 2]), "p2": np.array([1, 4, 5, 3]),
}  # fmt: skip
NAMES = [f"{number // 4}_{number}.png" for number in range(COUNT)]
TINYFACE = {"image_paths": NAMES, "probe_paths": NAMES[::4], "gallery_paths": NAMES[1::4],
            "distractor_paths": NAMES[2::4]}  # fmt: skip


def draw_faces() -> list[bytes]:
    """40 encoded faces, five of each of eight people."""
    return [encoded_face((0, label, image, 0.3)) for label in range(8) for image in range(5)]


def write_sets(folder: Path) -> Path:
    """A folder with every kind of set: pairs.bin, arrow_pairs (Arrow), templates, tiny."""
    faces = draw_faces()
    write_bin(folder / "pairs.bin", faces, [True, False] * 10)
    rows = {"image": [{"bytes": data, "path": None} for data in faces], "index": range(40),
            "is_same": np.repeat([True, False] * 10, 2)}  # fmt: skip
    features = datasets.Features(image=datasets.Image(), index=datasets.Value("int64"), is_same=datasets.Value("bool"))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "arrow_pairs"))
    images = faces[::3][:COUNT]
    write_set(folder / "templates", range(COUNT), images, IJB)
    write_set(folder / "tiny", range(COUNT), images, TINYFACE)
    return folder


def write_checkpoints(folder: Path) -> Path:
    """A folder with checkpoints of steps 5 and 10 and one without a step."""
    from backbones.mobilefacenet import MobileFaceNet

    for seed, name in enumerate(("10backbone.pth", "5backbone.pth", "finalbackbone.pth")):
        torch.manual_seed(seed)
        torch.save(MobileFaceNet(16, 0.125).state_dict(), folder / name)
    return folder


def flags(root: Path, pairs: str = "pairs") -> list[str]:
    """The flags that score the sets in `root` by the small networks; `pairs`: names of the verification sets."""
    return ["--val-data", str(root), "--val-targets", pairs, "--ijb-root", str(root), "--ijb-targets", "templates",
            "--tinyface-root", str(root), "--tinyface-targets", "tiny", "--val-batch-size", "8", "width=0.125",
            "embedding_size=16", "val_num_workers=0", "ijb_num_workers=0", "tinyface_num_workers=0"]  # fmt: skip


def score(script: str, *arguments: str | Path, code: int = 0, ranks: int = 0) -> subprocess.CompletedProcess:
    """Run a script under torchrun or, without ranks, in this process, which has imported the slow packages already."""
    if ranks:
        done = run_script(script, *arguments, ranks=ranks)
    else:
        main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
        out, err, exit_code = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            try:
                with exit_on_input_error():
                    main()
            except SystemExit as exit:
                exit_code = exit.code
        done = subprocess.CompletedProcess(sys.argv, exit_code, out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stdout + done.stderr
    return done


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
