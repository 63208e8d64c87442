"""Template verification in plain Python and scikit-learn, and small drawn sets to score."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from eval.ijb import FPRS, evaluate_templates

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


def draw_templates(seed=0):
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


def assert_metrics_equal_plain_arithmetic(embeddings, faceness, templates, medias, label, p1, p2):
    """Compare evaluate_templates with slow_scores and slow_points."""
    metrics = evaluate_templates(embeddings, faceness, templates, medias, label, p1, p2)
    for variant, name in VARIANTS.items():
        points = slow_points(label, slow_scores(embeddings, faceness, templates, medias, p1, p2, *variant))
        for fpr, (tpr, threshold) in zip(FPRS, points, strict=True):
            expected = threshold and pytest.approx(threshold, abs=1e-12)
            assert metrics[f"{name}_tpr_at_fpr_{fpr}"] == pytest.approx(tpr, abs=1e-9)
            assert metrics[f"{name}_thresh_at_fpr_{fpr}"] == expected
