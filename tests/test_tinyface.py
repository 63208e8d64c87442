"""Closed-set identification, compared with results of the public code and with arithmetic in plain Python."""

import json
import math
from pathlib import PurePosixPath

import numpy as np
import pytest

from data.template_metadata import read_metadata
from eval import identification
from eval.identification import float32_margin, nearest_mate_ranks
from eval.tinyface import LISTS, RANKS, TinyFaceError, evaluate_identification, score_identification


def slow_rates(embeddings, image_paths, metadata):
    """rank-k in percent, probe by probe in plain Python: the gallery is sorted, at equal cosines others come first."""
    rows = {PurePosixPath(path).stem: row for path, row in zip(image_paths, embeddings.tolist(), strict=True)}

    def unit(path):
        row = rows[PurePosixPath(path).stem]
        return [value / math.sqrt(sum(x * x for x in row)) for value in row]

    def identity(path):
        return PurePosixPath(path).name.split("_")[0]

    gallery = [(unit(path), identity(path)) for path in metadata["gallery_paths"]]
    gallery += [(unit(path), None) for path in metadata["distractor_paths"]]
    hits, searched = dict.fromkeys(RANKS, 0), 0
    for probe in metadata["probe_paths"]:
        searched_for, embedding = identity(probe), unit(probe)
        if all(other != searched_for for _, other in gallery):
            continue
        searched += 1
        cosines = [
            (round(sum(x * y for x, y in zip(embedding, row, strict=True)), 12), other == searched_for)
            for row, other in gallery
        ]
        order = [is_mate for _, is_mate in sorted(cosines, key=lambda pair: (-pair[0], pair[1]))]
        for k in RANKS:
            hits[k] += any(order[:k])
    return {f"rank-{k}": 100 * hits[k] / searched for k in RANKS}


def gallery_of(cosines, mate):
    """One probe, and gallery images at the given cosines to it: number `mate` is its mate, the others distractors."""
    angles = [0.0, *np.arccos(cosines)]
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    names = [f"distractor_{number}.jpg" for number in range(len(cosines))]
    names[mate] = "7_1.jpg"
    metadata = {
        "probe_paths": ["7_0.jpg"],
        "gallery_paths": ["7_1.jpg"],
        "distractor_paths": [name for name in names if name != "7_1.jpg"],
    }
    return embeddings, ["7_0.jpg", *names], metadata


def draw_search(seed):
    """Small integer embeddings, so that many cosines tie; identities have up to three images in the gallery."""
    generator = np.random.default_rng(seed)
    metadata = {
        "probe_paths": [f"/a/{identity}_{number}.png" for identity in range(30) for number in range(2)],
        "gallery_paths": [f"/b/{identity}_{9 - n}.png" for identity in range(25) for n in range(1 + identity % 3)],
        "distractor_paths": [f"/c/{number % 30}_{100 + number}.png" for number in range(40)],  # names of identities
    }
    paths = [path.replace(".png", ".jpg") for key in LISTS for path in metadata[key]]
    embeddings = generator.integers(-2, 3, size=(len(paths), 4)) + 0.0
    embeddings[~embeddings.any(axis=1)] = 1.0
    order = generator.permutation(len(paths))
    return embeddings[order], [paths[row] for row in order], metadata


def test_the_metrics_equal_those_of_the_public_code(face_data):
    root = face_data / "template_sets"
    name = "tinyx_aligned_pad_0.1"
    metadata = read_metadata(root / name / "metadata.pt")
    embeddings = np.load(root / name / "embeddings.npy")
    metrics = evaluate_identification(embeddings, metadata["image_paths"], metadata)
    expected = json.loads((root / "expected.json").read_text())[name]
    assert list(metrics) == list(expected)
    assert metrics == pytest.approx(expected, rel=0, abs=1e-6)
    assert metrics == pytest.approx(slow_rates(embeddings, metadata["image_paths"], metadata), rel=1e-7)


@pytest.mark.parametrize("seed", range(10))
def test_ties_several_mates_and_probes_without_a_mate_are_scored(seed, monkeypatch):
    embeddings, paths, metadata = draw_search(seed)
    expected = slow_rates(embeddings, paths, metadata)
    assert evaluate_identification(embeddings, paths, metadata) == pytest.approx(expected, rel=1e-7)
    monkeypatch.setattr(identification, "COSINES_PER_CHUNK", 300)  # a few probes per chunk
    assert evaluate_identification(embeddings, paths, metadata) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("nearer", "expected"),
    [(0, (100, 100, 100)), (1, (0, 100, 100)), (4, (0, 100, 100)), (5, (0, 0, 100)), (20, (0, 0, 0))],
)
def test_a_probe_counts_from_the_rank_of_its_nearest_mate_on(nearer, expected):
    cosines = np.linspace(0.99, 0.1, 30)
    rates = evaluate_identification(*gallery_of(cosines, mate=nearer))
    assert tuple(rates.values()) == expected


def test_a_tie_counts_against_the_probe():
    assert evaluate_identification(*gallery_of([0.5, 0.5, 0.1], mate=0))["rank-1"] == 0
    assert evaluate_identification(*gallery_of([0.5, 0.5, 0.1], mate=1))["rank-1"] == 0


def test_a_tie_of_embeddings_of_different_lengths_counts_against_the_probe():
    generator = np.random.default_rng(0)
    for _ in range(50):
        embeddings = generator.normal(size=(3, 128))
        embeddings[2] = 3 * embeddings[1]
        metadata = {"probe_paths": ["1_0"], "gallery_paths": ["1_1"], "distractor_paths": ["x_0"]}
        assert evaluate_identification(embeddings, ["1_0", "1_1", "x_0"], metadata)["rank-1"] == 0


@pytest.mark.parametrize(("below", "above"), [(0, 3), (3, 0), (5, 2)])
def test_cosines_that_differ_by_less_than_float32_resolves_keep_their_order(below, above):
    generator = np.random.default_rng(below)
    probe, aside = np.linalg.qr(generator.normal(size=(512, 2)))[0].T
    cosines = 0.5 + 1e-9 * np.arange(-below, above + 1)  # the mate's at 0.5
    gallery = cosines[:, None] * probe + np.sqrt(1 - cosines**2)[:, None] * aside
    identities = np.where(np.arange(len(cosines)) == below, 0, -1)
    assert nearest_mate_ranks(probe[None], gallery, np.array([0]), identities) == 1 + above


@pytest.mark.parametrize("spread", [0.0, 1e-8, 1e-4, 1.0])
def test_ranks_equal_those_of_float64_even_for_similar_embeddings(spread, monkeypatch):
    generator = np.random.default_rng(0)
    unit = generator.normal(size=512) + spread * generator.normal(size=(350, 512))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    wanted, identities = np.arange(50), np.append(np.arange(50).repeat(2), np.full(200, -1))
    cosines = unit[:50] @ unit[50:].T
    mates = wanted[:, None] == identities
    nearest = np.where(mates, cosines, -1).max(axis=1, keepdims=True)
    expected = 1 + (~mates & (cosines > nearest - identification.ROUNDING)).sum(axis=1)
    for chunk in (2**24, 1000):
        monkeypatch.setattr(identification, "COSINES_PER_CHUNK", chunk)
        assert (nearest_mate_ranks(unit[:50], unit[50:], wanted, identities) == expected).all()


@pytest.mark.parametrize("dimensions", [1, 4, 128, 512])
def test_float32_cosines_are_within_the_margin(dimensions):
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 500, dimensions))
    second[:100] = first[:100]  # here rounding errors do not cancel
    first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (first, second))
    error = np.abs(first.astype(np.float32) @ second.astype(np.float32).T - first @ second.T).max()
    assert error < float32_margin(dimensions) < 1e-4


def test_a_distractor_with_the_label_of_the_probe_is_no_mate():
    metadata = {"probe_paths": ["1_0.jpg"], "gallery_paths": ["1_1.jpg"], "distractor_paths": ["1_2.jpg"]}
    rates = evaluate_identification(np.array([[1, 0], [0, 1], [1, 0]]), ["1_0.jpg", "1_1.jpg", "1_2.jpg"], metadata)
    assert rates["rank-1"] == 0


def test_probes_without_a_mate_are_left_out():
    embeddings, paths, metadata = gallery_of([0.9, 0.2], mate=0)
    metadata["probe_paths"].append("8_0.jpg")
    rates = evaluate_identification(np.vstack([embeddings, [[0, 1]]]), [*paths, "8_0.jpg"], metadata)
    assert rates["rank-1"] == 100


def test_an_image_in_no_list_is_ignored():
    embeddings, paths, metadata = gallery_of([0.9, 0.2], mate=0)
    rates = evaluate_identification(np.vstack([embeddings, embeddings[:1]]), [*paths, "unused.jpg"], metadata)
    assert rates["rank-1"] == 100


def test_images_are_found_by_name_without_folder_and_extension():
    embeddings, paths, metadata = gallery_of([0.9, 0.2], mate=0)
    elsewhere = [f"/some/where/{path.replace('.jpg', '.png')}" for path in paths]
    assert evaluate_identification(embeddings, elsewhere, metadata)["rank-1"] == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_paths": ["a/7_0.jpg", "b/7_0.png", "distractor_1.jpg"]}, "more than once in image_paths: 7_0;"),
        ({"distractor_paths": ["a/d_1.jpg", "b/d_1.jpg"]}, "more than once in probe_paths, .*: d_1;"),
        ({"probe_paths": ["7_0.jpg", "7_1.jpg"]}, "more than once in probe_paths, .*: 7_1;"),
        ({"probe_paths": ["7_0.jpg", "7_5.jpg"]}, "1 listed images are not in image_paths: 7_5$"),
        ({"gallery_paths": []}, "no probe has a mate"),
        ({"image_paths": ["7_0.jpg", "7_1.jpg"]}, "3 embeddings for 2 image_paths"),
    ],
)
def test_the_error_names_what_cannot_be_scored(change, message):
    embeddings, paths, metadata = gallery_of([0.9, 0.2], mate=0)
    paths = change.pop("image_paths", paths)
    with pytest.raises(TinyFaceError, match=message):
        evaluate_identification(embeddings, paths, {**metadata, **change})


def test_an_embedding_that_is_not_finite_is_named():
    embeddings, paths, metadata = gallery_of([0.9, 0.2], mate=0)
    embeddings[2] = np.nan
    with pytest.raises(TinyFaceError, match="embedding of image 2 is not a finite number"):
        evaluate_identification(embeddings, paths, metadata)


def test_ranks_are_in_the_order_of_the_rows_of_their_probes():
    metadata = {"probe_paths": ["9_0", "1_0", "2_0"], "gallery_paths": ["1_1", "2_1"], "distractor_paths": ["x_0"]}
    names = ["x_0", "1_1", "2_1", "2_0", "9_0", "1_0"]
    embeddings = np.array([[1, 0.1], [1, 0], [0, 1], [1, 0.01], [1, 1], [1, 0]])
    metrics, arrays = score_identification(embeddings, names, metadata)
    assert (arrays["probe"].tolist(), arrays["rank"].tolist()) == ([5, 3], [1, 3])
    assert metrics == {"rank-1": 50, "rank-5": 100, "rank-20": 100}
