"""Pooling and pair scores of templates: what must not change the metrics, and what is refused."""

import numpy as np
import pytest
from plain_templates import VARIANTS, draw_templates

from eval import templates
from eval.ijb import TemplateError, evaluate_templates
from eval.templates import pair_scores


def test_scores_are_in_the_order_of_the_pairs(monkeypatch):
    generator = np.random.default_rng(0)
    units = generator.normal(size=(2, 30, 5))
    units /= np.linalg.norm(units, axis=2, keepdims=True)
    first, second = generator.integers(0, 30, (2, 5000))  # more than there are different pairs
    expected = (units[:, first] * units[:, second]).sum(axis=2)
    for block in (1024, 30, 7, 1):
        monkeypatch.setattr(templates, "TEMPLATES_PER_BLOCK", block)
        assert pair_scores(units, first, second) == pytest.approx(expected, abs=1e-12)
    assert pair_scores(units, first[:1], second[:1]) == pytest.approx(expected[:, :1], abs=1e-12)


def test_the_metrics_do_not_depend_on_blocks_and_chunks(monkeypatch):
    arrays = draw_templates()
    whole = evaluate_templates(*arrays)
    monkeypatch.setattr(templates, "TEMPLATES_PER_BLOCK", 3)
    monkeypatch.setattr(templates, "ROWS_PER_CHUNK", 7)
    assert evaluate_templates(*arrays) == pytest.approx(whole, abs=1e-9)


def test_the_metrics_do_not_depend_on_the_ids():
    embeddings, faceness, templates, medias, label, p1, p2 = draw_templates()
    metrics = evaluate_templates(embeddings, faceness, templates, medias, label, p1, p2)
    for shift, stretch in ((-600, 1), (0, 2**40)):  # some below 0, some far apart
        other = [stretch * part + shift for part in (templates, p1, p2)]
        assert evaluate_templates(embeddings, faceness, other[0], medias, label, *other[1:]) == metrics
        for wrong in (-(2**60), -601, 2**60):
            other[1][0] = wrong
            with pytest.raises(TemplateError, match=f"p1 contains 1 template ids that no image has: {wrong}$"):
                evaluate_templates(embeddings, faceness, other[0], medias, label, *other[1:])


def test_the_metrics_do_not_depend_on_the_order_of_images():
    embeddings, faceness, templates, medias, *pairs = draw_templates()
    order = np.random.default_rng(1).permutation(len(templates))
    shuffled = evaluate_templates(embeddings[order], faceness[order], templates[order], medias[order], *pairs)
    assert shuffled == pytest.approx(evaluate_templates(embeddings, faceness, templates, medias, *pairs), abs=1e-9)


def test_an_image_whose_template_is_in_no_pair_changes_nothing():
    embeddings, faceness, templates, medias, *pairs = draw_templates()
    more = [np.append(faceness, 0.5), np.append(templates, 5), np.append(medias, 7)]
    with_it = evaluate_templates(np.vstack([embeddings, np.ones((1, 6))]), *more, *pairs)
    assert with_it == pytest.approx(evaluate_templates(embeddings, faceness, templates, medias, *pairs), abs=1e-9)


def test_equal_cosines_tie_despite_rounding():
    generator = np.random.default_rng(0)
    ids = np.arange(200)
    embeddings = generator.normal(size=(200, 128)).astype(np.float32)
    label = ids % 2  # each template with itself: all cosines are 1
    metrics = evaluate_templates(embeddings, generator.random(200), ids, ids, label, ids, ids)
    for name in VARIANTS.values():
        assert metrics[f"{name}_tpr_at_fpr_0.1"] == 0.0
        assert metrics[f"{name}_thresh_at_fpr_0.1"] is None


def changed(position, change):
    arrays = list(draw_templates())
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
        (5, with_first(5), r"p1 contains 1 template ids that no image has: 5$"),
        (6, with_first(999_999), r"p2 contains 1 template ids that no image has: 999999$"),
        (0, with_first(np.nan), r"embedding of image 0 is not a finite number"),
        (1, with_first(np.inf), r"faceness score of image 0 is not a finite number"),
        (4, np.zeros_like, r"label holds \[0\]"),
        (4, with_first(2), r"label holds \[0, 1, 2\]"),
        (4, lambda label: label[1:], r"number of pairs must be.*label 299, p1 300, p2 300"),
        (2, lambda templates: templates[1:], r"number of images must be.*embeddings 50.*templates 49"),
    ],
)
def test_the_error_names_what_cannot_be_scored(position, change, message):
    with pytest.raises(TemplateError, match=message):
        evaluate_templates(*changed(position, change))
