"""Each augmentation alone, compared with OpenCV, Pillow and torchvision's arithmetic."""

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from augmenting import (
    DOWN,
    ENHANCERS,
    INTERPOLATIONS,
    MEANING,
    SIZES,
    UP,
    as_bytes,
    as_input,
    augmentation,
    by_pillow,
    center_of,
    numbers,
    random_numbers,
    rectangles,
)
from scipy.stats import kstest

FACTORS = (0.5, 0.7, 1.0, 1.2, 1.499)


def rescaled(images: np.ndarray, down: str, up: str) -> np.ndarray:
    """Rescale image i to the i-th size and back, for all sizes. The result is in units of a byte."""
    draws = numbers(
        len(SIZES),
        side=np.array([center_of(number, len(SIZES)) for number in range(len(SIZES))]),
        down=center_of(DOWN.index(down), len(DOWN)),
        up=center_of(UP.index(up), len(UP)),
    )
    return as_bytes(augmentation(low_res=1.0)(as_input(images), draws))


@pytest.mark.parametrize(("down", "up"), list(itertools.product(DOWN, UP)))
def test_rescaling_equals_opencvs_at_every_size(images, down, up):
    """Compare with OpenCV in float32, to 0.01 of 255, and in uint8, to its rounding error.

    Apart from ties, the rounding error is at most 2 of 255. Rounding the small image gives an error of up to 0.5. Cubic
    resampling enlarges it most: the absolute values of its weights (A = -0.75) sum up to at most 1.375 per direction,
    so 1.9 for two directions, which makes 0.95. Rounding the large image adds 0.5. OpenCV's integer weights have 11
    bits, which adds up to 0.25 for each of the two resamplings.
    """
    batch = images[np.arange(len(SIZES)) % len(images)]
    for image, result, size in zip(batch, rescaled(batch, down, up), SIZES, strict=True):
        small = cv2.resize(image, (size, size), interpolation=INTERPOLATIONS[down])
        in_bytes = cv2.resize(small, (112, 112), interpolation=INTERPOLATIONS[up])
        assert abs(result - in_bytes).max() < 2, size
        assert abs(result - in_bytes).mean() < 0.5, size
        small = cv2.resize(image.astype(np.float32), (size, size), interpolation=INTERPOLATIONS[down]).clip(0, 255)
        exact = cv2.resize(small, (112, 112), interpolation=INTERPOLATIONS[up]).clip(0, 255)
        assert abs(result - exact).max() < 0.01, size


def test_all_sizes_and_resampling_modes_are_equally_likely():
    """The side is 22 to 111 pixels. It is the number of different columns of a ramp after nearest resizing."""
    ramp = torch.linspace(-1, 1, 112).expand(1, 3, 112, 112)
    draws = numbers(180, side=(np.arange(180) + 0.5) / 180, down=center_of(0, 4), up=center_of(0, 3))
    found = [len(image[0, 0].unique()) for image in augmentation(low_res=1.0)(ramp.expand(180, -1, -1, -1), draws)]
    assert found == [size for size in SIZES for _ in range(2)]
    noise = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, count in (("down", 4), ("up", 3)):
        draws = numbers(120, side=0.1, **{name: (np.arange(120) + 0.5) / 120})
        results = augmentation(low_res=1.0)(noise.expand(120, -1, -1, -1), draws).flatten(1)
        distances = torch.cdist(results, results) > 1  # images of the same resampling are equal
        assert torch.equal(distances, ~torch.block_diag(*[torch.ones(120 // count, 120 // count)] * count).bool())


def changed(x: torch.Tensor, factors: dict[str, float]) -> torch.Tensor:
    draws = numbers(len(x), **{name: factor - 0.5 for name, factor in factors.items()})
    return augmentation(photometric=1.0)(x, draws)


def in_float64(image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
    """The definitions, for [H, W, 3] from 0 to 255: blend with black, the mean gray, or the gray of each pixel."""
    for name, factor in factors.items():
        gray = image @ np.array([0.299, 0.587, 0.114])
        without = {"brightness": 0.0, "contrast": gray.mean(), "saturation": gray[..., None]}[name]
        image = (without + factor * (image - without)).clip(0, 255)
    return image


@pytest.mark.parametrize("name", ENHANCERS)
@pytest.mark.parametrize("factor", FACTORS)
def test_each_photometric_change_equals_pillows(images, name, factor):
    """Pillow truncates results to integers (an error below 1) and rounds its gray values (an error up to 0.5)."""
    tolerance = 1 + abs(1 - factor) * 0.5 + 1e-3
    for image, result in zip(images, as_bytes(changed(as_input(images), {name: factor})), strict=True):
        assert abs(result - by_pillow(image, {name: factor})).max() < tolerance


@pytest.mark.parametrize("values", list(itertools.product((0.5, 0.8, 1.499), repeat=3)))
def test_all_photometric_changes_equal_pillows_in_sequence(images, values):
    """Compare with Pillow, to the error of its three roundings, and with the definitions, to 0.001 of 255."""
    factors = dict(zip(ENHANCERS, values, strict=True))
    tolerance = 1e-3
    for factor, gray in zip(values, (0.0, 1.0, 1.0), strict=True):
        # The earlier error, scaled; the error of the gray value; and 1 because Pillow truncates the result.
        tolerance = factor * tolerance + gray * abs(1 - factor) * (tolerance + 0.5) + 1
    for image, result in zip(images, as_bytes(changed(as_input(images), factors)), strict=True):
        difference = abs(result - by_pillow(image, factors))
        assert difference.max() < tolerance and difference.mean() < tolerance / 2
        assert abs(result - in_float64(image, factors)).max() < 1e-3


@pytest.mark.parametrize("values", [(1.4, 0.6, 1.3), (0.6, 1.45, 0.5), (1.45, 1.45, 1.45)])
def test_the_order_of_photometric_changes_matters_only_if_values_are_clamped(images, values):
    factors = dict(zip(ENHANCERS, values, strict=True))
    faces = images[:7]
    pale = 90 + faces // 8  # far from black and white
    for image, result in zip(pale, as_bytes(changed(as_input(pale), factors)), strict=True):
        for order in itertools.permutations(factors.items()):
            expected = in_float64(image, dict(order))
            assert expected.min() > 0 and expected.max() < 255
            assert abs(result - expected).max() < 1e-3
    bright = {"brightness": 1.499, "contrast": 0.5}
    assert abs(in_float64(faces[0], bright) - in_float64(faces[0], dict(reversed(bright.items())))).max() > 1


@pytest.fixture(scope="module")
def crops() -> tuple[torch.Tensor, np.ndarray]:
    """8,000 random draws, and the rectangles of their crops."""
    draws = random_numbers(8000, seed=1, crop=0.0)
    return draws, np.concatenate([rectangles(part) for part in draws.split(200)])


def torchvision_sides(area: np.ndarray, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height and width, before rounding, that RandomResizedCrop.get_params tries for scale (0.2, 1), ratio (3/4, 4/3).

    area, ratio: uniform in [0, 1). torchvision rounds the sides, and draws again if one is above 112.
    """
    target_area = 112 * 112 * (0.2 + area * (1 - 0.2))
    aspect_ratio = np.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
    return np.sqrt(target_area / aspect_ratio), np.sqrt(target_area * aspect_ratio)


def test_a_crop_does_not_change_or_move_the_pixels_that_it_keeps(images):
    draws = random_numbers(64, seed=2, crop=0.0)
    x = as_input(images[np.arange(64) % 8] // 2 + 1)  # nothing black
    result = augmentation(crop=1.0)(x, draws)
    for image, before, (top, left, height, width) in zip(result, x, rectangles(draws), strict=True):
        expected = torch.full_like(before, -1.0)
        expected[:, top : top + height, left : left + width] = before[:, top : top + height, left : left + width]
        assert torch.equal(image, expected)


def test_a_crop_has_torchvisions_size_limited_to_the_image(crops):
    draws, found = crops
    area, ratio = (draws[:, MEANING.index(name)].double().numpy() for name in ("area", "ratio"))
    for side, exact in zip(found.T[2:], torchvision_sides(area, ratio), strict=True):
        exact = exact.clip(max=112)
        assert abs(side - exact).max() < 0.5 + 1e-4  # rounded; 1e-4: float32 decides near a half
    height, width = found.T[2:].astype(float)
    # Rounding changes each side by up to half a pixel.
    assert ((height + 0.5) * (width + 0.5) >= 0.2 * 112**2).all() and (height * width <= 112**2).all()
    for one, other in ((height, width), (width, height)):
        assert ((one - 0.5) / (other + 0.5) <= 4 / 3).all()
    assert height.min() < 48 and height.max() == 112 and width.min() < 48 and width.max() == 112


def test_crops_have_the_distribution_of_torchvisions(crops):
    """If the rectangle fits at the first try, sizes and positions have get_params' distribution (KS test)."""
    draws, found = crops
    area, ratio = (draws[:, MEANING.index(name)].double().numpy() for name in ("area", "ratio"))
    fits = (np.round(torchvision_sides(area, ratio)) <= 112).all(0)
    assert 0.8 < fits.mean() < 0.95
    rng = np.random.default_rng(3)
    expected = []
    while len(expected) < 8000:
        sides = [round(float(side)) for side in torchvision_sides(rng.random(), rng.random())]
        if max(sides) <= 112:
            expected.append([*(rng.integers(0, 112 - side + 1) for side in sides), *sides])
    found, expected = found[fits], np.array(expected)
    for column in range(4):
        assert kstest(found[:, column], expected[:, column]).pvalue > 1e-3
    for combine in (lambda r: r[:, 2] * r[:, 3], lambda r: r[:, 2] / r[:, 3], lambda r: r[:, 0] + r[:, 2]):
        assert kstest(combine(found), combine(expected)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["top", "left"])
def test_all_positions_of_a_crop_are_equally_likely(name):
    count = 63 * 8  # a square with 0.2 of the area is 50 pixels wide, so it has 63 positions
    draws = numbers(count, area=0.0, **{name: (np.arange(count) + 0.5) / count})
    found = rectangles(draws)
    assert (found[:, 2:] == 50).all()
    assert found[:, ["top", "left"].index(name)].tolist() == [position for position in range(63) for _ in range(8)]
