"""The part of the data that each replica sees when several devices train or test together."""

import typing

import numpy as np

from keras_resnet.data.sources import DataError

if typing.TYPE_CHECKING:
    import tensorflow as tf


class Parts(typing.NamedTuple):
    """Every batch is split into `total` parts; a stream has those in the range `own`, one after the other."""

    total: int = 1
    own: range = range(1)


WHOLE = Parts()


def training_order(order: "tf.Tensor", batch_size: int, parts: Parts = WHOLE) -> "tf.Tensor":
    """The examples of an epoch, batch by batch, without the last, partial batch.

    Args:
        order: int32 (n,), the order of the examples.
        batch_size: examples in a batch, at most n and a multiple of `parts.total`.
        parts: `Parts`.

    Returns:
        int32 (batches * len(parts.own), batch_size / parts.total), one row for each part.
    """
    import tensorflow as tf  # here, because JAX does without it

    size = batch_size // parts.total
    batches = tf.reshape(order[: len(order) // batch_size * batch_size], (-1, parts.total, size))
    return tf.reshape(batches[:, parts.own.start : parts.own.stop], (-1, size))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """The number of full batches in n training examples; ValueError if there is none."""
    if batch_size > n:
        raise ValueError(f"a batch of {batch_size} is larger than the training data, {n} examples")
    return n // batch_size


def ranges(n: int, batch_size: int, parts: Parts = WHOLE) -> np.ndarray:
    """Splits n examples into ranges of nearly equal size; every part has the same number of ranges, and none is empty.

    Args:
        n: number of examples.
        batch_size: the largest number of examples in a range.
        parts: `Parts`.

    Returns:
        int64 (ranges, 2), begin and end.

    Raises:
        DataError: there are fewer examples than parts.
    """
    if n < parts.total:
        raise DataError(f"{parts.total} devices cannot share {n} examples to be tested on; train on fewer devices")
    rounds = -(-n // (batch_size * parts.total))
    edges = np.arange(rounds * parts.total + 1) * n // (rounds * parts.total)
    found = np.stack([edges[:-1], edges[1:]], 1).reshape(rounds, parts.total, 2)
    return found[:, parts.own.start : parts.own.stop].reshape(-1, 2)
