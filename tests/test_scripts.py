"""The scripts with good and bad input: one clear error and exit code 2, --help, results that do not depend on ranks."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script

TRAIN, EVALUATE = "train/train_AdaDistill.py", "eval/run_full_eval.py"
SCRIPTS = [path for folder in ("train", "eval", "deploy", "tools", "demo") for path in (ROOT / folder).rglob("*.py")]


def refused(*arguments: str | Path, message: str) -> str:
    """Run a script that must end with exit code 2. Returns its error line, which must contain `message`."""
    done = run_script(*arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(lines) == 1 and message in lines[0], done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture
def folder(small_run) -> Path:
    """The folder of the small set."""
    return Path(dict(setting.split("=") for setting in small_run)["rec"])


@pytest.fixture
def broken_set(folder, tmp_path) -> Path:
    """A copy of the small set, for tests that damage it."""
    for name in ("train.rec", "train.idx", "property"):
        shutil.copy(folder / name, tmp_path)
    return tmp_path


SETS = {
    "missing rec": (lambda f: (f / "train.rec").unlink(), "train.rec: no such file"),
    "missing idx": (lambda f: (f / "train.idx").unlink(), "train.idx: no such file"),
    "truncated rec": (lambda f: os.truncate(f / "train.rec", 50_000), "train.rec"),
    "idx outside": (lambda f: (f / "train.idx").write_text("0\t0\n1\t999999999\n"), "train.idx: key 1 points"),
    "empty idx": (
        lambda f: (f / "train.idx").write_text(""),
        "train.idx: not a part of a record set, but an empty file",
    ),
}


@pytest.mark.parametrize("case", SETS)
def test_a_broken_record_set_is_named(small_run, broken_set, case):
    damage, message = SETS[case]
    damage(broken_set)
    refused(TRAIN, *small_run, f"rec={broken_set}", f"output={broken_set / 'out'}", message=message)


def test_a_label_outside_the_classes_is_named_by_a_worker(small_run, tmp_path):
    from data.recordio import RecordWriter
    from demo.make_demo_data import encoded_face

    with RecordWriter(tmp_path / "train") as writer:
        for key in range(16):
            writer.write(key, 7.0 if key == 11 else key % 3, encoded_face((0, 0, key, 0.0)))
    (tmp_path / "property").write_text("3,112,112")
    refused(
        TRAIN,
        *small_run,
        f"rec={tmp_path}",
        f"output={tmp_path / 'out'}",
        message="record 11 has label 7, outside 0..2",
    )


def test_a_missing_or_wrong_teacher_ends_the_run(small_run, folder, tmp_path):
    out = f"output={tmp_path / 'out'}"
    refused(TRAIN, *small_run, out, "pretrained_teacher_path=", message="needs pretrained_teacher_path")
    refused(
        TRAIN, *small_run, out, f"pretrained_teacher_path={tmp_path / 'none.pth'}", message="none.pth: no such file"
    )
    refused(TRAIN, *small_run, out, "teacher_width=0.25", message="teacher.pth: does not fit MobileFaceNet")
    refused(TRAIN, *small_run, out, "embedding_size=32", message="its embeddings have 16 dimensions")


def test_an_output_that_cannot_be_written_is_named(small_run, tmp_path):
    (tmp_path / "file").write_text("")
    refused(TRAIN, *small_run, f"output={tmp_path / 'file' / 'out'}", message="cannot be written")
    done = run_script(TRAIN, *small_run, "batch_size=4", f"output={tmp_path / 'file' / 'out'}", ranks=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error (rank")]
    assert done.returncode and errors and all("cannot be written" in line for line in errors), done.stderr
    assert "Connection closed" not in done.stderr  # each rank ends by its own error, not by that of the other


def test_a_wrong_key_is_named_before_anything_is_loaded(small_run):
    error = refused(TRAIN, *small_run, "batchsize=3", message="batchsize: no such key")
    assert "'batch_size'" in error
    refused(TRAIN, *small_run, "batch_size=many", message="batch_size = 'many'")
    refused(TRAIN, *small_run, "loss=Adaface", message="AdaFace, ArcFace, CosFace, MLLoss")


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ([TRAIN], ["--config", "config/demo.py"]),
        (["train/train_standalone.py"], ["--config", "config/demo.py"]),
        (["train/cache_teacher.py"], ["--config", "config/demo.py"]),
        ([EVALUATE], ["--checkpoint", "absent.pth", "--no-val-flip"]),
        (["eval/run_batch_eval.py"], ["--checkpoint-dir", "absent"]),
        (["tools/check_data.py", "set.bin"], ["--teacher"]),
    ],
)
def test_overrides_may_stand_on_both_sides_of_a_flag(script, flags):
    """The override behind the flag is read: its unknown key is the error."""
    refused(*script, "seed=3", *flags, "absent_key=1", message="absent_key: no such key")


def test_every_script_with_a_list_of_arguments_accepts_it_on_both_sides_of_a_flag():
    for path in [*SCRIPTS, *(ROOT / "benchmarks").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if 'nargs="' in text or "make_parser(" in text:
            assert ".parse_args()" not in text, f"{path}: use parse_intermixed_args"


def test_a_record_set_or_evaluation_set_that_is_missing_leads_to_the_section_of_the_readme(
    small_run, checkpoint, tmp_path
):
    section = "section Data of README.md"
    assert "\n## Data\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    refused(TRAIN, *small_run, f"rec={tmp_path}", message=section)
    refused(TRAIN, *small_run, "db_file_format=folder", f"data_path={tmp_path / 'absent'}", message=section)
    refused(EVALUATE, "--checkpoint", checkpoint, *small_run, f"val_rec={tmp_path}", message=section)
    refused("tools/check_data.py", tmp_path / "absent", message=f"looked for {tmp_path / 'absent'}; {section}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from backbones.mobilefacenet import MobileFaceNet

    path = tmp_path_factory.mktemp("checkpoint") / "5backbone.pth"
    torch.manual_seed(1)
    torch.save(MobileFaceNet(16, 0.125).state_dict(), path)
    return path


def test_checkpoints_that_do_not_fit_are_named(small_run, checkpoint, tmp_path):
    refused(EVALUATE, "--checkpoint", checkpoint, *small_run, "embedding_size=32", message="embedding_size is 32")
    refused(EVALUATE, "--checkpoint", checkpoint, *small_run, "network=iresnet18", message="does not fit IResNet")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    refused(EVALUATE, "--checkpoint", tmp_path / "text.pth", *small_run, message="text.pth: not a weights file")
    with open(tmp_path / "code.pth", "wb") as file:
        pickle.dump(print, file)
    refused(EVALUATE, "--checkpoint", tmp_path / "code.pth", *small_run, message="code.pth: not a weights file")


def test_broken_bin_sets_are_named(small_run, checkpoint, folder, tmp_path):
    data = (folder / "pairs.bin").read_bytes()

    class Harmful:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    for content, message in [
        (data[: len(data) // 2], "cut short"),
        (pickle.dumps(([b"1", b"2", b"3"], [True])), "each pair needs two images"),
        (pickle.dumps(Harmful()), "refused"),
    ]:
        (tmp_path / "pairs.bin").write_bytes(content)
        refused(EVALUATE, "--checkpoint", checkpoint, *small_run, "--val-data", tmp_path, message=message)
    assert not (tmp_path / "executed").exists()


def test_evaluation_does_not_depend_on_the_folder_or_the_number_of_ranks(small_run, checkpoint, tmp_path):
    results = []
    for ranks in (0, 2):
        path = tmp_path / f"{ranks}.json"
        arguments = ["--checkpoint", checkpoint, "--results-json", path, "--val-batch-size", "7", *small_run]
        done = run_script(EVALUATE, *arguments, "val_targets=pairs,lfw", ranks=ranks, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "accuracy" in done.stdout and "absent: verification.lfw" in done.stdout
        results.append(json.loads(path.read_text()))
    assert results[0]["verification"] == results[1]["verification"]
    refused("eval/compare.py", checkpoint, message="5backbone.pth: holds no results")


@pytest.mark.parametrize("script", sorted(str(p.relative_to(ROOT)) for p in SCRIPTS if "__main__" in p.read_text()))
def test_every_script_has_a_help_text(script):
    done = run_script(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and len(done.stdout.splitlines()) > 6


def test_the_pretrained_network_reaches_its_known_accuracy(face_data):
    """On the first 100 held-out pairs. The complete sets take minutes; docs/results.md has the accuracy on them."""
    from backbones import build_backbone
    from config import load_config
    from data.bin_set import VerificationSet, read_bin
    from eval.embeddings import embed
    from eval.verification import evaluate_pairs

    pairs = read_bin(face_data / "lfw" / "lfw_heldout.bin")
    weights = f"init_from={face_data / 'mobilefacenet_y1_128.pth'}"
    network = build_backbone(load_config(overrides=["embedding_size=128", weights]))
    some = VerificationSet(pairs.path, pairs.encoded[:200], pairs.is_same[:100])
    embeddings = embed(network.to(memory_format=torch.channels_last), some, torch.device("cpu"))
    assert evaluate_pairs(embeddings.features, some.is_same)["Accuracy-Flip"] >= 0.97
    assert embeddings.norms.mean() == pytest.approx(9.67, abs=0.3)
