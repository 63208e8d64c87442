"""Names of files with accents and Chinese characters, in the POSIX locale."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from runs import value

POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run_in_posix_locale(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Run a script in the POSIX locale, without Python's own measures against it."""
    command = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, env={**os.environ, **POSIX}, timeout=120)


@pytest.fixture
def folder(tmp_path) -> Path:
    """An empty folder."""
    path = tmp_path / "données" / "训练"
    path.mkdir(parents=True)
    return path


def test_training_writes_its_log_in_utf_8_and_escapes_on_the_screen(small_run, folder):
    for name in ("train.rec", "train.idx", "property", "pairs.bin"):
        os.link(Path(value(small_run, "rec")) / name, folder / name)
    preset = folder / "pré.py"
    preset.write_text(f"preset = dict(rec={str(folder)!r}, val_rec={str(folder)!r})", encoding="utf-8")
    settings = [setting for setting in small_run if not setting.startswith(("rec=", "val_rec="))]
    script = ("train/train_standalone.py", "--config", preset, *settings)
    done = run_in_posix_locale(*script, "max_steps=1", "val_targets=[]", f"output={folder / 'sortie'}")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (folder / "sortie" / "training.log").read_text(encoding="utf-8")
    assert f"48 images of 6 identities from {folder / 'train.rec'}" in log
    assert list((folder / "sortie" / "tensorboard").iterdir())
    assert rb"donn\xe9es" in done.stdout and done.stdout.isascii() and done.stderr.isascii()


def test_an_error_names_the_folder_with_escapes(folder):
    done = run_in_posix_locale("tools/make_rec.py", folder / "absent", folder)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and b"Traceback" not in done.stderr
    assert rb"donn\xe9es/\u8bad\u7ec3/absent: no such file or folder" in done.stderr
