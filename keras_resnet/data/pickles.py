"""The Python version of CIFAR-10 and CIFAR-100: the pickles of Krizhevsky's page, which `keras.datasets` also has.

They are read on any Keras backend, without TensorFlow.
"""

import hashlib
import os
import pickle
import typing

import numpy as np

from keras_resnet import environment
from keras_resnet.files import DataError

Arrays = tuple[np.ndarray, np.ndarray]  # images and labels


class Layout(typing.NamedTuple):
    """The names of the folder and its files, and the keys of labels and class names in their dictionaries."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes
    meta: str
    names: bytes


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        b"labels",
        "batches.meta",
        b"label_names",
    ),
    "cifar100": Layout("cifar-100-python", ("train",), ("test",), b"fine_labels", "meta", b"fine_label_names"),
}
# The functions and types in pickles of NumPy arrays; a pickle that calls anything else is refused.
_ARRAYS: dict[tuple[str, str], typing.Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.ndarray((0,)).__reduce__()[0] for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> typing.Any:
        try:
            return _ARRAYS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which arrays do not need") from None


def find(name: str, folder: str) -> str | None:
    """Finds the Python version of a data set.

    Args:
        name: "cifar10" or "cifar100".
        folder: its own folder, `cifar-10-batches-py` or `cifar-100-python`, or a folder that contains it.

    Returns:
        The path of its own folder, or None if it is not there.
    """
    own = LAYOUTS[name].folder
    inner = os.path.join(folder, own), os.path.join(folder, f"{own}-target", own)  # the latter as Keras extracts it
    itself = (folder,) if os.path.basename(os.path.abspath(folder)) == own else ()
    return next(filter(os.path.isdir, (*inner, *itself)), None)


def cached(name: str) -> str | None:
    """As `find`, in the folder into which `keras.datasets` downloads."""
    return find(name, os.path.join(environment.keras_home(), "datasets"))


def download(name: str) -> str:
    """Downloads and checks a data set with `keras.datasets`; returns its folder. DataError if that fails."""
    import keras  # here, because flags are read before Keras is imported

    from keras_resnet import environment

    try:
        with environment.bars_at_terminals():
            getattr(keras.datasets, name).load_data()
    except Exception as error:  # get_file raises plain Exceptions
        raise DataError(
            f"{name} could not be downloaded: {error}\nFetch the python version from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html and give the folder that contains {LAYOUTS[name].folder}."
        ) from error
    if (folder := cached(name)) is None:
        raise DataError(f"keras.datasets has downloaded {name}, but there is no {LAYOUTS[name].folder} in its folder")
    return folder


def read(name: str, folder: str) -> tuple[tuple[str, ...], Arrays, Arrays]:
    """Reads a data set, in the order of TensorFlow Datasets.

    Args:
        name: "cifar10" or "cifar100".
        folder: as `find` returns it.

    Returns:
        The names of the classes, the training split and the test split. A split is a pair of images, uint8
        (n, 32, 32, 3), RGB, and labels, int64 (n,).

    Raises:
        DataError: a file is missing, damaged or of another kind, or calls functions that arrays do not need.
    """
    layout = LAYOUTS[name]
    try:
        path = os.path.join(folder, layout.meta)
        classes = tuple(word.decode() for word in _load(path)[layout.names])
        parts = {}
        for split, names in (("train", layout.train), ("test", layout.test)):
            found = []
            for file in names:
                path = os.path.join(folder, file)
                found.append(_examples(_load(path), layout.labels, len(classes)))
            images, labels = map(np.concatenate, zip(*found, strict=True))
            order = _order(len(labels), split)
            parts[split] = images[order], labels[order]
    except OSError as error:
        raise DataError(f"{path} of the python version of {name} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(
            f"{path} is not a file of the python version of {name}, or is damaged: {error}. Extract "
            f"{layout.folder} again"
        ) from error
    return classes, parts["train"], parts["test"]


def _load(path):
    with open(path, "rb") as file:
        return _Unpickler(file, encoding="bytes").load()


def _examples(batch, key, classes):
    """Images and labels of a file; ValueError if they are not valid."""
    data, labels = batch[b"data"], np.array(batch[key], "int64")
    if data.dtype != np.uint8 or data.shape != (len(labels), 3 * 32 * 32):
        raise ValueError(f"uint8 ({len(labels)}, 3072) expected; found {data.dtype} {data.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels are in [0, {classes}); found {labels.min()} to {labels.max()}")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _order(n, split):
    """The order of TensorFlow Datasets: by the MD5 of the split's name and the example's number in the original."""
    key = lambda number: hashlib.md5(f"{split}{number}".encode(), usedforsecurity=False).digest()
    return np.array(sorted(range(n), key=key), "int64")
