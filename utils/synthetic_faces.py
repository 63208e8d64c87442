"""Drawn faces of synthetic identities, for trials on a machine without face data.

Two frozen records of numbers decide a picture: an `Identity` (what a person keeps: bones, skin, hair, marks) and a
`View` (what a camera adds: pose, light, expression, occlusion, blur, resolution, noise, background). `draw_face` is a
pure function of the two, so every factor can be changed alone. Both follow from (seed, identity number, image number).

    python utils/synthetic_faces.py --sheet faces.png --identities 6 --views 10 --seed 0

Face coordinates: the origin lies between the eyes, x to the image's right, y down, z towards the camera; the unit is
one pixel of the 112x112 picture. Eyes, nose and mouth of the mean identity lie on the five ArcFace landmarks.
"""

import argparse
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from math import prod
from pathlib import Path

import cv2
import numpy as np

SIZE = 112  # pixels, the side of a picture
OVERSAMPLING = 2  # drawn larger by this factor, then reduced by area
SUBPIXEL_BITS = 4  # cv2 draws at 1/16 pixel
ORIGIN = np.array([55.75, 51.6])  # pixel between the eyes of the ArcFace template
RELIEF_STEP = 2  # pixels between two points of the height field
OCCLUSIONS = ("none", "sunglasses", "mask", "hand", "hat", "scarf")

SKIN_TONES = [(255, 226, 205), (243, 200, 168), (226, 173, 132), (194, 136, 95), (146, 93, 62), (98, 60, 42)]
HAIR_TONES = [(24, 20, 24), (50, 32, 26), (96, 56, 32), (150, 98, 50), (206, 156, 84), (238, 208, 142)]
EYE_TONES = [(48, 28, 18), (92, 56, 28), (124, 96, 48), (92, 116, 76), (76, 124, 164), (130, 160, 184)]
LID, BROW, HAIR = np.linspace(-1, 1, 17), np.linspace(-1, 1, 9), np.linspace(-1, 1, 61)  # places along a shape
STRAND = np.linspace(0.04, 0.96, 9)[:, None]
RED_HAIR, GREY_HAIR, LIP_RED = (172, 70, 30), (200, 200, 204), (176, 58, 70)


def factor(neutral: float, deviation: float, low: float, high: float):
    """A field that is drawn from a normal distribution around its neutral value and clipped to [low, high]."""
    return field(default=neutral, metadata={"deviation": deviation, "low": low, "high": high})


def uniform(low: float, high: float):
    """A field that is drawn uniformly from [low, high]; its default is the middle."""
    return field(default=(low + high) / 2, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Identity:
    """What a person keeps in every view. `Identity()` is the mean face. Lengths are pixels, shares lie in [0, 1]."""

    face_width: float = factor(1.0, 0.06, 0.84, 1.16)  # scale of the whole outline
    skull_height: float = factor(0.0, 2.2, -5, 5)
    cheek_width: float = factor(0.0, 1.6, -4, 4)
    jaw_width: float = factor(0.0, 2.8, -6, 6)
    chin_width: float = factor(0.0, 2.8, -6, 6)
    chin_length: float = factor(0.0, 2.4, -5, 5)
    eye_spacing: float = factor(0.0, 1.3, -3, 3)
    eye_height: float = factor(0.0, 1.1, -2.5, 2.5)
    eye_width: float = factor(8.8, 0.75, 6.6, 11)  # half the opening
    eye_opening: float = factor(4.2, 0.6, 2.6, 6)  # half the opening
    eye_tilt: float = factor(0.05, 0.08, -0.15, 0.25)  # radians, outer corner up
    eye_tone: float = uniform(0, 1)  # from dark brown over green to blue
    eyelid_crease: float = uniform(0, 1)
    lashes: float = uniform(0, 1)
    brow_height: float = factor(11.0, 1.3, 8, 14.5)
    brow_thickness: float = factor(1.5, 0.5, 0.5, 3)
    brow_length: float = factor(10.5, 1.0, 8, 13)  # half the length
    brow_arch: float = factor(2.0, 1.0, -0.5, 4.5)
    brow_tilt: float = factor(-0.06, 0.09, -0.26, 0.18)  # radians, outer end up
    nose_length: float = factor(20.3, 1.9, 16, 25)
    nose_width: float = factor(7.4, 1.1, 5, 10.5)  # half the width at the wings
    nose_bridge: float = factor(3.2, 0.6, 1.8, 4.8)
    nose_tip: float = factor(1.0, 0.22, 0.5, 1.6)  # relief of the tip
    nose_bend: float = factor(0.0, 0.7, -2, 2)  # the tip lies to one side
    mouth_height: float = factor(40.7, 1.4, 37.5, 44)
    mouth_width: float = factor(13.8, 1.5, 10, 18)  # half the width
    upper_lip: float = factor(2.9, 0.8, 1.2, 5)
    lower_lip: float = factor(4.0, 0.9, 2, 6.5)
    mouth_curve: float = factor(0.9, 0.7, -1, 2.6)  # corners up at rest
    lip_colour: float = uniform(0.15, 0.75)
    ear_size: float = factor(9.5, 1.2, 6.5, 13)
    ear_spread: float = factor(5.5, 1.5, 1.5, 10)
    skin_tone: float = uniform(0, 1)
    skin_warmth: float = factor(0.0, 0.4, -1, 1)
    blush: float = uniform(0, 1)
    hair_tone: float = uniform(0, 1)
    hair_red: float = uniform(0, 1)
    hair_grey: float = uniform(0, 1)
    hair_length: float = uniform(0, 1)  # shaved, short, to the ears, to the shoulders
    hair_volume: float = factor(7, 3, 2, 16)
    hair_wave: float = uniform(0, 1)
    hair_parting: float = uniform(-0.7, 0.7)
    hairline: float = factor(-27.0, 2.6, -36, -21)
    temple_recession: float = uniform(0, 7)
    fringe: float = uniform(0, 1)
    beard: float = uniform(0, 1)
    moustache: float = uniform(0, 1)
    age: float = uniform(0, 1)
    freckles: float = uniform(0, 1)
    moles: float = uniform(0, 1)
    mark_seed: int = 0  # places the freckles and moles


@dataclass(frozen=True)
class View:
    """What the camera adds. `View()` is a clean frontal portrait. Angles are degrees, lengths pixels."""

    yaw: float = factor(0, 19, -48, 48)  # positive: the face turns to the image's right
    pitch: float = factor(0, 9, -24, 24)  # positive: the face looks up
    roll: float = factor(0, 5, -15, 15)
    light_azimuth: float = factor(-20, 45, -85, 85)  # negative: from the image's left
    light_elevation: float = factor(30, 22, -25, 75)
    light_strength: float = factor(0.55, 0.2, 0.15, 1.0)
    ambient: float = factor(0.6, 0.11, 0.3, 0.85)
    light_warmth: float = factor(0, 0.45, -1, 1)  # blue to orange
    smile: float = factor(0.5, 0.5, -0.7, 1.4)
    mouth_opening: float = factor(0, 0.3, 0, 1)
    brow_raise: float = factor(0, 0.4, -0.8, 1)
    eye_closing: float = factor(0, 0.25, 0, 1)
    gaze_x: float = factor(0, 0.4, -1, 1)
    gaze_y: float = factor(0, 0.3, -1, 1)
    occlusion: str = "none"
    occlusion_place: float = 0.5  # in [0, 1]: how far the cover reaches, or which side it comes from
    occlusion_tone: float = 0.5  # in [0, 1]: its colour
    blur: float = 0.0  # sigma of a Gaussian
    motion: float = 0.0  # length of a straight smear
    motion_angle: float = 0.0
    resolution: int = SIZE  # the picture is reduced to this side and enlarged again
    noise: float = 0.0  # deviation of the sensor noise, grey levels
    jpeg_quality: int = 100  # 100 leaves the compression out
    shift_x: float = factor(0, 1.6, -5, 5)
    shift_y: float = factor(0, 1.6, -5, 5)
    scale: float = factor(1.0, 0.04, 0.88, 1.12)
    background_seed: int = 0  # backdrop and clothes
    noise_seed: int = 0

    def __post_init__(self):
        if self.occlusion not in OCCLUSIONS:
            raise ValueError(f"occlusion {self.occlusion!r} is not one of {', '.join(OCCLUSIONS)}")


def sample_factors(record, rng: np.random.Generator, difficulty: float) -> dict[str, float]:
    """Draw every field of a record that was declared with `factor` or `uniform`."""
    values = {}
    for entry in fields(record):
        if "deviation" in entry.metadata:
            value = entry.default + difficulty * entry.metadata["deviation"] * rng.standard_normal()
            values[entry.name] = float(np.clip(value, entry.metadata["low"], entry.metadata["high"]))
        elif "low" in entry.metadata:
            values[entry.name] = float(rng.uniform(entry.metadata["low"], entry.metadata["high"]))
    return values


def sample_identity(rng: np.random.Generator) -> Identity:
    """Draw a person. Beard, hair length, brows and lips lean on one hidden trait; all else is independent."""
    values = sample_factors(Identity, rng, 1.0)
    bearded = rng.random() < 0.5
    values["beard"] = values["beard"] ** 0.6 * (bearded and rng.random() < 0.55)
    values["moustache"] = values["moustache"] ** 0.6 * (bearded and rng.random() < 0.6)
    values["hair_length"] = values["hair_length"] ** (1.6 if bearded else 0.7)
    values["lip_colour"] *= 0.6 if bearded else 1.0
    values["lashes"] *= 0.3 if bearded else 1.0
    values["jaw_width"] += 1.5 if bearded else -1.0
    values["brow_thickness"] *= 1.2 if bearded else 0.85
    # Most people have neither red nor grey hair, few freckles and few lines: high powers keep the tails rare.
    values["hair_red"] **= 5
    values["age"] **= 1.3
    values["hair_grey"] = values["hair_grey"] ** 5 * (0.3 + values["age"])
    values["freckles"] **= 4
    values["moles"] **= 2
    # Dark skin goes with dark hair and eyes more often than not, yet never fixes them.
    values["hair_tone"] *= 1 - 0.75 * values["skin_tone"]
    values["eye_tone"] *= 1 - 0.7 * values["skin_tone"]
    values["temple_recession"] *= 0.4 + 0.8 * values["age"] * bearded
    return Identity(**values, mark_seed=int(rng.integers(2**31)))


def sample_view(rng: np.random.Generator, difficulty: float = 1.0) -> View:
    """Draw a view. Difficulty 0 is a clean frontal portrait, 1 a hard photograph; all spreads grow with it."""
    values = sample_factors(View, rng, difficulty)
    if rng.random() < 0.3 * difficulty:
        values["occlusion"] = str(rng.choice(OCCLUSIONS[1:]))
    values["occlusion_place"], values["occlusion_tone"] = rng.random(2).tolist()
    blurred, smeared, small, noisy, compressed = rng.random(5) < np.array([0.3, 0.12, 0.3, 0.5, 0.5]) * difficulty
    values["blur"] = float(blurred * rng.uniform(0.4, 1.8))
    values["motion"] = float(smeared * rng.uniform(3, 8))
    values["motion_angle"] = float(rng.uniform(0, 180))
    values["resolution"] = int(rng.uniform(24, 80)) if small else SIZE
    values["noise"] = float(noisy * rng.gamma(2.0, 3.0))
    values["jpeg_quality"] = int(rng.uniform(25, 90)) if compressed else 100
    background_seed, noise_seed = rng.integers(2**31, size=2).tolist()
    return View(**values, background_seed=background_seed, noise_seed=noise_seed)


def make_identity(seed: int, number: int) -> Identity:
    """The identity with this number; it depends on nothing but the two integers (>= 0)."""
    return sample_identity(np.random.default_rng((seed, number)))


def make_view(seed: int, identity: int, image: int, difficulty: float = 1.0) -> View:
    """The view of this image of this identity; it depends on nothing but the arguments (integers >= 0)."""
    # A seed (a, b) is the same stream as (a, b, 0): images count from 1 so that none shares its identity's stream.
    return sample_view(np.random.default_rng((seed, identity, image + 1)), difficulty)


def mix(colour: tuple, other: tuple, share: float) -> tuple[float, ...]:
    """Blend two RGB colours; share 0 gives the first, 1 the other."""
    (red, green, blue), rest = colour, 1 - share
    return red * rest + other[0] * share, green * rest + other[1] * share, blue * rest + other[2] * share


def tone(scale: list[tuple], position: float) -> tuple[float, ...]:
    """The RGB colour at a position in [0, 1] along a scale of colours."""
    place = position * (len(scale) - 1)
    below = min(int(place), len(scale) - 2)
    return mix(scale[below], scale[below + 1], place - below)


class Palette:
    """The colours of an identity, RGB in 0..255."""

    def __init__(self, identity: Identity):
        warm = (14 * identity.skin_warmth, 0, -14 * identity.skin_warmth)
        self.skin = tuple(np.clip(np.add(tone(SKIN_TONES, identity.skin_tone), warm), 20, 255).tolist())
        self.fold = mix(self.skin, (70, 24, 16), 0.45)
        self.hair = mix(mix(tone(HAIR_TONES, identity.hair_tone), RED_HAIR, identity.hair_red), GREY_HAIR,
                        min(identity.hair_grey, 1))  # fmt: skip
        self.brow = mix(mix(self.hair, (30, 20, 16), 0.45), self.skin, 0.12)
        self.lip = mix(self.skin, LIP_RED, 0.15 + 0.9 * identity.lip_colour)
        self.iris = tone(EYE_TONES, identity.eye_tone)


@lru_cache(maxsize=64)
def spline_basis(count: int, closed: bool, steps: int = 5) -> np.ndarray:
    """Weights [samples, count] of a Catmull-Rom curve through `count` points; a smooth curve is then one product."""
    spans = count if closed else count - 1
    t = np.linspace(0, 1, steps, endpoint=False)
    powers = np.stack([t**0, t, t**2, t**3], 1)
    kernel = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    basis = np.zeros((spans * steps + (not closed), count))
    for span in range(spans):
        for k in range(4):
            index = (span + k - 1) % count if closed else min(max(span + k - 1, 0), count - 1)
            basis[span * steps : (span + 1) * steps, index] += powers @ kernel[:, k]
    if not closed:
        basis[-1, -1] = 1
    return basis


def curve(points, closed: bool = False) -> np.ndarray:
    """A smooth curve [samples, D] through points [N, D]."""
    return spline_basis(len(points), closed) @ np.asarray(points, dtype=float)


def surface(x, y, lift=0.0) -> np.ndarray:
    """Points [N, 3] of x, y and the lift off the skin, from arrays [N] or numbers; x = +-inf is the visible outline."""
    points = np.empty((max(np.size(x), np.size(y)), 3))
    points[:, 0], points[:, 1], points[:, 2] = x, y, lift
    return points


@lru_cache(maxsize=8)
def unit_circle(samples: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, samples, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, samples: int = 20) -> np.ndarray:
    """A closed ellipse [samples, 2]."""
    return unit_circle(samples) * (radius_x, radius_y) + (x, y)


class Head:
    """A posed head. Each height y is a half ellipse: half width, centre in depth, and depth. Points become pixels."""

    def __init__(self, identity: Identity, view: View):
        jaw, lower_jaw = identity.jaw_width, 4 * view.mouth_opening
        self.chin, self.lower_jaw = 56 + identity.chin_length + lower_jaw, lower_jaw
        top = -44 - identity.skull_height
        outline = curve([
            (top, 0.0, 0, 0),  # height, half width, centre, depth
            (top + 2.2, 17, 0, 22),
            (-32 - identity.skull_height / 2, 31, 0, 36),
            (-16, 37.5, 0, 43),
            (2, 39 + 0.5 * identity.cheek_width, 0, 43),
            (20, 36.5 + identity.cheek_width + 0.3 * jaw, 1, 44),
            (36 + 0.5 * lower_jaw, 31.5 + jaw, 6, 39),
            (self.chin - 5, 18 + 0.3 * jaw + identity.chin_width, 22, 21),
            (self.chin, 0, 32, 10),
        ])  # fmt: skip
        self.rows = outline[:, 0]
        self.width, self.centre, self.depth = outline[:, 1] * identity.face_width, outline[:, 2], outline[:, 3]
        self.yaw, self.pitch = np.deg2rad(view.yaw), np.deg2rad(view.pitch)
        # An aligned crop keeps the middle of the five landmarks in place, whatever the pose.
        landmarks = surface(np.array([-17.75, 17.75, 0, -14.6, 14.6]), np.array([0, 0, 20, 40.7, 40.7]),
                            np.array([0, 0, 14, 2, 2]))  # fmt: skip
        self.drift = np.zeros(2)
        self.drift = (self.project(landmarks) - landmarks[:, :2]).mean(0)
        turn, pivot = np.deg2rad(view.roll), np.array([0, 20])
        linear = view.scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shift = ORIGIN + pivot + (view.shift_x, view.shift_y) - linear @ pivot
        self.affine = np.hstack([linear, shift[:, None]])  # upright face plane to pixels

    def place(self, x, y, z) -> np.ndarray:
        """Turn points of space with the head; returns their positions in the upright face plane, [N, 2]."""
        across = x * np.cos(self.yaw) + z * np.sin(self.yaw)
        near = z * np.cos(self.yaw) - x * np.sin(self.yaw)
        return np.stack([across, (y - 8) * np.cos(self.pitch) + 8 - near * np.sin(self.pitch)], -1) - self.drift

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 3] of `surface` in the upright face plane, [N, 2]; hidden ones slide to the visible outline."""
        x, y, lift = points.T
        width = np.interp(y, self.rows, self.width) + 1e-3
        centre, depth = np.interp(y, self.rows, self.centre), np.interp(y, self.rows, self.depth) + 1e-3
        angle = np.where(np.isinf(x), np.sign(x) * np.pi, np.arcsin(np.clip(x / width, -1, 1)))
        limit = np.arctan2(width * np.cos(self.yaw), depth * np.sin(self.yaw))
        angle = np.clip(angle, limit - np.pi, limit)
        return self.place((width + lift) * np.sin(angle), y, centre + (depth + lift) * np.cos(angle))


class Sketch:
    """An ordered list of shapes. All are projected at once when the picture is painted, which is what makes it fast."""

    def __init__(self):
        self.solid, self.flat, self.shapes = [], [], []

    def add(self, points: np.ndarray, colour: tuple, width=0.0, relief=255, mirror=False) -> None:
        """A shape on the head: `surface` points [N, 3] or several such shapes [M, N, 3].

        Width 0 fills a polygon, else a line of so many pixels is drawn; relief (0..255) is how much the light shades
        it; mirror adds the twin on the other side.
        """
        self.shapes.append((True, points.shape[:-1], (*colour, relief), round(width * OVERSAMPLING)))
        self.solid.append(points.reshape(-1, 3))
        if mirror:
            self.add(points * (-1, 1, 1), colour, width, relief)

    def add_flat(self, points: np.ndarray, colour: tuple, width=0.0, relief=255) -> None:
        """The same for points [N, 2] or [M, N, 2] that already lie in the upright face plane."""
        self.shapes.append((False, points.shape[:-1], (*colour, relief), round(width * OVERSAMPLING)))
        self.flat.append(points.reshape(-1, 2))

    def paint(self, pixels: np.ndarray, head: Head) -> None:
        """Draw all shapes, in order, into the enlarged picture [side, side, 4]; channel 3 receives the relief."""
        plane = np.concatenate([head.project(np.concatenate(self.solid)), *self.flat])
        enlarged = OVERSAMPLING * (plane @ head.affine[:, :2].T + head.affine[:, 2]) + (OVERSAMPLING - 1) / 2
        fixed = np.rint(enlarged * (1 << SUBPIXEL_BITS)).astype(np.int32)
        flat, solid = sum(map(len, self.solid)), 0
        for is_solid, shape, colour, thickness in self.shapes:
            start, count = solid if is_solid else flat, prod(shape)
            solid, flat = solid + count * is_solid, flat + count * (not is_solid)
            pieces = list(fixed[start : start + count].reshape(-1, shape[-1], 2))
            if thickness:
                cv2.polylines(pixels, pieces, False, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
            else:
                cv2.fillPoly(pixels, pieces, colour, cv2.LINE_AA, SUBPIXEL_BITS)


def draw_backdrop(rng: np.random.Generator) -> np.ndarray:
    """A soft backdrop without any bearing on the identity, uint8 [side, side, 4]."""
    cells = int(rng.integers(2, 7))
    grid = np.zeros((cells, cells, 4), np.uint8)
    grey = rng.uniform(30, 235)
    tint = grey + rng.normal(0, 24, 3) + rng.normal(0, rng.uniform(4, 36), (cells, cells, 1))
    grid[..., :3] = np.clip(tint + rng.normal(0, 8, (cells, cells, 3)), 5, 250)
    smooth = cv2.resize(grid, (28, 28), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(smooth, (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING), interpolation=cv2.INTER_LINEAR)


def draw_neck(sketch: Sketch, head: Head, palette: Palette, rng: np.random.Generator) -> None:
    """Neck and clothes below the chin."""
    chin = head.place(np.zeros(1), np.array([head.chin - 14]), np.array([8.0]))[0]
    shadow = mix(palette.skin, (60, 24, 20), 0.25)
    sketch.add_flat(np.array([(-22, -22), (-22, 18), (-34, 60), (34, 60), (22, 18), (22, -22)]) + chin, shadow, 0, 150)
    sketch.add_flat(ellipse(chin[0], chin[1] + 9, 23, 13), mix(shadow, (40, 12, 10), 0.3), 0, 150)
    collar, cloth = rng.uniform(18, 30), tuple(rng.uniform(30, 220) + rng.normal(0, 30, 3))
    shirt = [(-70, 34), (-26, 19), (-20, 21), (0, collar + 6), (20, 21), (26, 19), (70, 34), (70, 90), (-70, 90)]
    sketch.add_flat(np.array(shirt) + chin, cloth, 0, 120)


def draw_ear(sketch: Sketch, head: Head, identity: Identity, palette: Palette, sign: int) -> None:
    """An ear is a plate that stands off the side of the head, backwards."""
    spread = identity.ear_spread
    y = np.array([-0.8, -1.08, -0.85, 0.0, 0.65, 1.0, 0.8]) * identity.ear_size + 6
    off = np.array([-1.5, 0.35 * spread, 0.95 * spread, spread, 0.6 * spread, 0.15 * spread, -1.5])
    rim = sign * (np.interp(y, head.rows, head.width) + off)
    shape = curve(head.place(rim, y, 2 - 8 * np.maximum(off, 0) / spread), closed=True)
    sketch.add_flat(shape, mix(palette.skin, palette.fold, 0.2))
    middle = shape.mean(0) * 0.4 + shape[14] * 0.6
    sketch.add_flat(((shape - middle) * 0.6 + middle)[3:25], mix(palette.skin, palette.fold, 0.8), 0.5)


def draw_marks(sketch: Sketch, identity: Identity, palette: Palette) -> None:
    """Freckles, moles and the lines of age."""
    rng = np.random.default_rng(identity.mark_seed)
    freckles = rng.normal((0, 11), (16, 6), (60, 2))[: int(60 * identity.freckles)]
    turn, far = rng.uniform(0, 2 * np.pi, 4), np.sqrt(rng.uniform(0.1, 1, 4))
    moles = np.stack([29 * far * np.cos(turn), 12 + 36 * far * np.sin(turn)], -1)[: int(5 * identity.moles)]
    for spots, low, high, share in ((freckles, 0.4, 0.7, 0.35), (moles, 0.7, 1.15, 0.75)):
        if len(spots):
            dots = unit_circle(8) * rng.uniform(low, high, (len(spots), 1, 1)) + spots[:, None]
            sketch.add(np.pad(dots, ((0, 0), (0, 0), (0, 1))), mix(palette.skin, (84, 40, 20), share))
    if identity.age > 0.25:
        crease, x = mix(palette.skin, palette.fold, 1.3 * (identity.age - 0.25)), 15 * BROW
        lines = np.stack([surface(x, height - 1.2 * np.cos(x / 5)) for height in (-17, -20.5, -24)])
        sketch.add(lines, crease, 0.5)
        sketch.add(curve([(10, 18, 1), (14.5, 23, 1), (18, 29, 1), (19.5, 35, 1)]), crease, 0.5, mirror=True)
        sketch.add(curve([(11, 7.5, 0), (17, 9.5, 0), (24, 7.5, 0)]), crease, 0.5, mirror=True)
        crow = np.array([[(29.5, slope, 0), (34, 4 * slope, 0)] for slope in (-1.2, 0, 1.2)])
        sketch.add(crow, crease, 0.5, mirror=True)


def draw_beard(sketch: Sketch, head: Head, identity: Identity, palette: Palette) -> None:
    """Beard and moustache: steps from skin to hair colour, so that their edges stay soft, and single hairs."""
    mouth, y = identity.mouth_height, np.linspace(2, head.chin, 14)
    for step, inset in enumerate((0.0, 1.3, 2.6)):
        if identity.beard > 0:
            colour = mix(palette.skin, palette.brow, (0.2 + 0.7 * identity.beard) * (0.4 + 0.3 * step))
            cheek = curve([(37, 3), (33.5 - inset, 14), (28 - inset, 26 + inset), (19, mouth - 7 + inset),
                           (15.5, mouth + 3), (9, mouth + 8.5), (0, mouth + 7 + inset)])  # fmt: skip
            upper = surface(*cheek.T, 0.3)
            jaw = surface(np.inf, y, np.linspace(0, 1, 14) ** 2 * 5 * identity.beard + 0.4 - 0.2 * inset)
            sketch.add(np.concatenate([upper, upper[::-1] * (-1, 1, 1), jaw * (-1, 1, 1), jaw[::-1]]), colour)
        if identity.moustache > 0:
            shade = mix(palette.skin, palette.brow, (0.5 + 0.5 * identity.moustache) * (0.4 + 0.3 * step))
            half, low = identity.mouth_width + 2.5 - inset, mouth - 0.9 * identity.upper_lip
            high, end = identity.nose_length + 5 + inset, mouth - identity.mouth_curve + 1
            right = [(0, high + 1.2, 2), (0.35 * half, high + 0.5, 2), (0.7 * half, 0.7 * high + 0.3 * end, 2),
                     (half, end, 2), (0.6 * half, (low + end) / 2, 2), (0, low, 2)]  # fmt: skip
            sketch.add(curve(right, closed=True), shade, mirror=True)
    if identity.beard > 0:
        rng = np.random.default_rng(identity.mark_seed)
        x = rng.uniform(-34, 34, 80)
        top = np.interp(np.abs(x), cheek[::-1, 0], cheek[::-1, 1])
        low = np.interp(np.abs(x), head.width[:19:-1], head.rows[:19:-1])
        root = surface(x, top + (low - top) * rng.random(80), 0.3)
        sketch.add(np.stack([root, root * (0.96, 1, 1) + (0, 3, 0)], 1), mix(colour, palette.brow, 0.5), 0.5)


def draw_nose(sketch: Sketch, head: Head, identity: Identity, palette: Palette) -> None:
    """Bridge and tip stand out of the face, so a turned head shows them against the far cheek."""
    tip, wide, bend, bridge = identity.nose_length, identity.nose_width, identity.nose_bend, identity.nose_bridge
    y = np.array([-6.0, 2, 10, tip - 4, tip - 0.5, tip + 2.5])
    lift = np.array([1.0, 3.5, 7, 11, 13.5, 8]) * (0.7 + 0.3 * identity.nose_tip)
    ridge = curve(surface(bend * y / tip, y, lift))
    flank_x = np.array([bridge, bridge, bridge + 0.8, 0.8 * wide, wide, 0.75 * wide])
    flank = curve(surface(flank_x, y, np.array([0.5, 1, 2, 3, 4, 5])))
    for sign in (-1, 1):
        sketch.add(np.concatenate([flank * (sign, 1, 1), ridge[::-1]]), palette.skin)
    turned = min(abs(head.yaw), 0.8)
    edge = ridge if turned > 0.3 else flank * (1 if head.yaw > 0 else -1, 1, 1)
    sketch.add(edge[4:], mix(palette.skin, palette.fold, 0.15 + 0.6 * turned), 0.5)
    soft = mix(palette.skin, palette.fold, 0.75)
    wing = [(0.8 * wide, tip - 4.5, 4), (wide + 0.4, tip - 1, 4), (0.85 * wide, tip + 2, 4), (0.6 * wide, tip + 2, 4)]
    nostril = surface(*ellipse(0.46 * wide, tip + 1.6, 0.24 * wide, 0.9, 12).T, 6)
    for shape, colour, width in ((curve(wing), soft, 0.5), (nostril, mix(palette.fold, (30, 8, 8), 0.45), 0)):
        for sign in (-1, 1):
            sketch.add(shape * (sign, 1, 1) + (bend, 0, 0), colour, width)
    base = [(bend - 0.3 * wide, tip + 2.3, 8), (bend, tip + 3.2, 8), (bend + 0.3 * wide, tip + 2.3, 8)]
    sketch.add(curve(base), soft, 0.5)


def draw_mouth(sketch: Sketch, identity: Identity, view: View, palette: Palette) -> None:
    """Lips, the line between them, and the teeth of an open mouth."""
    gap, smile, thin, thick = view.mouth_opening, view.smile, identity.upper_lip, identity.lower_lip
    half = identity.mouth_width + 1.6 * smile
    up, down = identity.mouth_height - 1.5 * gap, identity.mouth_height + 8 * gap
    corner = identity.mouth_height - identity.mouth_curve - 2.6 * smile

    def lip(middle: float, bow: float, shoulder: float) -> np.ndarray:
        """From corner to corner: the height in the middle, beside it, and half way to the corners."""
        heights = (corner, 0.55 * corner + 0.45 * middle + shoulder, middle + bow, middle)
        return curve([(share * half, height, 2) for share, height in
                      zip((-1, -0.6, -0.2, 0, 0.2, 0.6, 1), heights + heights[-2::-1], strict=True)])  # fmt: skip

    inner_top, inner_low = lip(up + 0.6, -0.4, 0.3), lip(down + 0.7, -0.3, 0.9)
    outer_top = lip(up - 0.75 * thin, -0.25 * thin, -0.35 * thin)
    outer_low = lip(down + thick, -0.1 * thick, 0.45 * thick)
    sketch.add(np.concatenate([outer_top, inner_top[::-1]]), mix(palette.lip, palette.fold, 0.3))
    sketch.add(np.concatenate([inner_low, outer_low[::-1]]), palette.lip)
    sketch.add(np.concatenate([inner_top, inner_low[::-1]]), mix(palette.fold, (58, 16, 20), 0.5 + min(gap, 0.5)))
    if gap > 0.1:
        edge = inner_top * (0.94, 1, 1)
        edge[:, 1] = np.minimum(edge[:, 1] + 0.3 + 3.2 * gap, inner_low[:, 1])
        sketch.add(np.concatenate([inner_top, edge[::-1]]), (238, 232, 222))
    else:
        sketch.add(inner_top, mix(palette.fold, (50, 10, 12), 0.5), 0.5)
    dimple = surface(half + np.array([0.6, 1.4]), corner + np.array([-1.2, 0.9]), 1)
    sketch.add(dimple, mix(palette.skin, palette.fold, 0.6), 0.5, mirror=True)


def draw_eyes(sketch: Sketch, identity: Identity, view: View, palette: Palette) -> None:
    """Eyes; iris and pupil are cut by the lids, whose upper ones sink as the eyes close."""
    width, opening = identity.eye_width, identity.eye_opening * (1 + 0.15 * view.brow_raise)
    share = LID  # from the inner to the outer corner
    low = 0.72 * opening * (1 - share**2) * (1 - 0.25 * max(view.smile, 0))
    high = -opening * (1 - np.abs(share + 0.1 * (1 - share**2)) ** 2.3)
    high += (low - high) * 0.96 * view.eye_closing

    def points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The eye on the image's right, from x (outwards) and y around its middle."""
        return surface(17.75 + identity.eye_spacing + x, y + identity.eye_height - identity.eye_tilt * x, -0.5)

    x = share * width
    upper, lower = points(x, high), points(x, low)
    sketch.add(np.concatenate([upper, lower[::-1]]), (236, 230, 225), mirror=True)
    for sign in (-1, 1):
        out, down = 2.6 * view.gaze_x * sign, 1.4 * view.gaze_y - 0.5
        for radius, colour in ((4.1, mix(palette.iris, (10, 8, 8), 0.6)), (3.4, palette.iris), (1.7, (12, 10, 12))):
            disc_x, disc_y = ellipse(out, down, radius, radius, 16).T
            disc_y = np.maximum(np.minimum(disc_y, np.interp(disc_x, x, low)), np.interp(disc_x, x, high))
            sketch.add(points(disc_x, disc_y) * (sign, 1, 1), colour)
        if view.eye_closing < 0.5:
            spark = ellipse(out + 1.1 * sign * np.sign(view.light_azimuth), down - 1.2, 0.75, 0.75, 8)
            sketch.add(points(*spark.T) * (sign, 1, 1), (250, 250, 250), 0, 0)
    lash = mix(palette.fold, (20, 12, 12), 0.5 + 0.5 * identity.lashes)
    sketch.add(lower, mix(palette.skin, palette.fold, 0.7), 0.5, mirror=True)
    sketch.add(upper, lash, 0.6 + 0.9 * identity.lashes, mirror=True)
    tail = points(np.array([0.8, 1.2]) * width, np.array([high[-3] - 0.3, -0.8 - 1.5 * identity.lashes]))
    sketch.add(tail, lash, 0.5, mirror=True)
    crease = points(x[2:], high[2:] - 1.0 - 1.8 * identity.eyelid_crease * (1 - 0.6 * share[2:] ** 2))
    sketch.add(crease, mix(palette.skin, palette.fold, 0.2 + 0.65 * identity.eyelid_crease), 0.5, mirror=True)


def draw_brows(sketch: Sketch, identity: Identity, view: View, palette: Palette) -> None:
    """Eyebrows: arches that thin outwards."""
    share = BROW  # from the inner to the outer end
    x = 17.5 + 0.6 * identity.eye_spacing + share * identity.brow_length
    arch = identity.brow_arch * (1 - (share - 0.15) ** 2) + identity.brow_tilt * identity.brow_length * share
    frown = min(view.brow_raise, 0) * (share - 1) * 1.6
    y = identity.eye_height - identity.brow_height - arch - 3.0 * max(view.brow_raise, 0) + frown
    thick = identity.brow_thickness * (1 - 0.75 * np.maximum(share, 0) ** 1.5) * np.minimum(1, 1.2 + 0.6 * share)
    for grow, depth in ((0.5, 0.45), (0.0, 1.0)):
        ring = np.concatenate([surface(x, y - thick - grow, 1), surface(x, y + thick + grow, 1)[::-1]])
        sketch.add(ring, mix(palette.skin, palette.brow, depth), mirror=True)


def hair_edges(head: Head, identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Outline of the hair and the hairline in the upright plane, two [61, 2] from left over the top to right."""
    length, share, arch = identity.hair_length, HAIR, 1 - np.cos(HAIR * np.pi / 2)
    bottom = -4 + 16 * min(length, 0.5) + 120 * max(length - 0.5, 0)
    front = identity.hairline - identity.temple_recession * np.exp(-(((np.abs(share) - 0.6) / 0.2) ** 2))
    sweep = np.clip(1 - np.abs(share - identity.hair_parting), 0, 1.4) ** 2
    front += 15 * identity.fringe * min(2 * length, 1) * (1 - 0.9 * sweep)
    front += 1.2 * identity.hair_wave * np.sin(14 * share + 5 * identity.hair_parting)
    hairline = front + (bottom - front) * np.clip((np.abs(share) - 0.72) / 0.28, 0, 1) ** 1.7
    volume = identity.hair_volume * np.clip(length * 3, 0.1, 1)
    crown = head.rows[0] + (bottom - head.rows[0]) * arch
    # Below the ears hair hangs straight down, whatever the jaw does.
    high, low = np.minimum(hairline, 14), np.minimum(crown, 14)
    reach = np.interp(high, head.rows, head.width)
    skin = surface(np.sin(share * np.pi / 2) * reach, high, 0.4)
    shell = surface(np.where(share < 0, -np.inf, np.inf), low, volume)
    inner, outer = np.split(head.project(np.concatenate([skin, shell])), 2)
    inner[:, 1] += hairline - high
    outer[:, 1] += crown - low - 0.8 * volume * (1 - arch) ** 2
    outer[:, 0] += identity.hair_wave * 1.4 * np.sin(crown / 4) * min(2 * length, 1) * np.abs(share)
    return outer, inner


def draw_hair(sketch: Sketch, edges: tuple[np.ndarray, np.ndarray], identity: Identity, palette: Palette) -> None:
    """Hair in front: a cap between outline and hairline, with strands along it."""
    outer, inner = edges
    colour = mix(palette.skin, palette.hair, min(0.6 + 3 * identity.hair_length, 1))
    sketch.add_flat(np.concatenate([outer, inner[::-1]]), colour, 0, 210)
    curl = 1.8 * identity.hair_wave * np.sin(STRAND[:, 0] * 11)
    for offset, other, share in ((1, (0, 0, 0), 0.16), (2, (255, 236, 210), 0.1), (3, (0, 0, 0), 0.1)):
        begin, end = inner[offset:-1:3, None], outer[offset:-1:3, None]
        strands = begin + (end - begin) * STRAND
        strands[..., 0] += curl * (1 if offset == 2 else -1)
        sketch.add_flat(strands, mix(colour, other, share), 0.5, 210)


def cover_eyes(sketch: Sketch, head: Head, view: View, colour: tuple) -> None:
    """Sunglasses: lenses, frame, bridge and arms."""
    tall, frame, glass = 6.5 + 4 * view.occlusion_place, mix(colour, (0, 0, 0), 0.5), mix(colour, (12, 12, 16), 0.8)
    lens = [(4.5, -4, 4), (17, -6, 4), (30, -4.5, 4), (29, 0.6 * tall, 4), (18, tall, 4), (7, 0.6 * tall, 4)]
    shape = curve(lens, closed=True)
    sketch.add(shape, glass, 0, 60, mirror=True)
    sketch.add(shape, frame, 1.0, 60, mirror=True)
    sketch.add(np.array([(12.0, 3, 4), (16, -3, 4)]), mix(glass, (255, 255, 255), 0.3), 1.0, 60, mirror=True)
    sketch.add(np.array([(30.0, -3, 4), (37, -3, 3)]), frame, 1.5, 60, mirror=True)
    sketch.add(curve([(-5, -2, 6), (0, -3.6, 8), (5, -2, 6)]), frame, 1.5, 60)


def cover_mouth(sketch: Sketch, head: Head, view: View, colour: tuple) -> None:
    """A surgical mask from the nose to below the chin."""
    top, cloth = 17 - 9 * view.occlusion_place, mix(colour, (235, 240, 245), 0.6)
    edge = curve([(-34, 18, 2), (-20, top + 4, 3), (0, top, 10), (20, top + 4, 3), (34, 18, 2)])
    jaw = surface(np.inf, np.linspace(20, head.chin, 12), 1.5)
    sketch.add(np.concatenate([edge, jaw, jaw[::-1] * (-1, 1, 1)]), cloth)
    x = np.linspace(-28, 28, 9)
    for height in (27, 34, 41):
        sketch.add(surface(x, height - 2 * np.cos(x / 20), 5), mix(cloth, (60, 70, 90), 0.3), 0.5)
    sketch.add(np.array([(34.0, 18, 1), (39, 4, 1)]), mix(cloth, (60, 70, 90), 0.2), 0.5, mirror=True)


def cover_by_hand(sketch: Sketch, head: Head, view: View, colour: tuple) -> None:
    """Someone's hand: four fingers that come from the lower left or right."""
    sign, reach = (-1, 1)[view.occlusion_place > 0.5], 50 * abs(view.occlusion_place - 0.5)
    skin = tone(SKIN_TONES, view.occlusion_tone)
    sketch.add_flat(ellipse(sign * 37, 60 - 0.8 * reach, 20, 24), mix(skin, (70, 24, 16), 0.12), 0, 120)
    for finger, tall in enumerate((24, 31, 33, 28)):
        root = np.array([sign * (22 + 8.5 * finger), 52 + 1.5 * finger - 0.8 * reach])
        stroke = np.stack([root, np.add(root, (-sign * (9 - 2.0 * finger), -tall))])
        sketch.add_flat(stroke, mix(skin, (70, 24, 16), 0.45), 9.0, 120)
        sketch.add_flat(stroke, skin, 8.0, 120)


def cover_hair(sketch: Sketch, head: Head, view: View, colour: tuple) -> None:
    """A knitted hat, down to the brows at most."""
    brim, crown = -28 + 12 * view.occlusion_place, head.rows[0]
    y = np.linspace(brim, crown, 14)
    dome = head.project(np.concatenate([surface(-np.inf, y, 5), surface(np.inf, y[::-1], 5)]))
    rise = (brim - np.append(y, y[::-1])) / (brim - crown)  # 0 at the brim, 1 at the crown
    dome[:, 1] -= 9 * rise
    sketch.add_flat(dome, colour, 0, 200)
    x = np.linspace(-37, 37, 13)
    band = surface(np.concatenate([[-np.inf], x, [np.inf]]), brim - 3, 5)
    band[1:-1, 1] += 3 * np.cos(x / 25)
    sketch.add(band, mix(colour, (255, 255, 255), 0.25), 7.0, 200)
    sketch.add(np.stack([band - (0, 3, 0), band - (0, -3, 0)], 1)[1:-1], mix(colour, (0, 0, 0), 0.25), 0.5, 200)


def cover_chin(sketch: Sketch, head: Head, view: View, colour: tuple) -> None:
    """A scarf around the neck, up to the lips or the nose."""
    x = np.linspace(-46, 46, 15)
    edge = head.project(surface(x, 50 - 30 * view.occlusion_place + 3 * np.cos(x / 15), 8))
    edge[[0, -1], 0] += (-8, 8)
    sketch.add_flat(np.concatenate([edge, [(60, 90), (-60, 90)]]), colour, 0, 160)
    folds = np.stack([edge + np.stack([0 * x, drop + 3 * np.sin(x / 9 + drop)], -1) for drop in (9, 19, 29)])
    sketch.add_flat(folds, mix(colour, (0, 0, 0), 0.35), 1.0, 160)


COVERS = dict(zip(OCCLUSIONS[1:], (cover_eyes, cover_mouth, cover_by_hand, cover_hair, cover_chin), strict=True))


def relief_slopes(head: Head, identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of the height field, a round row by row plus Gaussian hills, in the upright plane; two float32 [56, 56].

    A grid of two pixels is enough, for the relief is smooth.
    """
    grid = np.arange(0.5, SIZE, RELIEF_STEP) - ORIGIN[:, None]  # x and y of the grid, [2, 56]
    sides = np.concatenate([surface(-np.inf, head.rows), surface(np.inf, head.rows)])
    left, right = np.split(head.project(sides), 2)
    edge_left, edge_right = (np.interp(grid[1], side[:, 1], side[:, 0]) for side in (left, right))
    half = np.maximum((edge_right - edge_left) / 2, 12)
    normal_x = np.clip((grid[0] - (edge_left + edge_right)[:, None] / 2) / half[:, None], -1.1, 1.1) * 0.85
    middle = (left[0, 1] + left[-1, 1]) / 2
    normal_y = np.clip((grid[1] - middle) / (left[-1, 1] - middle), -1, 1)[:, None] * 0.6
    normal_z = np.sqrt(np.maximum(1 - normal_x**2 - normal_y**2, 0.04))
    tip, mouth, eye = identity.nose_length, identity.mouth_height, 17.75 + identity.eye_spacing
    pairs = np.array([
        # x, y, lift, width and height of the footprint, height of the hill
        (0.75 * identity.nose_width, tip, 3, 2.6, 2.8, 2.0),
        (eye, -2, 0, 8, 5.5, -3.2),
        (15, -10, 0, 9, 3, 1.2),
        (24, 15, 0, 8, 7, 2.5),
    ])  # fmt: skip
    single = np.array([
        (0, 2, 3, identity.nose_bridge, 7, 3.0),
        (0, 11, 7, identity.nose_bridge + 0.5, 6, 4.0),
        (identity.nose_bend, tip - 1, 12, 4.0, 4.0, 7 * identity.nose_tip - 1.5),
        (0, mouth - 1, 2, 10, 5, 2.2),
        (0, mouth + 7.5 + 8 * head.lower_jaw / 4, 1, 8, 2.4, -1.8),
        (0, head.chin - 6, 1, 7, 5, 3.0),
    ])  # fmt: skip
    hills = np.concatenate([pairs, pairs * (-1, 1, 1, 1, 1, 1), single])
    spread = hills[:, 3:5].T[..., None]  # [2, hills, 1]
    offset = (grid[:, None] - head.project(hills[:, :3]).T[..., None]) / spread  # [2, hills, 56]
    bell_x, bell_y = np.exp(-0.5 * offset**2)
    # Gaussians are separable, so the slopes of the sum of all hills are plain matrix products.
    slope_x = normal_x / normal_z + bell_y.T @ (bell_x * offset[0] * hills[:, 5:] / spread[0])
    slope_y = normal_y / normal_z + (bell_y * offset[1] * hills[:, 5:] / spread[1]).T @ bell_x
    return slope_x.astype(np.float32), slope_y.astype(np.float32)


def light_head(head: Head, identity: Identity, view: View) -> np.ndarray:
    """Lambert light and gloss of the relief, for every pixel of the picture, float32 [SIZE, SIZE, 2]."""
    slope_x, slope_y = relief_slopes(head, identity)
    azimuth, elevation, roll = np.deg2rad([view.light_azimuth, view.light_elevation, view.roll])
    across, down = np.sin(azimuth) * np.cos(elevation), -np.sin(elevation)
    light = np.array([
        across * np.cos(roll) + down * np.sin(roll),  # the light stays in place when the head rolls
        down * np.cos(roll) - across * np.sin(roll),
        np.cos(azimuth) * np.cos(elevation),
    ])  # fmt: skip
    half = light - (0, 0, -1)  # half way between the light and the camera
    half /= np.linalg.norm(half)
    light, half = light.tolist(), half.tolist()  # plain numbers keep the maps in float32
    upright = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = (slope_x * light[0] + slope_y * light[1] + light[2]) * upright
    shine = np.maximum((slope_x * half[0] + slope_y * half[1] + half[2]) * upright, 0) ** 4
    # Light creeps a little around the edge of skin, so the terminator is soft.
    lambert = np.maximum((facing + 0.2) / 1.2, 0)
    level = view.ambient * (0.75 + 0.25 * upright) + view.light_strength * lambert
    level *= 1.5 / (1 + 0.5 * level)  # the camera holds back bright skin
    maps = cv2.merge([level, view.light_strength * shine**2 * shine**2 * shine**2])
    linear = head.affine[:, :2]
    matrix = np.hstack([RELIEF_STEP * linear, (head.affine[:, 2] + linear @ (0.5 - ORIGIN))[:, None]])
    return cv2.warpAffine(maps, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)


def degrade(picture: np.ndarray, view: View) -> np.ndarray:
    """What lens, sensor and storage do to a float32 [SIZE, SIZE, 3] picture; returns uint8."""
    if view.blur > 0:
        picture = cv2.GaussianBlur(picture, (0, 0), view.blur)
    if view.motion > 0:
        reach, angle = int(np.ceil(view.motion / 2)), np.deg2rad(view.motion_angle)
        step = view.motion / 2 * np.array([np.cos(angle), np.sin(angle)])
        kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
        ends = np.rint((reach + np.stack([-step, step])) * 16).astype(np.int32)
        cv2.polylines(kernel, [ends], False, 255, 1, cv2.LINE_AA, 4)
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum(dtype=np.float32))
    if view.resolution < SIZE:
        small = cv2.resize(picture, (view.resolution, view.resolution), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    if view.noise > 0:
        rng = np.random.default_rng(view.noise_seed)
        picture = picture + view.noise * rng.standard_normal(picture.shape, dtype=np.float32)
    image = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    if view.jpeg_quality < 100:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, stored = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, view.jpeg_quality])
        image = cv2.cvtColor(cv2.imdecode(stored, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return image


def sketch_face(head: Head, identity: Identity, view: View, rng: np.random.Generator) -> Sketch:
    """All shapes of a picture, from back to front; `rng` draws the clothes."""
    sketch, palette = Sketch(), Palette(identity)
    far = 1 if view.yaw > 0 else -1
    hair = hair_edges(head, replace(identity, hair_volume=3.0) if view.occlusion == "hat" else identity)
    if identity.hair_length > 0.45:
        sketch.add_flat(hair[0], mix(palette.hair, (0, 0, 0), 0.35), 0, 160)
    draw_neck(sketch, head, palette, rng)
    draw_ear(sketch, head, identity, palette, far)
    sides = surface(-np.inf, head.rows)
    sketch.add(np.concatenate([sides, sides[::-1] * (-1, 1, 1)]), palette.skin)
    draw_ear(sketch, head, identity, palette, -far)
    cheek = surface(*ellipse(23, 17, 9, 7).T)
    for step in range(1, 5):
        blush = (cheek - (23, 17, 0)) * (1.2 - 0.22 * step) + (23, 17, 0)
        sketch.add(blush, mix(palette.skin, (206, 76, 76), 0.09 * step * identity.blush), mirror=True)
    draw_marks(sketch, identity, palette)
    draw_beard(sketch, head, identity, palette)
    draw_mouth(sketch, identity, view, palette)
    draw_eyes(sketch, identity, view, palette)
    draw_brows(sketch, identity, view, palette)
    draw_nose(sketch, head, identity, palette)
    draw_hair(sketch, hair, identity, palette)
    if view.occlusion != "none":
        hsv = np.uint8([[[180 * view.occlusion_tone, 110, 60 + 130 * ((7 * view.occlusion_tone) % 1)]]])
        COVERS[view.occlusion](sketch, head, view, tuple(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()))
    return sketch


def draw_face(identity: Identity, view: View) -> np.ndarray:
    """Draw one picture, RGB uint8 [112, 112, 3]; equal arguments give equal pixels."""
    head, rng = Head(identity, view), np.random.default_rng(view.background_seed)
    pixels = draw_backdrop(rng)
    sketch_face(head, identity, view, rng).paint(pixels, head)
    *channels, relief = cv2.split(cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32))
    level, gloss = cv2.split(light_head(head, identity, view))
    relief /= 255
    gain, glare = 1 + relief * (level - 1), 38 * relief * gloss
    warmth = 1 + 0.14 * view.light_warmth * np.array([1, 0.1, -1], np.float32)
    lit = [channel * (gain * tint) + glare for channel, tint in zip(channels, warmth, strict=True)]
    return degrade(cv2.merge(lit), view)


def contact_sheet(n_identities: int, n_views: int, seed: int) -> np.ndarray:
    """Rows of identities, columns of views from the clean portrait on, RGB uint8 [112 n_identities, 112 n_views, 3]."""
    rows = []
    for number in range(n_identities):
        views = [make_view(seed, number, image, min(image, 1)) for image in range(n_views)]
        rows.append(np.hstack([draw_face(make_identity(seed, number), view) for view in views]))
    return np.vstack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a contact sheet of drawn faces.")
    parser.add_argument("--sheet", type=Path, required=True, metavar="PATH", help="PNG file to write")
    parser.add_argument("--identities", type=int, default=6, help="rows (default 6)")
    parser.add_argument("--views", type=int, default=10, help="columns, the first a clean portrait (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="the sheet follows from this number (default 0)")
    options = parser.parse_args()
    sheet = contact_sheet(options.identities, options.views, options.seed)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(options.sheet), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise OSError(f"could not write {options.sheet}")


if __name__ == "__main__":
    main()
