"""Alignment errors, blur, noise and JPEG, compared with OpenCV, torchvision, SciPy and float64 arithmetic."""

import io
import math

import cv2
import numpy as np
import pytest
import torch
from augmenting import CPU, LARGEST, as_bytes, as_input, uniform_numbers
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.stats import kstest

from data.counter_random import keys_from, uniform
from data.degradations import Jpeg, defocus, motion_blur, sensor_noise, similarity
from data.images import decode_rgb
from demo.make_demo_data import encoded_face


def random_columns(batch: int, columns: int, seed: int) -> torch.Tensor:
    return torch.rand(batch, columns, generator=torch.Generator().manual_seed(seed))


def test_made_numbers_are_those_of_numpy_and_uniform():
    draws = random_columns(300, 3, 0)
    numbers = uniform(keys_from(draws), 400)
    assert np.array_equal(numbers.double().numpy(), uniform_numbers(draws.numpy(), 400))
    assert numbers.min() > 0 and numbers.max() < 1
    assert kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3
    for table in (numbers, numbers.t()):  # between images, and between the numbers of an image
        correlations = torch.corrcoef(table.double()).fill_diagonal_(0)
        assert correlations.abs().max() < 5.5 / math.sqrt(table.shape[1])
    assert len(torch.unique(keys_from(draws))) == 300


def test_a_similarity_transform_equals_opencvs_warp(images):
    """Compare with OpenCV in float32. OpenCV 4 rounds coordinates to 1/32 pixel, so there the difference is larger."""
    numbers = random_columns(16, 4, 1)
    numbers[:2] = torch.tensor([[0.0] * 4, [LARGEST] * 4])
    batch = images[np.arange(16) % 7]
    results = as_bytes(similarity(as_input(batch), *numbers.unbind(1)))
    for image, result, (angle, scale, right, down) in zip(batch, results, numbers.double().numpy(), strict=True):
        degrees, size = 10 * (2 * angle - 1), 1.2 ** (2 * scale - 1)
        matrix = cv2.getRotationMatrix2D((55.5, 55.5), -degrees, size)
        matrix[:, 2] += 5 * (2 * right - 1), 5 * (2 * down - 1)
        expected = cv2.warpAffine(image.astype(np.float32), matrix, (112, 112), flags=cv2.INTER_LINEAR)
        exact = int(cv2.__version__.partition(".")[0]) >= 5
        assert abs(result - expected).max() < (0.05 if exact else 255 / 16)
        assert abs(result - expected).mean() < (1e-3 if exact else 0.5)
    unchanged = similarity(as_input(images), *torch.full((4, 8), 0.5))
    assert (unchanged - as_input(images)).abs().max() < 1e-4


def kernels(change, *numbers: torch.Tensor) -> np.ndarray:
    """What a white pixel on black becomes: float64 [B, 21, 21], around that pixel."""
    x = torch.full((len(numbers[0]), 3, 112, 112), -1.0)
    x[:, :, 56, 56] = 1.0
    result = (change(x, *numbers).double().numpy() + 1) / 2
    assert np.array_equal(result[:, 0], result[:, 1]) and np.array_equal(result[:, 0], result[:, 2])
    kept = result[:, 0, 46:67, 46:67]
    assert abs(kept.sum((1, 2)) - 1).max() < 1e-4 and abs(result[:, 0].sum((1, 2)) - 1).max() < 5e-3
    return kept


def moments(kernel: np.ndarray) -> np.ndarray:
    """The covariance matrix of a kernel around its middle, in pixels^2: [2, 2], of x and y."""
    y, x = np.mgrid[-10:11, -10:11]
    assert abs((kernel * x).sum()) < 1e-4 and abs((kernel * y).sum()) < 1e-4
    return np.array(
        [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    )


def test_motion_blur_is_a_line_of_the_stated_length_and_direction():
    """A line of length L has a variance of L^2 / 12 along itself and none across; a pixel adds up to 1/6 to each."""
    numbers = random_columns(40, 2, 2)
    numbers[:4] = torch.tensor([[0.0, 0.0], [LARGEST, 0.0], [0.0, 0.5], [LARGEST, 0.5]])
    found = kernels(motion_blur, *numbers.unbind(1))
    for kernel, (length, angle) in zip(found, numbers.double().numpy(), strict=True):
        length, direction = 3 + 8 * length, np.array([math.cos(math.pi * angle), math.sin(math.pi * angle)])
        across = np.array([-direction[1], direction[0]])
        covariance = moments(kernel)
        assert abs(direction @ covariance @ direction - length**2 / 12) < 0.35
        assert across @ covariance @ across < 0.25
    for kernel, length in zip(found[:2], (3, 11), strict=True):
        assert np.allclose(kernel[10, 10 - length // 2 : 11 + length // 2], 1 / length, atol=1e-6)
    for kernel, length in zip(found[2:4], (3, 11), strict=True):
        assert np.allclose(kernel[10 - length // 2 : 11 + length // 2, 10], 1 / length, atol=1e-6)


def test_defocus_is_a_disk_of_the_stated_radius():
    """Compare with the part of each pixel that a disk covers, measured at 21 x 21 points per pixel."""
    numbers = torch.tensor([0.0, 0.3, 0.6, LARGEST])
    places = (np.arange(21 * 21) - 220) / 21
    for kernel, radius in zip(kernels(defocus, numbers), 1 + 2 * numbers.double().numpy(), strict=True):
        inside = np.hypot(places[:, None], places[None]) <= radius
        disk = inside.reshape(21, 21, 21, 21).mean((1, 3))
        assert abs(kernel - disk / disk.sum()).max() < 0.03
        assert np.allclose(moments(kernel), moments(disk / disk.sum()), atol=0.05)


@pytest.mark.parametrize(("change", "columns"), [(defocus, 1), (motion_blur, 2)])
def test_blur_equals_opencvs_filter_with_continued_borders(images, change, columns):
    numbers = random_columns(8, columns, 3).unbind(1)
    results = as_bytes(change(as_input(images), *numbers))
    for image, result, kernel in zip(images, results, kernels(change, *numbers), strict=True):
        expected = cv2.filter2D(image.astype(np.float32), -1, kernel[::-1, ::-1], borderType=cv2.BORDER_REPLICATE)
        assert abs(result - expected).max() < 0.02


def test_noise_has_the_variance_of_a_sensor_in_linear_light():
    """Even gray images. Near black and white, values are cut off, so they are left out here."""
    strength = torch.tensor([0.0, 0.5, LARGEST]).repeat(3)
    gray = torch.tensor([0.5, 0.6, 0.7]).repeat_interleave(3)
    x = (2 * gray - 1)[:, None, None, None].expand(-1, 3, 112, 112)
    result = (sensor_noise(x, strength, random_columns(9, 1, 4)[:, 0]).double() + 1) / 2
    noise = (result**2.2).flatten(1).numpy() - (gray.double().numpy() ** 2.2)[:, None]
    shot = 0.0001 * 120 ** strength.double().numpy()
    deviation = np.sqrt(shot * gray.double().numpy() ** 2.2 + np.exp(2.18 * np.log(shot) + 1.2))
    count = noise.shape[1]
    assert (abs(noise.mean(1)) < 4 * deviation / math.sqrt(count)).all()
    assert (abs(noise.std(1) / deviation - 1) < 4 / math.sqrt(2 * count)).all()
    for row, sigma in zip(noise, deviation, strict=True):
        assert kstest(row / sigma, "norm").pvalue > 1e-3
    pixels = noise.reshape(9, 3, -1)
    between_colours = [np.corrcoef(image)[np.triu_indices(3, 1)] for image in pixels]
    between_pixels = [np.corrcoef(image[0, :-step], image[0, step:])[0, 1] for image in pixels for step in (1, 112)]
    between_images = np.corrcoef(noise)[np.triu_indices(9, 1)]
    for found, size in ((between_colours, count / 3), (between_pixels, count / 3), (between_images, count)):
        assert np.abs(found).max() < 4.5 / math.sqrt(size)


def test_noise_depends_only_on_its_seed(images):
    x, seed = as_input(images[:2]), torch.tensor([0.3, 0.7])
    strength = torch.full((2,), 0.8)
    both = sensor_noise(x, strength, seed)
    assert torch.equal(both, sensor_noise(x, strength, seed))
    for row in range(2):
        alone = sensor_noise(x[row : row + 1], strength[:1], seed[row : row + 1])
        assert (alone - both[row : row + 1]).abs().max() <= 1e-6
    assert not torch.equal(both[:1], sensor_noise(x[:1], strength[:1], seed[1:]))


QUALITIES = (30, 49, 50, 75, 95)


@pytest.fixture(scope="module")
def rough() -> np.ndarray:
    """Drawn faces with noise, uint8 [4, 112, 112, 3]. In even areas, many coefficients lie between two steps."""
    faces = np.stack([decode_rgb(encoded_face((0, identity, 0, 0.3)), "face") for identity in range(4)])
    return (faces + np.random.default_rng(5).normal(0, 6, faces.shape)).round().clip(0, 255).astype(np.uint8)


def with_quality(images: np.ndarray, quality: int) -> np.ndarray:
    draw = (quality - 30 + 0.5) / 66
    return as_bytes(Jpeg(CPU)(as_input(images), torch.full((len(images),), draw)))


def by_pillow(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def by_opencv(image: np.ndarray, quality: int) -> np.ndarray:
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("codec", [by_pillow, by_opencv])
def test_jpeg_equals_libjpegs(rough, quality, codec):
    """At least 97 percent of the pixels differ by at most 2 of 255.

    libjpeg computes the cosine transform with integers. If a coefficient lies in the middle between two steps, this
    error decides how it is rounded. If it is rounded differently, its wave has another height in this block of 8 x 8
    pixels: by a quarter of a step, or up to 50 of 255 for the largest step of quality 30, in the worst pixel.
    """
    expected = np.stack([codec(image, quality) for image in rough]).astype(float)
    difference = abs(with_quality(rough, quality) - expected)
    assert difference.mean() < 0.6 and (difference > 2.5).mean() < 0.03 and difference.max() <= 50
    assert abs(expected - rough).mean() > 4 * difference.mean()


def compress(channel: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """JPEG's loss, block by block, in float64. 0.501: in libjpeg, errors make some halves a little smaller."""
    result = np.empty_like(channel)
    for top in range(0, len(channel), 8):
        for left in range(0, len(channel), 8):
            block = slice(top, top + 8), slice(left, left + 8)
            coefficients = dctn(channel[block], norm="ortho") / steps
            coefficients = np.sign(coefficients) * np.floor(abs(coefficients) + 0.501) * steps
            result[block] = np.round(idctn(coefficients, norm="ortho")).clip(-128, 127)
    return result


@pytest.mark.parametrize("quality", QUALITIES)
def test_jpeg_equals_the_standards_arithmetic_in_float64(rough, quality):
    """One face, with the tables that Pillow's libjpeg writes.

    If a colour lies in the middle between two integers, the error of float32 decides how it is rounded. The difference
    of 1 may change a coefficient, which changes the colours of 16 x 16 pixels.
    """
    image, file = rough[0], io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    tables = [np.array(table).reshape(8, 8) for table in Image.open(file).quantization.values()]
    red, green, blue = image.astype(np.float64).transpose(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = [np.round((blue - luma) / 1.772), np.round((red - luma) / 1.402)]
    luma = compress(np.round(luma) - 128, tables[0]) + 128
    cb, cr = (np.floor(c.reshape(56, 2, 56, 2).mean((1, 3)) + np.tile([0.25, 0.5], 28)) for c in colours)
    cb, cr = (
        np.round(cv2.resize(compress(c, tables[1]), (112, 112), interpolation=cv2.INTER_LINEAR)) for c in (cb, cr)
    )
    rgb = [luma + 1.402 * cr, luma - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587, luma + 1.772 * cb]
    difference = abs(with_quality(rough[:1], quality)[0] - np.round(np.stack(rgb, 2)).clip(0, 255))
    assert difference.mean() < 0.1 and (difference > 1.5).mean() < 0.02


def test_each_image_of_a_batch_has_its_own_quality(images):
    """From 30 to 95: the higher it is, the smaller the error. 66 equally likely qualities."""
    batch = np.repeat(images[:1], 66, axis=0)
    quality = torch.linspace(0, LARGEST, 66)
    results = Jpeg(CPU)(as_input(batch), (torch.arange(66) + 0.5) / 66)
    ends = Jpeg(CPU)(as_input(batch[:2]), quality[[0, -1]])
    assert torch.equal(ends, results[[0, -1]])
    errors = abs(as_bytes(results) - batch).mean((1, 2, 3))
    assert (np.diff(errors[::13]) < 0).all()
    for number in (0, 30, 65):
        assert abs(as_bytes(results)[number] - with_quality(images[:1], 30 + number)[0]).max() < 1e-3
