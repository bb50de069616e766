"""Photographs: image folders, decoding and resizing, with TensorFlow."""

import contextlib
import os

import numpy as np
import tensorflow as tf

from keras_resnet.data.sources import DataError

EXTENSIONS = (".jpeg", ".jpg", ".png")


def decode(data):
    """The content of a JPEG or PNG file, a string, as an image: uint8 (height, width, 3), RGB."""
    return tf.io.decode_jpeg(data, channels=3)  # reads PNG as well


@contextlib.contextmanager
def errors_named(paths):
    """Within it, a file among `paths` that cannot be decoded ends in a DataError that names it."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        for path in paths:
            try:
                decode(tf.io.read_file(path))
            except tf.errors.InvalidArgumentError:
                raise DataError(f"{path} cannot be read as an image") from error
        raise


def resize_shorter_side(image, size):
    """Resizes an image with antialiased bilinear interpolation; the longer side follows in proportion, rounded.

    Args:
        image: (height, width, 3), any number type.
        size: the shorter side afterwards.

    Returns:
        float32 (height, width, 3), not rounded.
    """
    sides = tf.cast(tf.shape(image)[:2], "float64")
    sides = tf.round(sides * size / tf.reduce_min(sides))  # halves to even
    return tf.image.resize(image, tf.cast(sides, "int32"), antialias=True)


def list_folder(folder, split):
    """Lists FOLDER/SPLIT/CLASS/* or, where there is no FOLDER/SPLIT, FOLDER/CLASS/*.

    Args:
        folder: the image folder.
        split: "train" or "val".

    Returns:
        The paths, a list; their labels, int64 (n,); and the classes, the sorted names of their folders.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    inner = os.path.join(folder, split)
    folder = inner if os.path.isdir(inner) else folder
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    paths, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted(os.listdir(os.path.join(folder, name))):
            if file.lower().endswith(EXTENSIONS):
                paths.append(os.path.join(folder, name, file))
                labels.append(label)
    if not paths:
        raise DataError(f"{folder} holds no image: CLASS/IMAGE.jpeg is looked for, .jpg and .png too")
    return paths, np.array(labels, "int64"), tuple(classes)
