"""Files that would execute code, refer to other files, or be overwritten by a script."""

import ast
import builtins
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_script
from easydict import EasyDict
from fuzz_targets import TARGETS
from test_image_sizes import png

from config import BASE, load_config
from data.arrow_set import TemplateSet
from data.bin_set import read_bin
from data.nist_set import NistSet
from data.teacher_cache import EmbeddingFile
from data.template_metadata import ArrowSetError, read_metadata
from eval.protocols import PROTOCOLS, embeddings_file
from eval.report.results import read_json, refuse_to_overwrite, write_json
from train import checkpoint
from utils.errors import InputError


class Touch:
    """An object that creates a file when it is unpickled without protection."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_files_that_would_execute_code_are_refused_and_not_executed(tmp_path, small_run, tried):
    marker = tmp_path / "executed"
    evil = Touch(marker)
    folder = tmp_path / "files"
    folder.mkdir()
    pickled = np.array([evil], dtype=object)
    torch.save(evil, folder / "w.pth")
    torch.save({"state_dict": {"a": evil}}, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"templates": evil}, folder / "metadata.pt")
    checkpoint.save(folder, 5, checkpoint.Checkpoint({"a": evil}, {"kernel": evil}, {"step": evil}))
    for protocol in range(6):
        (folder / f"{protocol}.bin").write_bytes(pickle.dumps(([b"x", evil], [True]), protocol))
    np.save(folder / "e.npy", pickled, allow_pickle=True)
    (folder / "e.json").write_text('{"embeddings": {"shape": [1, 2, 3]}}')
    np.savez(folder / "r.npz", **{"ijb/x/score": pickled})
    (folder / "r.json").write_text('{"absent": [], "failed": [], "about": {}}')
    (folder / "w.safetensors").write_bytes(pickle.dumps(evil))
    (folder / "cvlface").mkdir()
    shutil.copy(folder / "w.pth", folder / "cvlface" / "model.safetensors")
    pickle.loads((folder / "0.bin").read_bytes())  # noqa: S301 (shows that the files are dangerous)
    assert marker.exists()
    marker.unlink()

    from backbones import build_backbone
    from heads import build_head

    student = EasyDict(network="mobilefacenet", embedding_size=16, width=0.125, SE=False, activation="prelu")
    head = load_config(BASE, ["num_classes=6", "centers=fixed", f"pretrained_teacher_header_path={folder}/5header.pth"])
    readings = [
        *(lambda path=path: read_bin(path) for path in sorted(folder.glob("*.bin"))),
        *(lambda name=name: build_backbone(EasyDict(student, init_from=str(folder / name)))
          for name in ("w.pth", "old.pth", "w.safetensors", "cvlface/model.safetensors", "5backbone.pth")),
        lambda: build_head(head),
        lambda: checkpoint.load(folder, 5),
        lambda: read_metadata(folder / "metadata.pt"),
        lambda: EmbeddingFile(folder / "e.npy", {}),
        lambda: read_json(folder / "r.json"),
    ]  # fmt: skip
    refused = 0
    for read in readings:
        with pytest.raises(InputError):
            read()
        refused += not marker.exists()
    tried("files that would execute code: refused", len(readings), refused)
    for arguments in (
        ["eval/run_full_eval.py", "--checkpoint", folder / "w.pth", "--device", "cpu", "width=0.125"],
        ["train/train_AdaDistill.py", *small_run, f"init_from={folder}/w.pth", f"output={tmp_path}/run"],
    ):
        done = run_script(*arguments)
        assert done.returncode == 2 and "without executing it" in done.stderr, done.stderr
        assert not marker.exists()


def test_no_call_in_the_code_can_execute_data():
    """Calls that the rules S102, S301, S302, S307 and S506 of ruff do not cover."""
    for path in ROOT.glob("*/**/*.py"):
        if path.is_relative_to(ROOT / "tests") or ".venv" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            assert called != "torch.load" or given.get("weights_only") == "True", (path, node.lineno)
            assert given.get("allow_pickle", "False") == "False", (path, node.lineno)
            assert "trust_remote_code" not in given, (path, node.lineno)


def write_arrow(folder: Path, images: list, **columns: Any) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), index=columns.pop("index", datasets.Value("int64")))
    rows = {"image": images, "index": list(range(len(images)))}
    datasets.Dataset.from_dict({**rows, **columns}, features=features).save_to_disk(str(folder))
    torch.save({"templates": np.arange(len(images))}, folder / "metadata.pt")


def test_a_path_in_place_of_an_image_is_not_opened(tmp_path):
    (tmp_path / "other.png").write_bytes(png(112, 112))
    datasets = pytest.importorskip("datasets")
    entry = {"bytes": None, "path": str(tmp_path / "other.png")}
    # Like Image(), but the path is saved unchanged.
    image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features(image=image, index=datasets.Value("int64"))
    datasets.Dataset.from_dict({"image": [entry], "index": [0]}, features=features).save_to_disk(tmp_path / "set")
    torch.save({}, tmp_path / "set" / "metadata.pt")
    with pytest.raises(ArrowSetError, match="1 of the 1 images are missing, the first is the image with index 0"):
        TemplateSet(tmp_path / "set")[[0]]


def test_a_path_in_place_of_an_index_is_not_opened(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "other.png").write_bytes(png(112, 112))
    entry = {"bytes": None, "path": str(tmp_path / "other.png")}
    features = datasets.Features(image=datasets.Image(), index=datasets.Image())
    datasets.Dataset.from_dict({"image": [entry], "index": [entry]}, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(ArrowSetError, match=r"index is Image.*must be a number"):
        TemplateSet(tmp_path / "set")


@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "{}/other/data-00000-of-00001.arrow"])
def test_a_set_cannot_read_images_outside_its_folder(tmp_path, name):
    face = {"bytes": cv2.imencode(".png", np.zeros((112, 112, 3), np.uint8))[1].tobytes(), "path": None}
    for folder in ("set", "other"):
        write_arrow(tmp_path / folder, [face])
    state_file = tmp_path / "set" / "state.json"
    content = json.loads(state_file.read_text())
    assert TemplateSet(tmp_path / "set")[[0]].shape == (1, 112, 112, 3)
    content["_data_files"][0]["filename"] = name.format(tmp_path)
    state_file.write_text(json.dumps(content))
    with pytest.raises(ArrowSetError, match=r"state\.json names '.*other.*which is not in the folder"):
        TemplateSet(tmp_path / "set")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "..", ".", "a\0b", "x" * 250])
def test_names_in_the_nist_lists_cannot_leave_their_folder(tmp_path, name):
    target = TARGETS["lists of NIST"](tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "secret.jpg").write_bytes(png(112, 112))
    for seed in target.seeds:
        (tmp_path / seed.file).write_bytes(seed.data.replace(b"1.jpg", name.encode()))
    with pytest.raises(InputError, match=r"without a folder|listed in meta are missing|has a zero byte"):
        NistSet(tmp_path)[[0]]


def test_paths_in_the_metadata_of_tinyface_are_never_opened(monkeypatch):
    names = [f"{folder}/{number // 2}_{number}.png" for number, folder in enumerate(("..", "/etc", "http://x", "/dev"))]
    lists = {"image_paths": names, "probe_paths": names[::2], "gallery_paths": names[1::2], "distractor_paths": []}
    opened = []
    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, lambda path, *_: opened.append(path))
    metrics, _ = PROTOCOLS["tinyface"].score(
        EasyDict(metadata=lists), EasyDict(features=np.eye(4, 8) + 1, norms=np.ones(4))
    )
    assert metrics["rank-5"] == 100
    assert not opened


def test_embeddings_of_a_set_are_written_inside_the_output_folder(tmp_path):
    for target in ("../../x", "/etc/x", "a/b", "..", "lfw"):
        path = embeddings_file(tmp_path / "out", "verification", target)
        assert path.resolve().parent == tmp_path / "out"
    assert embeddings_file("out", "verification", "lfw") == Path("out/verification.lfw.npy")


@pytest.fixture
def a_result(tmp_path) -> Path:
    from eval.protocols import Results

    arrays = {"verification": {"lfw": {"score": np.zeros(3)}}}
    write_json(tmp_path / "r.json", Results({}, arrays, [], [], []), {"run": "x"})
    return tmp_path / "r.json"


def test_an_earlier_result_is_overwritten(a_result):
    refuse_to_overwrite(a_result, with_arrays=True)
    refuse_to_overwrite(a_result.with_name("new.json"), with_arrays=True)
    collected = a_result.with_name("all.json")
    collected.write_text('{"checkpoints": {}, "about": {}}')
    refuse_to_overwrite(collected, with_arrays=False)


@pytest.mark.parametrize(
    "content", [b"", b"notes", b"[]", b'"about"', b'{"about": 1}', b"[" * 100_000, b"\xff\xd8", b"PK\x05\x06"]
)
def test_a_file_that_holds_no_results_is_not_overwritten(a_result, content):
    for file, arrays in ((a_result.with_name("x.json"), False), (a_result.with_suffix(".npz"), True)):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"{file.name}: exists, and holds no results; .*--force"):
            refuse_to_overwrite(a_result if arrays else file, with_arrays=arrays)
    with pytest.raises(InputError, match="exists, and holds no results"):
        refuse_to_overwrite(a_result.parent, with_arrays=False)


def test_scripts_refuse_to_overwrite_other_files_before_they_evaluate(tmp_path, a_result):
    from backbones.mobilefacenet import MobileFaceNet

    torch.save(MobileFaceNet(16, 0.125).state_dict(), tmp_path / "5backbone.pth")
    common = ["--device", "cpu", "width=0.125", "embedding_size=16", "--val-data", tmp_path, "--val-targets", "x"]
    notes = tmp_path / "notes.json"
    for script, *flags in (
        ["eval/run_full_eval.py", "--checkpoint", tmp_path / "5backbone.pth"],
        ["eval/run_batch_eval.py", "--checkpoint-dir", tmp_path],
    ):
        notes.write_text("my notes")
        done = run_script(script, *flags, *common, "--results-json", notes)
        assert done.returncode == 2
        assert "notes.json: exists, and holds no results" in done.stderr and "--force" in done.stderr
        assert done.stdout == "" and notes.read_text() == "my notes"
        done = run_script(script, *flags, *common, "--results-json", notes, "--force")
        assert "about" in json.loads(notes.read_text()), done.stderr
        notes.with_suffix(".npz").unlink(missing_ok=True)
