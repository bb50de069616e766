"""Keras walks the graph of a network recursively, also when it loads one; deep networks need a higher limit."""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator

import keras

LOADING_DEPTH = 20_000  # recursion limit while Keras loads a network; ResNet-1202 needs up to 2,000

# The process has one limit for all threads: the limit outside this context, and those requested inside it right now.
_lock = threading.Lock()
_at_rest: list[int] = []
_wanted: list[int] = []


@contextlib.contextmanager
def recursion_limit(n: int) -> Iterator[None]:
    """Lets Python recurse `n` calls deep; building a network takes several calls for each block.

    Python has one limit for all threads of a process. Inside this context it is the highest that any of them requests.
    When the last one leaves, the old limit is restored.
    """
    with _lock:
        if not _wanted:
            _at_rest[:] = [sys.getrecursionlimit()]
        _wanted.append(n)
        sys.setrecursionlimit(max(_at_rest + _wanted))
    try:
        yield
    finally:
        with _lock:
            _wanted.remove(n)
            sys.setrecursionlimit(max(_at_rest + _wanted))


def parameters(model: keras.Model) -> int:
    """The number of weights that training changes, those of frozen layers included."""
    variables = (variable for layer in model._flatten_layers() for variable in layer._trainable_variables)
    return sum(math.prod(variable.shape) for variable in variables)


def load_model(path: str | os.PathLike) -> keras.Model:
    """Loads a network of any depth.

    Args:
        path: a `.keras` or `.h5` file.

    Returns:
        The `keras.Model`, not compiled.

    Raises:
        Exception: whatever Keras raises; each kind of damage has its own.
    """
    flip = _flip()
    operations = {flip.__name__: flip} if os.fspath(path).endswith(".h5") else None
    with recursion_limit(LOADING_DEPTH):
        return keras.saving.load_model(path, compile=False, custom_objects=operations)


def _flip():
    """The operation in front of "caffe" networks: unlike a .keras file, an .h5 file does not say where its class is."""
    pixels = keras.Input((None, None, 3))
    return type(keras.Model(pixels, keras.ops.flip(pixels, -1)).operations[-1])
