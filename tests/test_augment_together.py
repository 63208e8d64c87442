"""All augmentations together: probabilities, ranges, and images that are not chosen."""

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from augmenting import (
    DOWN,
    ENHANCERS,
    FIRST_MADE,
    INTERPOLATIONS,
    KINDS,
    LARGEST,
    MEANING,
    SIZES,
    UP,
    as_bytes,
    as_input,
    augmentation,
    by_pillow,
    is_chosen,
    numbers,
    random_numbers,
    rectangles,
)

from data.augment import DRAWS
from data.dataset import RecordDataset

ONE_EACH = ({"crop": 1.0}, {"low_res": 1.0}, {"photometric": 1.0})


def test_each_augmentation_acts_with_its_probability_independently():
    """1,500 draws, within four standard deviations. Each change leaves a trace that the others do not hide.

    A gray image with a dot: a crop to the left half blackens the right edge, a rescaling smears the dot, a photometric
    change darkens the left edge.
    """
    chances, count = (0.6, 0.35, 0.2), 1500
    x = torch.full((1, 3, 112, 112), 0.5)
    x[:, :, 40, 20] = 1.0
    kinds = [MEANING.index(kind) for kind in KINDS]
    draws = numbers(count, area=0.1, left=0.0, side=0.3, down=0.3, brightness=0.1)
    draws[:, kinds] = random_numbers(count, seed=4)[:, kinds]
    result = torch.cat(
        [
            augmentation(**dict(zip(KINDS, chances, strict=True)))(x.expand(20, -1, -1, -1), part)
            for part in draws.split(20)
        ]
    )
    dark = result[:, 0, 56, 5] < 0.4
    cropped = result[:, 0, 56, 111] < -0.99
    smeared = result[:, 0, 40, 20] - result[:, 0, 56, 5] < 0.1
    found = torch.stack([cropped, smeared, dark], dim=1).double()
    for number, chance in enumerate(chances):
        assert abs(found[:, number].mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / count)
    for one, other in itertools.combinations(range(3), 2):
        both = chances[one] * chances[other]
        assert abs((found[:, one] * found[:, other]).mean() - both) < 4 * math.sqrt(both * (1 - both) / count)
    untouched = (found == 0).all(1)
    assert torch.equal(result[untouched], x.expand(int(untouched.sum()), -1, -1, -1))


def test_probability_0_changes_no_bit_and_probability_1_changes_every_image(images):
    x = as_input(images)
    for draw in (0.0, 0.5, LARGEST):
        draws = random_numbers(8, 5, **dict.fromkeys(KINDS, draw), area=0.4)
        assert torch.equal(augmentation()(x, draws), x)
        for chosen in ONE_EACH:
            result = augmentation(**chosen)(x, draws)
            assert all(not torch.equal(one, before) for one, before in zip(result, x, strict=True))


@pytest.mark.parametrize("chosen", [*ONE_EACH, {"crop": 1.0, "low_res": 1.0, "photometric": 1.0}])
def test_images_that_are_not_chosen_stay_bit_equal(images, chosen):
    x = as_input(images)
    is_chosen = torch.arange(8) % 3 == 0
    where = np.where(is_chosen, 0.49, 0.5)
    draws = random_numbers(8, 6, **dict.fromkeys(KINDS, where), area=0.4)
    result = augmentation(**dict.fromkeys(chosen, 0.5))(x, draws)
    changed = (result != x).flatten(1).any(1)
    assert torch.equal(changed, is_chosen)


@pytest.mark.parametrize("chosen", [*ONE_EACH, {"crop": 0.7, "low_res": 0.7, "photometric": 0.7}])
def test_an_image_is_changed_in_the_same_way_in_any_batch(images, chosen):
    """Bit-equal, except for the order of sums in resampling (rows and columns) and in the mean gray (whole image)."""
    x, draws = as_input(images), random_numbers(8, 7)
    change = augmentation(**chosen)
    together = change(x, draws)
    assert torch.equal(together, change(x, draws))
    alone = torch.cat([change(x[row : row + 1], draws[row : row + 1]) for row in range(8)])
    order = torch.tensor([3, 0, 7, 6, 1, 2, 5, 4])
    others = change(x[order], draws[order])[order.argsort()]
    for result in (alone, others):
        if list(chosen) == ["crop"]:
            assert torch.equal(result, together)
        assert (result - together).abs().max() <= 1e-6


@pytest.mark.parametrize("chosen", [*ONE_EACH, {"crop": 1.0, "low_res": 1.0, "photometric": 1.0}])
def test_the_smallest_and_largest_draws_are_valid_for_every_parameter(images, chosen):
    """All combinations of 0 and the largest float32 below 1, for the parameters of the chosen change."""
    groups = {"crop": MEANING[1:5], "low_res": MEANING[6:9], "photometric": MEANING[10:]}
    names = [name for kind in chosen for name in groups[kind]]
    ends = list(itertools.product((0.0, LARGEST), repeat=len(names)))
    ends = ends if len(chosen) == 1 else [ends[0], ends[-1], *ends[1:-1:61]]
    draws = torch.stack([numbers(1, **dict(zip(names, end, strict=True)))[0] for end in ends])
    draws[::2, [MEANING.index(kind) for kind in KINDS]] = LARGEST
    x = as_input(images[np.arange(len(draws)) % 8])
    result = augmentation(**chosen)(x, draws)
    assert result.isfinite().all() and result.abs().max() <= 1
    assert (result != x).flatten(1).any(1).sum() >= len(draws) * 3 // 4  # a crop of the whole area changes nothing


def test_the_smallest_and_largest_draws_are_the_ends_of_each_range(images):
    corners = numbers(4, ratio=0.5, area=[0.0, 0.0, LARGEST, LARGEST], top=[0, LARGEST] * 2, left=[LARGEST, 0] * 2)
    assert rectangles(corners).tolist() == [[0, 62, 50, 50], [62, 0, 50, 50], [0, 0, 112, 112], [0, 0, 112, 112]]
    slim = numbers(2, area=0.0, ratio=[0.0, LARGEST])
    assert rectangles(slim)[:, 2:].tolist() == [[58, 43], [43, 58]]
    x = as_input(images[:2])
    result = as_bytes(augmentation(low_res=1.0)(x, numbers(2, side=[0.0, LARGEST], down=[0.0, LARGEST], up=LARGEST)))
    for image, out, size, down in zip(images, result, (22, 111), (cv2.INTER_NEAREST, cv2.INTER_CUBIC), strict=False):
        small = cv2.resize(image, (size, size), interpolation=down)
        assert abs(out - cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC)).max() < 2
    dark, bright = as_bytes(augmentation(photometric=1.0)(x, numbers(2, brightness=[0.0, LARGEST])))
    assert abs(dark - images[0] * 0.5).max() < 1e-3
    assert abs(bright - (images[1] * 1.5).clip(max=255)).max() < 1e-3


@pytest.mark.parametrize("chosen", [*ONE_EACH, {"crop": 0.7, "low_res": 0.7, "photometric": 0.7}])
def test_the_result_is_float32_in_range_for_any_memory_layout(chosen):
    generator = torch.Generator().manual_seed(8)
    x = torch.rand(16, 3, 112, 112, generator=generator) * 2 - 1
    x[8:] = x[8:].sign()  # overshoots most
    draws, before = random_numbers(16, 9), x.clone()
    result = augmentation(**chosen)(x, draws)
    assert result.shape == x.shape and result.dtype == torch.float32 and not result.requires_grad
    assert result.min() >= -1 and result.max() <= 1
    assert torch.equal(x, before)  # nothing is written into the batch, which the teacher may see
    wide = torch.zeros(16, 3, 112, 224)
    wide[..., ::2] = x
    layouts = (x.contiguous(memory_format=torch.channels_last), wide[..., ::2], x.flip(3).flip(3))
    assert not any(layout.is_contiguous() for layout in layouts[:2])
    strided = torch.zeros(16, 2 * DRAWS)
    strided[:, ::2] = draws
    for layout in layouts:
        assert (augmentation(**chosen)(layout, strided[:, ::2]) - result).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", [*FIRST_MADE, *KINDS])
def test_each_augmentation_changes_the_images_that_it_chooses_and_no_bit_of_the_others(images, kind):
    """The chosen ones follow from NumPy's numbers. Other augmentations that act, or do not, change nothing in this."""
    x, draws = as_input(images[np.arange(64) % 7]), random_numbers(64, 11, area=0.4)
    chosen = is_chosen(draws, kind, 0.4)
    assert 16 <= chosen.sum() <= 36
    result = augmentation(**{kind: 0.4})(x, draws)
    assert np.array_equal((result != x).flatten(1).any(1).numpy(), chosen)
    assert result.shape == x.shape and result.dtype == torch.float32 and result.abs().max() <= 1
    others = {name: 1e-9 for name in (*FIRST_MADE, *KINDS) if name != kind}
    assert torch.equal(augmentation(**{kind: 0.4}, **others)(x, draws), result)
    again = augmentation(**{kind: 0.4})(x[8:40], draws[8:40]) - result[8:40]
    assert again.abs().max() <= 1e-6 or (kind == "jpeg" and (again.abs() > 1e-6).float().mean() < 1e-3)


def test_a_new_augmentation_does_not_change_what_the_others_do(images):
    """All probabilities 1: each augmentation gets the result of the one before it, with its own numbers."""
    x, draws = as_input(images), random_numbers(8, 12)
    order = ("similarity", "crop", "defocus", "motion_blur", "low_res", "noise", "photometric", "jpeg")
    result = x
    for kind in order:
        result = augmentation(**{kind: 1.0})(result, draws)
    together = augmentation(**dict.fromkeys(reversed(order), 1.0))(x, draws)
    assert torch.equal(together, result)
    for one, other in itertools.pairwise(order):
        swapped = augmentation(**{one: 1.0})(augmentation(**{other: 1.0})(x, draws), draws)
        assert not torch.equal(swapped, augmentation(**{one: 1.0, other: 1.0})(x, draws))


def test_augmentations_of_real_faces_equal_opencv_and_pillow(face_data):
    """Crops, then rescalings, then photometric changes of LFW faces, compared with OpenCV and Pillow."""
    faces = RecordDataset(face_data / "lfw")[np.arange(0, 64, 4)].numpy()
    draws = random_numbers(len(faces), 10)
    result = as_bytes(augmentation(crop=1.0, low_res=1.0, photometric=1.0)(as_input(faces), draws))
    for image, out, rectangle, draw in zip(faces, result, rectangles(draws), draws.double().numpy(), strict=True):
        values = dict(zip(MEANING, draw, strict=False))
        top, left, height, width = rectangle
        crop = np.zeros_like(image)
        crop[top : top + height, left : left + width] = image[top : top + height, left : left + width]
        size = SIZES[int(values["side"] * len(SIZES))]
        down, up = DOWN[int(values["down"] * 4)], UP[int(values["up"] * 3)]
        small = cv2.resize(crop, (size, size), interpolation=INTERPOLATIONS[down])
        large = cv2.resize(small, (112, 112), interpolation=INTERPOLATIONS[up])
        expected = by_pillow(large, {name: 0.5 + values[name] for name in ENHANCERS})
        # The error of rescaling is up to 2; each photometric change multiplies it by up to 1.5 and adds Pillow's
        # rounding. Nearly all errors are far smaller.
        assert abs(out - expected).mean() < 2 and np.quantile(abs(out - expected), 0.999) < 6
