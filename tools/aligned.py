"""Checks that the images of a new set are aligned faces, or resizes them."""

EXPECTED = """
The images must be faces of 112x112 pixels, aligned by five points like those of InsightFace: docs/data.md, "Align
faces". Another size is refused. --resize resizes such images as evaluation does: the short side to 112 pixels, then
the center is cropped. It aligns nothing, so use it only for faces that fill the image like aligned ones.
"""


class AlignedImages:
    """Checks encoded images one by one. resized: how many images of another size were resized so far.

    resize: resize images of another size; False: refuse them.
    """

    def __init__(self, resize: bool) -> None:
        self._resize, self.resized = resize, 0

    def check(self, encoded: bytes, name: str) -> bytes:
        """The image to store: `encoded` itself if it has 112x112 pixels, or else a resized PNG. Raises ImageError."""
        # Imported here so that --help, which shows EXPECTED, answers at once.
        from data.images import SIZE, ImageError, decode_rgb, encode_png, fit

        image = decode_rgb(encoded, name)
        height, width = image.shape[:2]
        if (height, width) == (SIZE, SIZE):
            return encoded
        if not self._resize:
            raise ImageError(
                f"{name}: {width}x{height} pixels, but faces must be aligned to {SIZE}x{SIZE}; align them "
                '(docs/data.md, "Align faces"), or use --resize to resize all images of another size'
            )
        self.resized += 1
        return encode_png(fit(image))

    def summary(self) -> str:
        """What was done to the images, as the end of a sentence; empty if all were stored as they are."""
        return f"; resized to 112x112: {self.resized} images" if self.resized else ""
