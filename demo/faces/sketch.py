"""Colours, curves, the posed head, and the list of shapes that is painted.

Face coordinates: the origin is between the eyes, x points to the right of the image, y down, z to the camera. The unit
is one pixel of the 112x112 picture. Eyes, nose and mouth of the mean identity are at the five ArcFace landmarks.
"""

from functools import lru_cache
from math import prod

import cv2
import numpy as np

from demo.faces.factors import Identity, View

OVERSAMPLING = 2  # pictures are drawn larger by this factor, then reduced
SUBPIXEL_BITS = 4  # cv2 draws at 1/16 pixel
ORIGIN = np.array([55.75, 51.6])  # pixel between the eyes of the ArcFace template

SKIN_TONES = [(255, 226, 205), (243, 200, 168), (226, 173, 132), (194, 136, 95), (146, 93, 62), (98, 60, 42)]
HAIR_TONES = [(24, 20, 24), (50, 32, 26), (96, 56, 32), (150, 98, 50), (206, 156, 84), (238, 208, 142)]
EYE_TONES = [(48, 28, 18), (92, 56, 28), (124, 96, 48), (92, 116, 76), (76, 124, 164), (130, 160, 184)]
RED_HAIR, GREY_HAIR, LIP_RED = (172, 70, 30), (200, 200, 204), (176, 58, 70)


def mix(colour: tuple, other: tuple, share: float) -> tuple[float, ...]:
    """Blend two RGB colours: share 0 gives the first, 1 the other."""
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
def spline_basis(count: int, closed: bool, samples: int = 5) -> np.ndarray:
    """Weights [points of the curve, count] of a Catmull-Rom curve through `count` points, with `samples` per span."""
    spans = count if closed else count - 1
    t = np.linspace(0, 1, samples, endpoint=False)
    powers = np.stack([t**0, t, t**2, t**3], 1)
    kernel = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    basis = np.zeros((spans * samples + (not closed), count))
    for span in range(spans):
        for k in range(4):
            index = (span + k - 1) % count if closed else min(max(span + k - 1, 0), count - 1)
            basis[span * samples : (span + 1) * samples, index] += powers @ kernel[:, k]
    if not closed:
        basis[-1, -1] = 1
    return basis


def curve(points, closed: bool = False) -> np.ndarray:
    """A smooth curve [samples, D] through points [N, D]."""
    return spline_basis(len(points), closed) @ np.asarray(points, dtype=float)


def surface(x, y, lift=0.0) -> np.ndarray:
    """Build points [N, 3] of x, y and height above the skin: arrays [N] or numbers. x = +-inf: the visible outline."""
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
    """A posed head, which maps points to pixels. A section at height y is a half ellipse."""

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
        # Alignment keeps the mean of the five landmarks in place in every pose.
        landmarks = surface(np.array([-17.75, 17.75, 0, -14.6, 14.6]), np.array([0, 0, 20, 40.7, 40.7]),
                            np.array([0, 0, 14, 2, 2]))  # fmt: skip
        self.drift = np.zeros(2)
        self.drift = (self.project(landmarks) - landmarks[:, :2]).mean(0)
        turn, pivot = np.deg2rad(view.roll), np.array([0, 20])
        linear = view.scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shift = ORIGIN + pivot + (view.shift_x, view.shift_y) - linear @ pivot
        self.affine = np.hstack([linear, shift[:, None]])  # upright face plane to pixels

    def place(self, x, y, z) -> np.ndarray:
        """Rotate points in space with the head; returns their positions in the upright face plane, [N, 2]."""
        across = x * np.cos(self.yaw) + z * np.sin(self.yaw)
        near = z * np.cos(self.yaw) - x * np.sin(self.yaw)
        return np.stack([across, (y - 8) * np.cos(self.pitch) + 8 - near * np.sin(self.pitch)], -1) - self.drift

    def project(self, points: np.ndarray) -> np.ndarray:
        """Positions of `surface` points [N, 3] in the upright face plane, [N, 2]; hidden points move to the outline."""
        x, y, lift = points.T
        width = np.interp(y, self.rows, self.width) + 1e-3
        centre, depth = np.interp(y, self.rows, self.centre), np.interp(y, self.rows, self.depth) + 1e-3
        angle = np.where(np.isinf(x), np.sign(x) * np.pi, np.arcsin(np.clip(x / width, -1, 1)))
        limit = np.arctan2(width * np.cos(self.yaw), depth * np.sin(self.yaw))
        angle = np.clip(angle, limit - np.pi, limit)
        return self.place((width + lift) * np.sin(angle), y, centre + (depth + lift) * np.cos(angle))


class Sketch:
    """An ordered list of shapes. For speed, all are projected at once when the picture is painted."""

    def __init__(self):
        self.solid, self.flat, self.shapes = [], [], []

    def add(self, points: np.ndarray, colour: tuple, width=0.0, relief=255, mirror=False) -> None:
        """Add a shape on the head: `surface` points [N, 3], or several such shapes [M, N, 3].

        width: 0 fills a polygon, otherwise the width of a line in pixels. relief: 0..255, how strongly light shades the
        shape. mirror: also add the mirror image on the other side.
        """
        self.shapes.append((True, points.shape[:-1], (*colour, relief), round(width * OVERSAMPLING)))
        self.solid.append(points.reshape(-1, 3))
        if mirror:
            self.add(points * (-1, 1, 1), colour, width, relief)

    def add_flat(self, points: np.ndarray, colour: tuple, width=0.0, relief=255) -> None:
        """Add a shape of points [N, 2] or [M, N, 2] in the upright face plane."""
        self.shapes.append((False, points.shape[:-1], (*colour, relief), round(width * OVERSAMPLING)))
        self.flat.append(points.reshape(-1, 2))

    def paint(self, pixels: np.ndarray, head: Head) -> None:
        """Draw all shapes, in order, into the enlarged picture, uint8 [side, side, 4]; channel 3 is the relief."""
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
