"""Objects that hide a part of the face: sunglasses, a mask, a hand, a hat, a scarf."""

import numpy as np

from demo.faces.factors import OCCLUSIONS, View
from demo.faces.sketch import SKIN_TONES, Head, Sketch, curve, ellipse, mix, surface, tone


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
    """A hand with four fingers, from the lower left or right."""
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


# Occlusion of a `View` -> function that draws it.
COVERS = dict(zip(OCCLUSIONS[1:], (cover_eyes, cover_mouth, cover_by_hand, cover_hair, cover_chin), strict=True))
