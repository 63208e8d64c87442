"""tools/make_pairs.py as users run it; pairs, rates and ranks are compared with plain Python and scikit-learn."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from arrow_sets import datasets
from checked_sets import write_cvlface_set
from conftest import run_script
from evaluation_sets import FULL, score
from sklearn.metrics import roc_curve
from test_make_low_resolution import by_opencv

from data.images import decode_rgb
from data.recordio import RecordWriter
from data.template_metadata import read_metadata
from demo.make_demo_data import encoded_face
from eval import ijb, tinyface
from tools.make_pairs import choose_images, draw_gallery, genuine_pairs, impostor_pairs

TOOL = "tools/make_pairs.py"
LABELS = [2, 0, 2, 4, 0, 1, 2, 4, 0, 2, 4, 0]  # person 1 has one image, nobody has the label 3
GENUINE = {pair for pair in itertools.combinations(range(12), 2) if LABELS[pair[0]] == LABELS[pair[1]]}
IMPOSTOR = {*itertools.combinations(range(12), 2)} - GENUINE
NAMES = ("pairs", "16", "32")


@pytest.fixture(scope="module")
def faces():
    return [encoded_face((0, label, number, 0.3)) for number, label in enumerate(LABELS)]


@pytest.fixture(scope="module")
def people(faces, tmp_path_factory):
    """A record set in the order of LABELS, in a folder named people."""
    folder = tmp_path_factory.mktemp("records") / "people"
    folder.mkdir()
    return write_cvlface_set(folder, faces, LABELS, stated=5)


@pytest.fixture(scope="module")
def made(people, tmp_path_factory):
    """The folder with a set of 20 impostor pairs, and sets of 16 and 32 pixels."""
    output = tmp_path_factory.mktemp("made")
    done = run_script(TOOL, people, output, "--impostors", "20", "--low-resolution", "16", "32", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{output}/people_pairs: 12 images of 4 people, 15 genuine pairs (all), 20 impostor pairs (of 51)",
        f"{output}/people_16: 8 probes with 16 x 16 pixels, 3 images in the gallery, 1 distractors",
        f"{output}/people_32: 8 probes with 32 x 32 pixels, 3 images in the gallery, 1 distractors",
    ]
    assert sorted(path.name for path in output.iterdir()) == sorted(f"people_{name}" for name in NAMES)
    return output


@pytest.mark.parametrize("seed", range(10))
def test_the_pairs_are_those_of_plain_combinations(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 3, 4, 100], rng.integers(5, 40))
    labels[:3] = 0, 0, 4  # both kinds of pairs exist
    every = [*itertools.combinations(range(len(labels)), 2)]
    genuine = {(i, j) for i, j in every if labels[i] == labels[j]}
    found = genuine_pairs(labels)
    assert len(found) == len(genuine) and {*map(tuple, found.tolist())} == genuine
    impostors = {*every} - genuine
    for number in (1, len(impostors) // 2 + 1, len(impostors)):
        drawn = {*map(tuple, impostor_pairs(labels, number, np.random.default_rng(0)).tolist())}
        assert len(drawn) == number and drawn <= impostors


def test_every_impostor_pair_is_drawn_equally_often():
    drawn = Counter()
    for seed in range(2000):
        drawn.update(map(tuple, impostor_pairs(np.array(LABELS), 5, np.random.default_rng(seed)).tolist()))
    assert {*drawn} == IMPOSTOR
    expected = 2000 * 5 / len(IMPOSTOR)  # 196, with a standard deviation of 13
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())


def test_every_image_can_be_in_the_gallery():
    labels = np.array(LABELS)
    galleries = [draw_gallery(labels, np.random.default_rng(seed)) for seed in range(100)]
    assert all(sorted(labels[gallery]) == [0, 1, 2, 4] for gallery in galleries)
    assert {*np.concatenate(galleries).tolist()} == {*range(12)}


def test_the_set_of_pairs_has_the_images_of_the_records_and_the_pairs_of_their_labels(made, faces):
    images = ijb.PROTOCOL.open(made / "people_pairs")
    assert [images.read(position) for position in range(12)] == faces
    metadata = images.metadata
    assert metadata["identities"].tolist() == LABELS
    assert metadata["faceness_scores"].tolist() == [1] * 12 and metadata["templates"].tolist() == [*range(12)]
    pairs = [*zip(metadata["p1"].tolist(), metadata["p2"].tolist(), metadata["label"].tolist(), strict=True)]
    assert {(i, j) for i, j, label in pairs if label} == GENUINE and len({*pairs}) == len(pairs) == 35
    assert {(i, j) for i, j, label in pairs if not label} < IMPOSTOR


def test_at_most_so_many_images_of_a_person_are_used(people, faces, tmp_path):
    counts = Counter()
    for seed in range(300):
        chosen = choose_images(np.array(LABELS), 2, np.random.default_rng(seed))
        assert (np.diff(chosen) > 0).all() and sorted(np.array(LABELS)[chosen]) == [0, 0, 1, 2, 2, 4, 4]
        counts.update(chosen.tolist())
    of_zero = [counts[position] for position, label in enumerate(LABELS) if label == 0]
    assert min(of_zero) > 100 and max(of_zero) < 200  # 150 expected, with a standard deviation of 9
    score(TOOL, people, tmp_path, "--sample", "2", "--low-resolution", "16")
    pairs, small = ijb.PROTOCOL.open(tmp_path / "people_pairs"), tinyface.PROTOCOL.open(tmp_path / "people_16")
    chosen = choose_images(np.array(LABELS), 2, np.random.default_rng(0))
    assert [pairs.read(position) for position in range(7)] == [faces[position] for position in chosen]
    names = small.metadata["image_paths"]
    for probe in map(names.index, small.metadata["probe_paths"]):
        difference = small[[probe]].float() - pairs[[probe]].float()
        assert 0 < difference.abs().mean() < 25  # a blurred copy of the same image


@pytest.mark.parametrize(("size", "reach"), [(16, 3), (32, 1)])
def test_probes_have_few_pixels_and_the_gallery_has_the_images_of_the_records(made, faces, size, reach):
    images = tinyface.PROTOCOL.open(made / f"people_{size}")
    names = images.metadata["image_paths"]
    assert [name.split("_")[0] for name in names] == [str(label) for label in LABELS] and len({*names}) == 12
    lists = [images.metadata[key] for key in tinyface.LISTS]
    probes, gallery, distractors = ([names.index(name) for name in part] for part in lists)
    assert sorted(LABELS[position] for position in gallery) == [0, 2, 4]
    assert [LABELS[position] for position in distractors] == [1]
    assert sorted([*probes, *gallery, *distractors]) == [*range(12)]
    for position in range(12):
        stored = images.read(position)
        if position not in probes:
            assert stored == faces[position]
            continue
        original, found = (decode_rgb(data, "image") for data in (faces[position], stored))
        shifts = itertools.product(range(-reach, reach + 1), repeat=2)
        assert any(np.array_equal(by_opencv(original, size, *shift), found[8:104, 8:104]) for shift in shifts)


def test_the_gallery_is_the_same_for_every_size(made):
    lists = [read_metadata(made / f"people_{size}" / "metadata.pt") for size in (16, 32)]
    assert lists[0] == lists[1]


def test_the_seed_decides_pairs_gallery_and_pixels(made, people, tmp_path):
    for seed in (1, 2):
        arguments = ["--impostors", "20", "--low-resolution", "16", "--seed", str(seed)]
        assert run_script(TOOL, people, tmp_path / str(seed), *arguments).returncode == 0
    folders = made, tmp_path / "1", tmp_path / "2"
    for name in ("people_pairs", "people_16"):
        first, same, other = (read_metadata(root / name / "metadata.pt") for root in folders)
        equal = [all(np.array_equal(first[key], copy[key]) for key in first) for copy in (same, other)]
        assert equal == [True, False]
    first, same, other = (datasets.load_from_disk(str(root / "people_16")).with_format("arrow")[:] for root in folders)
    assert first == same and first != other


def test_the_protocols_score_the_sets(made, tmp_path):
    """TPRs as scikit-learn's curve gives them, and rank 1 as a loop finds it, from the embeddings."""
    from backbones.mobilefacenet import MobileFaceNet

    torch.manual_seed(0)
    torch.save(MobileFaceNet(16, 0.125).state_dict(), tmp_path / "net.pth")
    sets = [f"ijb_root={made}", "ijb_targets=people_pairs", f"tinyface_root={made}", "tinyface_targets=people_16",
            "val_targets=[]", "width=0.125", "embedding_size=16", "ijb_num_workers=0",
            "tinyface_num_workers=0"]  # fmt: skip
    files = ["--results-json", tmp_path / "r.json", "--save-embeddings", tmp_path]
    done = score(FULL, "--checkpoint", tmp_path / "net.pth", *sets, *files)
    results = json.loads((tmp_path / "r.json").read_text())
    found = results["ijb"]["people_pairs"]
    metadata = read_metadata(made / "people_pairs" / "metadata.pt")
    unit = np.load(tmp_path / "ijb.people_pairs.npy").astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = (unit[metadata["p1"]] * unit[metadata["p2"]]).sum(1)
    fpr, tpr, _ = roc_curve(metadata["label"], cosines)
    for far in (0.01, 0.1):
        nearest = tpr[np.abs(fpr - far) == np.abs(fpr - far).min()].max()
        assert found[f"Norm:True_Det:True_tpr_at_fpr_{far}"] == pytest.approx(100 * nearest)
    assert found["identities"] == 4 and (found["genuine_pairs"], found["impostor_pairs"]) == (15, 20)
    assert found["TAR_at_FAR_0.01"] is None and "ijb.people_pairs.TAR_at_FAR_0.01" in results["not_measurable"]
    assert "TAR_at_FAR_0.01 [%]" in done.stdout

    lists = read_metadata(made / "people_16" / "metadata.pt")
    unit = np.load(tmp_path / "tinyface.people_16.npy").astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit = dict(zip(lists["image_paths"], unit, strict=True))
    searched = [*lists["gallery_paths"], *lists["distractor_paths"]]
    hits = 0
    for probe in lists["probe_paths"]:
        nearest = max(searched, key=lambda name: unit[name] @ unit[probe])
        hits += nearest.split("_")[0] == probe.split("_")[0]
    assert results["tinyface"]["people_16"]["rank-1"] == pytest.approx(100 * hits / 8)


def test_all_impostor_pairs_are_taken_if_there_are_few(people, tmp_path):
    done = run_script(TOOL, people, tmp_path)
    assert done.returncode == 0 and "51 impostor pairs (of 51)" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["people_pairs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--impostors", "52"], "has 51 pairs of two people; --impostors must be at most 51"),
        (["--impostors", "0"], "--impostors must be at least 1"),
        (["--low-resolution", "57"], "--low-resolution must be from 1 to 56"),
        (["--seed", "-1"], "--seed and --sample must be at least 0"),
    ],
)
def test_wrong_arguments_are_refused(people, tmp_path, arguments, words):
    done = run_script(TOOL, people, tmp_path, *arguments)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0, 1, 2], "no person has two images"), ([0, 0, 0], "has 0 pairs of two people; name a set of several people")],
)
def test_a_set_without_one_kind_of_pairs_is_refused(faces, tmp_path, labels, words):
    write_cvlface_set(tmp_path, faces[: len(labels)], labels, stated=3)
    done = run_script(TOOL, tmp_path, tmp_path / "out")
    assert done.returncode == 2 and words in done.stderr and not (tmp_path / "out").exists()


def test_a_broken_image_is_named_and_no_set_is_written(faces, tmp_path):
    with RecordWriter(tmp_path / "train") as writer:
        for key, image in enumerate([*faces[:2], b"no image"]):
            writer.write(key, key // 2, image)
    (tmp_path / "property").write_text("2,112,112")
    done = run_script(TOOL, tmp_path, tmp_path / "out", "--low-resolution", "16")
    assert done.returncode == 2 and "train.rec: record 2: its 8 bytes are not an image" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())


def test_only_folders_of_this_tool_are_replaced(people, tmp_path):
    assert run_script(TOOL, people, tmp_path, "--impostors", "3").returncode == 0
    done = run_script(TOOL, people, tmp_path, "--impostors", "4")
    assert done.returncode == 0, done.stderr
    target = tmp_path / "people_pairs"
    label = read_metadata(target / "metadata.pt")["label"]
    assert np.count_nonzero(label == 0) == 4
    for name, text, words in [
        ("dataset_info.json", '{"description": ""}', "tools/make_pairs.py did not make this folder"),
        ("notes.txt", "mine", "has other content (notes.txt)"),
    ]:
        (target / name).write_text(text)
        before = {path.name: path.read_bytes() for path in target.iterdir()}
        done = run_script(TOOL, people, tmp_path, "--impostors", "5", "--low-resolution", "16")
        assert done.returncode == 2 and words in done.stderr and "name another" in done.stderr
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["people_pairs"]
