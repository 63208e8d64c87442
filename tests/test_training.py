"""The training scripts as users run them: output files, exact resuming, signals, ranks."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import pytest
import torch
from conftest import ROOT, run_script
from runs import SCRIPTS, assert_same_checkpoint, heed_signals, metrics, tensors, train
from training_sets import write_folder_set

from train.checkpoint import complete_steps


@pytest.fixture(scope="module", params=SCRIPTS)
def uninterrupted_run(request, small_run, tmp_path_factory):
    """(script, output) of an uninterrupted run of two epochs with six steps each."""
    output = tmp_path_factory.mktemp("uninterrupted")
    train(request.param, small_run, output)
    return request.param, output


def test_a_run_writes_checkpoints_logs_curves_and_its_config(uninterrupted_run, small_run, tmp_path):
    script, output = uninterrupted_run
    names = set(os.listdir(output))
    assert {"6backbone.pth", "6header.pth", "6state.pth", "12backbone.pth", "training.log", "config.py"} <= names
    for picture in ("first_batch.png", "curves.png"):
        assert cv2.imread(str(output / picture)).std() > 10
    lines = metrics(output)
    assert [line["step"] for line in lines if line["kind"] == "training"] == list(range(1, 13))
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [6, 12]
    assert all("verification.pairs.Accuracy-Flip" in line for line in lines if line["kind"] == "evaluation")
    header = torch.load(output / "12header.pth", weights_only=True)
    assert list(header["kernel"].shape) == [16, 6] and {"batch_mean", "batch_std"} <= header.keys()
    again = tmp_path / "again"  # the written config starts the same run
    done = run_script(script, "--config", output / "config.py", f"output={again}", "max_steps=2")
    assert done.returncode == 0, done.stderr
    assert metrics(again)[:2] == lines[:2]


def test_the_log_says_what_was_left_out_of_a_folder_of_images(small_run, tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 6, "b": 6})
    (folder / "@eaDir").mkdir()
    (folder / "a" / "notes.txt").write_text("")
    settings = [*small_run, "db_file_format=folder", f"data_path={folder}", "val_targets=[]", "max_steps=1"]
    note = f"left out of {folder}: files that are not images (1), hidden entries and entries created by tools (1)"
    train("train/train_standalone.py", settings, tmp_path / "run")
    assert note in (tmp_path / "run" / "training.log").read_text()
    done = run_script("train/cache_teacher.py", *settings[:-1], f"teacher_embeddings={tmp_path / 'teacher.npy'}")
    assert done.returncode == 0 and note in done.stdout, done.stderr


def test_tensorboard_can_be_read_back(uninterrupted_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, output = uninterrupted_run
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == list(range(1, 13))
    assert "evaluation/verification.pairs.Accuracy-Flip" in events.Tags()["scalars"]


@pytest.mark.parametrize(("stop", "evaluated"), [(4, False), (6, True), (6, False)])
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_run(uninterrupted_run, small_run, tmp_path, stop, evaluated):
    """A run may also be killed after the checkpoint of an epoch, and before its evaluation."""
    script, output = uninterrupted_run
    train(script, small_run, tmp_path, f"max_steps={stop}")
    if not evaluated:
        log = tmp_path / "metrics.jsonl"
        log.write_text("".join(line for line in log.read_text().splitlines(True) if '"evaluation"' not in line))
    train(script, small_run, tmp_path, "resume=auto", "num_workers=0")
    assert_same_checkpoint(output, tmp_path, 12)
    assert metrics(output) == metrics(tmp_path)


def test_global_step_resumes_that_step_and_a_missing_one_is_refused(uninterrupted_run, small_run, tmp_path):
    script, output = uninterrupted_run
    train(script, small_run, tmp_path, "checkpoint_every=4")
    done = run_script(script, *small_run, f"output={tmp_path}", "global_step=5")
    assert done.returncode == 2 and "available steps: 4, 6, 8, 12" in done.stderr
    train(script, small_run, tmp_path, "global_step=4")
    assert complete_steps(tmp_path) == [4, 6, 12]  # the old checkpoint of step 8 is gone, and no new one was due
    assert_same_checkpoint(output, tmp_path, 12)
    assert metrics(output) == metrics(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_is_bit_equal(small_run, tmp_path, number):
    script, long = SCRIPTS[0], "num_epoch=60"
    command = [sys.executable, str(ROOT / script), *small_run, long, f"output={tmp_path / 'stopped'}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=heed_signals,
    )  # fmt: skip
    log = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, number)  # like a terminal or a batch system, which also send it to the loader's workers
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    step = max(line["step"] for line in metrics(tmp_path / "stopped"))
    assert (tmp_path / "stopped" / f"{step}state.pth").is_file()
    train(script, small_run, tmp_path / "stopped", long, "resume=auto", f"max_steps={step + 3}")
    train(script, small_run, tmp_path / "uninterrupted", long, f"max_steps={step + 3}")
    assert_same_checkpoint(tmp_path / "uninterrupted", tmp_path / "stopped", step + 3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_ranks_train_on_the_same_global_batches_as_one_process(small_run, tmp_path, script):
    """With synchronised BatchNorm, losses and centers are the same, up to the order of floating-point sums."""
    shared = ["sync_bn=True", "max_steps=4", "dtype=float32"]
    train(script, small_run, tmp_path / "one", *shared)
    train(script, small_run, tmp_path / "two", *shared, "batch_size=4", ranks=2)
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    one, two = (torch.load(tmp_path / name / "4header.pth", weights_only=True) for name in ("one", "two"))
    assert torch.allclose(one["kernel"], two["kernel"], atol=1e-3)


def test_accumulated_forward_passes_are_one_step_of_the_total_batch(small_run, tmp_path):
    train(SCRIPTS[0], small_run, tmp_path, "accumulate_steps=2", "batch_size=4", "max_steps=3")
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]
    assert "6 steps per epoch with 8 images each" in (tmp_path / "training.log").read_text()


def test_keep_checkpoints_keeps_the_newest_checkpoints(small_run, tmp_path):
    train(SCRIPTS[0], small_run, tmp_path, "checkpoint_every=2", "keep_checkpoints=2")
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith("state.pth")) == ["10state.pth", "12state.pth"]


def test_the_header_of_a_standalone_run_can_be_used_as_fixed_centers(small_run, tmp_path):
    train(SCRIPTS[1], small_run, tmp_path / "teacher", "max_steps=2")
    header = tmp_path / "teacher" / "2header.pth"
    fixed = ["centers=fixed", f"pretrained_teacher_header_path={header}", "max_steps=2"]
    train(SCRIPTS[0], small_run, tmp_path / "student", *fixed)
    kernels = [torch.load(path, weights_only=True)["kernel"] for path in (header, tmp_path / "student" / "2header.pth")]
    assert torch.equal(*kernels)


def test_bfloat16_and_float16_train_like_float32(small_run, tmp_path):
    """Twelve steps move the weights about as far, in about the same direction. float16 scales its loss.

    With s = 64, a gradient of float16 may be too large for the loss scale, and its step is skipped.
    """
    start = dict(tensors(_initial_weights(small_run)))
    moved = {}
    for dtype in ("float32", "bfloat16", "float16"):
        train(
            SCRIPTS[0],
            small_run,
            tmp_path / dtype,
            f"dtype={dtype}",
            "loss=ArcFace",
            "s=16",
            "val_eval_every_n_epoch=0",
        )
        end = dict(tensors(torch.load(tmp_path / dtype / "12backbone.pth", weights_only=True)))
        moved[dtype] = torch.cat([(end[n] - start[n]).flatten() for n in start if n.endswith("conv.weight")])
    for dtype in ("bfloat16", "float16"):
        assert torch.cosine_similarity(moved[dtype], moved["float32"], dim=0) > 0.8
        assert 0.8 < moved[dtype].norm() / moved["float32"].norm() < 1.25
    assert metrics(tmp_path / "float16")[-1]["loss_scale"] > 0
    assert "use_geom_margin is ignored" in (tmp_path / "float16" / "training.log").read_text()


def _initial_weights(settings: list[str]) -> dict[str, torch.Tensor]:
    from backbones import build_backbone, build_teacher
    from config import load_config
    from heads import build_head

    cfg = load_config(overrides=[*settings, "num_classes=6"])
    torch.manual_seed(cfg.seed)
    build_teacher(cfg)
    build_head(cfg)
    return build_backbone(cfg).state_dict()


def test_three_ranks_with_accumulated_gradients_resume_bit_equal_and_evaluate_the_student_of_rank_0(
    small_run, tmp_path
):
    """On three ranks, sums round differently if the ranks' numbers are added in another order.

    BatchNorm statistics are each rank's own in training; in evaluation, all ranks must have those of rank 0.
    """
    shared = ["batch_size=2", "accumulate_steps=2", "max_steps=6", "val_batch_size=8"]  # some ranks embed 2 batches
    train(SCRIPTS[0], small_run, tmp_path / "uninterrupted", *shared, ranks=3)
    train(SCRIPTS[0], small_run, tmp_path / "parts", *shared, "max_steps=3", ranks=3)
    train(SCRIPTS[0], small_run, tmp_path / "parts", *shared, "resume=auto", ranks=3)
    assert_same_checkpoint(tmp_path / "uninterrupted", tmp_path / "parts", 6)
    assert metrics(tmp_path / "uninterrupted") == metrics(tmp_path / "parts")

    folder = tmp_path / "uninterrupted"
    scored = ["--config", folder / "config.py", "--checkpoint", folder / "4backbone.pth"]
    done = run_script("eval/run_full_eval.py", *scored, "--results-json", tmp_path / "4.json")
    assert done.returncode == 0, done.stderr
    of_checkpoint = json.loads((tmp_path / "4.json").read_text())["verification"]["pairs"]
    (of_run,) = (line for line in metrics(folder) if line["kind"] == "evaluation" and line["step"] == 4)
    assert of_checkpoint == {name: of_run[f"verification.pairs.{name}"] for name in of_checkpoint}


def test_an_output_that_holds_another_run_is_refused(small_run, tmp_path):
    script = SCRIPTS[0]
    train(script, small_run, tmp_path, "max_steps=2")

    def refused(message: str, *more: str, script: str = script) -> None:
        done = run_script(script, *small_run, f"output={tmp_path}", *more)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr

    refused("holds a run with checkpoints of steps 2")
    refused("width 0.125 (now 0.25)", "resume=auto", "width=0.25")
    refused("loss 'AdaFace' (now 'ArcFace')", "resume=auto", "loss=ArcFace")
    refused("task 'Distillation' (now 'Standalone')", "resume=auto", script=SCRIPTS[1])
    os.truncate(tmp_path / "2state.pth", 1000)
    refused("2state.pth: broken: cut short or changed", "resume=auto")


def test_a_teacher_that_is_not_finite_is_refused(small_run, tmp_path):
    settings = dict(setting.split("=") for setting in small_run)
    state = torch.load(settings["pretrained_teacher_path"], weights_only=True)
    state["output_layer.linear.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "teacher.pth")
    more = [f"pretrained_teacher_path={tmp_path / 'teacher.pth'}", f"output={tmp_path}"]
    done = run_script(SCRIPTS[0], *small_run, *more)
    assert done.returncode == 2 and "not finite (output_layer.linear.weight)" in done.stderr


def test_init_from_starts_at_step_0_from_the_given_weights(uninterrupted_run, small_run, tmp_path):
    script, output = uninterrupted_run
    first = torch.load(output / "12backbone.pth", weights_only=True)
    path = tmp_path / "of_ddp.pth"
    torch.save({f"module.{key}": value for key, value in first.items()}, path)
    train(script, small_run, tmp_path, f"init_from={path}", "max_steps=1", "lr=1e-9")
    last = torch.load(tmp_path / "1backbone.pth", weights_only=True)
    assert torch.allclose(first["conv1.conv.weight"], last["conv1.conv.weight"], atol=1e-6)
    log = (tmp_path / "training.log").read_text()
    assert f"initial weights from {path}: {len(first)} tensors; prefix 'module.' removed\n" in log
