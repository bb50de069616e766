"""Ten classes of drawn shapes at 32x32: a data set for machines without data and without a network connection."""

import numpy as np

CLASSES = (
    "disc", "ring", "square", "frame", "triangle", "plus", "star", "crescent", "half disc", "bars",
)  # fmt: skip


def _polygon(x, y, corners):
    """Distance beyond the nearest edge of a regular polygon with circumradius 1; negative inside."""
    half_angle = np.pi / corners
    angle = (np.arctan2(y, x) + half_angle) % (2 * half_angle) - half_angle
    return np.hypot(x, y) * np.cos(angle) - np.cos(half_angle)


def _star(x, y):
    angle = np.abs((np.arctan2(y, x) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    return np.hypot(x, y) - (1.05 - angle * 1.0)


def _signed_distance(label, x, y):
    """Roughly the distance from the outline of the shape of radius 1; negative inside."""
    r = np.hypot(x, y)
    box = np.maximum(np.abs(x), np.abs(y))
    return [
        lambda: r - 0.9,
        lambda: np.abs(r - 0.75) - 0.2,
        lambda: box - 0.75,
        lambda: np.abs(box - 0.65) - 0.18,
        lambda: _polygon(x, y, 3),
        lambda: np.maximum(np.minimum(np.abs(x), np.abs(y)) - 0.25, box - 0.95),
        lambda: _star(x, y),
        lambda: np.maximum(r - 0.95, 0.75 - np.hypot(x - 0.5, y)),
        lambda: np.maximum(r - 1.0, x - 0.1),
        lambda: np.maximum(np.abs(np.abs(x) - 0.55) - 0.22, np.abs(y) - 0.9),
    ][label]()


def draw(n: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Draws `n` images: one shape each, any place, size, angle and colour, on a noisy background with clutter.

    Args:
        n: number of images.
        seed: the same seed draws the same images.
        size: height and width in pixels.

    Returns:
        Images, uint8 (n, size, size, 3), and labels, int64 (n,), in [0, 10).
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % len(CLASSES))

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (len(where), *(shape or (1, 1)))).astype("float32")

    grid = (np.arange(size, dtype="float32") + 0.5) / size * 2 - 1
    images = np.empty((n, size, size, 3), "float32")
    for label in range(len(CLASSES)):
        where = np.flatnonzero(labels == label)
        angle, radius = uniform(-np.pi / 6, np.pi / 6), uniform(0.45, 0.7)
        x, y = grid[None, None, :] - uniform(-0.3, 0.3), grid[None, :, None] - uniform(-0.3, 0.3)
        u = (x * np.cos(angle) + y * np.sin(angle)) / radius
        v = (y * np.cos(angle) - x * np.sin(angle)) / radius
        inside = np.clip(0.5 - _signed_distance(label, u, v) * radius * size / 2, 0, 1)[..., None]

        background = uniform(40, 215, 1, 1, 3)
        contrast = uniform(50, 120, 1, 1, 3) * rng.choice([-1, 1], (len(where), 1, 1, 1)).astype("float32")
        shade = uniform(-40, 40) * grid[:, None] + uniform(-40, 40) * grid[None, :]
        stroke = grid[None, None, :] * np.cos(2 * angle) + grid[None, :, None] * np.sin(2 * angle) - uniform(-0.8, 0.8)
        clutter = np.clip(0.5 - (np.abs(stroke) - 0.05) * size / 2, 0, 1)[..., None] * uniform(-70, 70, 1, 1, 3)
        noise = rng.normal(0, 8, (len(where), size, size, 3)).astype("float32")
        images[where] = background + shade[..., None] + clutter * (1 - inside) + contrast * inside + noise
    return np.clip(images, 0, 255).astype("uint8"), labels
