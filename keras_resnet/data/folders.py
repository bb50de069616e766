"""Image folders: DIR/{train,val}/CLASS/FILE, or DIR/CLASS/FILE, of which a part is set aside for validation."""

import dataclasses
import functools
import os
import typing

import numpy as np
import tensorflow as tf

from keras_resnet.data.sources import DataError

ENDINGS = (".jpg", ".jpeg", ".png")  # in small or capital letters
VALIDATION_PART = 0.1  # of DIR/CLASS/FILE


@dataclasses.dataclass(frozen=True)
class Files:
    """Examples on disk: `paths`, a list of n strings, and `labels`, int64 (n,)."""

    paths: list
    labels: np.ndarray

    def __len__(self):
        return len(self.paths)

    def part(self, numbers):
        """The examples with these numbers, an integer array."""
        return Files([self.paths[i] for i in numbers], self.labels[numbers])

    @functools.cached_property
    def _tensors(self):
        with tf.init_scope():  # outside the graph that asks for them: they would be copied into it
            return tf.constant(self.paths), tf.constant(self.labels)

    def rows(self, numbers):
        """What `read` needs for the examples with these numbers, int (m,): paths, string (m,), and labels, (m,)."""
        return tuple(tf.gather(tensor, numbers) for tensor in self._tensors)

    def read(self, path, label):
        """One example: the content of an image file, a string, and its label, int64."""
        return tf.io.read_file(path), label

    def names(self, numbers):
        """What to call the examples with these numbers, int (m,): string (m,)."""
        return self.rows(numbers)[0]


class Photographs(typing.NamedTuple):
    """`classes`, their names, and two `Files` or `records.Records`. A label is an index of `classes`."""

    classes: tuple
    train: Files
    validation: Files


def load(folder, seed=0):
    """Lists the files of an image folder; reads none of them.

    Args:
        folder: holds train/ and val/ with a folder for each class, or a folder for each class.
        seed: of DIR/CLASS/FILE, a tenth of all files is drawn for validation; which ones is a function of it.

    Returns:
        A `Photographs`, its classes sorted. Hidden files and those not named .jpg, .jpeg or .png are left out.

    Raises:
        DataError: there is no such folder, a class has no images, train/ and val/ have different classes.
    """
    if not os.path.isdir(folder):
        found = "it is not a folder" if os.path.exists(folder) else "there is no such folder"
        raise DataError(f"{folder} should be a folder of images: {found}")
    parts = [part for part in ("train", "val") if part in _folders(folder)]
    if len(parts) == 1:
        missing = "val" if parts == ["train"] else "train"
        raise DataError(
            f"{folder} holds {parts[0]}/ but not {missing}/; it needs both, or just a folder for each class"
        )
    if parts:
        (classes, train), (others, validation) = (list_classes(os.path.join(folder, part)) for part in ("train", "val"))
        if classes != others:
            raise DataError(
                f"{folder}: train/ has {len(classes)} classes and val/ has {len(others)}, and they are not the same; "
                f"only one of them has {', '.join(sorted(set(classes) ^ set(others))[:8])}"
            )
        return Photographs(classes, train, validation)
    classes, files = list_classes(folder)
    if len(files) < 2:
        raise DataError(f"{folder} holds one image; it takes two to train and to validate")
    return Photographs(classes, *draw_validation(files, seed))


def draw_validation(files, seed):
    """Two parts of a `Files` or `records.Records`: what is left to train on, and a tenth drawn for validation."""
    order = np.random.default_rng(seed).permutation(len(files))
    cut = max(1, round(VALIDATION_PART * len(order)))
    return files.part(np.sort(order[cut:])), files.part(np.sort(order[:cut]))


def _folders(folder):
    """The sorted names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_classes(folder):
    """The classes, a tuple of names, and the `Files` of a folder with a folder of images for each class."""
    classes, paths, counts = _folders(folder), [], []
    if not classes:
        raise DataError(f"{folder} should hold a folder of images for each class; there is no folder in it")
    for name in classes:
        inner = os.path.join(folder, name)
        files = [f for f in sorted(os.listdir(inner)) if f.lower().endswith(ENDINGS) and not f.startswith(".")]
        if not files:
            raise DataError(f"{inner} holds no image; a class needs files named {', '.join(ENDINGS)}")
        paths += [os.path.join(inner, file) for file in files]
        counts.append(len(files))
    return tuple(classes), Files(paths, np.repeat(np.arange(len(classes), dtype="int64"), counts))
