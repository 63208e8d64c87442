"""Training with a projection of the teacher's embeddings, and with several teachers: runs, resuming and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, WARM, run_script
from runs import assert_same_checkpoint, metrics, refused, value
from training_sets import write_lfw

from config import load_config
from data.dataset import build_dataset
from data.teacher_cache import EmbeddingError
from data.teacher_projection import RUN_COPY, read_projection, write_projection
from train import projection
from train.checkpoint import CheckpointError
from train.loop import Trainer
from train.tasks import Distillation

CACHE = "train/cache_teacher.py"
CPU = torch.device("cpu")


@pytest.fixture
def settings(small_run, cached, tmp_path) -> list[str]:
    """A run with 8 dimensions. Its teacher has 16; the file of its embeddings is a copy."""
    for suffix in (".npy", ".json"):
        shutil.copy(cached.with_suffix(suffix), tmp_path / f"teacher{suffix}")
    return [
        *small_run, f"teacher_embeddings={tmp_path / 'teacher.npy'}", "embedding_size=8", "teacher_projection=pca",
        "num_workers=0", "val_targets=[]",
    ]  # fmt: skip


def build(settings: list[str], *more: str) -> tuple[Distillation, Trainer]:
    cfg = load_config(overrides=[*settings, *more])
    dataset = build_dataset(cfg)
    task = Distillation(cfg, dataset, CPU)
    return task, Trainer(cfg, task, dataset, CPU)


def run(settings: list[str], *more: str) -> Distillation:
    task, trainer = build(settings, *more)
    trainer.run()
    return task


def change(path: Path, **sections) -> None:
    """Write another valid file instead of a projection: with a changed matrix, and maybe with changed sections."""
    stored = read_projection(path)
    write_projection(path, stored._replace(matrix=stored.matrix + 1e-3, description={**stored.description, **sections}))


def write_second_teacher(first: Path, dimensions: int, path: Path) -> Path:
    """A file of random embeddings of the same images by another teacher."""
    description = json.loads(first.with_suffix(".json").read_text())
    description["embeddings"]["shape"][2] = dimensions
    description["teacher"] |= {"network": "iresnet50", "sha256": "0" * 64}
    values = np.random.default_rng(dimensions).standard_normal(description["embeddings"]["shape"])
    np.save(path, values.astype(np.float16))
    path.with_suffix(".json").write_text(json.dumps(description))
    return path


def test_a_resumed_run_uses_its_own_projection_bit_for_bit(settings, tmp_path):
    stored, copy = tmp_path / "teacher.pca8.safetensors", tmp_path / "parts" / RUN_COPY
    task = run(settings, f"output={tmp_path / 'whole'}", "max_steps=6")
    assert task.head.centers.shape == (6, 8)
    run(settings, f"output={tmp_path / 'parts'}", "max_steps=3")
    assert stored.read_bytes() == copy.read_bytes()
    change(stored)  # as if it had been fitted again on another processor
    run(settings, f"output={tmp_path / 'parts'}", "max_steps=6", "resume=auto")
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts", 6)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts") and len(metrics(tmp_path / "parts")) == 6
    whole, parts = ((tmp_path / name / "training.log").read_text() for name in ("whole", "parts"))
    assert f"; fitted now; stored in {stored}\n" in whole
    assert f"; from {stored}\n" in parts and f"; from {copy}\n" in parts
    assert " from 16 to 8 dimensions: " in parts and "cosines of 24 pairs of one identity: mean " in parts


def test_only_a_run_that_is_resumed_takes_the_projection_in_its_folder(settings, tmp_path):
    """The folder has no checkpoints, because a new run is refused where it has some."""
    stored, copy = tmp_path / "teacher.pca8.safetensors", tmp_path / "run" / RUN_COPY
    copy.parent.mkdir()
    build(settings)
    shutil.copy(stored, copy)
    change(copy)
    run(settings, f"output={tmp_path / 'run'}", "max_steps=1")
    assert copy.read_bytes() == stored.read_bytes()
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(EmbeddingError, match=rf"{copy}: .*broken .*; remove it, and the run takes {stored}, which"):
        build([*settings, f"output={tmp_path / 'run'}", "resume=auto"])
    copy.unlink()
    assert build([*settings, f"output={tmp_path / 'run'}", "resume=auto"])[1].state.resume()[0] == 1


def test_a_run_that_is_resumed_with_another_projection_is_refused(settings, tmp_path):
    settings = [*settings, f"output={tmp_path / 'run'}", "resume=auto"]
    run(settings, "max_steps=1")
    change(tmp_path / "run" / RUN_COPY)
    refused = r"with teacher '(mobilefacenet, RGB, sha256 \w{16}); projected to 8 dimensions, sha256 \w{16}' \(now '\1"
    with pytest.raises(CheckpointError, match=refused + "; projected to 8 dimensions"):
        build(settings)[1].state.resume()
    with pytest.raises(CheckpointError, match=refused + r"'\), embedding_size 8 \(now 16\)"):
        build(settings, "teacher_projection=none", "embedding_size=16")[1].state.resume()
    second = write_second_teacher(tmp_path / "teacher.npy", 4, tmp_path / "second.npy")
    both = f"{value(settings, 'teacher_embeddings')},{second}"
    with pytest.raises(CheckpointError, match=r"\(now '0\.5 of mobilefacenet, .* \+ 0\.5 of iresnet50, .*; projected"):
        build(settings, f"teacher_embeddings={both}")[1].state.resume()


def test_a_stored_projection_is_used_again_and_one_of_other_embeddings_is_refused(settings, tmp_path, monkeypatch):
    stored = tmp_path / "teacher.pca8.safetensors"
    build(settings)
    change(stored)
    monkeypatch.setattr(projection, "second_moment", lambda *_: pytest.fail("fitted again"))
    task, _ = build(settings)
    assert torch.equal(task.embeddings.projection.matrix, read_projection(stored).matrix)
    assert task.notes[1].endswith(f"; from {stored}")
    of_others = read_projection(stored).description["embeddings 1"]
    of_others["teacher"]["sha256"] = "f" * 64
    change(stored, **{"embeddings 1": of_others})
    with pytest.raises(
        EmbeddingError, match=rf"{stored}: .* 1\.teacher is .*'f{{64}}'.*Remove this file to fit it again"
    ):
        build(settings)
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(EmbeddingError, match=rf"{stored}: .*broken .*; remove it to fit it again"):
        build(settings)


def test_a_projection_that_cannot_be_stored_beside_the_embeddings_is_stored_with_the_run(
    settings, tmp_path, monkeypatch
):
    def fail(path: Path, _) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(projection, "write_projection", fail)
    task = run(settings, f"output={tmp_path / 'run'}", "max_steps=1")
    assert torch.equal(read_projection(tmp_path / "run" / RUN_COPY).matrix, task.embeddings.projection.matrix)
    assert "fitted now; stored only with the run (" in (tmp_path / "run" / "training.log").read_text()
    assert not list(tmp_path.glob("*.safetensors"))


def train_as_rank(number: int, settings: list[str], folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=number, world_size=2)
    run(settings, f"output={folder / 'two'}", "batch_size=4")


def test_the_number_of_ranks_changes_neither_the_projection_nor_the_embeddings(settings, tmp_path):
    """The run on two ranks first makes the missing file, in the size of the teacher, which its weights show."""
    settings = [*settings, "max_steps=1"]
    new = [*settings, f"teacher_embeddings={tmp_path / 'new.npy'}"]
    ranks = [WARM.Process(target=train_as_rank, args=(number, new, tmp_path)) for number in range(2)]
    for process in ranks:
        process.start()
    one = run(settings, f"output={tmp_path / 'one'}")
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    assert (tmp_path / "new.npy").read_bytes() == (tmp_path / "teacher.npy").read_bytes()
    assert torch.equal(read_projection(tmp_path / "new.pca8.safetensors").matrix, one.embeddings.projection.matrix)
    assert metrics(tmp_path / "two")[0]["conf_t"] == pytest.approx(metrics(tmp_path / "one")[0]["conf_t"], rel=1e-6)


def test_two_teachers_train_a_student_by_the_weighted_mean_of_their_cosines(settings, tmp_path):
    first, second = (
        tmp_path / "teacher.npy",
        write_second_teacher(tmp_path / "teacher.npy", 10, tmp_path / "second.npy"),
    )
    both = [f"teacher_embeddings={first},{second}", "pretrained_teacher_path=/absent.pth"]
    joined = [*both, "teacher_projection=none", "embedding_size=26", "teacher_cosine_weights=[3,1]"]
    task = run(settings, *joined, f"output={tmp_path / 'joined'}", "max_steps=1")
    stored = [np.load(path)[:, 1].astype(np.float64) for path in (first, second)]
    units = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in stored]
    rows = task.embeddings.rows(np.arange(48), np.ones(48, dtype=bool)).double().numpy()
    assert np.allclose(rows @ rows.T, 0.75 * units[0] @ units[0].T + 0.25 * units[1] @ units[1].T, atol=1e-3)
    assert task.notes[0].startswith("75.0% of the teacher's cosine: mobilefacenet from ")
    assert task.notes[2].startswith("several teachers: teacher, ") and "are ignored" in task.notes[2]
    task = run(settings, *both, f"output={tmp_path / 'projected'}", "max_steps=1")
    assert task.head.centers.shape == (6, 8) and (tmp_path / "teacher+second.pca8.safetensors").exists()
    build(settings, *both, "teacher_cosine_weights=[3,1]")
    assert (tmp_path / "teacher+second.0.75+0.25.pca8.safetensors").exists()


def test_files_of_equal_names_in_other_folders_have_other_projections(settings, tmp_path):
    (tmp_path / "more").mkdir()
    for folder in (tmp_path, tmp_path / "more"):
        second = write_second_teacher(tmp_path / "teacher.npy", 10, folder / "second.npy")
        build(settings, f"teacher_embeddings={tmp_path / 'teacher.npy'},{second}")
    assert len(list(tmp_path.glob("teacher+second.*pca8.safetensors"))) == 2


def test_several_files_that_do_not_fit_are_refused_with_what_to_do(settings, tmp_path):
    first, second = (
        tmp_path / "teacher.npy",
        write_second_teacher(tmp_path / "teacher.npy", 10, tmp_path / "second.npy"),
    )
    both, absent = (f"teacher_embeddings={first},{path}" for path in (second, tmp_path / "absent.npy"))
    command = rf"{tmp_path}/absent\.npy: no such file; .*: python train/cache_teacher\.py teacher_embeddings={tmp_path}"
    with pytest.raises(EmbeddingError, match=command):
        build(settings, absent)
    with pytest.raises(
        EmbeddingError, match=r"of 16 \+ 10 dimensions, but embedding_size is 27; set embedding_size=26"
    ):
        build(settings, both, "embedding_size=27")
    with pytest.raises(EmbeddingError, match=r"but embedding_size is 8; set embedding_size=26, or .*_projection=pca"):
        build(settings, both, "teacher_projection=none")
    description = json.loads(second.with_suffix(".json").read_text())
    description["data"]["fingerprint"] = "0"
    second.with_suffix(".json").write_text(json.dumps(description))
    with pytest.raises(EmbeddingError, match=r"second\.npy: .*data\.fingerprint is '0', not '\w{64}'"):
        build(settings, both)


def test_the_files_of_teachers_are_a_list_in_every_form(tmp_path):
    wanted = [str(ROOT / "a,b.npy"), "/c.npy"]
    for text in ("a,b.npy,/c.npy", " a,b.npy , /c.npy", "['a,b.npy', '/c.npy']"):
        assert load_config(overrides=[f"teacher_embeddings={text}"]).teacher_embeddings == wanted
    for text in ("", "[]"):
        assert load_config(overrides=[f"teacher_embeddings={text}"]).teacher_embeddings == []
    for form in ("'a,b.npy,/c.npy'", "['a,b.npy', '/c.npy']", "('a,b.npy', '/c.npy')"):
        (tmp_path / "preset.py").write_text(f"preset = dict(teacher_embeddings={form})\n")
        assert load_config(tmp_path / "preset.py").teacher_embeddings == wanted


def test_cache_teacher_also_fits_the_projection_to_embeddings_in_the_size_of_the_teacher(settings, tmp_path):
    done = run_script(CACHE, *settings, f"teacher_embeddings={tmp_path / 'new.npy'}", f"output={tmp_path / 'run'}")
    assert done.returncode == 0 and "from 16 to 8 dimensions: " in done.stdout, done.stderr
    assert np.load(tmp_path / "new.npy").shape == (48, 2, 16) and (tmp_path / "new.pca8.safetensors").exists()
    refused(CACHE, *settings, "embedding_size=32", words="of 16 dimensions, but embedding_size is 32; set .*=16, or")


def test_a_student_of_64_dimensions_learns_from_the_teacher_of_128(face_data, tmp_path):
    write_lfw(tmp_path / "set", face_data, 48)
    overrides = [
        f"rec={tmp_path / 'set'}", f"teacher_embeddings={tmp_path / 'teacher.npy'}", "embedding_size=64",
        "teacher_projection=pca", f"output={tmp_path / 'run'}", "width=0.125", "batch_size=12", "num_epoch=5",
        "loss=MLLoss", "lr_schedule=step", "warmup_epoch=0", "val_targets=[]", "log_every=1", "num_workers=0",
    ]  # fmt: skip
    cfg = load_config(ROOT / "config" / "lfw.py", overrides)
    dataset = build_dataset(cfg)
    task = Distillation(cfg, dataset, CPU)
    Trainer(cfg, task, dataset, CPU).run()
    steps = metrics(tmp_path / "run")
    assert np.load(tmp_path / "teacher.npy").shape == (48, 2, 128) and task.head.centers.shape[1] == 64
    cos_st, conf_t = ([step[name] for step in steps] for name in ("cos_st", "conf_t"))
    assert len(steps) == 20 and np.mean(cos_st[15:]) > np.mean(cos_st[:5]) + 0.05 and np.mean(conf_t[15:]) > 0.7
