"""Batches of small images in memory, augmented as in P1 4.2, with tf.data.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).

Every random choice is a function of (seed, epoch, example): the same step of the same run always sees the same batch,
no matter where the run was resumed.
"""

import numpy as np
import tensorflow as tf

from keras_resnet.data.shards import WHOLE, Shards, ranges, steps_per_epoch, training_order
from keras_resnet.data.sources import PADDING, Split


def augment(images: tf.Tensor, mean: tf.Tensor, dy: tf.Tensor, dx: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """Random crops of padded and flipped images.

    Args:
        images: (batch, height, width, 3), any numeric dtype.
        mean: (height, width, 3), which the network subtracts; it fills the padding, which thus becomes zero.
        dy, dx: int32 (batch,) in [0, 8], the crop's corner in the image padded by 4 pixels on each side.
        flip: bool (batch,), whether to flip horizontally.

    Returns:
        float32 (batch, height, width, 3).
    """
    height, width = mean.shape[:2]
    rows = dy[:, None] + tf.range(height) - PADDING
    columns = dx[:, None] + tf.range(width) - PADDING
    columns = tf.where(flip[:, None], columns[:, ::-1], columns)
    row_inside, column_inside = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    # One gather of whole pixels: from each image those at (row, column), clipped to the image.
    pixels = tf.clip_by_value(rows, 0, height - 1)[:, :, None] * width
    pixels += tf.clip_by_value(columns, 0, width - 1)[:, None, :]
    flat = tf.reshape(images, (-1, height * width, images.shape[-1]))
    crops = tf.cast(tf.gather(flat, pixels, batch_dims=1), "float32")
    return tf.where((row_inside[:, :, None] & column_inside[:, None, :])[..., None], crops, mean)


def training_batches(
    split: Split, mean: np.ndarray, *, batch_size: int, seed: int, first_step: int = 0, shards: Shards = WHOLE,
) -> tf.data.Dataset:  # fmt: skip
    """An endless stream of augmented batches. Each epoch has a new order, and its last, partial batch is dropped.

    Args:
        split: a `sources.Split`.
        mean: float32 (height, width, 3), for `augment`.
        batch_size: examples in a batch, at most as many as there are.
        seed: determines the order and the augmentation.
        first_step: the step, counted from the beginning of training, whose batch comes first.
        shards: the `shards.Shards` of each batch, for several replicas; their number divides `batch_size`.

    Returns:
        A `tf.data.Dataset` of (images float32 (batch_size, height, width, 3), labels int64 (batch_size,)), or of the
        shards, one after the other.

    Raises:
        ValueError: there are fewer examples than `batch_size`.
    """
    n = len(split.labels)
    steps = steps_per_epoch(n, batch_size)
    images, labels, mean = tf.constant(split.images), tf.constant(split.labels), tf.constant(mean)
    first_epoch, skipped = divmod(first_step, steps)

    def epoch(number):
        order_seed, draw_seed = tf.unstack(tf.random.split([seed, tf.cast(number, "int32")], 2))
        order = tf.random.experimental.stateless_shuffle(tf.range(n), order_seed)
        draws = tf.random.stateless_uniform((n, 3), draw_seed)  # row i belongs to example i
        order = training_order(order, batch_size, shards)
        batches = tf.data.Dataset.from_tensor_slices((order, tf.gather(draws, order)))
        return batches.skip(tf.where(number == first_epoch, tf.constant(skipped * len(shards.own), "int64"), 0))

    def batch(indices, draws):
        offsets = tf.cast(draws[:, :2] * (2 * PADDING + 1), "int32")
        crops = augment(tf.gather(images, indices), mean, offsets[:, 0], offsets[:, 1], draws[:, 2] < 0.5)
        return crops, tf.gather(labels, indices)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max)
    return epochs.flat_map(epoch).map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(split: Split, *, batch_size: int = 500, shards: Shards = WHOLE) -> tf.data.Dataset:
    """Every example once, unchanged and in order: the single view of P1 4.2. Arguments as in `training_batches`.

    Batches have at most `batch_size` examples, and their sizes differ by one at most.
    """
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    found = tf.data.Dataset.from_tensor_slices(ranges(len(split.labels), batch_size, shards))
    return found.map(lambda r: (images[r[0] : r[1]], labels[r[0] : r[1]])).prefetch(tf.data.AUTOTUNE)
