"""What every test has: the repository root on sys.path, and the folder with real faces."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(scope="session")
def face_data() -> Path:
    """The folder that FACE_DATA names; tests that need it are skipped where it is not set."""
    if "FACE_DATA" not in os.environ:
        pytest.skip("FACE_DATA is not set: the folder with real faces is needed")
    return Path(os.environ["FACE_DATA"])
