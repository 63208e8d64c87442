"""What tests share: the folder of real faces, small sets made on the fly, and scripts run as users run them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # of the scripts that tests start: the arithmetic does not depend on the machine


@pytest.fixture(scope="session")
def face_data() -> Path:
    """The folder with real faces, from the environment variable FACE_DATA."""
    if "FACE_DATA" not in os.environ:
        pytest.skip("FACE_DATA is not set: the folder with real faces is needed")
    return Path(os.environ["FACE_DATA"])


def run_script(*arguments: str | Path, ranks: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a script of the repository with this Python; `ranks` > 0 puts it under torchrun."""
    script = [str(ROOT / arguments[0]), *map(str, arguments[1:])]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    command = [sys.executable, *launcher, *script]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or Path.cwd(), timeout=300)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that train a tiny student on 48 drawn faces of 6 identities under a random-weights teacher of 0.125."""
    import torch

    from backbones.mobilefacenet import MobileFaceNet
    from utils.bin_file import write_bin
    from utils.make_demo_data import encoded_face
    from utils.make_rec import write_record_set

    folder = tmp_path_factory.mktemp("small_run")
    labels = np.repeat(np.arange(6), 8)
    faces = [encoded_face((0, int(label), image, 0.3)) for image, label in enumerate(labels)]
    write_record_set(folder, faces, labels, 6)
    write_bin(folder / "pairs.bin", faces[:40], [True, False] * 10)
    torch.manual_seed(0)
    teacher = MobileFaceNet(16, 0.125)
    teacher.output_layer.linear.weight.data *= 1e4  # embeddings of a length as trained networks give
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    settings = dict(
        dataset="custom", rec=folder, val_rec=folder, val_targets="pairs", teacher="mobilefacenet", teacher_width=0.125,
        pretrained_teacher_path=folder / "teacher.pth", width=0.125, embedding_size=16, batch_size=8, num_epoch=2,
        num_workers=1, log_every=1, eval_ijb=False, eval_tinyface=False,
    )  # fmt: skip
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for what is large: it goes as soon as the test ends."""
    with TemporaryDirectory() as name:
        yield Path(name)
