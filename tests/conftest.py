"""Fixtures for all tests: real faces, small sets, scripts run as users run them, and the table of injected faults.

The fault tests (tests/faults) have a short form, which runs with all other tests, and a long form:
FAULTS=long ./run_tests.sh tests/faults
"""

import atexit
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data  # noqa: F401 (it sets the pixel limit of OpenCV, so it must be imported before OpenCV)
from utils.memory import keep_freed_memory

keep_freed_memory()

# One thread for the scripts that tests start, so that their results do not depend on the number of cores.
os.environ["OMP_NUM_THREADS"] = "1"

# Scripts start as forks of a process that has imported the slow packages, but nothing of this repository.
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(
    ["torch._dynamo", "torch.utils.tensorboard", "sklearn.metrics", "sklearn.model_selection", "matplotlib.figure",
     "matplotlib.backends.backend_agg", "cv2", "tqdm", "torchvision.models"]
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests with the marker `gpu` where there is no GPU."""
    if marked := [item for item in items if item.get_closest_marker("gpu")]:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def face_data() -> Path:
    """The folder with real faces that the environment variable FACE_DATA names."""
    if "FACE_DATA" not in os.environ:
        pytest.skip("FACE_DATA is not set: the folder with real faces is needed")
    return Path(os.environ["FACE_DATA"])


def run_script(*arguments: str | Path, ranks: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a script of the repository with this Python. If `ranks` > 0, torchrun starts it on that many ranks."""
    script = [str(ROOT / arguments[0]), *map(str, arguments[1:])]
    cwd = cwd or Path.cwd()
    if ranks:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *script]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = WARM.Process(target=_run, args=(script, cwd, dict(os.environ), outputs))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
        written = [output.read_text() if output.exists() else "" for output in outputs]
    return subprocess.CompletedProcess(script, process.exitcode, *written)


def _run(script: list[str], cwd: Path, environment: dict[str, str], outputs: list[Path]) -> None:
    """Do what `python SCRIPT ...` does, in a fork of the process with the imported packages."""
    for output, stream in zip(outputs, (sys.stdout, sys.stderr), strict=True):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv, sys.path[0] = script, str(Path(script[0]).parent)
    try:
        runpy.run_path(script[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run on 48 drawn faces of 6 identities. Student and teacher have width 0.125 and random weights."""
    import torch

    from backbones.mobilefacenet import MobileFaceNet
    from data.bin_set import write_bin
    from data.recordio import write_record_set
    from demo.make_demo_data import encoded_face

    folder = tmp_path_factory.mktemp("small_run")
    labels = np.repeat(np.arange(6), 8)
    faces = [encoded_face((0, int(label), image, 0.3)) for image, label in enumerate(labels)]
    write_record_set(folder, faces, labels, 6)
    write_bin(folder / "pairs.bin", faces[:40], [True, False] * 10)
    torch.manual_seed(0)
    teacher = MobileFaceNet(16, 0.125)
    teacher.output_layer.linear.weight.data *= 1e4  # makes the embeddings as long as those of trained networks
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    settings = dict(
        dataset="custom", rec=folder, val_rec=folder, val_targets="pairs", teacher="mobilefacenet", teacher_width=0.125,
        pretrained_teacher_path=folder / "teacher.pth", width=0.125, embedding_size=16, batch_size=8, num_epoch=2,
        num_workers=1, log_every=1, val_num_workers=1, ijb_targets=[], tinyface_targets=[],
    )  # fmt: skip
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture(scope="session")
def cached(small_run, tmp_path_factory) -> Path:
    """The file with the teacher's embeddings of the set of small_run, made by one process."""
    path = tmp_path_factory.mktemp("cache") / "teacher.npy"
    done = run_script("train/cache_teacher.py", *small_run, f"teacher_embeddings={path}")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """uint8 [8, 112, 112, 3]: seven drawn faces, and noise, for which overshoot and rounding are largest."""
    from data.images import decode_rgb
    from demo.make_demo_data import encoded_face

    faces = [decode_rgb(encoded_face((0, identity, 0, 0.3)), "face") for identity in range(7)]
    noise = np.random.default_rng(0).integers(0, 256, faces[0].shape, dtype=np.uint8)
    return np.stack([*faces, noise])


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small set of every protocol, which tests do not change."""
    from evaluation_sets import write_sets

    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small checkpoints, which tests do not change."""
    from evaluation_sets import write_checkpoints

    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for large files, removed as soon as the test ends."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """with file_size_limit(size): no file of this process may grow beyond `size` bytes, as if the disk were full."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    return limited


# --- faults ---------------------------------------------------------------------------------------------------

LONG = os.environ.get("FAULTS", "") == "long"


def size(short: int, long: int) -> int:
    """Return how often to try: `short` times in the short form, `long` times in the long form."""
    return long if LONG else short


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[[str, int, int], None]:
    """tried(what, times, survived): add a line to the table; the test fails if not all survived."""

    def add(what: str, times: int, survived: int) -> None:
        record_property("tried", (what, int(times), int(survived)))  # xdist cannot send NumPy numbers
        assert survived == times, f"{what}: {survived} of {times} survived"

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == "tried"]
    if rows:
        terminalreporter.section(f"faults, {'long' if LONG else 'short'} form: tried, survived")
        for what, times, survived in sorted(rows):
            terminalreporter.write_line(f"{times:>8,} {survived:>8,}  {what}")
