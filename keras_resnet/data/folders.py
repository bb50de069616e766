"""Image folders: DIR/{train,val}/CLASS/FILE, or DIR/CLASS/FILE, with some files set aside for validation."""

import collections
import dataclasses
import functools
import hashlib
import os
import typing
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.files import DataError, Path

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")  # in lower or upper case
VALIDATION_PART = 0.1  # of DIR/CLASS/FILE
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # folder names that are not classes


class Examples(typing.Protocol):
    """The common interface of `Files` and `records.Records`: examples on disk, which `read` reads inside a graph."""

    def __len__(self) -> int: ...
    def subset(self, indices: np.ndarray) -> "Examples": ...
    def rows(self, indices: np.ndarray | tf.Tensor) -> tuple[tf.Tensor, ...]: ...
    @property
    def read(self) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]: ...
    def check(self, index: int) -> None: ...
    def name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class Files:
    """Examples on disk: `paths`, a list of n strings, and `labels`, int64 (n,)."""

    paths: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: np.ndarray) -> "Files":
        """The examples with these indices, an integer array."""
        return Files([self.paths[i] for i in indices], self.labels[indices])

    @functools.cached_property
    def _tensors(self):
        with tf.init_scope():  # outside the current graph, into which they would be copied
            return tf.constant([*map(os.fsencode, self.paths)], tf.string), tf.constant(self.labels)

    def rows(self, indices: np.ndarray | tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The arguments of `read` for the examples with these indices, int (m,): paths, string (m,), labels, (m,)."""
        return tuple(tf.gather(tensor, indices) for tensor in self._tensors)

    def check(self, index: int) -> None:
        """OSError if an example's file cannot be read."""
        with open(self.paths[index], "rb"):
            pass

    def read(self, path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One example: the content of an image file, a string, and its label, int64."""
        return tf.io.read_file(path), label

    def name(self, index: int) -> str:
        """The name of an example in messages."""
        return self.paths[index]


class Splits(typing.NamedTuple):
    """The names of the classes, and two `Files` or `records.Records`. A label is an index into `classes`."""

    classes: tuple[str, ...]
    train: Examples
    validation: Examples


def load(folder: Path, seed: int = 0) -> Splits:
    """Lists the files of an image folder without reading them.

    Args:
        folder: contains train/ and val/ with a folder for each class, or a folder for each class directly.
        seed: in DIR/CLASS/FILE, `held_out` sets aside about a tenth of each class for validation with this seed.

    Returns:
        A `Splits` with sorted classes. `list_classes` documents which files are images.

    Raises:
        DataError: the folder does not exist, a class has no images, there is only one class, or val/ has a class that
            train/ lacks. (A warning names classes that val/ lacks.)
    """
    splits = _splits(folder)
    if splits:
        if missing := {"train", "val"}.difference(splits):
            alike = [name for name in _folders(folder) if name not in splits and name.lower() in SPLITS]
            found = ", ".join(f"{name}/" for name in (*splits, *alike))
            advice = ""
            if alike:
                advice = f". Rename {alike[0]}/ to {min(missing)}/?"
            elif missing == {"val"}:
                advice = f". Of {os.path.join(folder, 'train')}, given as the folder, a tenth is set aside"
            raise DataError(
                f"{folder} holds {found} but not {min(missing)}/; it needs train/ and val/, or just a folder for each "
                f"class{advice}"
            )
        (classes, train), (others, validation) = (list_classes(os.path.join(folder, name)) for name in ("train", "val"))
        if unknown := sorted({*others}.difference(classes)):
            raise DataError(
                f"{folder}: train/ has {len(classes)} classes and val/ has {len(others)}; only val/ has "
                f"{', '.join(unknown[:8])}"
            )
        if absent := sorted({*classes}.difference(others)):
            warnings.warn(f"{folder}/val has no images of {', '.join(absent[:8])}", stacklevel=2)
            indices = np.array([classes.index(name) for name in others])
            validation = Files(validation.paths, indices[validation.labels])
    else:
        classes, files = list_classes(folder)
    if len(classes) == 1:
        inner = os.path.join(folder, *splits[:1], classes[0])
        raise DataError(
            f"{folder} holds one class only, {classes[0]}, and a classifier needs two. Are the classes in {inner}?"
        )
    if splits:
        return Splits(classes, train, validation)
    names = [os.path.relpath(path, folder) for path in files.paths]
    aside = held_out(names, files.labels, seed)
    return Splits(classes, files.subset(np.flatnonzero(~aside)), files.subset(np.flatnonzero(aside)))


def load_split(folder: Path, split: str) -> tuple[tuple[str, ...], Files] | None:
    """The classes and the `Files` of test/ or val/ ("validation"), or of a folder that has neither ("all").

    None if the split is missing, or has no class folders, as test images without public labels.
    """
    splits = {"validation" if name == "val" else name: os.path.join(folder, name) for name in _splits(folder)}
    inner = splits.get(split) if splits else folder if split == "all" else None
    return list_classes(inner) if inner and (split != "test" or _folders(inner)) else None


def held_out(names: Sequence[str], labels: np.ndarray, seed: int) -> np.ndarray:
    """Which files of DIR/CLASS/FILE are set aside for validation: about a tenth of each class.

    A file is set aside if the hash of its name and the seed is in the lowest tenth. So it stays in its split when other
    files are added or removed, or the folder moves. The number set aside is binomially distributed (of 100 files
    10 +- 3). A class with several files has at least one in each split, those with the lowest and the highest hash; in
    a small class these can change when files are added.

    Args:
        names: CLASS/FILE, n different strings.
        labels: their classes, int (n,).
        seed: an integer.

    Returns:
        bool (n,); if n > 1, at least one is True and one is False.
    """
    hashes = np.array([_hash(name, seed) for name in names])
    aside = hashes < VALIDATION_PART
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    both = [indices for indices in members if len(indices) > 1] or [np.arange(len(names))]
    for indices in both:
        aside[indices[hashes[indices].argmin()]] = True
        aside[indices[hashes[indices].argmax()]] = False
    return aside


def _hash(name, seed):
    """A number in [0, 1), the same on every machine."""
    text = f"{seed}/".encode() + os.fsencode(name.replace(os.sep, "/"))
    return int.from_bytes(hashlib.sha256(text).digest()[:6]) / 2**48


def is_divided(folder: Path) -> bool:
    """Whether an image folder has train/ and val/, not a folder for each class. Errors as in `load`."""
    return bool(_splits(folder))


def _splits(folder):
    """The names out of train, val and test that an image folder has; none if it has a folder for each class.

    DataError if the folder does not exist, or its splits have other names.
    """
    if not os.path.isdir(folder):
        found = "it is not a folder" if os.path.exists(folder) else "it does not exist"
        raise DataError(f"{folder} should be an image folder: {found}")
    names = _folders(folder)
    if {"train", "val"}.intersection(names):
        return [name for name in ("train", "val", "test") if name in names]
    if names and SPLITS.issuperset(name.lower() for name in names):
        raise DataError(f"{folder} holds {', '.join(f'{name}/' for name in names)}; call its splits train/ and val/")
    return []


def _folders(folder):
    """The sorted names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_classes(folder: Path) -> tuple[tuple[str, ...], Files]:
    """The classes, a tuple of names, and the `Files` of a folder with a folder of images for each class.

    Images are named .jpg, .jpeg, .png, .webp, .bmp or .gif, and are in the class's folder or its subfolders. A warning
    counts the files that are left out, except hidden ones. In the name of a class, bytes that are not UTF-8 become
    \\xNN.
    """
    names, paths, counts = _folders(folder), [], []
    left_out: collections.Counter[str] = collections.Counter()
    if not names:
        raise DataError(f"{folder} should hold a folder of images for each class; it holds no folder")
    for name in names:
        inner = os.path.join(folder, name)
        found = sorted(_files(inner))
        images = [path for path in found if path.lower().endswith(ENDINGS)]
        others = collections.Counter(map(_ending, set(found).difference(images)))
        if not images:
            raise DataError(
                f"{inner} holds no image; a class needs files named {', '.join(ENDINGS)}; found "
                f"{_count(others) if others else 'no file at all'}"
            )
        paths += images
        counts.append(len(images))
        left_out += others
    with os.scandir(os.fspath(folder)) as entries:
        beside = sum(e.is_file() and e.name.lower().endswith(ENDINGS) and e.name[0] != "." for e in entries)
    left_out += collections.Counter({"beside the folders of classes": beside})
    if left_out:
        n = left_out.total()
        warnings.warn(f"{folder}: {n} file{'s' * (n > 1)} left out: {_count(left_out)}", stacklevel=3)
    classes = tuple(os.fsencode(name).decode(errors="backslashreplace") for name in names)
    return classes, Files(paths, np.repeat(np.arange(len(names), dtype="int64"), counts))


def _files(folder):
    """The paths of all files in a folder and its subfolders, without hidden ones."""
    seen = set()
    for inner, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(inner)
        folders[:] = [name for name in folders if not name.startswith(".") and real not in seen]
        if real not in seen:  # symbolic links can form a cycle
            yield from (os.path.join(inner, name) for name in names if not name.startswith("."))
        seen.add(real)


def _ending(path):
    return os.path.splitext(path)[1].lower() or "without an ending"


def _count(kinds):
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
