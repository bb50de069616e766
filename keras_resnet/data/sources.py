"""Where examples come from: TensorFlow Datasets, and the shapes that this package draws."""

import difflib
import hashlib
import os
import socket
import typing
import urllib.request

import numpy as np

from keras_resnet.data import shapes

DATASETS = ("cifar10", "cifar100", "shapes")
VALIDATION_EXAMPLES = {"cifar10": 5_000, "cifar100": 5_000, "shapes": 1_280}  # P1 4.2: 45k/5k
SHAPES_EXAMPLES = {"train": 14_080, "test": 2_000}
HOSTS = {"cifar10": "www.cs.toronto.edu", "cifar100": "www.cs.toronto.edu"}
HOST = "storage.googleapis.com"  # of what tensorflow-datasets itself keeps


class DataError(Exception):
    """The data set cannot be had. The message says what was looked for, what was found and what to do."""


class Split(typing.NamedTuple):
    """Examples in memory: `images` uint8 (n, height, width, 3), RGB; `labels` int64 (n,)."""

    images: np.ndarray
    labels: np.ndarray


class Source(typing.NamedTuple):
    """A data set. `validation` is None where all of the training data is trained on."""

    classes: tuple
    train: Split
    validation: Split | None
    test: Split


def digest(count, *contents):
    """Says in a few words how many examples there are and, by a hash of `contents`, bytes or arrays, which ones."""
    found = hashlib.sha256()
    for content in contents:
        found.update(content)
    return f"{count}, {found.hexdigest()[:12]}"


def describe(source):
    """The digests of a `Source`, a dictionary: of its classes and of each of its splits."""
    names = "\n".join(source.classes).encode()
    splits = {name: split for name, split in source._asdict().items() if isinstance(split, Split)}
    found = {name: digest(len(split.labels), *map(np.ascontiguousarray, split)) for name, split in splits.items()}
    return {"classes": digest(len(source.classes), names), **found}


def load(name, data_dir=None, train_on_all=False):
    """Loads a data set of small images into memory.

    Args:
        name: "cifar10", "cifar100" (Krizhevsky, 2009) or "shapes" (drawn here, 32x32, ten classes).
        data_dir: folder with data sets prepared by tensorflow-datasets. Without it, tensorflow-datasets uses
            `$TFDS_DATA_DIR` or `~/tensorflow_datasets` and downloads what is not there.
        train_on_all: keep no validation split.

    Returns:
        A `Source`. The validation split is the last 5,000 training examples in the order of tensorflow-datasets.

    Raises:
        DataError: the data set is unknown, or neither prepared nor to be downloaded.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    if name == "shapes":
        classes = shapes.CLASSES
        train, test = (Split(*shapes.draw(n, seed)) for seed, n in enumerate(SHAPES_EXAMPLES.values()))
    else:
        classes, train, test = _tfds(name, data_dir)
    if train_on_all:
        return Source(classes, train, None, test)
    cut = len(train.labels) - VALIDATION_EXAMPLES[name]
    parts = (Split(train.images[part], train.labels[part]) for part in (slice(cut), slice(cut, None)))
    return Source(classes, *parts, test)


def _tfds(name, data_dir):
    import tensorflow_datasets as tfds  # here, because it is slow to import and `shapes` does without it

    builder = prepared(name, data_dir)
    splits = []
    for split in ("train", "test"):
        examples = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, shuffle_files=False))
        splits.append(Split(examples["image"], examples["label"]))
    return tuple(builder.info.features["label"].names), *splits


def find(name, data_dir=None):
    """The `tfds.core.DatasetBuilder` of a data set, be it prepared or not; arguments and errors as of `load`."""
    import tensorflow_datasets as tfds

    if data_dir is not None and not os.path.isdir(os.path.join(data_dir, name)):
        raise DataError(_not_in(data_dir, name))
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # ValueError: not even a name, as a path is not
        names = DATASETS, tfds.list_builders(with_community_datasets=False)
        near = [match for group in names for match in difflib.get_close_matches(name, group, 1)]
        raise DataError(
            f"the data are one of {', '.join(DATASETS)}, a folder of photographs or a set of TensorFlow Datasets; "
            f"found {name!r}" + (f". Did you mean {near[0]}?" if near else "")
        ) from error


def prepared(name, data_dir=None):
    """`find`, and downloads what is not there."""
    builder = find(name, data_dir)
    if not builder.is_prepared():
        _download(builder)
    return builder


def _not_in(data_dir, name):
    if not os.path.isdir(data_dir):
        found = "no such folder" if not os.path.exists(data_dir) else "not a folder"
    else:
        found = "it holds " + (", ".join(sorted(os.listdir(data_dir))[:8]) or "nothing")
    inner = os.path.join(data_dir, "tensorflow_datasets")
    hint = f"\nDid you mean --data-dir {inner}?" if os.path.isdir(os.path.join(inner, name)) else ""
    return (
        f"--data-dir {data_dir} has no prepared {name}: {found}.{hint}\n"
        f"It has to be the folder that contains {name}/VERSION/ as tensorflow-datasets writes it. "
        "Without --data-dir the data set is downloaded."
    )


def _download(builder):
    """Prepares the data set, or says what can be done without a network."""
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(HOSTS.get(builder.name, HOST), 443)  # tensorflow-datasets alone would try for minutes
        builder.download_and_prepare()
    # No route, no name, no space: requests' errors are OSErrors too. AssertionError: files to be fetched by hand.
    except (OSError, AssertionError) as error:
        raise DataError(
            f"{builder.name} is not in {builder.data_dir} and could not be downloaded: {error}\n"
            "Three ways on:\n"
            "  1. on a machine with a network run\n"
            f"       python -c \"import tensorflow_datasets; tensorflow_datasets.load('{builder.name}')\"\n"
            "     and copy its ~/tensorflow_datasets here;\n"
            "  2. --data-dir FOLDER, if a prepared copy lies elsewhere;\n"
            "  3. --dataset shapes, which is drawn on the spot and needs neither data nor network."
        ) from error
