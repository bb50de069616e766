"""The shard of the data that each replica sees when several devices train or test together."""

import typing

import numpy as np

from keras_resnet.files import DataError

if typing.TYPE_CHECKING:
    import tensorflow as tf


class Shards(typing.NamedTuple):
    """Every batch is split into `total` shards; a stream has those in the range `own`, one after the other."""

    total: int = 1
    own: range = range(1)


WHOLE = Shards()


def training_order(order: "tf.Tensor", batch_size: int, shards: Shards = WHOLE) -> "tf.Tensor":
    """The examples of an epoch, batch by batch, without the last, partial batch.

    Args:
        order: int32 (n,), the order of the examples.
        batch_size: examples in a batch, at most n and a multiple of `shards.total`.
        shards: `Shards`.

    Returns:
        int32 (batches * len(shards.own), batch_size / shards.total), one row for each shard.
    """
    import tensorflow as tf  # here, because JAX does not need it

    size = batch_size // shards.total
    batches = tf.reshape(order[: len(order) // batch_size * batch_size], (-1, shards.total, size))
    return tf.reshape(batches[:, shards.own.start : shards.own.stop], (-1, size))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """The number of full batches in n training examples; ValueError if a batch is larger than n."""
    if batch_size > n:
        raise ValueError(f"a batch of {batch_size} is larger than the training data, {n} examples")
    return n // batch_size


def ranges(n: int, batch_size: int, shards: Shards = WHOLE) -> np.ndarray:
    """Splits n examples into ranges of nearly equal size; every shard has the same number of ranges, and none is empty.

    Args:
        n: number of examples.
        batch_size: the largest number of examples in a range.
        shards: `Shards`.

    Returns:
        int64 (ranges, 2), begin and end.

    Raises:
        DataError: there are fewer examples than shards.
    """
    if n < shards.total:
        raise DataError(f"{shards.total} devices cannot share {n} examples in evaluation; train on fewer devices")
    rounds = -(-n // (batch_size * shards.total))
    edges = np.arange(rounds * shards.total + 1) * n // (rounds * shards.total)
    found = np.stack([edges[:-1], edges[1:]], 1).reshape(rounds, shards.total, 2)
    return found[:, shards.own.start : shards.own.stop].reshape(-1, 2)
