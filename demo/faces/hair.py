"""Hair: its outline and hairline, and the strands between them."""

import numpy as np

from demo.faces.factors import Identity
from demo.faces.sketch import Head, Palette, Sketch, mix, surface

HAIR = np.linspace(-1, 1, 61)  # positions along the hairline, from left to right
STRAND = np.linspace(0.04, 0.96, 9)[:, None]  # positions along a strand


def hair_edges(head: Head, identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Compute the outline of the hair and the hairline: two curves [61, 2] in the upright plane, left to right."""
    length, share, arch = identity.hair_length, HAIR, 1 - np.cos(HAIR * np.pi / 2)
    bottom = -4 + 16 * min(length, 0.5) + 120 * max(length - 0.5, 0)
    front = identity.hairline - identity.temple_recession * np.exp(-(((np.abs(share) - 0.6) / 0.2) ** 2))
    sweep = np.clip(1 - np.abs(share - identity.hair_parting), 0, 1.4) ** 2
    front += 15 * identity.fringe * min(2 * length, 1) * (1 - 0.9 * sweep)
    front += 1.2 * identity.hair_wave * np.sin(14 * share + 5 * identity.hair_parting)
    hairline = front + (bottom - front) * np.clip((np.abs(share) - 0.72) / 0.28, 0, 1) ** 1.7
    volume = identity.hair_volume * np.clip(length * 3, 0.1, 1)
    crown = head.rows[0] + (bottom - head.rows[0]) * arch
    # Below the ears, hair hangs straight down and does not follow the jaw.
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
    """Draw the front hair: a cap between outline and hairline, with strands."""
    outer, inner = edges
    colour = mix(palette.skin, palette.hair, min(0.6 + 3 * identity.hair_length, 1))
    sketch.add_flat(np.concatenate([outer, inner[::-1]]), colour, 0, 210)
    curl = 1.8 * identity.hair_wave * np.sin(STRAND[:, 0] * 11)
    for offset, other, share in ((1, (0, 0, 0), 0.16), (2, (255, 236, 210), 0.1), (3, (0, 0, 0), 0.1)):
        begin, end = inner[offset:-1:3, None], outer[offset:-1:3, None]
        strands = begin + (end - begin) * STRAND
        strands[..., 0] += curl * (1 if offset == 2 else -1)
        sketch.add_flat(strands, mix(colour, other, share), 0.5, 210)
