"""Class centers: the moving average of the teacher's embeddings, initial centers, and fixed centers from a file."""

import numpy as np
import pytest
import torch
from slow_heads import (
    CLASSES,
    LABELS,
    SIZE,
    batch,
    float64_head,
    relative_error,
    settings,
    slow_centers,
)

from config import ConfigError
from heads import build_head
from heads.centers import class_means, confidence, similarity, update_weight
from utils.weights import WeightsError


@pytest.mark.parametrize("adaptive", [True, False])
def test_centers_follow_the_means_over_the_samples_of_their_class(adaptive):
    head = float64_head(f"adaptive_alpha={adaptive}")
    for seed in (0, 1):
        student, teacher, labels = batch(seed)
        expected = slow_centers(head.centers.numpy(), student.numpy(), teacher.numpy(), labels.numpy(), adaptive)
        head(student, teacher, labels)
        assert relative_error(head.centers, expected) < 1e-12


def test_centers_of_classes_outside_the_batch_do_not_change():
    head = float64_head()
    before = head.centers.clone()
    head(*batch())
    absent = [c for c in range(CLASSES) if c not in LABELS]
    assert torch.equal(head.centers[absent], before[absent])
    assert not torch.equal(head.centers[LABELS], before[LABELS])


def test_centers_do_not_depend_on_the_order_of_the_samples():
    first, second = float64_head(), float64_head()
    order = torch.from_numpy(np.random.default_rng(3).permutation(len(LABELS)))
    student, teacher, labels = batch()
    loss = first(student, teacher, labels).loss
    other = second(student[order], teacher[order], labels[order]).loss
    torch.testing.assert_close(first.centers, second.centers, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)


def test_a_repeated_sample_moves_its_center_like_a_single_one():
    single, repeated = float64_head(), float64_head()
    student, teacher, _ = batch(count=1)
    single(student, teacher, LABELS[:1])
    repeated(student.repeat(3, 1), teacher.repeat(3, 1), LABELS[:1].repeat(3))
    torch.testing.assert_close(single.centers, repeated.centers, rtol=1e-13, atol=1e-13)


def test_centers_keep_their_own_length():
    head = float64_head()
    head.set_centers(head.centers * 7)
    student, teacher, labels = batch()
    expected = slow_centers(head.centers.numpy(), student.numpy(), teacher.numpy(), labels.numpy())
    head(student, teacher, labels)
    assert relative_error(head.centers, expected) < 1e-12
    assert head.centers.norm(dim=1).max() > 3


def test_a_center_opposite_to_the_teacher_embedding_is_replaced_by_it():
    head = float64_head()
    student, teacher, _ = batch(count=1)
    head.set_centers(-teacher.repeat(CLASSES, 1))
    head(student, teacher, LABELS[:1])
    expected = teacher[0] / teacher[0].norm()
    torch.testing.assert_close(head.centers[LABELS[0]], expected, rtol=0, atol=1e-4)


def test_centers_are_a_buffer_and_get_no_gradient():
    head = build_head(settings())
    assert "centers" in dict(head.named_buffers()) and not list(head.parameters())
    assert head.centers.dtype == torch.float32 and head.centers.shape == (CLASSES, SIZE)
    student, teacher, labels = batch()
    student, teacher = student.float().requires_grad_(), teacher.float().requires_grad_()
    head(student, teacher, labels).loss.backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert not head.centers.requires_grad and head.centers.grad is None and head.centers.grad_fn is None


def test_initial_centers_are_normal_with_standard_deviation_0_01_and_depend_on_the_seed_alone():
    overrides = ["num_classes=400", "embedding_size=256"]
    centers = build_head(settings(*overrides)).centers
    assert centers.std().item() == pytest.approx(0.01, rel=0.02) and abs(centers.mean().item()) < 1e-4
    assert torch.equal(centers, build_head(settings(*overrides)).centers)
    assert not torch.equal(centers, build_head(settings(*overrides, "seed=1")).centers)


def test_centers_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="20, 16"):
        build_head(settings()).set_centers(torch.zeros(CLASSES, SIZE + 1))


def test_fixed_centers_come_from_a_header_file_and_never_move(tmp_path):
    kernel = torch.randn(SIZE, CLASSES, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "header.pth"
    torch.save({"kernel": kernel, "batch_mean": torch.zeros(1), "batch_std": torch.ones(1)}, path)
    head = build_head(settings("centers=fixed", f"pretrained_teacher_header_path={path}"))
    assert torch.equal(head.centers, kernel.t()) and "centers" in dict(head.named_buffers())
    for seed in range(3):
        student, teacher, labels = batch(seed)
        student.requires_grad_()
        head(student, teacher, labels).loss.backward()
        assert student.grad.abs().sum() > 0
    assert torch.equal(head.centers, kernel.t())


@pytest.mark.parametrize(
    "header",
    [
        {"kernel": torch.zeros(CLASSES, SIZE)},  # not transposed
        {"kernel": torch.zeros(SIZE, CLASSES + 1)},
        {"kernel": torch.zeros(SIZE + 1, CLASSES)},
        {"weight": torch.zeros(SIZE, CLASSES)},
    ],
    ids=["transposed", "classes", "dimensions", "name"],
)
def test_a_header_file_that_does_not_fit_is_refused_with_its_name(header, tmp_path):
    path = tmp_path / "header.pth"
    torch.save(header, path)
    with pytest.raises(WeightsError, match=r"header\.pth.*16, 20"):
        build_head(settings("centers=fixed", f"pretrained_teacher_header_path={path}"))


def test_fixed_centers_without_a_header_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="pretrained_teacher_header_path"):
        settings("centers=fixed")
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        build_head(settings("centers=fixed", f"pretrained_teacher_header_path={tmp_path / 'absent.pth'}"))


def test_confidence_and_similarity_are_clamped_cosines():
    w_y = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    f_t = torch.tensor([[5.0, 5.0], [-1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(confidence(w_y, f_t), torch.tensor([0.5**0.5, 1e-6, 1.0, 1e-6]))
    torch.testing.assert_close(similarity(w_y, f_t), torch.tensor([0.5**0.5, -1.0, 1.0, 0.0]))


def test_the_update_weight_is_a_product_or_the_similarity_alone():
    conf_t, cos_st = torch.tensor([0.5, 0.5, 1.0]), torch.tensor([0.8, -0.3, 1.0])
    torch.testing.assert_close(update_weight(conf_t, cos_st, adaptive=True), torch.tensor([0.4, 1e-6, 1.0]))
    torch.testing.assert_close(update_weight(conf_t, cos_st, adaptive=False), torch.tensor([0.8, 1e-6, 1.0]))


def test_class_means_give_each_row_the_mean_of_its_class():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 60.0], [4.0, 40.0]])
    means = class_means(values, torch.tensor([7, 5, 7, 5]))
    assert means.tolist() == [[2.0, 35.0], [3.0, 30.0], [2.0, 35.0], [3.0, 30.0]]


def test_class_means_are_bit_equal_within_a_class():
    values = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 5
    means = class_means(values, labels)
    for label in range(5):
        rows = means[labels == label]
        assert torch.equal(rows, rows[:1].expand_as(rows))
        torch.testing.assert_close(rows[0], values[labels == label].mean(0))


def test_class_means_need_no_matrix_of_batch_by_batch():
    """A matrix [B, B] of this batch would have 40 billion elements."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 85_742, (200_000,), generator=generator)
    sums = np.stack([np.bincount(labels, weights) for weights in values.t()], 1)
    expected = sums / np.maximum(np.bincount(labels), 1)[:, None]
    assert relative_error(class_means(values, labels), expected[labels]) < 1e-12
