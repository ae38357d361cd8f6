"""A drawn ten-class set: shapes and textures under random colour, place, scale, light and noise.

Needs no file and no network. Only +, -, *, /, sqrt, abs and floor are used, which IEEE 754 rounds
the same everywhere, so the same arguments give the same bytes on every platform.
"""
import numpy as np
from numpy import ndarray
from numpy.random import RandomState

CLASSES = ("disc", "ring", "square", "triangle", "cross",
           "horizontal stripes", "vertical stripes", "checkerboard", "dots", "gradient")
TEXTURES = CLASSES[5:]


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
    n = n_per_class * len(CLASSES)
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.int64), n_per_class)
    labels = labels[np.argsort(rng.random_sample(n), kind="stable")]
    images = np.empty((n, 3, size, size), np.uint8)
    for index, name in enumerate(CLASSES):
        images[labels == index] = _draw_class(name, n_per_class, size, rng)
    return images, labels


def _draw_class(name: str, n: int, size: int, rng: RandomState) -> ndarray:
    """(n, 3, size, size) uint8 pictures of one class."""
    axis = (np.arange(size, dtype=np.float32) * 2 + 1) / size - 1
    x, y = axis[None, None, :], axis[None, :, None]

    back = _uniform(rng, 0, 1, (n, 3, 1, 1))
    front = back + _uniform(rng, 0.25, 0.75, (n, 3, 1, 1))
    front -= np.floor(front)  # wraps round, so every channel differs by at least 0.25
    mask = _mask(name, n, x, y, size, rng)
    images = back + mask[:, None] * (front - back)

    for _ in range(2):  # specks: distractors that belong to no class
        speck_x = _uniform(rng, -1, 1, (n, 1, 1))
        speck_y = _uniform(rng, -1, 1, (n, 1, 1))
        distance = _distance(x - speck_x, y - speck_y)
        radius = _uniform(rng, 0.06, 0.16, (n, 1, 1))
        speck = np.clip((radius - distance) * size / 2 + 0.5, 0, 1)
        colour = _uniform(rng, 0, 1, (n, 3, 1, 1))
        images += speck[:, None] * (colour - images)

    slope_x, slope_y = _uniform(rng, -0.12, 0.12, (2, n, 3, 1, 1))
    images += slope_x * x + slope_y * y
    noise = np.frombuffer(rng.bytes(2 * images.size), np.uint8)
    noise = noise.reshape(2, *images.shape)
    noise = noise[0].astype(np.float32) + noise[1] - 255  # triangular on ±255
    strength = _uniform(rng, 0.04, 0.22, (n, 1, 1, 1))
    images = images * 255 + strength * noise
    return np.clip(images + 0.5, 0, 255).astype(np.uint8)


def _mask(name: str, n: int, x: ndarray, y: ndarray, size: int, rng: RandomState) -> ndarray:
    """(n, size, size) float32 share of the foreground colour in each pixel, edges anti-aliased."""
    # The tangent of the half angle gives cosine and sine without the platform's own trigonometry.
    reach = 1.0 if name == "gradient" else 0.1  # ±90°, or ±11°
    half = _uniform(rng, -reach, reach, (n, 1, 1))
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    if name in TEXTURES:
        scale = 2 / _uniform(rng, 2.5, 4.5, (n, 1, 1))  # one period, of an image that is 2 wide
        shift_x, shift_y = _uniform(rng, -1, 1, (2, n, 1, 1))
    else:
        scale = _uniform(rng, 0.35, 0.65, (n, 1, 1))
        shift_x, shift_y = _uniform(rng, -0.3, 0.3, (2, n, 1, 1))
    u = (cos * (x - shift_x) + sin * (y - shift_y)) / scale
    v = (cos * (y - shift_y) - sin * (x - shift_x)) / scale
    if name == "gradient":
        return np.clip(0.5 + 0.35 * u * scale, 0, 1)
    return np.clip(0.5 - _outside(name, u, v) * scale * (size / 2), 0, 1)


def _outside(name: str, u: ndarray, v: ndarray) -> ndarray:
    """Signed distance to the figure's edge in its own unit, below 0 inside."""
    if name == "disc":
        return _distance(u, v) - 0.9
    if name == "ring":
        return np.abs(_distance(u, v) - 0.75) - 0.22
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.8
    if name == "triangle":
        return np.maximum(v - 0.75, (np.abs(u) - 0.55 * (v + 1)) * 0.876)
    if name == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 1, b - 0.28), np.maximum(b - 1, a - 0.28))
    across, down = np.abs(u - np.floor(u) - 0.5), np.abs(v - np.floor(v) - 0.5)
    if name == "horizontal stripes":
        return down - 0.25
    if name == "vertical stripes":
        return across - 0.25
    if name == "checkerboard":
        return np.maximum(np.minimum(across, down) - 0.25, 0.25 - np.maximum(across, down))
    return _distance(across, down) - 0.28  # dots


def _distance(u: ndarray, v: ndarray) -> ndarray:
    """Distance from the origin."""
    return np.sqrt(u * u + v * v)


def _uniform(rng: RandomState, low: float, high: float, shape: tuple[int, ...]) -> ndarray:
    """float32 in [low, high); scaled here since C compilers may fuse rng.uniform's own scaling."""
    return rng.random_sample(shape).astype(np.float32) * (high - low) + low
