"""Training with augmentations: what student and teacher see, resuming, ranks, and refused probabilities."""

import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from augmenting import CPU, FIRST_MADE, KINDS, as_bytes, as_input, is_chosen
from conftest import run_script
from runs import SCRIPTS, assert_same_checkpoint, metrics, train

from config import ConfigError, load_config
from data.augment import DRAWS, build_augmentation

ALL = (*KINDS, *FIRST_MADE)
PROBABILITY = 0.15  # so that some of eight images are not changed by any of eight augmentations
SOME = [f"{kind}_augmentation_prob={PROBABILITY}" for kind in ALL]
QUICK = ["val_eval_every_n_epoch=0", "sync_bn=True"]  # sync_bn makes no difference on one rank


@pytest.fixture(scope="module")
def augmented_run(small_run, tmp_path_factory):
    """Settings and output of a run with all augmentations: eight steps over two epochs, checkpoints every four."""
    output = tmp_path_factory.mktemp("augmented")
    settings = [*small_run, *QUICK, *SOME]
    train(SCRIPTS[0], settings, output, "max_steps=8", "checkpoint_every=4")
    return settings, output


@pytest.fixture(scope="module")
def plain_runs(small_run, tmp_path_factory):
    """Outputs of two runs of two steps without augmentations, with teacher_view "same" and "clean"."""
    outputs = []
    for view in ("same", "clean"):
        outputs.append(tmp_path_factory.mktemp(view))
        none = [f"{kind}_augmentation_prob=0" for kind in ALL]
        train(SCRIPTS[0], [*small_run, *QUICK, *none], outputs[-1], f"teacher_view={view}", "max_steps=2")
    return outputs


def tiles(output, count: int = 8) -> np.ndarray:
    """The images of first_batch.png without the labels under them: uint8 [count, 112, 112, 3]."""
    picture = cv2.cvtColor(cv2.imread(str(output / "first_batch.png")), cv2.COLOR_BGR2RGB)
    return np.stack([picture[:112, column * 112 : (column + 1) * 112] for column in range(count)])


def test_without_augmentations_teacher_view_makes_no_difference(plain_runs):
    same, clean = plain_runs
    assert metrics(same) == metrics(clean)
    assert_same_checkpoint(same, clean, 2)


def test_the_teacher_sees_the_augmented_or_the_clean_image(augmented_run, plain_runs, tmp_path):
    """At step 1 the teacher's confidence depends only on its embeddings and the initial centers."""
    settings, same = augmented_run
    train(SCRIPTS[0], settings, tmp_path, "teacher_view=clean", "max_steps=2")
    same, clean, plain = metrics(same), metrics(tmp_path), metrics(plain_runs[0])
    assert clean[0]["conf_t"] == plain[0]["conf_t"] != same[0]["conf_t"]
    assert clean[0]["norm_mean"] == same[0]["norm_mean"] != plain[0]["norm_mean"]  # of the student's embeddings
    assert clean[0]["loss"] != same[0]["loss"] and clean[1]["loss"] != same[1]["loss"]


def test_first_batch_png_shows_what_the_student_sees(augmented_run, plain_runs):
    """It is the first batch of the run without augmentations (same order and flips), augmented."""
    settings, output = augmented_run
    cfg = load_config(overrides=[*settings, "num_classes=6"])
    stream = np.random.Generator(np.random.PCG64((cfg.seed, 0, 1)))
    draws = torch.from_numpy(stream.random((48, DRAWS))[:8].astype(np.float32))
    expected = as_bytes(build_augmentation(cfg, CPU)(as_input(tiles(plain_runs[0])), draws))
    assert abs(expected - tiles(output)).max() <= 0.5 + 1e-3
    altered = [not np.array_equal(*pair) for pair in zip(tiles(output), tiles(plain_runs[0]), strict=True)]
    assert altered == np.any([is_chosen(draws, kind, PROBABILITY) for kind in ALL], axis=0).tolist()
    assert any(altered) and not all(altered)


def test_a_resumed_run_with_augmentations_ends_bit_equal_to_an_uninterrupted_run(augmented_run, tmp_path):
    settings, output = augmented_run
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    train(SCRIPTS[0], settings, tmp_path, "max_steps=8", "global_step=4", "num_workers=0")
    assert (tmp_path / "8state.pth").stat().st_mtime > (output / "8state.pth").stat().st_mtime
    assert "from step 4 to 8" in (tmp_path / "training.log").read_text()
    assert_same_checkpoint(output, tmp_path, 8)
    assert metrics(output) == metrics(tmp_path)


def test_two_ranks_see_the_same_augmented_images_as_one_process(augmented_run, tmp_path):
    settings, output = augmented_run
    train(SCRIPTS[0], settings, tmp_path, "batch_size=4", "max_steps=3", ranks=2)
    for one, two in zip(metrics(output)[:3], metrics(tmp_path), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert np.array_equal(tiles(output)[:4], tiles(tmp_path, 4))


@pytest.mark.parametrize("kind", ALL)
def test_a_probability_outside_0_to_1_is_refused(kind):
    for value in ("-0.1", "1.01", "nan", "inf", "half", "True", "None"):
        with pytest.raises(ConfigError, match=rf"{kind}_augmentation_prob = .*>= 0 and <= 1"):
            load_config(overrides=[f"{kind}_augmentation_prob={value}"])
    for value in ("0", "1", "0.2"):
        cfg = load_config(overrides=[f"{kind}_augmentation_prob={value}"])
        augment = build_augmentation(cfg, CPU)
        assert (augment is None) == (float(value) == 0)
        if augment:
            assert {name: chance for name, chance in augment.probabilities.items() if chance} == {kind: float(value)}


def test_the_scripts_name_a_probability_that_they_refuse(small_run, tmp_path):
    for script in SCRIPTS:
        done = run_script(script, *small_run, f"output={tmp_path}", "crop_augmentation_prob=2")
        assert done.returncode == 2 and "crop_augmentation_prob = 2: must be a number >= 0 and <= 1" in done.stderr
        assert "Traceback" not in done.stderr and not os.listdir(tmp_path)
