"""Draws faces of synthetic identities, to try the repository without face data.

A picture is a pure function, `draw_face`, of two frozen dataclasses: an `Identity` (the person: shape, skin, hair,
marks) and a `View` (the photo: pose, light, expression, occlusion, blur, resolution, noise, background). Each field can
be changed alone. Both are sampled from (seed, identity number, image number).

    python demo/faces --sheet faces.png --identities 6 --views 10 --seed 0
"""

from demo.faces.drawing import contact_sheet, draw_face
from demo.faces.factors import Identity, View, make_identity, make_view

__all__ = ["Identity", "View", "contact_sheet", "draw_face", "make_identity", "make_view"]
