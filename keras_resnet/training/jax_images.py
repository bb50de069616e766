"""Small images on JAX's devices: random crops, and the random numbers of an epoch."""

import jax
import numpy as np
from jax import numpy as jnp

from keras_resnet.data.sources import PADDING


def augment(images: jax.Array, mean: jax.Array, draws: jax.Array) -> jax.Array:
    """Random crops of padded and flipped images, as `data.cifar.augment`.

    Args:
        images: uint8 (batch, height, width, 3).
        mean: float32 (height, width, 3), which fills the padding.
        draws: int32 (batch, 3): the crop's corner, (dy, dx) in [0, 8], and whether to flip horizontally, 0 or 1.

    Returns:
        float32 (batch, height, width, 3).
    """

    def one(image, draw):
        dy, dx, flip = draw
        margins = ((PADDING, PADDING), (PADDING, PADDING), (0, 0))
        inside = jnp.ones((*image.shape[:2], 1), bool)
        crops = (jax.lax.dynamic_slice(jnp.pad(x, margins), (dy, dx, 0), x.shape) for x in (image, inside))
        crop, inside = (jnp.where(flip, x[:, ::-1], x) for x in crops)
        return jnp.where(inside, crop.astype("float32"), mean)

    return jax.vmap(one)(images, draws)


def draws_of(seed: int, epoch: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """The random numbers of an epoch: the order of the examples, int32 (examples,), and draws for `augment`.

    Row i of the draws, int32 (examples, 3), belongs to example i.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(examples)
    draws = generator.integers(0, [2 * PADDING + 1, 2 * PADDING + 1, 2], (examples, 3))
    return order.astype("int32"), draws.astype("int32")
