"""Draws a picture from an identity and a view: shapes, light, and the effects of lens, sensor and compression."""

from dataclasses import replace

import cv2
import numpy as np

from data.images import SIZE
from demo.faces.covers import COVERS
from demo.faces.factors import Identity, View, make_identity, make_view
from demo.faces.features import (
    draw_backdrop,
    draw_beard,
    draw_brows,
    draw_ear,
    draw_eyes,
    draw_marks,
    draw_mouth,
    draw_neck,
    draw_nose,
)
from demo.faces.hair import draw_hair, hair_edges
from demo.faces.sketch import ORIGIN, Head, Palette, Sketch, ellipse, mix, surface

RELIEF_STEP = 2  # pixels between two points of the height field


def relief_slopes(head: Head, identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Compute the slopes of the height field in the upright plane, in x and y: two float32 [56, 56].

    The height field is a rounded head plus Gaussian hills. It is smooth, so one point per two pixels is enough.
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
    # Gaussians are separable, so the slopes of all hills together are matrix products.
    slope_x = normal_x / normal_z + bell_y.T @ (bell_x * offset[0] * hills[:, 5:] / spread[0])
    slope_y = normal_y / normal_z + (bell_y * offset[1] * hills[:, 5:] / spread[1]).T @ bell_x
    return slope_x.astype(np.float32), slope_y.astype(np.float32)


def light_head(head: Head, identity: Identity, view: View) -> np.ndarray:
    """Compute Lambertian light and gloss for every pixel, float32 [SIZE, SIZE, 2]."""
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
    light, half = light.tolist(), half.tolist()  # Python numbers keep the maps in float32
    upright = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = (slope_x * light[0] + slope_y * light[1] + light[2]) * upright
    shine = np.maximum((slope_x * half[0] + slope_y * half[1] + half[2]) * upright, 0) ** 4
    # Skin scatters light, so the border between light and shadow is soft.
    lambert = np.maximum((facing + 0.2) / 1.2, 0)
    level = view.ambient * (0.75 + 0.25 * upright) + view.light_strength * lambert
    level *= 1.5 / (1 + 0.5 * level)  # the camera compresses highlights
    maps = cv2.merge([level, view.light_strength * shine**2 * shine**2 * shine**2])
    linear = head.affine[:, :2]
    matrix = np.hstack([RELIEF_STEP * linear, (head.affine[:, 2] + linear @ (0.5 - ORIGIN))[:, None]])
    return cv2.warpAffine(maps, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)


def degrade(picture: np.ndarray, view: View) -> np.ndarray:
    """Apply blur, low resolution, noise and compression: float32 -> uint8 [SIZE, SIZE, 3]."""
    if view.blur > 0:
        picture = cv2.GaussianBlur(picture, (0, 0), view.blur)
    if view.motion > 0:
        reach, angle = int(np.ceil(view.motion / 2)), np.deg2rad(view.motion_angle)
        half = view.motion / 2 * np.array([np.cos(angle), np.sin(angle)])
        kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
        ends = np.rint((reach + np.stack([-half, half])) * 16).astype(np.int32)
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
    """Sketch all shapes of a picture, from back to front. `rng` chooses the clothes."""
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
    for layer in range(1, 5):
        blush = (cheek - (23, 17, 0)) * (1.2 - 0.22 * layer) + (23, 17, 0)
        sketch.add(blush, mix(palette.skin, (206, 76, 76), 0.09 * layer * identity.blush), mirror=True)
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
    """Draw rows of identities; the first column is the clean portrait. RGB uint8 [112 n_identities, 112 n_views, 3]."""
    rows = []
    for number in range(n_identities):
        views = [make_view(seed, number, image, min(image, 1)) for image in range(n_views)]
        rows.append(np.hstack([draw_face(make_identity(seed, number), view) for view in views]))
    return np.vstack(rows)
