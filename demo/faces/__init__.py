"""Drawn faces of synthetic identities, for trials on a machine without face data.

Two frozen records of numbers decide a picture: an `Identity` (what a person keeps: bones, skin, hair, marks) and a
`View` (what a camera adds: pose, light, expression, occlusion, blur, resolution, noise, background). `draw_face` is a
pure function of the two, so every factor can be changed alone. Both follow from (seed, identity number, image number).

    python demo/faces --sheet faces.png --identities 6 --views 10 --seed 0
"""

from demo.faces.drawing import contact_sheet, draw_face
from demo.faces.factors import Identity, View, make_identity, make_view

__all__ = ["Identity", "View", "contact_sheet", "draw_face", "make_identity", "make_view"]
