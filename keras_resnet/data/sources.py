"""Loads data sets: CIFAR from two kinds of copies, TensorFlow Datasets, and the shapes that this package draws.

Only reading a data set prepared by tensorflow-datasets needs TensorFlow.
"""

import difflib
import hashlib
import os
import socket
import sys
import typing
import urllib.request

import numpy as np

from keras_resnet import environment
from keras_resnet.data import pickles, shapes
from keras_resnet.data.pickles import Arrays
from keras_resnet.files import DataError, Path

if typing.TYPE_CHECKING:
    import tensorflow_datasets as tfds

DATASETS = ("cifar10", "cifar100", "shapes")
VALIDATION_EXAMPLES = {"cifar10": 5_000, "cifar100": 5_000, "shapes": 1_280}  # P1 4.2: 45k/5k
SHAPES_EXAMPLES = {"train": 14_080, "test": 2_000}
HOSTS = {"cifar10": "www.cs.toronto.edu", "cifar100": "www.cs.toronto.edu"}
ARRAY_RECORD = "array_record"  # a format of tensorflow-datasets, and the package that reads it
PADDING = 4  # pixels on each side of small images before they are cropped (P1 4.2)
HOST = "storage.googleapis.com"  # of the files that tensorflow-datasets hosts itself


class Split(typing.NamedTuple):
    """Examples in memory: `images` uint8 (n, height, width, 3), RGB; `labels` int64 (n,)."""

    images: np.ndarray
    labels: np.ndarray


class Source(typing.NamedTuple):
    """A data set. `validation` is None if training uses all training data."""

    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split


def digest(count: int, *contents: bytes | np.ndarray) -> str:
    """Identifies examples in a short text: their number, and a hash of `contents`, bytes or arrays."""
    found = hashlib.sha256()
    for content in contents:
        found.update(content)  # type: ignore[arg-type]  # an array is a buffer, which typing supports from Python 3.12
    return f"{count}, {found.hexdigest()[:12]}"


def describe(source: Source) -> dict[str, str]:
    """The digests of the classes and of each split of a `Source`, by name."""
    names = "\n".join(source.classes).encode()
    splits = {name: split for name, split in source._asdict().items() if isinstance(split, Split)}
    found = {name: digest(len(split.labels), *map(np.ascontiguousarray, split)) for name, split in splits.items()}
    return {"classes": digest(len(source.classes), names), **found}


def load(name: str, data_dir: Path | None = None, train_on_all: bool = False) -> Source:
    """Loads a data set of small images into memory.

    Args:
        name: "cifar10", "cifar100" (Krizhevsky, 2009) or "shapes" (drawn here, 32x32, ten classes).
        data_dir: folder with `cifar-10-batches-py` or `cifar-100-python`, as from the authors' page or
            `keras.datasets`, or with data sets prepared by tensorflow-datasets. Without it, a copy of `keras.datasets`
            is used, or one of tensorflow-datasets in `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. Without a copy,
            tensorflow-datasets downloads the data set, or `keras.datasets` does if that package is not installed.
        train_on_all: without a validation split.

    Returns:
        A `Source`. The validation split is the last 5,000 training examples in the order of tensorflow-datasets. All
        copies are read in this order.

    Raises:
        DataError: the data set is unknown, or neither prepared nor available for download.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    if name == "shapes":
        classes = shapes.CLASSES
        train, test = (Split(*shapes.draw(n, seed)) for seed, n in enumerate(SHAPES_EXAMPLES.values()))
    else:
        classes, train, test = _cifar(name, data_dir)
    if train_on_all:
        return Source(classes, train, None, test)
    cut = len(train.labels) - VALIDATION_EXAMPLES[name]
    kept, validation = (Split(train.images[part], train.labels[part]) for part in (slice(cut), slice(cut, None)))
    return Source(classes, kept, validation, test)


def per_pixel_mean(images: np.ndarray) -> np.ndarray:
    """The mean of images (n, height, width, 3): float32 (height, width, 3), rounded to 1/1000 of a pixel value."""
    return np.round(images.mean(axis=0, dtype="float64"), 3).astype("float32")


def cifar10(data_dir: str | None = None) -> tuple[Arrays, Arrays]:
    """CIFAR-10 (Krizhevsky, 2009) for Keras on any backend; TensorFlow is not needed.

        from keras_resnet.data import cifar10

        (x_train, y_train), (x_test, y_test) = cifar10()

    Args:
        data_dir: the folder of the data set, as in `sources.load`; without it, the data set is downloaded once.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: 50,000 and 10,000 images, uint8 (n, 32, 32, 3), RGB in [0, 255], and
        their labels, int64 (n,), in [0, 10). The order is that of tensorflow-datasets, which is shuffled. The last
        5,000 training images are this package's validation images: `validation_split=0.1` of `keras.Model.fit`.

    Raises:
        DataError: the data set cannot be loaded.
    """
    return _arrays("cifar10", data_dir)


def cifar100(data_dir: str | None = None) -> tuple[Arrays, Arrays]:
    """CIFAR-100, as `cifar10`, with the 100 fine labels, in [0, 100)."""
    return _arrays("cifar100", data_dir)


def _arrays(name, data_dir):
    _, train, test = _cifar(name, data_dir)
    return tuple(train), tuple(test)


def _cifar(name, data_dir):
    """The names of the classes, the training `Split` and the test `Split`."""
    folder = pickles.cached(name) if data_dir is None else pickles.find(name, data_dir)
    prepares = not environment.missing("tensorflow", "tensorflow_datasets")
    if folder is None and data_dir is None and not prepares:
        folder = pickles.download(name)
    if folder is None:
        return _tfds(name, data_dir)
    classes, train, test = pickles.read(name, folder)
    return classes, Split(*train), Split(*test)


def _tfds(name, data_dir):
    environment.import_tensorflow()  # for reading, on every backend
    builder = prepared(name, data_dir)
    import tensorflow_datasets as tfds  # here, because it is slow to import and other data sets do not need it

    splits = []
    for split in ("train", "test"):
        if is_array_record(name, builder):
            examples = [(example["image"], example["label"]) for example in builder.as_data_source(split=split)]
            splits.append(Split(*map(np.stack, zip(*examples, strict=True))))
        else:
            found = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, shuffle_files=False))
            splits.append(Split(found["image"], found["label"]))
    return tuple(builder.info.features["label"].names), *splits


def find(name: str, data_dir: Path | None = None) -> "tfds.core.DatasetBuilder":
    """The `tfds.core.DatasetBuilder` of a data set, prepared or not; arguments and errors as in `load`."""
    if data_dir is not None and not os.path.isdir(os.path.join(data_dir, name)):
        raise DataError(_not_in(data_dir, name))
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise DataError(f"{name} needs the package {environment.install(str(error.name))}") from error
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # ValueError: not a valid name, such as a path
        names = DATASETS, tfds.list_builders(with_community_datasets=False)
        near = [match for group in names for match in difflib.get_close_matches(name, group, 1)]
        raise DataError(
            f"the data are one of {', '.join(DATASETS)}, an image folder or a data set of TensorFlow Datasets; "
            f"found {name!r}, and no folder of this name" + (f". Did you mean {near[0]}?" if near else "")
        ) from error


def prepared(name: str, data_dir: Path | None = None) -> "tfds.core.DatasetBuilder":
    """As `find`, but downloads and prepares the data set if necessary."""
    builder = find(name, data_dir)
    if not builder.is_prepared():
        _download(builder)
    return builder


def is_array_record(name: str, builder: typing.Any) -> bool:
    """Whether a prepared data set is in array_record files rather than TFRecord files.

    Raises:
        DataError: its files have another format, or the package that reads them is missing.
    """
    kind = builder.info.file_format.value
    if kind not in ("tfrecord", ARRAY_RECORD):
        raise DataError(
            f"{name} in {builder.data_dir} is in files of the format {kind}; prepare it as tfrecord, which is the "
            f"default of tensorflow-datasets, or as {ARRAY_RECORD}"
        )
    if kind == ARRAY_RECORD and environment.missing(ARRAY_RECORD):
        raise DataError(
            f"{name} in {builder.data_dir} is in files of the format {ARRAY_RECORD}, which need the package "
            f"{environment.install(ARRAY_RECORD)}; or prepare it as tfrecord"
        )
    return kind == ARRAY_RECORD


def _not_in(data_dir, name):
    if not os.path.isdir(data_dir):
        found = "no such folder" if not os.path.exists(data_dir) else "not a folder"
    else:
        found = "it holds " + (", ".join(sorted(os.listdir(data_dir))[:8]) or "nothing")
    inner = os.path.join(data_dir, "tensorflow_datasets")
    hint = f"\nDid you mean --data-dir {inner}?" if os.path.isdir(os.path.join(inner, name)) else ""
    python = f", or the authors' {pickles.LAYOUTS[name].folder}/" if name in pickles.LAYOUTS else ""
    return (
        f"--data-dir {data_dir} has no prepared {name}: {found}.{hint}\n"
        f"It must be the folder that contains {name}/VERSION/ as tensorflow-datasets writes it{python}. "
        "Without --data-dir the data set is downloaded."
    )


def _download(builder):
    """Prepares the data set, or raises an error that says what to do without a network connection."""
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(HOSTS.get(builder.name, HOST), 443)  # tensorflow-datasets alone would try for minutes
        if not sys.stderr.isatty():  # bars are for terminals
            import tensorflow_datasets as tfds

            tfds.disable_progress_bar()
        builder.download_and_prepare()
    # No route, name or space: requests' errors are OSErrors as well. AssertionError: files to download by hand.
    except (OSError, AssertionError) as error:
        python = f", or the authors' {pickles.LAYOUTS[builder.name].folder}" if builder.name in pickles.LAYOUTS else ""
        raise DataError(
            f"{builder.name} is not in {builder.data_dir} and could not be downloaded: {error}\n"
            "Three ways to continue:\n"
            "  1. on a machine with a network run\n"
            f"       python -c \"import tensorflow_datasets; tensorflow_datasets.load('{builder.name}')\"\n"
            "     and copy its ~/tensorflow_datasets here;\n"
            f"  2. --data-dir FOLDER, if a prepared copy{python} is elsewhere;\n"
            "  3. --dataset shapes, which is drawn by the program and needs neither data nor network."
        ) from error
