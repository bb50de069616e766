"""Image classification data sets of TensorFlow Datasets, read in any order.

TFRecord files are designed for sequential reading. Here the positions of all records are found first, by reading only
their headers, so that an epoch can have any order and a run can resume anywhere in it. Files of array_record have an
index of their own.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import struct

import numpy as np
import tensorflow as tf

from keras_resnet.data import folders, sources
from keras_resnet.files import DataError, Path

LENGTH = struct.Struct("<Q")  # a record: its length, 4 bytes of checksum, its content, 4 bytes of checksum
CHECKSUM_BYTES = 4
READERS = 16  # records that are read at the same time
ASIDE = "set aside/for validation"  # cannot be the name of a class's folder
OPEN_FILES = 512  # open array_record files, at most; each has its index in memory


@dataclasses.dataclass(frozen=True)
class Records:
    """Examples in TFRecord files, as `folders.Files` for image files.

    `keys` are the names of the image and the label in a record. Example i is in `paths[files[i]]`, and its
    `lengths[i]` bytes begin at `offsets[i]`; `files`, `offsets` and `lengths` are integer arrays (n,).
    """

    paths: list[str]
    keys: tuple[str, str]
    files: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, indices: np.ndarray) -> "Records":
        """The examples with these indices, an integer array."""
        return type(self)(self.paths, self.keys, *(array[indices] for array in self.locations))

    @property
    def locations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arrays `files`, `offsets` and `lengths`."""
        return self.files, self.offsets, self.lengths

    def rows(self, indices: np.ndarray | tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The arguments of `read` for the examples with these indices, int (m,): their records, string (m,).

        A record that cannot be read is empty; `check` raises the error.
        """
        return (tf.ensure_shape(tf.numpy_function(self._contents, [indices], tf.string), (None,)),)

    def check(self, index: int) -> None:
        """OSError if an example's record cannot be read."""
        self._content(index)

    def _contents(self, indices):
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            return np.array(list(pool.map(self._content_or_nothing, indices)), object)

    def _content_or_nothing(self, index):
        try:
            return self._content(index)
        except OSError:
            return b""

    def _content(self, index):
        with open(self.paths[self.files[index]], "rb", buffering=0) as file:
            file.seek(self.offsets[index])
            return file.read(self.lengths[index])

    def read(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One example: the content of an image file, a string, and its label, int64."""
        types = (tf.string, tf.int64)
        features = {key: tf.io.FixedLenFeature((), kind) for key, kind in zip(self.keys, types, strict=True)}
        example = tf.io.parse_single_example(record, features)
        image, label = (example[key] for key in self.keys)
        return image, label

    def name(self, index: int) -> str:
        """The name of an example in messages."""
        return f"{self.paths[self.files[index]]}, record at byte {self.offsets[index]},"


class ArrayRecords(Records):
    """Examples in array_record files. Here `offsets` and `lengths` count records, so each length is 1."""

    def _content(self, index):
        path, record = self.paths[self.files[index]], int(self.offsets[index])
        with contextlib.suppress(RuntimeError, IndexError):
            return _array_record(path).read([record])[0]
        with open(path, "rb"):  # OSError if it cannot be read at all
            return b""  # not a valid example, so parsing it reports damage

    def name(self, index: int) -> str:
        return f"{self.paths[self.files[index]]}, record {self.offsets[index]},"


@functools.lru_cache(OPEN_FILES)
def _array_record(path):
    """A reader for any record of an array_record file; several threads may use it."""
    from array_record.python.array_record_module import ArrayRecordReader

    options = {"options": "readahead_buffer_size:0,max_parallelism:0", "file_reader_buffer_size": 32768}
    return ArrayRecordReader(path, **options)


def splits(dataset: str, data_dir: Path | None = None, seed: int = 0) -> folders.Splits:
    """The `folders.Splits` of a folder, as `folders.load` lists it, or of a data set, as `load` finds it."""
    return folders.load(dataset, seed) if os.path.isdir(dataset) else load(dataset, data_dir, seed)


def load(name: str, data_dir: Path | None = None, seed: int = 0) -> folders.Splits:
    """Finds the records of a data set without reading them.

    Args:
        name: "imagenet2012", or another data set of TensorFlow Datasets whose examples are an image and its class.
        data_dir: as in `sources.load`.
        seed: if there is no split "validation", a tenth of "train" is drawn with this seed.

    Returns:
        A `folders.Splits`.

    Raises:
        DataError: the data set is unknown, cannot be loaded, has no images with classes, or has another file format.
    """
    builder, classes, keys = _builder(name, data_dir)
    if "train" not in builder.info.splits:
        raise DataError(f"{name} has no split train; it has {', '.join(builder.info.splits)}")
    train = _index(builder, "train", keys)
    if "validation" in builder.info.splits:
        return folders.Splits(classes, train, _index(builder, "validation", keys))
    order = np.random.default_rng(seed).permutation(len(train))
    cut = max(1, round(folders.VALIDATION_PART * len(order)))
    return folders.Splits(classes, train.subset(np.sort(order[cut:])), train.subset(np.sort(order[:cut])))


def load_split(
    dataset: str, name: str, data_dir: Path | None = None
) -> tuple[tuple[str, ...], folders.Examples] | None:
    """The test or validation split of a data set of images with classes.

    Args:
        dataset, data_dir: as in `splits`.
        name: "test", "validation" or, for data that have neither, "all".

    Returns:
        The classes, a tuple of names, and a `folders.Files` or `Records`. None if there is no such split, or if its
        labels are not public, as for ImageNet's test images.

    Raises:
        DataError: as in `load` and `folders.load`.
    """
    if os.path.isdir(dataset):
        return folders.load_split(dataset, name)
    builder, classes, keys = _builder(dataset, data_dir)
    splits = set(builder.info.splits)
    split = name if name != "all" else "train" if not splits & {"test", "validation"} else None
    if split not in splits:
        return None
    found = _index(builder, split, keys)
    _, label = found.read(found.rows(np.array([0]))[0][0])
    return (classes, found) if label >= 0 else None


def describe(data: folders.Splits, dataset: str) -> dict[str, str]:
    """Digests that tell a later run whether the data have changed.

    Args:
        data: a `folders.Splits`.
        dataset: the folder of the data; ignored for a data set of TensorFlow Datasets.

    Returns:
        A dictionary of `sources.digest`. For a folder: of the file names in each class, relative to the folder, and of
        the files set aside for validation. For a data set: of the classes and of each split.
    """
    if isinstance(data.train, folders.Files) and isinstance(data.validation, folders.Files):
        names: dict[str, list[bytes]] = {name: [] for name in data.classes}
        start = len(os.path.join(dataset, ""))
        for files in (data.train, data.validation):
            for path, label in zip(files.paths, files.labels, strict=True):
                names[data.classes[label]].append(os.fsencode(path[start:]))
        if not folders.is_divided(dataset):
            names[ASIDE] = [os.fsencode(path[start:]) for path in data.validation.paths]
        return {name: sources.digest(len(found), b"\0".join(sorted(found))) for name, found in names.items()}
    found = {"classes": sources.digest(len(data.classes), "\n".join(data.classes).encode())}
    for name in ("train", "validation"):
        split = getattr(data, name)
        paths = "\n".join(map(os.path.basename, split.paths)).encode()
        found[name] = sources.digest(len(split), paths, *map(np.ascontiguousarray, split.locations))
    return found


def _builder(name, data_dir):
    """The prepared builder of a data set, its classes, and the names of image and label in its records."""
    import tensorflow_datasets as tfds

    builder = sources.prepared(name, data_dir)
    features, kinds = dict(builder.info.features), (tfds.features.Image, tfds.features.ClassLabel)
    found = [[key for key, feature in features.items() if isinstance(feature, kind)] for kind in kinds]
    meant = builder.info.supervised_keys  # where there are masks, or labels of several kinds
    if isinstance(meant, tuple) and len(meant) == 2 and meant[0] in found[0] and meant[1] in found[1]:
        found = [[key] for key in meant]
    if [len(keys) for keys in found] != [1, 1]:
        raise DataError(f"{name} is not a set of images with one class each: its examples have {', '.join(features)}")
    sources.is_array_record(name, builder)
    (image,), (label,) = found
    return builder, tuple(features[label].names), (image, label)


def _index(builder, split, keys):
    """The `Records` of a split."""
    paths, lengths = builder.info.splits[split].filepaths, builder.info.splits[split].shard_lengths
    of_arrays = sources.is_array_record(builder.name, builder)
    kind, find = (ArrayRecords, _array_locations) if of_arrays else (Records, _locations)
    locations = []
    for path, expected in zip(map(os.fspath, paths), lengths, strict=True):
        found = find(path)
        if len(found) != expected:
            raise DataError(f"{path} is damaged: it should hold {expected} records; found {len(found)}")
        locations.append(found)
    files = np.repeat(np.arange(len(paths), dtype="int32"), lengths)
    return kind([os.fspath(path) for path in paths], keys, files, *np.concatenate(locations).T)


def _array_locations(path):
    """The indices of the records of an array_record file, and ones: int64 (n, 2)."""
    n = _array_record.__wrapped__(path).num_records()
    return np.stack([np.arange(n), np.ones(n, "int64")], 1)


def _locations(path):
    """The offset and the length of each record of a TFRecord file: int64 (n, 2)."""
    locations, position, size = [], 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while position + LENGTH.size <= size:
            file.seek(position)
            (length,) = LENGTH.unpack(file.read(LENGTH.size))
            begin = position + LENGTH.size + CHECKSUM_BYTES
            position = begin + length + CHECKSUM_BYTES
            if position > size:
                break
            locations.append((begin, length))
    return np.array(locations, "int64").reshape(-1, 2)
