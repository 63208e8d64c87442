"""Parts of a picture: backdrop, neck, ears, marks, beard, nose, mouth, eyes and eyebrows."""

import cv2
import numpy as np

from data.images import SIZE
from demo.faces.factors import Identity, View
from demo.faces.sketch import OVERSAMPLING, Head, Palette, Sketch, curve, ellipse, mix, surface, unit_circle

LID, BROW = np.linspace(-1, 1, 17), np.linspace(-1, 1, 9)  # positions along a shape, from end to end


def draw_backdrop(rng: np.random.Generator) -> np.ndarray:
    """A soft backdrop that does not depend on the identity, uint8 [side, side, 4]."""
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
    """An ear: a plate at the side of the head that points backwards. sign: -1 left, 1 right."""
    spread = identity.ear_spread
    y = np.array([-0.8, -1.08, -0.85, 0.0, 0.65, 1.0, 0.8]) * identity.ear_size + 6
    off = np.array([-1.5, 0.35 * spread, 0.95 * spread, spread, 0.6 * spread, 0.15 * spread, -1.5])
    rim = sign * (np.interp(y, head.rows, head.width) + off)
    shape = curve(head.place(rim, y, 2 - 8 * np.maximum(off, 0) / spread), closed=True)
    sketch.add_flat(shape, mix(palette.skin, palette.fold, 0.2))
    middle = shape.mean(0) * 0.4 + shape[14] * 0.6
    sketch.add_flat(((shape - middle) * 0.6 + middle)[3:25], mix(palette.skin, palette.fold, 0.8), 0.5)


def draw_marks(sketch: Sketch, identity: Identity, palette: Palette) -> None:
    """Freckles, moles and wrinkles."""
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
    """Beard and moustache: layers from skin to hair colour, which give soft edges, and single hairs."""
    mouth, y = identity.mouth_height, np.linspace(2, head.chin, 14)
    for layer, inset in enumerate((0.0, 1.3, 2.6)):
        if identity.beard > 0:
            colour = mix(palette.skin, palette.brow, (0.2 + 0.7 * identity.beard) * (0.4 + 0.3 * layer))
            cheek = curve([(37, 3), (33.5 - inset, 14), (28 - inset, 26 + inset), (19, mouth - 7 + inset),
                           (15.5, mouth + 3), (9, mouth + 8.5), (0, mouth + 7 + inset)])  # fmt: skip
            upper = surface(*cheek.T, 0.3)
            jaw = surface(np.inf, y, np.linspace(0, 1, 14) ** 2 * 5 * identity.beard + 0.4 - 0.2 * inset)
            sketch.add(np.concatenate([upper, upper[::-1] * (-1, 1, 1), jaw * (-1, 1, 1), jaw[::-1]]), colour)
        if identity.moustache > 0:
            shade = mix(palette.skin, palette.brow, (0.5 + 0.5 * identity.moustache) * (0.4 + 0.3 * layer))
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
    """The nose. Its bridge and tip rise above the face, so on a turned head they are in front of the far cheek."""
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
    """Lips, the line between them, and the teeth if the mouth is open."""
    gap, smile, thin, thick = view.mouth_opening, view.smile, identity.upper_lip, identity.lower_lip
    half = identity.mouth_width + 1.6 * smile
    up, down = identity.mouth_height - 1.5 * gap, identity.mouth_height + 8 * gap
    corner = identity.mouth_height - identity.mouth_curve - 2.6 * smile

    def lip(middle: float, bow: float, shoulder: float) -> np.ndarray:
        """A curve between the corners, from its height in the middle, beside it and half way to a corner."""
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
    """Eyes. The lids cover parts of iris and pupil; the upper lids sink as the eyes close."""
    width, opening = identity.eye_width, identity.eye_opening * (1 + 0.15 * view.brow_raise)
    share = LID  # from the inner to the outer corner
    low = 0.72 * opening * (1 - share**2) * (1 - 0.25 * max(view.smile, 0))
    high = -opening * (1 - np.abs(share + 0.1 * (1 - share**2)) ** 2.3)
    high += (low - high) * 0.96 * view.eye_closing

    def points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Points of the eye on the right of the image, from x (outwards) and y relative to its middle."""
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
    """Eyebrows: arches that become thinner outwards."""
    share = BROW  # from the inner to the outer end
    x = 17.5 + 0.6 * identity.eye_spacing + share * identity.brow_length
    arch = identity.brow_arch * (1 - (share - 0.15) ** 2) + identity.brow_tilt * identity.brow_length * share
    frown = min(view.brow_raise, 0) * (share - 1) * 1.6
    y = identity.eye_height - identity.brow_height - arch - 3.0 * max(view.brow_raise, 0) + frown
    thick = identity.brow_thickness * (1 - 0.75 * np.maximum(share, 0) ** 1.5) * np.minimum(1, 1.2 + 0.6 * share)
    for grow, depth in ((0.5, 0.45), (0.0, 1.0)):
        ring = np.concatenate([surface(x, y - thick - grow, 1), surface(x, y + thick + grow, 1)[::-1]])
        sketch.add(ring, mix(palette.skin, palette.brow, depth), mirror=True)
