"""A drawn ten-class set: shapes and textures under random colour, place, scale, light and noise.

Needs no file and no network. Only +, -, *, / and floor are used, which IEEE 754 rounds the same
everywhere, so the same arguments give the same bytes on every platform.
"""
from collections.abc import Callable

import numpy as np
from numpy import ndarray
from numpy.random import RandomState

Figure = Callable[[ndarray, ndarray], ndarray]
# How much of the foreground each class shows at x and y. A shape lies between -1 and 1; a texture
# goes on and on, its period is 1.
FIGURES: dict[str, Figure] = {
    "disc": lambda x, y: x * x + y * y < 0.8,
    "ring": lambda x, y: abs(x * x + y * y - 0.6) < 0.33,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "triangle": lambda x, y: (abs(x) < 0.55 * (y + 1)) & (y < 0.75),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 1),
    "horizontal stripes": lambda x, y: y % 1 < 0.5,
    "vertical stripes": lambda x, y: x % 1 < 0.5,
    "checkerboard": lambda x, y: (x % 1 < 0.5) ^ (y % 1 < 0.5),
    "dots": lambda x, y: (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.08,
    "gradient": lambda x, y: np.clip(0.5 + 0.2 * x, 0, 1),
}
CLASSES = tuple(FIGURES)
POOLS = {"train": (600, 0), "test": (100, 1)}  # images per class, and the seed


def draw(n_per_class: int, seed: int, size: int = 32) -> tuple[ndarray, ndarray]:
    """Images and labels of the drawn set, shuffled; equal arguments give equal bytes.

    No class is another's mirror image, and none turns into another under ±15° of rotation.

    Args:
        n_per_class: images per class, at least 1.
        seed: 0 to 2**32 - 1; give train and test different ones.
        size: height and width in pixels, at least 16.

    Returns:
        images (N, 3, size, size) uint8 and labels (N,) int64, N = 10 * n_per_class.
    """
    rng = RandomState(seed)
    labels = rng.permutation(np.repeat(np.arange(len(CLASSES)), n_per_class))
    images = np.empty((len(labels), 3, size, size), np.uint8)
    for label, figure in enumerate(FIGURES.values()):
        images[labels == label] = _pictures(figure, n_per_class, size, rng)
    return images, labels


def _pictures(figure: Figure, n: int, size: int, rng: RandomState) -> ndarray:
    """(n, 3, size, size) uint8 pictures of one class."""
    def drawn(low: float, high: float, channels: int = 1) -> ndarray:
        """(n, channels, 1, 1) float32; not by rng.uniform, whose arithmetic compilers may fuse."""
        return low + (high - low) * rng.random_sample((n, channels, 1, 1)).astype(np.float32)

    x = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    y = x[:, None]
    back = images = drawn(0, 1, 3)
    # After the figure two specks: distractors that belong to no class.
    speck = FIGURES["disc"], 0.06, 0.18, 1.0
    for shape, smallest, largest, reach in ((figure, 0.4, 0.7, 0.3), speck, speck):
        right, down = x - drawn(-reach, reach), y - drawn(-reach, reach)
        scale, tangent = drawn(smallest, largest), drawn(-0.2, 0.2)  # turned by up to 11°
        mask = shape((right + tangent * down) / scale, (down - tangent * right) / scale)
        front = (back + drawn(0.25, 0.75, 3)) % 1  # each channel differs by at least 0.25
        images = images + mask * (front - images)
    light = drawn(-0.15, 0.15, 3) * y  # from above or below
    noise = drawn(0.05, 0.3) * (rng.random_sample(images.shape) - 0.5)
    return (255 * np.clip(images + light + noise, 0, 1) + 0.5).astype(np.uint8)
