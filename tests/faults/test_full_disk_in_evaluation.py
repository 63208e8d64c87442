"""A disk that fills during an evaluation: one clear line that names a file, exit code 2, and nothing half-written."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from evaluation_sets import BATCH, FULL, flags, score

# Sizes that stop the evaluation at: embeddings, results (JSON, CSV), arrays (.npz), plots, the report.
LIMITS = [0, 700, 2400, 3500, 20_000, 60_000]


def assert_complete(path: Path) -> None:
    """Assert that the file can be read to its end."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".npy":
        assert np.isfinite(np.load(path)).all()
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            assert all(len(arrays[name]) for name in arrays.files)
    elif path.suffix == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82") and cv2.imread(str(path)) is not None
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    else:
        assert path.suffix in (".csv", ".md") and path.read_text().endswith("\n")


@pytest.mark.parametrize("script", [FULL, BATCH])
def test_a_disk_that_fills_during_an_evaluation(root, checkpoints, tmp_path, file_size_limit, script):
    more = ["--results-json", "r.json", "--save-embeddings", "e", "--plots", "p"]
    more = [text if text.startswith("--") else tmp_path / text for text in more]
    if script == FULL:
        more += ["--checkpoint", checkpoints / "5backbone.pth"]
    else:
        more += ["--checkpoint-dir", checkpoints, "--checkpoint-suffix", "5backbone.pth", "--report-dir",
                 tmp_path / "reports", "--save-json", "--force"]  # fmt: skip
    written = []
    for limit in LIMITS:
        with file_size_limit(limit):
            done = score(script, *more, *flags(root), code=2)
        error = done.stderr.splitlines()[-1]
        assert re.search(rf"error: .*{re.escape(str(tmp_path))}\S+: file too large; free disk space", error), error
        assert "Traceback" not in done.stderr
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        for path in files:
            assert_complete(path)
        written.append(len(files))
    assert written[0] == 0 and written == sorted(set(written))  # each limit stopped it at another file
    score(script, *more, *flags(root))
