"""What is wrong with a set is found and named, all of it; and training says whether teacher and labels agree."""

import json
import struct
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import run_script

from config import load_config
from data.bin_set import write_bin
from data.dataset import FolderDataset, RecordDataset, build_dataset
from data.pairs import sample_pairs, significantly_higher
from data.recordio import MAGIC, RecordWriter, write_record_set
from demo.make_demo_data import encoded_face
from tools import check_data
from tools.examine import Report
from train import sanity, tasks
from train.loop import Trainer
from train.tasks import Distillation, Standalone

CPU = torch.device("cpu")
LABELS = np.repeat(np.arange(4), 3)


@pytest.fixture(scope="module")
def faces():
    return [encoded_face((5, int(label), image, 0.3)) for image, label in enumerate(LABELS)]


@pytest.fixture
def check(monkeypatch, tmp_path):
    """check(path, ...) -> exit code and what the JSON says."""

    def run(*arguments):
        file = tmp_path / "report.json"
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, arguments), "--json", str(file)])
        if "--num-workers" not in arguments:
            sys.argv += ["--num-workers", "0"]
        code = check_data.main()
        return code, json.loads(file.read_text())

    return run


def index_of(folder):
    return [tuple(map(int, line.split("\t"))) for line in (folder / "train.idx").read_text().splitlines()]


def write_index(folder, entries):
    (folder / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in entries))


def write_cvlface_set(folder, faces, labels, stated=None):
    with RecordWriter(folder / "train") as writer:
        for key, (label, face) in enumerate(zip(labels, faces, strict=True)):
            writer.write(key, label, face)
    if stated is not None:
        (folder / "property").write_text(f"{stated},112,112")
    return folder


def swapped(face):
    image = cv2.imdecode(np.frombuffer(face, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sound_set_has_no_problem_and_is_counted(faces, check, tmp_path, num_workers):
    write_record_set(tmp_path / "set", faces, LABELS, 4)
    code, report = check(tmp_path / "set", "--num-workers", num_workers)
    assert (code, report["problems"], report["notes"]) == (0, {}, {})
    figures = report["figures"]
    assert (figures["images"], figures["identities"]) == (12, 4)
    assert [figures[f"{which}_images_an_identity"] for which in ("smallest", "mean", "largest")] == [3, 3, 3]


def test_a_set_without_record_0_and_property_is_counted_too(faces, check, tmp_path):
    code, report = check(write_cvlface_set(tmp_path, faces, LABELS))
    assert (code, report["figures"]["images"], report["figures"]["identities"]) == (0, 12, 4)


def test_all_that_is_wrong_is_found_at_once_and_named(faces, check, tmp_path):
    """Every single fault at a record of its own; nothing else is reported."""
    rng = np.random.default_rng(0)
    small = cv2.imencode(".png", rng.integers(0, 255, (50, 60, 3), dtype=np.uint8))[1].tobytes()
    grey = cv2.imencode(".png", np.full((112, 112, 3), 7, np.uint8))[1].tobytes()
    images = {
        1: b"no image", 2: small, 3: faces[3][: len(faces[3]) // 2], 4: grey, 5: faces[5], 6: faces[6], 7: faces[7],
        8: faces[0], 9: faces[0], 10: faces[0], 11: faces[11],
    }  # fmt: skip
    labels = {1: 0, 2: 0, 3: 1, 4: 1, 5: 9, 6: 1.5, 7: -1, 8: 0, 9: 0, 10: 1, 11: 3}
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(0, [14, 14 + 5], b"")  # says 13 images, keys 12 and 13 are lacking
        for key, image in images.items():
            writer.write(key, labels[key], image)
    (tmp_path / "property").write_text("6,112,112")
    code, report = check(tmp_path)
    assert code == 1
    found = {kind: (found["count"], found["examples"]) for kind, found in report["problems"].items()}
    assert found == {
        "image that does not decode": (2, ["record 1", "record 3"]),
        "image that is not 112x112": (1, ["record 2"]),
        "image of one brightness throughout": (1, ["record 4"]),
        "label that is not one of 0..4": (3, ["record 5: 9", "record 6: 1.5", "record 7: -1"]),
        "image that the index lacks": (2, ["record 12", "record 13"]),
        "property that disagrees with record 0": (1, ["6 identities, not 5"]),
        "identity without an image": (2, ["identity 2", "identity 4"]),
        "image again in another identity": (1, ["records 9 and 10 of identities 0 and 1"]),
    }
    assert report["notes"] == {
        "image again in the same identity": {"count": 1, "examples": ["records 8 and 9"]},
        "identity with one image": {"count": 1, "examples": ["identity 3"]},
    }


def test_an_index_that_does_not_fit_its_file_is_found_out(faces, check, tmp_path):
    write_cvlface_set(tmp_path, faces, LABELS, 4)
    at = dict(index_of(tmp_path))
    size = (tmp_path / "train.rec").stat().st_size
    entries = {**at, 2: at[2] + 4, 4: at[3], 6: size + 400, 7: at[7] + 2}
    del entries[9]
    write_index(tmp_path, [*entries.items(), (1, at[5])])
    code, report = check(tmp_path)
    problems = report["problems"]
    assert code == 1
    assert problems["index entry that points where no record can be"]["examples"] == [
        f"record 6 at byte {size + 400}", f"record 7 at byte {at[7] + 2}",
    ]  # fmt: skip
    assert problems["key that the index lists again"] == {"count": 1, "examples": ["record 1"]}
    assert problems["record that cannot be read"]["examples"] == [
        f"record 2: no record at byte {at[2] + 4}, where the index has key 2; fetch both again"
    ]
    assert problems["record that begins within the one before"]["examples"] == [f"record 4 at byte {at[3]}"]
    unlisted = problems["record that the index does not list"]
    assert unlisted == {"count": 5, "examples": [f"byte {at[key]} (id {key})" for key in (2, 4, 6, 7, 9)]}


def test_what_lies_between_and_after_the_records_is_found(faces, check, tmp_path):
    write_cvlface_set(tmp_path, faces, LABELS, 4)
    at, data = dict(index_of(tmp_path)), bytearray((tmp_path / "train.rec").read_bytes())
    struct.pack_into("<I", data, at[5], MAGIC + 1)
    (tmp_path / "train.rec").write_bytes(data + b"left over ..")
    code, report = check(tmp_path)
    assert code == 1 and set(report["problems"]) == {"record that cannot be read", "bytes that are no record"}
    assert report["problems"]["record that cannot be read"]["examples"][0].startswith("record 5: no record at byte")
    assert report["problems"]["bytes that are no record"]["examples"] == [f"12 from byte {len(data)}"]


@pytest.mark.parametrize("limits", [[5, 3], [float("nan"), 17], None])
def test_a_first_record_that_says_nothing_is_named(faces, check, tmp_path, limits):
    write_record_set(tmp_path / "set", faces, LABELS, 4)
    data = bytearray((tmp_path / "set" / "train.rec").read_bytes())
    if limits:
        struct.pack_into("<2f", data, 32, *limits)
    else:
        data[0] ^= 1
    (tmp_path / "set" / "train.rec").write_bytes(data)
    code, report = check(tmp_path / "set")
    kind = "first record does not say which records are images: all are taken for images"
    assert code == 1 and report["problems"][kind]["examples"][0].startswith("record 0: ")


def test_a_file_that_was_cut_short_loses_what_was_behind_and_no_more(faces, check, tmp_path):
    write_cvlface_set(tmp_path, faces, LABELS, 4)
    at, data = dict(index_of(tmp_path)), (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data[: at[8] + 100])
    code, report = check(tmp_path)
    problems = {kind: found["count"] for kind, found in report["problems"].items()}
    assert (code, report["figures"]["images"]) == (1, 8)
    assert problems == {
        "index entry that points where no record can be": 3,
        "record that cannot be read": 1,
        "identity without an image": 1,
    }
    assert "record 8 is cut off" in report["problems"]["record that cannot be read"]["examples"][0]


def test_a_bin_is_held_against_itself(faces, check, tmp_path):
    one, two, three, four, *rest = faces
    broken = [b"no image", rest[0]]
    small = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8))[1].tobytes()
    pairs = [(one, two), (two, one), (three, three), (four, four), (one, three), (one, three), broken, (small, four)]
    is_same = [True, False, True, False, False, False, True, True]
    write_bin(tmp_path / "pairs.bin", [image for pair in pairs for image in pair], is_same)
    code, report = check(tmp_path / "pairs.bin")
    assert code == 1 and [report["figures"][name] for name in ("pairs", "same", "different")] == [8, 4, 4]
    assert {kind: found["examples"] for kind, found in report["problems"].items()} == {
        "image that does not decode": ["image 12"],
        "fewer pairs than the protocol has folds (10)": ["8 pairs"],
        "pair of one image, said to be different": ["pair 3"],
        "pair said to be the same and different": ["pairs 0 and 1"],
    }
    assert {kind: found["examples"] for kind, found in report["notes"].items()} == {
        "image that is not 112x112": ["image 14"],
        "pair of one image, said to be the same": ["pair 2"],
        "pair that stands twice": ["pairs 4 and 5"],
    }


def test_the_exit_code_tells_sound_from_wrong_from_unreadable(faces, tmp_path):
    write_record_set(tmp_path / "sound", faces, LABELS, 4)
    sound = run_script("tools/check_data.py", tmp_path / "sound", "--num-workers", 1)
    assert (sound.returncode, sound.stdout.splitlines()[-1]) == (0, "nothing wrong"), sound.stderr
    (tmp_path / "sound" / "property").write_text("5,112,112")
    wrong = run_script("tools/check_data.py", tmp_path / "sound", "--num-workers", 0)
    assert wrong.returncode == 1 and "property that disagrees with record 0: 1 (5 identities, not 4)" in wrong.stdout
    (tmp_path / "sound" / "train.idx").write_text("no index")
    unreadable = run_script("tools/check_data.py", tmp_path / "sound")
    assert unreadable.returncode == 2 and "train.idx" in unreadable.stderr


def test_a_report_is_written_over_and_nothing_else_without_force(faces, tmp_path):
    write_record_set(tmp_path / "set", faces, LABELS, 4)
    command = ["tools/check_data.py", tmp_path / "set", "--num-workers", 0, "--json"]
    for _ in range(2):
        assert run_script(*command, tmp_path / "report.json").returncode == 0
    mine = tmp_path / "set" / "property"
    refused = run_script(*command, mine)
    assert refused.returncode == 2 and "property: exists, and is no report" in refused.stderr
    assert mine.read_text().startswith("4,112,112")


def test_only_the_first_examples_are_kept_and_all_are_counted():
    report = Report("set")
    for start in (0, 3, 6):
        report.problem("odd", (str(number) for number in range(start, start + 3)))
    report.problem("absent", [])
    assert report.problems == {"odd": {"count": 9, "examples": ["0", "1", "2", "3", "4"]}}


def test_pairs_are_what_their_labels_say_and_no_image_is_in_two():
    rng = np.random.default_rng(0)
    for identities in (1, 2, 3, 40, 5000):
        labels, positions = rng.integers(0, identities, 300), np.sort(rng.permutation(10_000)[:300])
        label = dict(zip(positions, labels, strict=True))
        same, different = sample_pairs(positions, labels, 50, rng)
        assert len(np.unique(same)) == 2 * len(same) <= 100
        assert all(label[a] == label[b] for a, b in same) and all(label[a] != label[b] for a, b in different)
        assert set(different.ravel()) <= set(same.ravel())
        several = (np.unique(labels, return_counts=True)[1] >= 2).sum()
        assert len({label[a] for a, _ in same}) == min(several, 50)
        assert len(different) >= len(same) // 2 or identities == 1
    assert [len(kind) for kind in sample_pairs(np.arange(0), np.arange(0), 50, rng)] == [0, 0]


def test_a_difference_by_chance_is_not_clear():
    rng = np.random.default_rng(0)
    chance = sum(significantly_higher(*rng.normal(0, 1, (2, 32))) for _ in range(500))
    assert chance <= 3
    assert significantly_higher(rng.normal(2, 1, 32), rng.normal(0, 1, 32))
    assert not significantly_higher(np.full(3, np.nan), np.zeros(3)) and not significantly_higher(
        np.zeros(0), np.zeros(3)
    )


# With real faces and a real network.


@pytest.fixture(scope="module")
def real_faces(face_data):
    """Encoded images and labels of 24 people of LFW, two of each."""
    dataset = RecordDataset(face_data / "lfw")
    labels = dataset.read_labels(np.arange(len(dataset)))
    several = np.flatnonzero(np.bincount(labels) >= 2)[:24]
    positions = np.concatenate([np.flatnonzero(labels == label)[:2] for label in several])
    return [bytes(dataset.read(int(position)).data) for position in positions], np.repeat(np.arange(24), 2)


@pytest.fixture
def teacher(face_data):
    return [
        "teacher=mobilefacenet", f"pretrained_teacher_path={face_data / 'mobilefacenet_y1_128.pth'}",
        "embedding_size=128", "val_batch_size=16",
    ]  # fmt: skip


LABELS_WRONG, COLOURS_WRONG = "labels that say nothing to the teacher", "colours that are swapped, to the teacher"


@pytest.mark.parametrize(("fault", "found"), [("none", []), ("labels", [LABELS_WRONG]), ("colours", [COLOURS_WRONG])])
def test_a_teacher_shows_shuffled_labels_and_swapped_colours(real_faces, teacher, check, tmp_path, fault, found):
    images, labels = real_faces
    if fault == "labels":
        images = [images[place] for place in np.random.default_rng(1).permutation(len(images))]
    if fault == "colours":
        images = [swapped(image) for image in images]
    write_record_set(tmp_path / "set", images, labels, 24)
    code, report = check(tmp_path / "set", "--teacher", *teacher)
    figures = report["figures"]
    assert (code, list(report["problems"])) == (int(bool(found)), found)
    assert figures["pairs_embedded"] == "24 same identity, 24 different"
    if fault == "none":
        assert figures["RGB_same"] > 0.4 > 0.15 > figures["RGB_different"] and figures["RGB_AUC"] > 0.95
        assert figures["RGB_same"] - figures["RGB_different"] > figures["BGR_same"] - figures["BGR_different"]


def test_the_pairs_of_a_bin_are_shown_to_a_teacher(face_data, real_faces, teacher, check, tmp_path):
    images, _ = real_faces
    pairs = [images[i : i + 2] for i in range(0, 24, 2)] + [[images[i], images[i + 4]] for i in range(0, 24, 2)]
    for name, is_same in (("right", [True] * 12 + [False] * 12), ("wrong", [True, False] * 12)):
        write_bin(tmp_path / f"{name}.bin", [image for pair in pairs for image in pair], is_same)
        code, report = check(tmp_path / f"{name}.bin", "--teacher", *teacher)
        assert (code, list(report["problems"])) == ((0, []) if name == "right" else (1, [LABELS_WRONG]))


def notes_of(cfg):
    """What training says of the teacher and the labels."""
    return [note for note in Distillation(cfg, build_dataset(cfg), CPU).notes if "cosine" in note or "WARNING" in note]


def test_training_says_whether_the_teacher_agrees_with_the_labels(real_faces, teacher, tmp_path):
    images, labels = real_faces
    write_record_set(tmp_path / "right", images, labels, 24)
    write_record_set(tmp_path / "wrong", [*images[1:], images[0]], labels, 24)
    settings = [*teacher, "dataset=custom", "width=0.125", "num_workers=0"]
    (live,) = notes_of(load_config(overrides=[*settings, f"rec={tmp_path / 'right'}"]))
    assert live.startswith("teacher on 24 pairs of the training set: cosine 0.")
    same, different = (float(part.split()[0]) for part in live.split("cosine ")[1].split(", "))
    assert same > 0.4 > 0.15 > different
    cached = [*settings, f"rec={tmp_path / 'right'}", f"teacher_embeddings={tmp_path / 'teacher.npy'}"]
    (from_file,) = notes_of(load_config(overrides=cached))
    values = [float(part.split()[0]) for part in from_file.split("cosine ")[1].split(", ")]
    assert np.allclose(values, [same, different], atol=0.0011) and "24 pairs" in from_file
    line, warning = notes_of(load_config(overrides=[*settings, f"rec={tmp_path / 'wrong'}"]))
    assert line.startswith("teacher on 24 pairs") and warning.startswith("WARNING")
    assert all(word in warning for word in ("labels", "colour order", "random weights", "tools/check_data.py"))


def test_the_line_is_in_the_log_and_changes_nothing_of_the_training(small_run, tmp_path, monkeypatch):
    def without_a_trace(*arguments):
        states = torch.get_rng_state(), np.random.get_state()[1].tolist()
        notes = sanity.teacher_notes(*arguments)
        assert torch.equal(states[0], torch.get_rng_state()) and states[1] == np.random.get_state()[1].tolist()
        return notes

    for name, notes in (("with", without_a_trace), ("without", lambda *_: ())):
        monkeypatch.setattr(tasks, "teacher_notes", notes)
        cfg = load_config(
            overrides=[*small_run, f"output={tmp_path / name}", "max_steps=2", "val_eval_every_n_epoch=0"]
        )
        dataset = build_dataset(cfg)
        task = Distillation(cfg, dataset, CPU)
        weights = torch.load(cfg.pretrained_teacher_path, weights_only=True)
        Trainer(cfg, task, dataset, CPU).run()
        assert not task._teacher.training
        assert all(torch.equal(weights[key], value) for key, value in task._teacher.state_dict().items())
    assert "teacher on 24 pairs of the training set" in (tmp_path / "with" / "training.log").read_text()
    assert "24 pairs" not in (tmp_path / "without" / "training.log").read_text()
    one, other = (torch.load(tmp_path / name / "2backbone.pth", weights_only=True) for name in ("with", "without"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert not any("pairs" in note for note in Standalone(cfg, CPU).notes)


def test_only_rank_0_asks_the_teacher(small_run, monkeypatch):
    cfg = load_config(overrides=small_run)
    monkeypatch.setattr(tasks, "rank", lambda: 1)
    monkeypatch.setattr(tasks, "teacher_notes", lambda *_: pytest.fail("asked on rank 1"))
    assert len(Distillation(cfg, build_dataset(cfg), CPU).notes) == 1


class Labelled:
    """A set of labels without images, which counts what is asked for."""

    def __init__(self, labels):
        self.labels, self.read = labels, 0

    def __len__(self):
        return len(self.labels)

    def read_labels(self, positions):
        self.read += len(positions)
        return self.labels[positions]


def test_at_any_size_few_labels_are_read_and_64_images_embedded():
    dataset = Labelled(np.arange(5_822_653) // 68)
    asked = []

    def embed(positions):
        asked.append(positions)
        return np.random.default_rng(0).normal(size=(85_743, 8))[dataset.labels[positions]]

    (line,) = sanity.teacher_notes(dataset, embed, 0)
    assert line.startswith("teacher on 32 pairs of the training set: cosine 1.000 same identity, ")
    assert dataset.read <= 1000 and [len(positions) for positions in asked] == [64]
    assert (np.diff(asked[0]) > 0).all()


def test_a_sample_without_a_pair_is_said_to_be_one():
    (line,) = sanity.teacher_notes(Labelled(np.arange(50_000)), lambda _: pytest.fail("nothing to embed"), 0)
    assert "0 pairs are of one identity" in line


def test_labels_are_read_from_a_folder_set_as_from_records(faces, tmp_path):
    for image, (label, face) in enumerate(zip(LABELS, faces, strict=True)):
        (tmp_path / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(label) / f"{image:02}.jpg").write_bytes(face)
    write_record_set(tmp_path / "set", faces, LABELS, 4)
    for dataset in (FolderDataset(tmp_path / "folder"), RecordDataset(tmp_path / "set")):
        assert dataset.read_labels(np.array([0, 4, 11])).tolist() == [0, 1, 3]
