"""Template verification, compared with results of the public code and with arithmetic in plain Python."""

import json

import numpy as np
import pytest
from plain_templates import (
    VARIANTS,
    assert_metrics_equal_plain_arithmetic,
    draw_templates,
    slow_points,
    slow_scores,
)
from test_bootstrap import drawn_weights, slow_point

from benchmarks import protocols
from data.template_metadata import read_metadata
from eval import bootstrap, ijb
from eval.ijb import FPRS, TemplateError, evaluate_templates, operating_points, score_templates

ARRAYS = ("faceness_scores", "templates", "medias", "label", "p1", "p2")


@pytest.fixture(scope="module")
def real(face_data):
    root = face_data / "template_sets"
    name = "IJBX_gt_aligned"
    metadata = read_metadata(root / name / "metadata.pt")
    expected = json.loads((root / "expected.json").read_text())[name]
    return np.load(root / name / "embeddings.npy"), [metadata[key] for key in ARRAYS], expected


def test_the_metrics_equal_those_of_the_public_code(real):
    embeddings, arrays, expected = real
    metrics = evaluate_templates(embeddings, *arrays)
    assert list(metrics) == list(expected)
    assert metrics == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_metrics_on_real_templates_equal_those_in_plain_python(real):
    embeddings, (faceness, templates, medias, label, p1, p2), _ = real
    few = np.flatnonzero((np.arange(len(label)) % 100 == 0) | (label == 1))
    assert_metrics_equal_plain_arithmetic(embeddings, faceness, templates, medias, label[few], p1[few], p2[few])


@pytest.mark.parametrize("seed", range(5))
def test_ids_with_gaps_templates_of_one_image_and_shared_media_ids_are_scored(seed):
    assert_metrics_equal_plain_arithmetic(*draw_templates(seed))


def test_many_tied_scores_give_the_metrics_in_plain_python():
    for seed in range(50):
        generator = np.random.default_rng(seed)
        templates = np.append(np.arange(8), generator.integers(0, 4, 6))  # at least four have one image
        medias = generator.integers(0, 2, len(templates))
        embeddings = generator.integers(0, 3, (len(templates), 3)).astype(np.float32)
        embeddings[:, 0] += 1  # none has length 0
        p1, p2 = generator.integers(0, 8, (2, 100))  # of 64 possible pairs: some occur twice
        label = np.append([0, 1], generator.integers(0, 2, 98))
        faceness = generator.choice([0.5, 1.0], len(templates))
        assert_metrics_equal_plain_arithmetic(embeddings, faceness, templates, medias, label, p1, p2)


@pytest.mark.parametrize("decimals", [1, 2, 3, 12])
def test_the_operating_points_equal_those_of_scikit_learns_curve(decimals):
    generator = np.random.default_rng(decimals)
    label = (generator.random(20_000) < 0.01).astype(np.int64)
    scores = (generator.normal(size=20_000) / 5 + label).round(decimals)
    assert list(operating_points(label, scores).items()) == list(zip(FPRS, slow_points(label, scores), strict=True))


def test_scores_that_differ_by_less_than_float32_resolves_keep_their_order():
    generator = np.random.default_rng(0)
    center, aside = np.linalg.qr(generator.normal(size=(512, 2)))[0].T
    cosines = 0.5 + 1e-9 * np.arange(1, 41)  # 40 pairs within a float32 step; genuine and impostor pairs alternate
    others = cosines[:, None] * center + np.sqrt(1 - cosines**2)[:, None] * aside
    embeddings = np.vstack([center, others])
    ids = np.arange(41)
    label = ids[1:] % 2
    metrics = evaluate_templates(embeddings, np.ones(41), ids, ids, label, np.zeros(40, dtype=int), ids[1:])
    # FPR 0.1 is 2 of 20 impostors. In descending order pairs 40, 38, 36, ... are impostors and 39, 37, ... are genuine,
    # so pair 37 (index 36) is the last one before the third impostor, and 2 of 20 genuine pairs are accepted.
    assert metrics["Norm:True_Det:True_tpr_at_fpr_0.1"] == 10.0
    assert metrics["Norm:True_Det:True_thresh_at_fpr_0.1"] == pytest.approx(cosines[36], abs=1e-12)


def one_image_templates(cosines, label):
    """Pair i is template 0 and template i + 1 at the given cosine, in the plane."""
    angles = np.arccos([1.0, *cosines])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    count = len(embeddings)
    p1, p2 = np.zeros(len(cosines), dtype=int), np.arange(1, count)
    return embeddings, np.ones(count), np.arange(count), np.zeros(count, dtype=int), np.array(label), p1, p2


def test_an_infinite_threshold_is_none():
    metrics = evaluate_templates(*one_image_templates([0.9, 0.5, 0.1], [0, 1, 0]))
    assert metrics["Norm:True_Det:True_tpr_at_fpr_1e-06"] == 0.0
    assert metrics["Norm:True_Det:True_thresh_at_fpr_1e-06"] is None
    json.dumps(metrics, allow_nan=False)


def test_the_point_with_the_largest_tpr_counts_among_those_of_one_fpr():
    metrics = evaluate_templates(*one_image_templates([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 1]))
    assert metrics["Norm:True_Det:False_tpr_at_fpr_0.1"] == pytest.approx(200 / 3)
    assert metrics["Norm:True_Det:False_thresh_at_fpr_0.1"] == pytest.approx(0.8)


def test_the_largest_of_equally_near_fprs_counts():
    cosines = [0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6]  # impostors at FPR 0 and, after one of five, at 0.2
    metrics = evaluate_templates(*one_image_templates(cosines, [1, 0, 1, 0, 0, 0, 0]))
    assert metrics["Norm:True_Det:True_tpr_at_fpr_0.1"] == 100.0
    assert metrics["Norm:True_Det:True_thresh_at_fpr_0.1"] == pytest.approx(0.8)
    assert metrics["Norm:True_Det:True_tpr_at_fpr_0.01"] == 50.0


def test_tied_scores_are_accepted_together():
    embeddings, faceness, templates, medias, label, p1, p2 = one_image_templates([0.5, 0.5, 0.5, 0.1], [1, 0, 1, 0])
    metrics = evaluate_templates(embeddings, faceness, templates, medias, label, p1, p2)
    assert metrics["Norm:True_Det:True_tpr_at_fpr_0.1"] == 0.0
    assert metrics["Norm:True_Det:True_thresh_at_fpr_0.1"] is None


def test_a_template_of_length_zero_scores_zero():
    embeddings, *rest = one_image_templates([0.5, 0.2, -0.1], [1, 0, 0])
    embeddings[2] = 0
    metrics = evaluate_templates(embeddings, *rest)
    assert metrics["Norm:False_Det:True_tpr_at_fpr_1e-06"] == 100.0


def test_a_pair_is_accepted_from_the_threshold_at_fpr_1e_4_on():
    embeddings, faceness, templates, medias, label, p1, p2 = draw_templates()
    metrics, arrays = score_templates(embeddings, faceness, templates, medias, label, p1, p2)
    assert arrays["label"].tolist() == (label == 1).tolist()
    for variant, name in VARIANTS.items():
        scores = np.array(slow_scores(embeddings, faceness, templates, medias, p1, p2, *variant))
        assert arrays[f"{name}.score"].dtype == np.float32
        assert arrays[f"{name}.score"] == pytest.approx(scores, abs=1e-6)
        threshold = metrics[f"{name}_thresh_at_fpr_0.0001"]
        accepted = scores > threshold - 1e-10 if threshold is not None else np.zeros(len(scores), dtype=bool)
        assert arrays[f"{name}.decision"].tolist() == accepted.tolist()


def test_a_pair_that_scores_exactly_the_threshold_is_accepted():
    """At FPR 1e-4 the nearest point has no impostor: the threshold is the score of the last genuine pair before one."""
    metrics, arrays = score_templates(*one_image_templates([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1]))
    for name in VARIANTS.values():
        assert metrics[f"{name}_thresh_at_fpr_0.0001"] == pytest.approx(0.8, abs=1e-9)
        assert arrays[f"{name}.decision"].tolist() == [True, True, False, False]


def templates_of_people(seed=0):
    """Arguments of `evaluate_templates`, and identities: 40 templates of 14 people and all their pairs."""
    rng = np.random.default_rng(seed)
    ids, person = rng.permutation(1000)[:40], np.arange(40) % 14
    template = rng.permutation(np.append(np.arange(40), rng.integers(0, 40, 60)))  # of each image
    center = rng.normal(size=(14, 8))
    embeddings = (3 * center[person[template]] + 2 * rng.normal(size=(100, 8))).astype(np.float32)
    first, second = np.triu_indices(40, 1)
    label = (person[first] == person[second]).astype(np.int64)
    images = [embeddings, rng.random(100), ids[template], rng.integers(0, 3, 100)]
    return [*images, label, ids[first], ids[second]], 50 + person[template]


def test_identities_add_intervals_like_those_of_a_loop_and_change_nothing_else(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40)
    monkeypatch.setattr(bootstrap, "RESAMPLES_AT_ONCE", 20)
    monkeypatch.setattr(ijb, "INTERVAL_FARS", (0.1, 0.02))
    arguments, identities = templates_of_people()
    metrics, arrays = score_templates(*arguments)
    more, same_arrays = score_templates(*arguments, identities)
    assert {name: more[name] for name in metrics} == metrics
    assert all(np.array_equal(arrays[name], same_arrays[name]) for name in arrays)

    label, p1, p2 = arguments[4:]
    scores = np.array(slow_scores(*arguments[:4], p1, p2, keep_norm=True, use_faceness=True))
    of_template = dict(zip(arguments[2].tolist(), identities.tolist(), strict=True))
    names = np.array([[of_template[a], of_template[b]] for a, b in zip(p1.tolist(), p2.tolist(), strict=True)])
    weights = drawn_weights(label == 1, names)
    expected = {"identities": 14}
    for far in (0.1, 0.02):
        value = slow_point(label == 1, scores, np.ones(len(label)), far)
        slow = [slow_point(label == 1, scores, weight, far) for weight in weights]
        for kind, one, drawn in zip(("thresh", "TAR"), value, zip(*slow, strict=True), strict=True):
            drawn = sorted(drawn)  # the smallest value with at least 2.5 and 97.5 % at or below it
            ends = dict(zip(("", "_low", "_high"), (one, drawn[0], drawn[38]), strict=True))
            expected |= {f"{kind}_at_FAR_{far}{end}": number for end, number in ends.items()}
    assert {name: more[name] for name in more.keys() - metrics.keys()} == pytest.approx(expected, abs=1e-11)


def test_identities_that_contradict_templates_or_labels_are_refused():
    arguments, identities = templates_of_people()
    image = int(np.flatnonzero(np.bincount(arguments[2])[arguments[2]] > 1)[0])  # another one is in its template
    mixed = identities.copy()
    mixed[image] += 1
    with pytest.raises(TemplateError, match=f"the images of template {arguments[2][image]} have several identities"):
        evaluate_templates(*arguments, mixed)
    arguments[4][7] = 1 - arguments[4][7]
    with pytest.raises(TemplateError, match=f"those of pair 7 do not agree with its label {arguments[4][7]}"):
        evaluate_templates(*arguments, identities)
    with pytest.raises(TemplateError, match="templates 100, identities 99"):
        evaluate_templates(*arguments, identities[:99])


def test_the_benchmark_gives_the_metrics_of_plain_arithmetic():
    result = protocols.measure("ijb", 0.002, plain=True)  # raises where they differ
    assert result["size"] == "IJB-C: 939 images, 46 templates, 31,317 pairs"
    assert result["seconds"] > 0 and result["plain"] > 0
