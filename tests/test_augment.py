"""The augmentations against OpenCV, Pillow and torchvision's arithmetic, and what training makes of them."""

import functools
import itertools
import math
import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import run_script
from easydict import EasyDict
from PIL import Image, ImageEnhance
from scipy.stats import kstest
from test_training import SCRIPTS, assert_same_checkpoint, metrics, train

from config import ConfigError, load_config
from data.augment import DRAWS, Augmentation, probabilities
from data.dataset import RecordDataset
from data.images import decode_rgb, to_input
from demo.make_demo_data import encoded_face

CPU = torch.device("cpu")
KINDS = ("crop", "low_res", "photometric")
# What each uniform number decides. The first of a group decides whether the image is chosen, the others how it changes.
MEANING = (
    "crop", "area", "ratio", "top", "left", "low_res", "side", "down", "up", "photometric", "brightness", "contrast",
    "saturation",
)  # fmt: skip
SIZES = range(22, 112)  # int(112 * u) for u from 0.2 to 1
INTERPOLATIONS = dict(
    nearest=cv2.INTER_NEAREST, area=cv2.INTER_AREA, linear=cv2.INTER_LINEAR, cubic=cv2.INTER_CUBIC
)  # fmt: skip
DOWN, UP = ("nearest", "area", "linear", "cubic"), ("nearest", "linear", "cubic")
LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))


def numbers(batch: int = 1, **values: float | np.ndarray) -> torch.Tensor:
    """Draws [batch, DRAWS] that choose every image and are 0.5 elsewhere, but for the `values` of some columns."""
    draws = torch.full((batch, DRAWS), 0.5)
    for name, value in {**dict.fromkeys(KINDS, 0.0), **values}.items():
        draws[:, MEANING.index(name)] = torch.as_tensor(value, dtype=torch.float32)
    return draws


def random_numbers(batch: int, seed: int, **values: float | np.ndarray) -> torch.Tensor:
    """Uniform draws [batch, DRAWS], but for the `values` of some columns."""
    draws = torch.rand(batch, DRAWS, generator=torch.Generator().manual_seed(seed))
    for name, value in values.items():
        draws[:, MEANING.index(name)] = torch.as_tensor(value, dtype=torch.float32)
    return draws


@functools.cache
def augmentation(crop: float = 0.0, low_res: float = 0.0, photometric: float = 0.0) -> Augmentation:
    named = zip(KINDS, (crop, low_res, photometric), strict=True)
    return Augmentation(EasyDict({f"{kind}_augmentation_prob": value for kind, value in named}), CPU)


def as_input(images: np.ndarray) -> torch.Tensor:
    return to_input(torch.from_numpy(images), None, CPU)


def as_bytes(x: torch.Tensor) -> np.ndarray:
    """In units of a byte, not rounded: float64 [B, H, W, 3] from 0 to 255."""
    return 127.5 * x.double().permute(0, 2, 3, 1).numpy() + 127.5


def center_of(index: int, count: int) -> float:
    """A uniform number in the middle of those that select `index` out of `count`."""
    return (index + 0.5) / count


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """uint8 [8, 112, 112, 3]: seven drawn faces, and noise, whose overshoots and rounding are the largest there are."""
    faces = [decode_rgb(encoded_face((0, identity, 0, 0.3)), "face") for identity in range(7)]
    noise = np.random.default_rng(0).integers(0, 256, faces[0].shape, dtype=np.uint8)
    return np.stack([*faces, noise])


# --- rescaling -------------------------------------------------------------------------------------------------


def rescaled(images: np.ndarray, down: str, up: str) -> np.ndarray:
    """Image i of as many as there are sizes by size i, in units of a byte."""
    draws = numbers(
        len(SIZES),
        side=np.array([center_of(number, len(SIZES)) for number in range(len(SIZES))]),
        down=center_of(DOWN.index(down), len(DOWN)),
        up=center_of(UP.index(up), len(UP)),
    )
    return as_bytes(augmentation(low_res=1.0)(as_input(images), draws))


@pytest.mark.parametrize(("down", "up"), list(itertools.product(DOWN, UP)))
def test_rescaling_is_opencvs_at_every_size(images, down, up):
    """Against its float32 arithmetic to 0.01 of 255, against its bytes within what they round.

    The small image is off by 0.5, which no resampling but the cubic one makes larger: its weights (A = -0.75) sum up to
    at most 1.375 in absolute value, squared 1.9, so 0.95; the large image adds 0.5. The weights of its integer
    arithmetic have 11 bits: up to 0.25 each way. Ties aside, that makes at most 2 of 255.
    """
    batch = images[np.arange(len(SIZES)) % len(images)]
    ours = rescaled(batch, down, up)
    for image, result, size in zip(batch, ours, SIZES, strict=True):
        small = cv2.resize(image, (size, size), interpolation=INTERPOLATIONS[down])
        in_bytes = cv2.resize(small, (112, 112), interpolation=INTERPOLATIONS[up])
        assert abs(result - in_bytes).max() < 2, size
        assert abs(result - in_bytes).mean() < 0.5, size
        small = cv2.resize(image.astype(np.float32), (size, size), interpolation=INTERPOLATIONS[down]).clip(0, 255)
        exact = cv2.resize(small, (112, 112), interpolation=INTERPOLATIONS[up]).clip(0, 255)
        assert abs(result - exact).max() < 0.01, size


def test_sides_and_resamplings_are_equally_likely():
    """A side is 22 to 111 pixels; the number of different columns of a ramp tells it, blown up by nearest neighbor."""
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


# --- brightness, contrast, saturation --------------------------------------------------------------------------

ENHANCERS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
FACTORS = (0.5, 0.7, 1.0, 1.2, 1.499)


def changed(x: torch.Tensor, factors: dict[str, float]) -> torch.Tensor:
    draws = numbers(len(x), **{name: factor - 0.5 for name, factor in factors.items()})
    return augmentation(photometric=1.0)(x, draws)


def by_pillow(image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
    picture = Image.fromarray(image)
    for name, factor in factors.items():
        picture = ENHANCERS[name](picture).enhance(factor)
    return np.asarray(picture, dtype=np.float64)


def in_float64(image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
    """The definitions, [H, W, 3] from 0 to 255: away from black, from the mean gray, from each pixel's own gray."""
    for name, factor in factors.items():
        gray = image @ np.array([0.299, 0.587, 0.114])
        without = {"brightness": 0.0, "contrast": gray.mean(), "saturation": gray[..., None]}[name]
        image = (without + factor * (image - without)).clip(0, 255)
    return image


@pytest.mark.parametrize("name", ENHANCERS)
@pytest.mark.parametrize("factor", FACTORS)
def test_each_photometric_change_is_pillows(images, name, factor):
    """Pillow drops what is behind the point, less than 1, and rounds its grays: 0.5 as often as they weigh."""
    tolerance = 1 + abs(1 - factor) * 0.5 + 1e-3
    for image, result in zip(images, as_bytes(changed(as_input(images), {name: factor})), strict=True):
        assert abs(result - by_pillow(image, {name: factor})).max() < tolerance


@pytest.mark.parametrize("values", list(itertools.product((0.5, 0.8, 1.499), repeat=3)))
def test_all_photometric_changes_are_pillows_one_after_the_other(images, values):
    """Within what its three roundings add up to, and to 0.001 of 255 what the definitions say without rounding."""
    factors = dict(zip(ENHANCERS, values, strict=True))
    tolerance = 1e-3
    for factor, gray in zip(values, (0.0, 1.0, 1.0), strict=True):  # what was off before, also by its gray, and 1 anew
        tolerance = factor * tolerance + gray * abs(1 - factor) * (tolerance + 0.5) + 1
    for image, result in zip(images, as_bytes(changed(as_input(images), factors)), strict=True):
        difference = abs(result - by_pillow(image, factors))
        assert difference.max() < tolerance and difference.mean() < tolerance / 2
        assert abs(result - in_float64(image, factors)).max() < 1e-3


@pytest.mark.parametrize("values", [(1.4, 0.6, 1.3), (0.6, 1.45, 0.5), (1.45, 1.45, 1.45)])
def test_the_order_of_photometric_changes_matters_only_where_values_are_clamped(images, values):
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


# --- crop and pad ----------------------------------------------------------------------------------------------


def rectangles(draws: torch.Tensor) -> np.ndarray:
    """top, left, height, width [N, 4] of what is kept; asserts that it is a rectangle and all else is black."""
    x = torch.zeros(1, 1, 112, 112).expand(len(draws), -1, -1, -1)
    kept = augmentation(crop=1.0)(x, draws)[:, 0]
    assert ((kept == 0) | (kept == -1)).all()
    kept = kept.numpy() == 0
    rows, columns = kept.any(2), kept.any(1)
    assert np.array_equal(kept, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):  # without a gap
        assert np.array_equal(112 - line.argmax(1) - line[:, ::-1].argmax(1), line.sum(1))
    return np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], axis=1)


@pytest.fixture(scope="module")
def crops() -> tuple[torch.Tensor, np.ndarray]:
    """8,000 draws, and the rectangles that they give."""
    draws = random_numbers(8000, seed=1, crop=0.0)
    return draws, np.concatenate([rectangles(part) for part in draws.split(200)])


def torchvision_sides(area: np.ndarray, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height and width that RandomResizedCrop.get_params tries for scale (0.2, 1), ratio (3/4, 4/3), not rounded.

    area, ratio: uniform in [0, 1). torchvision rounds, and tries anew where one is above 112.
    """
    target_area = 112 * 112 * (0.2 + area * (1 - 0.2))
    aspect_ratio = np.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
    return np.sqrt(target_area / aspect_ratio), np.sqrt(target_area * aspect_ratio)


def test_what_a_crop_keeps_stays_as_it_is_and_where_it_is(images):
    draws = random_numbers(64, seed=2, crop=0.0)
    x = as_input(images[np.arange(64) % 8] // 2 + 1)  # nothing black
    result = augmentation(crop=1.0)(x, draws)
    for image, before, (top, left, height, width) in zip(result, x, rectangles(draws), strict=True):
        expected = torch.full_like(before, -1.0)
        expected[:, top : top + height, left : left + width] = before[:, top : top + height, left : left + width]
        assert torch.equal(image, expected)


def test_a_crop_has_the_size_that_torchvision_computes_cut_to_the_image(crops):
    draws, found = crops
    area, ratio = (draws[:, MEANING.index(name)].double().numpy() for name in ("area", "ratio"))
    for side, exact in zip(found.T[2:], torchvision_sides(area, ratio), strict=True):
        exact = exact.clip(max=112)
        assert abs(side - exact).max() < 0.5 + 1e-4  # rounded; 1e-4: float32 decides near a half
    height, width = found.T[2:].astype(float)
    # Half a pixel more or less a side.
    assert ((height + 0.5) * (width + 0.5) >= 0.2 * 112**2).all() and (height * width <= 112**2).all()
    for one, other in ((height, width), (width, height)):
        assert ((one - 0.5) / (other + 0.5) <= 4 / 3).all()
    assert height.min() < 48 and height.max() == 112 and width.min() < 48 and width.max() == 112


def test_crops_are_distributed_as_torchvisions(crops):
    """Where the rectangle fits at the first try, sizes and places are those of get_params: Kolmogorov and Smirnov."""
    draws, found = crops
    area, ratio = (draws[:, MEANING.index(name)].double().numpy() for name in ("area", "ratio"))
    fits = (np.round(torchvision_sides(area, ratio)) <= 112).all(0)
    assert 0.8 < fits.mean() < 0.95
    rng = np.random.default_rng(3)
    theirs = []
    while len(theirs) < 8000:
        sides = [round(float(side)) for side in torchvision_sides(rng.random(), rng.random())]
        if max(sides) <= 112:
            theirs.append([*(rng.integers(0, 112 - side + 1) for side in sides), *sides])
    theirs = np.array(theirs)
    for ours, other in ((found[fits], theirs), (found[fits] @ np.eye(4)[:, 2:], theirs[:, 2:])):
        for column in range(ours.shape[1]):
            assert kstest(ours[:, column], other[:, column]).pvalue > 1e-3
    for combine in (lambda r: r[:, 2] * r[:, 3], lambda r: r[:, 2] / r[:, 3], lambda r: r[:, 0] + r[:, 2]):
        assert kstest(combine(found[fits]), combine(theirs)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["top", "left"])
def test_every_place_of_a_crop_occurs_equally_often(name):
    steps = 63 * 8  # a square of 0.2 of the area is 50 pixels wide, so there are 63 places
    draws = numbers(steps, area=0.0, **{name: (np.arange(steps) + 0.5) / steps})
    found = rectangles(draws)
    assert (found[:, 2:] == 50).all()
    assert found[:, ["top", "left"].index(name)].tolist() == [place for place in range(63) for _ in range(8)]


# --- all of them -----------------------------------------------------------------------------------------------

ONE_EACH = ({"crop": 1.0}, {"low_res": 1.0}, {"photometric": 1.0})


def test_each_augmentation_acts_with_its_probability_independently():
    """Over 1,500 draws, within four standard deviations; each change leaves a trace that the others do not hide.

    A gray image with a dot: a crop to the left half blackens the right edge, a rescaling smears the dot, a photometric
    change darkens the left edge.
    """
    chances, count = (0.6, 0.35, 0.2), 1500
    x = torch.full((1, 3, 112, 112), 0.5)
    x[:, :, 40, 20] = 1.0
    kinds = [MEANING.index(kind) for kind in KINDS]
    draws = numbers(count, area=0.1, left=0.0, side=0.3, down=0.3, brightness=0.1)
    draws[:, kinds] = random_numbers(count, seed=4)[:, kinds]
    result = torch.cat([augmentation(*chances)(x.expand(20, -1, -1, -1), part) for part in draws.split(20)])
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


def test_probability_0_leaves_images_to_the_bit_and_1_changes_all(images):
    x = as_input(images)
    for draw in (0.0, 0.5, LARGEST):
        draws = random_numbers(8, 5, **dict.fromkeys(KINDS, draw), area=0.4)
        assert torch.equal(augmentation()(x, draws), x)
        for chosen in ONE_EACH:
            result = augmentation(**chosen)(x, draws)
            assert all(not torch.equal(one, before) for one, before in zip(result, x, strict=True))


@pytest.mark.parametrize("chosen", [*ONE_EACH, {"crop": 1.0, "low_res": 1.0, "photometric": 1.0}])
def test_images_not_chosen_stay_to_the_bit_beside_chosen_ones(images, chosen):
    x = as_input(images)
    is_chosen = torch.arange(8) % 3 == 0
    where = np.where(is_chosen, 0.49, 0.5)
    draws = random_numbers(8, 6, **dict.fromkeys(KINDS, where), area=0.4)
    result = augmentation(**dict.fromkeys(chosen, 0.5))(x, draws)
    changed = (result != x).flatten(1).any(1)
    assert torch.equal(changed, is_chosen)


@pytest.mark.parametrize("chosen", [*ONE_EACH, {"crop": 0.7, "low_res": 0.7, "photometric": 0.7}])
def test_an_image_is_changed_in_the_same_way_in_any_batch(images, chosen):
    """To the bit, but for the order of sums: over rows and columns in a resampling, over the image in its mean gray."""
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
def test_the_smallest_and_largest_draws_are_fine_for_every_parameter(images, chosen):
    """All combinations of 0 and of the largest float32 below 1, for the parameters of what is chosen."""
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
def test_the_result_stays_in_range_float32_and_does_not_depend_on_the_memory_layout(chosen):
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


def test_augmentations_act_on_real_faces_as_on_drawn_ones(face_data):
    """Crops, rescalings and photometric changes of LFW's faces one after the other, against OpenCV and Pillow."""
    faces = RecordDataset(face_data / "lfw")[np.arange(0, 64, 4)].images.numpy()
    draws = random_numbers(len(faces), 10)
    result = as_bytes(augmentation(1.0, 1.0, 1.0)(as_input(faces), draws))
    places = rectangles(draws)
    for image, out, place, draw in zip(faces, result, places, draws.double().numpy(), strict=True):
        values = dict(zip(MEANING, draw, strict=False))
        top, left, height, width = place
        crop = np.zeros_like(image)
        crop[top : top + height, left : left + width] = image[top : top + height, left : left + width]
        size = SIZES[int(values["side"] * len(SIZES))]
        down, up = DOWN[int(values["down"] * 4)], UP[int(values["up"] * 3)]
        small = cv2.resize(crop, (size, size), interpolation=INTERPOLATIONS[down])
        large = cv2.resize(small, (112, 112), interpolation=INTERPOLATIONS[up])
        expected = by_pillow(large, {name: 0.5 + values[name] for name in ENHANCERS})
        # The 2 of rescaling times 1.5 for each change, and Pillow's own roundings: nearly always far less.
        assert abs(out - expected).mean() < 2 and np.quantile(abs(out - expected), 0.999) < 6


# --- in training -----------------------------------------------------------------------------------------------

HALF = [f"{kind}_augmentation_prob=0.5" for kind in KINDS]
QUICK = ["val_eval_every_n_epoch=0", "sync_bn=True"]  # on one rank as without it


@pytest.fixture(scope="module")
def augmented_run(small_run, tmp_path_factory):
    """Settings and output of a run of eight steps over two epochs, with all augmentations on; it saves each fourth."""
    output = tmp_path_factory.mktemp("augmented")
    settings = [*small_run, *QUICK, *HALF]
    train(SCRIPTS[0], settings, output, "max_steps=8", "checkpoint_every=4")
    return settings, output


@pytest.fixture(scope="module")
def plain_runs(small_run, tmp_path_factory):
    """Outputs of two steps without augmentations, the teacher's view the same and clean."""
    outputs = []
    for view in ("same", "clean"):
        outputs.append(tmp_path_factory.mktemp(view))
        none = [f"{kind}_augmentation_prob=0" for kind in KINDS]
        train(SCRIPTS[0], [*small_run, *QUICK, *none], outputs[-1], f"teacher_view={view}", "max_steps=2")
    return outputs


def tiles(output, count: int = 8) -> np.ndarray:
    """The images of first_batch.png, without the labels below: uint8 [count, 112, 112, 3]."""
    picture = cv2.cvtColor(cv2.imread(str(output / "first_batch.png")), cv2.COLOR_BGR2RGB)
    return np.stack([picture[:112, column * 112 : (column + 1) * 112] for column in range(count)])


def test_without_augmentations_the_teachers_view_makes_no_difference(plain_runs):
    same, clean = plain_runs
    assert metrics(same) == metrics(clean)
    assert_same_checkpoint(same, clean, 2)


def test_the_teacher_sees_the_augmented_or_the_clean_image(augmented_run, plain_runs, tmp_path):
    """At step 1 the teacher's confidence follows from its embeddings and the first centers alone."""
    settings, same = augmented_run
    train(SCRIPTS[0], settings, tmp_path, "teacher_view=clean", "max_steps=2")
    same, clean, plain = metrics(same), metrics(tmp_path), metrics(plain_runs[0])
    assert clean[0]["conf_t"] == plain[0]["conf_t"] != same[0]["conf_t"]
    assert clean[0]["norm_mean"] == same[0]["norm_mean"] != plain[0]["norm_mean"]  # of the student's embeddings
    assert clean[0]["loss"] != same[0]["loss"] and clean[1]["loss"] != same[1]["loss"]


def test_the_first_batch_is_shown_as_the_student_sees_it(augmented_run, plain_runs):
    """The plain run's first batch (same order, same flips), changed by the first numbers of the epoch's stream."""
    settings, output = augmented_run
    cfg = load_config(overrides=[*settings, "num_classes=6"])
    stream = np.random.Generator(np.random.PCG64((cfg.seed, 0, 1)))
    draws = torch.from_numpy(stream.random((48, DRAWS))[:8].astype(np.float32))
    expected = as_bytes(Augmentation(cfg, CPU)(as_input(tiles(plain_runs[0])), draws))
    assert abs(expected - tiles(output)).max() <= 0.5 + 1e-3
    altered = [not np.array_equal(*pair) for pair in zip(tiles(output), tiles(plain_runs[0]), strict=True)]
    assert altered == (draws[:, [MEANING.index(kind) for kind in KINDS]] < 0.5).any(1).tolist()
    assert any(altered)


def test_a_resumed_run_with_augmentations_ends_in_the_same_bits_as_one_never_stopped(augmented_run, tmp_path):
    settings, output = augmented_run
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    train(SCRIPTS[0], settings, tmp_path, "max_steps=8", "global_step=4", "num_workers=0")
    assert (tmp_path / "8state.pth").stat().st_mtime > (output / "8state.pth").stat().st_mtime
    assert "from step 4 to 8" in (tmp_path / "training.log").read_text()
    assert_same_checkpoint(output, tmp_path, 8)
    assert metrics(output) == metrics(tmp_path)


def test_two_ranks_see_the_same_augmented_images_as_one_process(augmented_run, tmp_path):
    settings, output = augmented_run
    train(SCRIPTS[0], settings, tmp_path, "batch_size=4", "max_steps=4", ranks=2)
    for one, two in zip(metrics(output)[:4], metrics(tmp_path), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert np.array_equal(tiles(output)[:4], tiles(tmp_path, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_probability_outside_0_to_1_is_refused(kind):
    for value in ("-0.1", "1.01", "nan", "inf", "half", "True", "None"):
        with pytest.raises(ConfigError, match=rf"{kind}_augmentation_prob = .*>= 0 and <= 1"):
            load_config(overrides=[f"{kind}_augmentation_prob={value}"])
    for value in ("0", "1", "0.2"):
        cfg = load_config(overrides=[f"{kind}_augmentation_prob={value}"])
        assert sorted(probabilities(cfg)) == [0, 0, float(value)]
        assert probabilities(cfg)[KINDS.index(kind)] == float(value)


def test_a_script_names_the_probability_that_it_refuses(small_run, tmp_path):
    for script in SCRIPTS:
        done = run_script(script, *small_run, f"output={tmp_path}", "crop_augmentation_prob=2")
        assert done.returncode == 2 and "crop_augmentation_prob = 2: must be a number >= 0 and <= 1" in done.stderr
        assert "Traceback" not in done.stderr and not os.listdir(tmp_path)
