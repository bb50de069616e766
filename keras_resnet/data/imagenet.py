"""Batches of images in image or TFRecord files, augmented as in P1 3.4, with tf.data.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).

Every random choice is a function of (seed, epoch, example): the same step of the same run always sees the same batch,
no matter where the run was resumed. A file is read when its batch is made; only paths and positions are kept in memory.
"""

import contextlib
import json
import os
import re
import traceback
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.choices import COLOR_SAMPLE
from keras_resnet.data import color, crops
from keras_resnet.data.folders import Examples
from keras_resnet.data.shards import WHOLE, Shards, ranges, steps_per_epoch, training_order
from keras_resnet.files import DataError, own_line, reason

DAMAGED, UNREADABLE = "damaged image file", "unreadable image file"  # in errors, followed by name and reason as JSON
NOTHING = "no image of a batch can be read"
TEST_BATCH = 64  # images


def augment(
    data: tf.Tensor, size: int, shorter_side: tf.Tensor | int, position: tf.Tensor, flip: tf.Tensor, shift: tf.Tensor,
) -> tf.Tensor:  # fmt: skip
    """One random crop by `crops.cut`, with `shift`, float32 (3,), added to every pixel: float32 (size, size, 3)."""
    crop = crops.cut(data, size, shorter_side, position, flip)
    # Added to rows: broadcasting three numbers over all pixels takes thirty times as long.
    return tf.reshape(tf.reshape(crop, (size, 3 * size)) + tf.tile(shift, [size]), (size, size, 3))


def attempt(
    make: Callable[..., tuple[tf.Tensor, ...]], rows: tuple, parallel: int | None,
) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:  # fmt: skip
    """Applies a function to each row of a batch, several in parallel, and leaves out the rows for which it fails.

    `tf.map_fn` stops at the first row that fails, and so would a data set without `ignore_errors`. Inside the graph of
    the input pipeline, a data set is made for each batch and read as a single element, so that the pipeline yields
    whole batches. One row is added because an empty data set has no element, and removed again.

    Args:
        make: a function from a row to a tuple of tensors of known shape.
        rows: a tuple of tensors (batch, ...), or of tuples of them.
        parallel: the number of rows in parallel.

    Returns:
        Positions in the batch, int32 (m,); those left out, int32 (batch - m,); the tuple of tensors (m, ...).
    """
    indices = tf.range(tf.shape(tf.nest.flatten(rows)[0])[0])
    made = tf.data.Dataset.from_tensor_slices((indices, rows))
    made = made.map(lambda index, row: (index, make(*row)), num_parallel_calls=parallel).ignore_errors()
    nothing = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), made.element_spec)
    made = made.concatenate(tf.data.Dataset.from_tensors(nothing))  # so that there is at least one row
    made = made.batch(tf.size(indices, tf.int64) + 1).get_single_element()
    positions, made = tf.nest.map_structure(lambda tensor: tensor[:-1], made)
    made_at = tf.scatter_nd(positions[:, None], tf.ones_like(positions), tf.shape(indices))
    return positions, tf.boolean_mask(indices, made_at == 0), made


def _read(files, indices, image, arguments, skipped):
    """Reads the images of a batch, several in parallel.

    Args:
        files: a `folders.Files` or `records.Records`.
        indices: int (batch,), the examples.
        image: a function from a file's content and a row of each of `arguments` to a float32 tensor of known shape.
        arguments: tensors (batch, ...).
        skipped: None or a set, as in `training_batches`.

    Returns:
        Positions in the batch, int32 (m,), images, (m, ...), and labels, int64 (m,), of the examples that can be read:
        without `skipped`, of all.
    """

    def example(row, arguments):
        data, label = files.read(*row)
        return image(data, *arguments), label

    positions, lost, (images, labels) = attempt(example, (files.rows(indices), arguments), os.cpu_count())
    with tf.control_dependencies([_check_lost(files, tf.gather(indices, lost), skipped)]):
        return tf.identity(positions), tf.identity(images), tf.identity(labels)


def _check_lost(files, lost, skipped):
    """An operation that finds out why examples failed, if any did: only those that cannot be decoded may be skipped.

    Only then does a stream of files call Python; a stream of records calls it for each batch. Python's garbage
    collector may run in any such call. If it deletes the iterator that waits for the call, both wait forever, and the
    process collects no garbage again.
    """

    def check(lost):
        for index in lost:
            _check(files, index, skipped)

    look = lambda: tf.numpy_function(check, [lost], [], stateful=True)
    return tf.cond(tf.size(lost) > 0, look, tf.no_op)


def _check(files, index, skipped):
    try:
        data, _ = files.read(*_row(files, np.int64(index)))
        crops.decode(data)
    except tf.errors.InvalidArgumentError as error:
        try:
            files.check(index)
        except OSError as unreadable:
            raise _failure(UNREADABLE, files, index, unreadable) from error
        if skipped is None:
            raise _failure(DAMAGED, files, index, error) from error
        skipped.add(files.name(index))
    except tf.errors.OpError as error:
        raise _failure(UNREADABLE, files, index, error) from error
    else:
        raise _failure(UNREADABLE, files, index, "it failed once and can be read now; is memory exhausted?")


def _row(files, index):
    """The arguments of `files.read` for one example."""
    return tuple(tensor[0] for tensor in files.rows(index[None]))


def _failure(what, files, index, error):
    """An error for `errors_named` to parse, because TensorFlow passes on only its text."""
    return ValueError(f"{what} {json.dumps([files.name(index), reason(error)])}")


def examples(files: Examples, skipped: set[str] | None = None) -> tf.data.Dataset:
    """The whole images, one by one and in order: a `tf.data.Dataset` of (uint8 (height, width, 3), int64 label).

    `skipped` is a set to which the names of damaged files are added; these files are left out. Without it they end the
    stream with an error: see `errors_named`.
    """
    nothing = tf.data.Dataset.from_tensors((np.zeros((0, 0, 3), "uint8"), np.int64(-1)))

    def decoded(*row):
        data, label = files.read(*row)
        return crops.decode(data), label

    def example(index):
        read = tf.data.Dataset.from_tensors(_row(files, index)).map(decoded).ignore_errors()
        image, label = read.concatenate(nothing).take(1).get_single_element()
        with tf.control_dependencies([_check_lost(files, tf.boolean_mask([index], [tf.size(image) == 0]), skipped)]):
            return tf.identity(image), tf.identity(label)

    found = tf.data.Dataset.range(len(files)).map(example, num_parallel_calls=tf.data.AUTOTUNE)
    return found if skipped is None else found.filter(lambda image, label: tf.size(image) > 0)


@contextlib.contextmanager
def errors_named() -> Iterator[None]:
    """Inside this context, a file that stops a stream of this module raises a DataError that names the file."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(rf'({DAMAGED}|{UNREADABLE}) (\["(?:[^"\\]|\\.)*", "(?:[^"\\]|\\.)*"\])', error.message)
        if NOTHING in error.message:
            text = f"{NOTHING}: all its files are damaged"
        elif not found:
            raise
        else:
            name, why = json.loads(found[2])
            if found[1] == DAMAGED:
                text = f"{name} is damaged, or of an unsupported format: {why}\nReplace it, or give --skip-damaged."
            else:
                text = f"{name} cannot be read: {why}\nThis is not a damaged file, so --skip-damaged does not skip it."
        traceback.clear_frames(error.__traceback__)  # they hold the iterator: see `_check_lost`
        raise DataError(text) from error


def training_batches(
    files: Examples, *, batch_size: int, seed: int, first_step: int = 0, image_size: int = IMAGE_SIZE,
    scale: bool = True, crop: bool = True, flip: bool = True, components: color.Components | None = color.IMAGENET,
    skipped: set[str] | None = None, shards: Shards = WHOLE,
) -> tf.data.Dataset:  # fmt: skip
    """An endless stream of augmented batches. Each epoch has a new order, and its last, partial batch is dropped.

    Args:
        files: a `folders.Files` or `records.Records`.
        batch_size: examples in a batch, at most as many as there are.
        seed: determines the order and the augmentation.
        first_step: the step, counted from the beginning of training, whose batch comes first.
        image_size: height and width of the crops in pixels.
        scale: draw the shorter side at random; otherwise it is the smallest.
        crop: draw the position of the crop at random; otherwise it is the center.
        flip: flip half of the images horizontally.
        components: the `color.Components` for colour noise, or None for no noise.
        skipped: a set to which the names of damaged files are added. The next images of the batch take their places.
            Without it, a damaged file ends the stream with an error: see `errors_named`. A file is damaged if it can be
            read but not decoded; damage below the crop goes unnoticed, because nothing there is decoded.
        shards: the `shards.Shards` of each batch, for several replicas; their number divides `batch_size`.
            Only `shards.own` are read.

    Returns:
        A `tf.data.Dataset` of (images float32 (batch_size, image_size, image_size, 3), labels int64 (batch_size,)), or
        of the shards, one after the other. The pixels are in [0, 255] before the colour noise, which is not clipped.

    Raises:
        ValueError: there are fewer examples than `batch_size`.
    """
    n = len(files)
    steps = steps_per_epoch(n, batch_size)
    first_epoch, skipped_steps = divmod(first_step, steps)
    size = batch_size // shards.total
    least, greatest = crops.shorter_sides(image_size)

    def epoch(number):
        seeds = tf.unstack(tf.random.split([seed, tf.cast(number, "int32")], 3))
        order = tf.random.experimental.stateless_shuffle(tf.range(n), seeds[0])
        draws = tf.random.stateless_uniform((n, 4), seeds[1]), tf.random.stateless_normal((n, 3), seeds[2])
        order = training_order(order, batch_size, shards)
        # Row i of the draws belongs to example i.
        batches = tf.data.Dataset.from_tensor_slices((order, *(tf.gather(draw, order) for draw in draws)))
        return batches.skip(tf.where(number == first_epoch, tf.constant(skipped_steps * len(shards.own), "int64"), 0))

    def batch(indices, uniform, normal):
        sides = least + tf.floor(uniform[:, 0] * (greatest - least + 1 if scale else 0))
        middle = np.nextafter(0.5, 0, dtype="float32")  # a half is rounded down, as in `center_crop`
        where = uniform[:, 1:3] if crop else tf.fill([size, 2], middle)
        flips = uniform[:, 3] < (0.5 if flip else 0.0)
        shifts = color.shifts(components, normal) if components else tf.zeros([size, 3])
        positions, images, labels = _read(
            files,
            indices,
            lambda data, *choices: augment(data, image_size, *choices),
            (sides, where, flips, shifts),
            skipped,
        )
        if skipped is not None:
            with tf.control_dependencies([tf.debugging.assert_positive(tf.size(positions), NOTHING)]):
                count = tf.size(positions)  # not 0, because the next line divides by it
            nearest = tf.searchsorted(positions, tf.range(size)) % count
            images, labels = tf.gather(images, nearest), tf.gather(labels, nearest)
        return tf.ensure_shape(images, (size, image_size, image_size, 3)), tf.ensure_shape(labels, (size,))

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max)
    # Two batches in parallel, so that all cores have work while the last images of one are read, and one prefetched.
    own = len(shards.own)
    return epochs.flat_map(epoch).map(batch, num_parallel_calls=2 * own).prefetch(own)


def center_batches(
    files: Examples, *, batch_size: int = TEST_BATCH, image_size: int = IMAGE_SIZE, skipped: set[str] | None = None,
    shards: Shards = WHOLE,
) -> tf.data.Dataset:  # fmt: skip
    """Every example once and in order: the center crop of P1 3.4, from a shorter side of 256 for crops of 224.

    Arguments and returned `tf.data.Dataset` are as in `training_batches`, but batches have at most `batch_size`
    examples, and their sizes differ by one at most. The pixels are in [0, 255]. Damaged files are left out if `skipped`
    is a set. So are empty batches; but with several shards, an empty batch ends the stream with an error.
    """

    def batch(ends):
        indices = tf.range(ends[0], ends[1])
        _, images, labels = _read(
            files, indices, lambda data: crops.center_crop(crops.decode(data), image_size), (), skipped
        )
        if shards.total > 1:
            tf.debugging.assert_positive(tf.size(labels), NOTHING)
        return tf.ensure_shape(images, (None, image_size, image_size, 3)), labels

    own = len(shards.own)
    found = tf.data.Dataset.from_tensor_slices(ranges(len(files), batch_size, shards))
    batches = found.map(batch, num_parallel_calls=2 * own).prefetch(own)
    return batches if skipped is None else batches.filter(lambda images, labels: tf.size(labels) > 0)


def statistics(
    files: Examples, *, image_size: int = IMAGE_SIZE, images: int = COLOR_SAMPLE, seed: int = 0,
    skipped: set[str] | None = None, verbose: int = 1,
) -> color.Statistics:  # fmt: skip
    """The mean and the principal components of the center crops, in one pass.

    Args:
        files, image_size, skipped: as in `center_batches`.
        images: the largest number of examples to use; of more examples a random sample is drawn.
        seed: determines the sample.
        verbose: 1 for a progress bar, 0 for silence.

    Returns:
        `color.Statistics`, with a mean of shape (image_size, image_size, 3).
    """
    batch_size = 64
    files = files.subset(np.sort(np.random.default_rng(seed).permutation(len(files))[:images]))
    bar = keras.utils.Progbar(-(-len(files) // batch_size), verbose=verbose, unit_name="batch")
    total, products, n = np.zeros((image_size, image_size, 3)), np.zeros((3, 3)), 0
    with own_line(verbose):
        for batch, _ in center_batches(files, batch_size=batch_size, image_size=image_size, skipped=skipped):
            total += batch.numpy().sum(0, dtype="float64")
            colors = tf.reshape(batch, (-1, 3)) - 128.0  # near zero, where float32 is precise
            products += tf.matmul(colors, colors, transpose_a=True).numpy()
            n += len(batch)
            bar.add(1)
    if not n:
        raise DataError(f"none of the {len(files)} images can be read")
    mean = total / n
    center = mean.mean((0, 1)) - 128.0
    covariance = products / (n * image_size**2) - np.outer(center, center)
    return color.Statistics(np.round(mean, 3).astype("float32"), color.principal_components(covariance))
