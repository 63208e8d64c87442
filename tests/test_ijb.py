"""Template verification, against the public code's figures and against arithmetic written out the slow way."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from benchmarks import protocols
from data.arrow_set import read_metadata
from eval import ijb
from eval.ijb import FPRS, TemplateError, evaluate_templates, pair_scores, roc_points, score_templates, tpr_at_fpr

ARRAYS = ("faceness_scores", "templates", "medias", "label", "p1", "p2")
VARIANTS = {
    (True, True): "Norm:True_Det:True",
    (True, False): "Norm:True_Det:False",
    (False, True): "Norm:False_Det:True",
}


def slow_scores(embeddings, faceness, templates, medias, p1, p2, keep_norm, use_faceness):
    """Scores of the pairs, image by image in plain Python."""
    media: dict[int, dict[int, list[list[float]]]] = {}
    for row, face, template, medium in zip(embeddings.tolist(), faceness, templates, medias, strict=True):
        norm = math.sqrt(sum(value * value for value in row))
        factor = (1.0 if keep_norm else 1.0 / norm) * (face if use_faceness else 1.0)
        media.setdefault(template, {}).setdefault(medium, []).append([value * factor for value in row])
    unit = {}
    for template, by_medium in media.items():
        means = [[sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in by_medium.values()]
        total = [sum(column) for column in zip(*means, strict=True)]
        length = math.sqrt(sum(value * value for value in total))
        unit[template] = [value / length for value in total]
    cosines = [sum(x * y for x, y in zip(unit[a], unit[b], strict=True)) for a, b in zip(p1, p2, strict=True)]
    return [round(cosine, 12) for cosine in cosines]  # equal ones tie, whatever the order of additions


def slow_points(label, scores):
    """(TPR in percent, threshold) at each FPR, over every point of scikit-learn's curve, one after another."""
    points = []
    for wanted in FPRS:
        best = None
        for fpr, tpr, threshold in zip(*roc_curve(label, scores), strict=True):
            if best is None or abs(fpr - wanted) <= abs(best[0] - wanted):
                best = (fpr, tpr, threshold)
        points.append((100 * best[1], None if math.isinf(best[2]) else best[2]))
    return points


def generated(seed=0):
    """Templates of one to nine images in one to three media, under ids with gaps; media ids are reused by templates."""
    generator = np.random.default_rng(seed)
    ids = generator.permutation(np.array([3, 4, 10, 11, 500, 501, 777, 90_000, 90_001, 123_456]))
    templates = np.concatenate([ids, generator.choice(ids[1:], 40)])  # ids[0] has one image
    generator.shuffle(templates)
    medias = generator.choice([7, 8, 9000], len(templates))
    embeddings = (generator.normal(size=(len(templates), 6)) * 5).astype(np.float32)
    p1, p2 = generator.choice(ids, (2, 300))
    label = (generator.random(300) < 0.2).astype(np.int64)
    return embeddings, generator.random(len(templates)), templates, medias, label, p1, p2


@pytest.fixture(scope="module")
def real(face_data):
    root = face_data / "template_sets"
    name = "IJBX_gt_aligned"
    metadata = read_metadata(root / name / "metadata.pt")
    expected = json.loads((root / "expected.json").read_text())[name]
    return np.load(root / name / "embeddings.npy"), [metadata[key] for key in ARRAYS], expected


def test_figures_are_those_of_the_public_code(real):
    embeddings, arrays, expected = real
    figures = evaluate_templates(embeddings, *arrays)
    assert list(figures) == list(expected)
    assert figures == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_scores_are_those_of_the_slow_way_on_real_templates(real):
    embeddings, (faceness, templates, medias, label, p1, p2), _ = real
    few = np.flatnonzero((np.arange(len(label)) % 100 == 0) | (label == 1))
    pairs = [part[few] for part in (label, p1, p2)]
    figures = evaluate_templates(embeddings, faceness, templates, medias, *pairs)
    for variant, name in VARIANTS.items():
        points = slow_points(pairs[0], slow_scores(embeddings, faceness, templates, medias, *pairs[1:], *variant))
        for fpr, (tpr, threshold) in zip(FPRS, points, strict=True):
            assert figures[f"{name}_tpr_at_fpr_{fpr}"] == pytest.approx(tpr, abs=1e-9)
            assert figures[f"{name}_thresh_at_fpr_{fpr}"] == pytest.approx(threshold, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_gaps_in_ids_one_image_templates_and_shared_media_ids(seed):
    embeddings, faceness, templates, medias, label, p1, p2 = generated(seed)
    figures = evaluate_templates(embeddings, faceness, templates, medias, label, p1, p2)
    for variant, name in VARIANTS.items():
        points = slow_points(label, slow_scores(embeddings, faceness, templates, medias, p1, p2, *variant))
        for fpr, (tpr, threshold) in zip(FPRS, points, strict=True):
            assert figures[f"{name}_tpr_at_fpr_{fpr}"] == pytest.approx(tpr, abs=1e-9)
            assert figures[f"{name}_thresh_at_fpr_{fpr}"] == (threshold and pytest.approx(threshold, abs=1e-12))


def test_small_integer_embeddings_with_many_ties():
    for seed in range(50):
        generator = np.random.default_rng(seed)
        templates = np.append(np.arange(8), generator.integers(0, 4, 6))  # four of one image for certain
        medias = generator.integers(0, 2, len(templates))
        embeddings = generator.integers(0, 3, (len(templates), 3)).astype(np.float32)
        embeddings[:, 0] += 1  # none of length 0
        p1, p2 = generator.integers(0, 8, (2, 100))  # of 64 possible pairs: some stand twice
        label = np.append([0, 1], generator.integers(0, 2, 98))
        faceness = generator.choice([0.5, 1.0], len(templates))
        figures = evaluate_templates(embeddings, faceness, templates, medias, label, p1, p2)
        for variant, name in VARIANTS.items():
            points = slow_points(label, slow_scores(embeddings, faceness, templates, medias, p1, p2, *variant))
            for fpr, (tpr, threshold) in zip(FPRS, points, strict=True):
                assert figures[f"{name}_tpr_at_fpr_{fpr}"] == pytest.approx(tpr, abs=1e-9)
                assert figures[f"{name}_thresh_at_fpr_{fpr}"] == (threshold and pytest.approx(threshold, abs=1e-12))


@pytest.mark.parametrize("distinct", [1, 2, 3, 10, 100, 10**9])
def test_the_points_are_those_of_scikit_learn(distinct):
    generator = np.random.default_rng(distinct)
    for _ in range(100):
        size = generator.integers(2, 60)
        label = generator.permutation(np.append([0, 1], generator.integers(0, 2, size - 2)))
        scores = generator.integers(0, distinct, size) / distinct - 0.5
        fpr, tpr, thresholds = roc_curve(label, scores)
        false, true, ours = (part[::-1] for part in roc_points(label, scores))
        assert (false / false[-1] == fpr).all()
        assert (true / true[-1] == tpr).all()
        assert (ours == thresholds).all()


@pytest.mark.parametrize("decimals", [1, 2, 3, 12])
def test_operating_points_are_those_of_scikit_learn_s_curve(decimals):
    generator = np.random.default_rng(decimals)
    label = (generator.random(20_000) < 0.01).astype(np.int64)
    scores = (generator.normal(size=20_000) / 5 + label).round(decimals)
    assert tpr_at_fpr(label, scores) == slow_points(label, scores)


def test_scores_closer_than_float32_can_tell_keep_their_order():
    generator = np.random.default_rng(0)
    center, aside = np.linalg.qr(generator.normal(size=(512, 2)))[0].T
    cosines = 0.5 + 1e-9 * np.arange(1, 41)  # 40 pairs within a float32 step; genuine and impostor take turns
    others = cosines[:, None] * center + np.sqrt(1 - cosines**2)[:, None] * aside
    embeddings = np.vstack([center, others])
    ids = np.arange(41)
    label = ids[1:] % 2
    figures = evaluate_templates(embeddings, np.ones(41), ids, ids, label, np.zeros(40, dtype=int), ids[1:])
    # The nearest to 0.1 is 2 of 20 impostors (39 and 37 of 1 to 40 are genuine, 40 and 38 are not, as is 36).
    assert figures["Norm:True_Det:True_tpr_at_fpr_0.1"] == 10.0
    assert figures["Norm:True_Det:True_thresh_at_fpr_0.1"] == pytest.approx(cosines[36], abs=1e-12)


def test_scores_stand_in_the_order_of_the_pairs(monkeypatch):
    generator = np.random.default_rng(0)
    units = generator.normal(size=(2, 30, 5))
    units /= np.linalg.norm(units, axis=2, keepdims=True)
    first, second = generator.integers(0, 30, (2, 5000))  # more than there are different pairs
    expected = (units[:, first] * units[:, second]).sum(axis=2)
    for block in (1024, 30, 7, 1):
        monkeypatch.setattr(ijb, "TEMPLATES_A_BLOCK", block)
        assert pair_scores(units, first, second) == pytest.approx(expected, abs=1e-12)
    assert pair_scores(units, first[:1], second[:1]) == pytest.approx(expected[:, :1], abs=1e-12)


def test_figures_do_not_depend_on_blocks_and_chunks(monkeypatch):
    arrays = generated()
    whole = evaluate_templates(*arrays)
    monkeypatch.setattr(ijb, "TEMPLATES_A_BLOCK", 3)
    monkeypatch.setattr(ijb, "IMAGES_A_CHUNK", 7)
    assert evaluate_templates(*arrays) == pytest.approx(whole, abs=1e-9)


def test_figures_do_not_depend_on_what_the_ids_are():
    embeddings, faceness, templates, medias, label, p1, p2 = generated()
    figures = evaluate_templates(embeddings, faceness, templates, medias, label, p1, p2)
    for shift, stretch in ((-600, 1), (0, 2**40)):  # some below 0, some far apart
        other = [stretch * part + shift for part in (templates, p1, p2)]
        assert evaluate_templates(embeddings, faceness, other[0], medias, label, *other[1:]) == figures
        for wrong in (-(2**60), -601, 2**60):
            other[1][0] = wrong
            with pytest.raises(TemplateError, match=f"p1 names 1 template ids that no image has: {wrong}$"):
                evaluate_templates(embeddings, faceness, other[0], medias, label, *other[1:])


def test_figures_do_not_depend_on_the_order_of_images():
    embeddings, faceness, templates, medias, *pairs = generated()
    order = np.random.default_rng(1).permutation(len(templates))
    shuffled = evaluate_templates(embeddings[order], faceness[order], templates[order], medias[order], *pairs)
    assert shuffled == pytest.approx(evaluate_templates(embeddings, faceness, templates, medias, *pairs), abs=1e-9)


def test_an_image_whose_template_is_in_no_pair_changes_nothing():
    embeddings, faceness, templates, medias, *pairs = generated()
    more = [np.append(faceness, 0.5), np.append(templates, 5), np.append(medias, 7)]
    with_it = evaluate_templates(np.vstack([embeddings, np.ones((1, 6))]), *more, *pairs)
    assert with_it == pytest.approx(evaluate_templates(embeddings, faceness, templates, medias, *pairs), abs=1e-9)


def one_image_templates(cosines, label):
    """Pair i is template 0 and template i + 1 at the given cosine, in the plane."""
    angles = np.arccos([1.0, *cosines])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    count = len(embeddings)
    p1, p2 = np.zeros(len(cosines), dtype=int), np.arange(1, count)
    return embeddings, np.ones(count), np.arange(count), np.zeros(count, dtype=int), np.array(label), p1, p2


def test_an_infinite_threshold_is_none():
    figures = evaluate_templates(*one_image_templates([0.9, 0.5, 0.1], [0, 1, 0]))
    assert figures["Norm:True_Det:True_tpr_at_fpr_1e-06"] == 0.0
    assert figures["Norm:True_Det:True_thresh_at_fpr_1e-06"] is None
    json.dumps(figures, allow_nan=False)


def test_of_the_points_of_one_fpr_the_one_with_the_most_genuine_pairs_counts():
    figures = evaluate_templates(*one_image_templates([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 1]))
    assert figures["Norm:True_Det:False_tpr_at_fpr_0.1"] == pytest.approx(200 / 3)
    assert figures["Norm:True_Det:False_thresh_at_fpr_0.1"] == pytest.approx(0.8)


def test_of_equally_near_fprs_the_largest_counts():
    cosines = [0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6]  # impostors at FPR 0 and, after one of five, at 0.2
    figures = evaluate_templates(*one_image_templates(cosines, [1, 0, 1, 0, 0, 0, 0]))
    assert figures["Norm:True_Det:True_tpr_at_fpr_0.1"] == 100.0
    assert figures["Norm:True_Det:True_thresh_at_fpr_0.1"] == pytest.approx(0.8)
    assert figures["Norm:True_Det:True_tpr_at_fpr_0.01"] == 50.0


def test_tied_scores_are_accepted_together():
    embeddings, faceness, templates, medias, label, p1, p2 = one_image_templates([0.5, 0.5, 0.5, 0.1], [1, 0, 1, 0])
    figures = evaluate_templates(embeddings, faceness, templates, medias, label, p1, p2)
    assert figures["Norm:True_Det:True_tpr_at_fpr_0.1"] == 0.0
    assert figures["Norm:True_Det:True_thresh_at_fpr_0.1"] is None


def test_scores_tie_whatever_their_rounding():
    generator = np.random.default_rng(0)
    ids = np.arange(200)
    embeddings = generator.normal(size=(200, 128)).astype(np.float32)
    label = ids % 2  # each template with itself: all cosines are 1
    figures = evaluate_templates(embeddings, generator.random(200), ids, ids, label, ids, ids)
    for name in VARIANTS.values():
        assert figures[f"{name}_tpr_at_fpr_0.1"] == 0.0
        assert figures[f"{name}_thresh_at_fpr_0.1"] is None


def test_a_template_of_length_zero_scores_zero():
    embeddings, *rest = one_image_templates([0.5, 0.2, -0.1], [1, 0, 0])
    embeddings[2] = 0
    figures = evaluate_templates(embeddings, *rest)
    assert figures["Norm:False_Det:True_tpr_at_fpr_1e-06"] == 100.0


def changed(position, change):
    arrays = list(generated())
    arrays[position] = change(arrays[position].copy())
    return arrays


def with_first(value):
    def change(array):
        array[0] = value
        return array

    return change


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (5, with_first(5), r"p1 names 1 template ids that no image has: 5$"),
        (6, with_first(999_999), r"p2 names 1 template ids that no image has: 999999$"),
        (0, with_first(np.nan), r"embedding of image 0 is not a finite number"),
        (1, with_first(np.inf), r"faceness score of image 0 is not a finite number"),
        (4, np.zeros_like, r"label holds \[0\]"),
        (4, with_first(2), r"label holds \[0, 1, 2\]"),
        (4, lambda label: label[1:], r"number of pairs.*label 299, p1 300, p2 300"),
        (2, lambda templates: templates[1:], r"number of images.*embeddings 50.*templates 49"),
    ],
)
def test_what_cannot_be_scored_is_named(position, change, message):
    with pytest.raises(TemplateError, match=message):
        evaluate_templates(*changed(position, change))


def test_the_benchmark_gives_the_figures_of_plain_arithmetic():
    result = protocols.measure("ijb", 0.002, plain=True)  # raises where they differ
    assert result["size"] == "IJB-C: 939 images, 46 templates, 31,317 pairs"
    assert result["seconds"] > 0 and result["plain"] > 0


def test_a_pair_is_accepted_from_the_threshold_at_a_ten_thousandth_on():
    embeddings, faceness, templates, medias, label, p1, p2 = generated()
    figures, arrays = score_templates(embeddings, faceness, templates, medias, label, p1, p2)
    assert arrays["label"].tolist() == (label == 1).tolist()
    for variant, name in VARIANTS.items():
        scores = np.array(slow_scores(embeddings, faceness, templates, medias, p1, p2, *variant))
        assert arrays[f"{name}.score"].dtype == np.float32
        assert arrays[f"{name}.score"] == pytest.approx(scores, abs=1e-6)
        threshold = figures[f"{name}_thresh_at_fpr_0.0001"]
        accepted = scores > threshold - 1e-10 if threshold is not None else np.zeros(len(scores), dtype=bool)
        assert arrays[f"{name}.decision"].tolist() == accepted.tolist()
