"""Image classification sets of TensorFlow Datasets, read in any order.

A TFRecord file is made to be read from its beginning to its end. Here the places of its records are noted first, by
hopping from header to header, so that an epoch can have any order and a run can go on anywhere in it.
"""

import concurrent.futures
import dataclasses
import os
import struct

import numpy as np
import tensorflow as tf

from keras_resnet.data import folders, sources
from keras_resnet.data.sources import DataError

LENGTH = struct.Struct("<Q")  # a record: its length, 4 bytes of checksum, its content, 4 bytes of checksum
CHECKSUM_BYTES = 4
READERS = 16  # records that are waited for at a time


@dataclasses.dataclass(frozen=True)
class Records:
    """Examples in TFRecord files; what `folders.Files` is to image files.

    `keys` are the names of the image and the label in a record. Example i lies in `paths[files[i]]`, and its
    `lengths[i]` bytes begin at `offsets[i]`; all three are integers (n,).
    """

    paths: list
    keys: tuple
    files: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self):
        return len(self.files)

    def part(self, numbers):
        """The examples with these numbers, an integer array."""
        places = (array[numbers] for array in (self.files, self.offsets, self.lengths))
        return Records(self.paths, self.keys, *places)

    def rows(self, numbers):
        """What `read` needs for the examples with these numbers, int (m,): their records, string (m,)."""
        return (tf.ensure_shape(tf.numpy_function(self._contents, [numbers], tf.string), (None,)),)

    def _contents(self, numbers):
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            return np.array(list(pool.map(self._content, numbers)), object)

    def _content(self, number):
        try:
            with open(self.paths[self.files[number]], "rb", buffering=0) as file:
                return os.pread(file.fileno(), self.lengths[number], self.offsets[number])
        except OSError:
            return b""  # which no image is: it is reported as the damaged files are

    def read(self, record):
        """One example: the content of an image file, a string, and its label, int64."""
        types = (tf.string, tf.int64)
        features = {key: tf.io.FixedLenFeature((), kind) for key, kind in zip(self.keys, types, strict=True)}
        example = tf.io.parse_single_example(record, features)
        return tuple(example[key] for key in self.keys)

    def names(self, numbers):
        """What to call the examples with these numbers, int (m,): string (m,)."""
        name = lambda number: f"{self.paths[self.files[number]]}, record at byte {self.offsets[number]},"
        return tf.numpy_function(lambda numbers: np.array([name(i) for i in numbers], object), [numbers], tf.string)


def photographs(dataset, data_dir=None, seed=0):
    """The `folders.Photographs` of a folder, as `folders.load` lists it, or of a data set, as `load` finds it."""
    return folders.load(dataset, seed) if os.path.isdir(dataset) else load(dataset, data_dir, seed)


def load(name, data_dir=None, seed=0):
    """Finds the records of a data set; reads none of them.

    Args:
        name: "imagenet2012", or another data set of TensorFlow Datasets whose examples are an image and its class.
        data_dir: as in `sources.load`.
        seed: where there is no split "validation", a tenth of "train" is drawn; which one is a function of it.

    Returns:
        A `folders.Photographs`.

    Raises:
        DataError: the data set is unknown, cannot be had, has no images with classes, or is not in TFRecord files.
    """
    builder, classes, keys = _builder(name, data_dir)
    if "train" not in builder.info.splits:
        raise DataError(f"{name} has no split train; it has {', '.join(builder.info.splits)}")
    train = _index(builder, "train", keys)
    if "validation" in builder.info.splits:
        return folders.Photographs(classes, train, _index(builder, "validation", keys))
    return folders.Photographs(classes, *folders.draw_validation(train, seed))


def load_test(name, data_dir=None):
    """The classes, a tuple of names, and the `Records` to test on: the split "validation", otherwise "test".

    Arguments and errors as of `load`. In this order, because the labels of ImageNet's test images are not public.
    """
    builder, classes, keys = _builder(name, data_dir)
    split = next((split for split in ("validation", "test") if split in builder.info.splits), None)
    if split is None:
        raise DataError(f"{name} has neither a split validation nor test; it has {', '.join(builder.info.splits)}")
    return classes, _index(builder, split, keys)


def _builder(name, data_dir):
    """The prepared builder of a data set, its classes, and the names of image and label in its records."""
    import tensorflow_datasets as tfds

    builder = sources.prepared(name, data_dir)
    features = dict(builder.info.features)
    image, label = (
        [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    if len(image) != 1 or len(label) != 1:
        raise DataError(f"{name} is no set of images with one class each: its examples have {', '.join(features)}")
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise DataError(
            f"{name} in {builder.data_dir} is in files of the format {builder.info.file_format.value}; "
            "prepare it as tfrecord, which is the default of tensorflow-datasets"
        )
    return builder, tuple(features[label[0]].names), (image[0], label[0])


def _index(builder, split, keys):
    """The `Records` of a split."""
    paths, lengths = builder.info.splits[split].filepaths, builder.info.splits[split].shard_lengths
    places = []
    for path, expected in zip(paths, lengths, strict=True):
        found = _places(path)
        if len(found) != expected:
            raise DataError(f"{path} is damaged: it should hold {expected} records; found {len(found)}")
        places.append(found)
    files = np.repeat(np.arange(len(paths), dtype="int32"), lengths)
    return Records([os.fspath(path) for path in paths], keys, files, *np.concatenate(places).T)


def _places(path):
    """Where each record of a TFRecord file begins, and how long it is: int64 (n, 2)."""
    places, position, size = [], 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while position + LENGTH.size <= size:
            (length,) = LENGTH.unpack(os.pread(file.fileno(), LENGTH.size, position))
            begin = position + LENGTH.size + CHECKSUM_BYTES
            position = begin + length + CHECKSUM_BYTES
            if position > size:
                break
            places.append((begin, length))
    return np.array(places, "int64").reshape(-1, 2)
