"""The best checkpoint: which one it is, its mark in batch evaluation, and its protection during training."""

import json

import pytest
from conftest import run_script
from evaluation_sets import BATCH, flags, read_rows, score
from runs import SCRIPTS, metrics, train

from eval.best import build_criterion
from eval.sets import EvaluationSet
from train import checkpoint
from train.best import FILE, BestCheckpoint
from train.checkpoint import Checkpoint, complete_steps, save
from train.saver import Saver

SETS = [
    EvaluationSet("verification", "lfw", (), 1, 0, True),
    EvaluationSet("verification", "a.b", (), 1, 0, True),
    EvaluationSet("tinyface", "tinyface_0.1", (), 1, 0, True),
]
LFW, OTHER = "verification.lfw.Accuracy-Flip", "verification.a.b.Accuracy-Flip"


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("mean", [{LFW: 0.5, OTHER: 0.9}, {LFW: 0.8, OTHER: 0.7}, {LFW: 0.99}], 1),  # the last one lacks a set
        ("mean", [{LFW: 0.75, OTHER: 0.5}, {LFW: 0.5, OTHER: 0.75}], 0),  # of equal ones, the first
        (OTHER, [{LFW: 1.0, OTHER: 0.5}, {OTHER: 0.6}, {OTHER: None}], 1),
        ("verification.lfw.EER", [{"verification.lfw.EER": 0.2}, {"verification.lfw.EER": 0.1}], 1),
        ("tinyface.tinyface_0.1.rank-20", [{"tinyface.tinyface_0.1.rank-20": 7.0}], 0),
        ("mean", [{}, {LFW: None, OTHER: 1.0}], None),
    ],
)
def test_the_best_checkpoint_has_the_best_value_and_is_the_earliest_of_equal_ones(name, values, best):
    assert build_criterion("--best", name, SETS).best(map(build_criterion("--best", name, SETS).value, values)) == best


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("verification.cfp.Accuracy-Flip", SETS, r"keep_best=verification.cfp.Accuracy-Flip: no set .* \(sets: verifi"),
        ("verification.lfw.acc", SETS, "no set that exists and is evaluated has this metric"),
        ("verification.lfw.Accuracy-Gap", SETS, "no set .* metrics of the summary verification.rfw cannot be used"),
        ("verification.rfw.SER", SETS, "no set .* metrics of the summary verification.rfw cannot be used"),
        ("verification.lfw.XNorm", SETS, "no value of this metric is better"),
        ("mean", SETS[2:], "keep_best=mean needs a verification set"),
        ("mean", [], "keep_best=mean needs a verification set"),
    ],
)
def test_a_metric_that_no_set_has_is_refused(name, sets, message):
    from utils.errors import InputError

    with pytest.raises(InputError, match=message):
        build_criterion("keep_best", name, sets)


def test_batch_evaluation_marks_the_best_checkpoint(root, checkpoints, tmp_path):
    arguments = [BATCH, "--checkpoint-dir", checkpoints, *flags(root), "--report-dir", tmp_path]
    done = score(*arguments, "--results-json", tmp_path / "all.json", "--best", "verification.pairs.EER")
    rows = read_rows(tmp_path / "summary.csv")
    errors = [float(row["verification.pairs.EER"]) for row in rows[:3]]
    position = errors.index(min(errors))
    name = rows[position]["checkpoint"]
    assert [row["is_best"] for row in rows] == ["1" if number == position else "" for number in range(4)]
    assert json.loads((tmp_path / "all.json").read_text())["best"] == {
        "checkpoint": name, "step": int(rows[position]["step"]) if rows[position]["step"] else None,
        "metric": "verification.pairs.EER", "value": errors[position],
    }  # fmt: skip
    note = f"best checkpoint: {name}, by verification.pairs.EER [%]: {100 * errors[position]:.2f}"
    page = (tmp_path / "report.html").read_text()
    for text in (done.stdout, (tmp_path / "summary.md").read_text(), page):
        assert note in text and text.count(f"{name} (best)") == 1 and text.count("(best)") == 1

    score(*arguments)  # by the mean accuracy, from the reports
    rows = read_rows(tmp_path / "summary.csv")
    accuracies = [float(row["verification.pairs.Accuracy-Flip"]) for row in rows[:3]]
    assert rows[accuracies.index(max(accuracies))]["is_best"] == "1"
    assert "no set that exists" in score(*arguments, "--best", "verification.x.EER", code=2).stderr

    metric = "verification.pairs.TAR_at_FAR_0.0001"  # the set has ten impostor pairs
    done = score(*arguments, "--results-json", tmp_path / "none.json", "--best", metric)
    note = f"no best checkpoint: none has a value of {metric}, because a set has too few pairs for it"
    for text in (done.stdout, (tmp_path / "summary.md").read_text(), (tmp_path / "report.html").read_text()):
        assert text.count(note) == 1 and "(best)" not in text
    assert json.loads((tmp_path / "none.json").read_text())["best"] is None


def content(step):
    return Checkpoint({"step": step}, {}, {})


class Log:
    """A log that keeps its lines, and has the evaluations of an earlier part of the run."""

    def __init__(self, evaluated=()):
        self.evaluated, self.lines = dict(evaluated), []
        self.line = self.lines.append

    def try_writing(self, write):
        try:
            write()
        except OSError as error:
            self.line(str(error))


def follow(folder, keep, log, name=LFW):
    saver = Saver(folder, keep, log.line)
    return saver, BestCheckpoint(folder, keep, build_criterion("keep_best", name, SETS), saver, log)


def named(folder):
    return json.loads((folder / FILE).read_text())["step"]


def test_the_best_checkpoint_is_never_removed_and_always_named(tmp_path, monkeypatch):
    """At every removal of a file, all files of the best checkpoint that best.json names exist."""
    remove = checkpoint.remove

    def checked(folder, step):
        if (folder / FILE).exists():
            assert named(folder) in complete_steps(folder) and named(folder) != step
        remove(folder, step)

    monkeypatch.setattr(checkpoint, "remove", checked)
    saver, best = follow(tmp_path, 1, Log())
    best.resume()
    expected = {}
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7), (4, None), (5, 0.9), (6, 0.8), (7, 0.95), (8, 0.1)):
        saver.save(step, content(step))
        best.update(step, {LFW: accuracy})
        saver.finish()
        if accuracy is not None and accuracy > max(expected.values(), default=0):
            expected[step] = accuracy
        assert named(tmp_path) == list(expected)[-1]
        assert complete_steps(tmp_path) == sorted({named(tmp_path), step})


def test_an_evaluation_without_a_value_is_reported_where_the_set_was_due(tmp_path):
    log = Log()
    saver, best = follow(tmp_path, 1, log, "mean")
    no_values = {1: {LFW: None, OTHER: None}, 2: {"tinyface.tinyface_0.1.rank-20": 7.0}, 3: {LFW: 0.5}}
    for step, values in no_values.items():
        saver.save(step, content(step))
        best.update(step, values)
    saver.finish()
    assert not (tmp_path / FILE).exists()
    assert [line.split(", because")[0] for line in log.lines if "keep_best" in line] == [
        f"WARNING: keep_best: mean has no value at step {step}" for step in (1, 3)
    ]
    best.update(3, {LFW: 0.5, OTHER: 0.5})
    assert named(tmp_path) == 3 and "WARNING" not in log.lines[-1]


def test_a_checkpoint_that_could_not_be_saved_is_not_the_best(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    saver, best = follow(tmp_path, 1, Log())
    saver.save(1, content(1))
    best.update(1, {LFW: 0.5})
    with monkeypatch.context() as patch:
        patch.setattr("train.saver.save", full)
        saver.save(2, content(2))
        best.update(2, {LFW: 0.9})
    assert named(tmp_path) == 1 and complete_steps(tmp_path) == [1]
    saver.save(3, content(3))
    with monkeypatch.context() as patch:
        patch.setattr("train.best.write_text", full)
        best.update(3, {LFW: 0.8})  # best.json cannot be written, so it still names step 1
    saver.save(4, content(4))
    saver.finish()
    assert named(tmp_path) == 1 and complete_steps(tmp_path) == [1, 3, 4]
    best.update(4, {LFW: 0.81})
    assert named(tmp_path) == 4 and complete_steps(tmp_path) == [4]


def test_a_resumed_run_finds_the_best_intact_checkpoint_of_the_evaluations_in_its_log(tmp_path):
    evaluated = {step: {LFW: value, OTHER: 1 - value} for step, value in ((1, 0.6), (2, 0.9), (3, 0.8), (4, 0.7))}
    for step in (1, 3, 4):  # that of step 2 was removed
        save(tmp_path, step, content(step))
    for name, best_step in ((LFW, 3), (OTHER, 1)):
        saver, best = follow(tmp_path, 1, Log(evaluated), name)
        best.resume()
        assert (named(tmp_path), saver.protected) == (best_step, {best_step})
    (tmp_path / "1backbone.pth").write_bytes(b"broken")
    saver, best = follow(tmp_path, 1, Log(evaluated), OTHER)
    best.resume()
    assert named(tmp_path) == 4
    best.update(5, {OTHER: 0.29})  # less than that of step 4
    assert named(tmp_path) == 4
    _, best = follow(tmp_path, 1, Log())
    best.resume()
    assert not (tmp_path / FILE).exists()


def test_keep_best_keeps_the_best_checkpoint_of_a_run_and_survives_a_resume(small_run, tmp_path):
    settings = [*small_run, "num_epoch=3", "keep_checkpoints=1", "checkpoint_every=4", "keep_best=mean"]
    train(SCRIPTS[1], settings, tmp_path, "max_steps=7")
    for part in ([], ["resume=auto"]):
        if part:
            train(SCRIPTS[1], settings, tmp_path, *part)
        accuracies = {line["step"]: line[f"{LFW.replace('lfw', 'pairs')}"] for line in metrics(tmp_path)
                      if line["kind"] == "evaluation"}  # fmt: skip
        step = max(accuracies, key=lambda one: (accuracies[one], -one))
        best = json.loads((tmp_path / FILE).read_text())
        assert best == {
            "step": step, "checkpoint": f"{step}backbone.pth", "metric": "mean", "value": accuracies[step],
        }  # fmt: skip
        assert complete_steps(tmp_path) == sorted({step, 18 if part else 7})
    assert "best checkpoint so far: step" in (tmp_path / "training.log").read_text()
    done = run_script(SCRIPTS[1], *settings, f"output={tmp_path / 'refused'}", "val_eval_every_n_epoch=0")
    assert done.returncode == 2 and "keep_best=mean needs a verification set" in done.stderr, done.stderr
    assert not (tmp_path / "refused").exists()
