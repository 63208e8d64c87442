"""The shuffled order of an epoch: a permutation of the whole set, or one that a disk can read in large pieces."""

import numpy as np

# Which random numbers a generator makes; a third number of its seed. Loaders use 1 for augmentation.
_BLOCKS, _WINDOW = 2, 3


class Shuffle:
    """The images of one epoch in random order, and which of them are mirrored. It depends on seed and epoch only.

    window: 0: all images are permuted. Otherwise, the blocks of `block` neighbouring images are permuted and cut into
    windows of at most about `window` images, and the images of each window are permuted. So an image is read soon after
    its neighbours on the disk, but a batch has few of them.

    blocks: for each window, the numbers of its blocks in ascending order; [] if window is 0.
    """

    def __init__(self, num_images: int, seed: int, epoch: int, window: int = 0, block: int = 4) -> None:
        self._num_images, self._key, self._block = num_images, (seed, epoch), block
        self.blocks: list[np.ndarray] = []
        lengths = [num_images]
        if window:
            count = -(-num_images // block)
            order = np.random.default_rng((*self._key, _BLOCKS)).permutation(count)
            windows = np.array_split(order, max(1, -(-num_images // window)))
            self.blocks = [np.sort(blocks) for blocks in windows]
            # The last block of the set may be shorter than the others.
            lengths = [
                block * len(blocks) - (blocks[-1] == count - 1) * (-num_images % block) for blocks in self.blocks
            ]
        self.starts = np.cumsum([0, *lengths])  # places in the epoch at which windows start, and its end
        self._current: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0, np.int64), np.empty(0, bool))

    def images(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions, int64 [N], and flips, bool [N], of the images at the places start .. stop - 1 of the epoch."""
        pieces = []
        for number in range(self.window_at(start), self.window_at(stop - 1) + 1):
            positions, flips = self._window(number)
            piece = slice(max(0, start - self.starts[number]), stop - self.starts[number])
            pieces.append((positions[piece], flips[piece]))
        positions, flips = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        return positions, flips

    def ranges(self, blocks: np.ndarray) -> np.ndarray:
        """The images of these blocks [N]: int64 [N, 2], the first position and the one after the last."""
        starts = self._block * blocks
        return np.stack([starts, np.minimum(starts + self._block, self._num_images)], axis=1)

    def window_at(self, place: int) -> int:
        """The number of the window that has the image at `place` of the epoch."""
        return int(np.searchsorted(self.starts, place, side="right")) - 1

    def _window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and flips of all images of a window."""
        if self._current[0] != number:
            if self.blocks:
                generator = np.random.default_rng((*self._key, _WINDOW, number))
                images = (self._block * self.blocks[number][:, None] + np.arange(self._block)).ravel()
                positions = generator.permutation(images[images < self._num_images])
            else:
                generator = np.random.default_rng(self._key)
                positions = generator.permutation(self._num_images)
            flips = generator.integers(0, 2, len(positions), dtype=np.uint8).astype(bool)
            self._current = number, positions, flips
        return self._current[1:]
