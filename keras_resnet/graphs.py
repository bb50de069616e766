"""Keras walks the graph of a network recursively, also when it reads one; the deepest ones need a higher limit."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import keras

LOADING_DEPTH = 20_000  # of the recursion in which Keras reads a network; ResNet-1202 needs up to 2,000

# The limit is the process's, so all threads count: the one at rest, and those that are wanted at the moment.
_lock = threading.Lock()
_at_rest: list[int] = []
_wanted: list[int] = []


@contextlib.contextmanager
def recursion_limit(n: int) -> Iterator[None]:
    """Lets Python recurse `n` calls deep; building a network takes several calls for each block.

    Python has one limit for all threads of a process. It is the highest that any of them wants within this context,
    and what it was before when the last one has left it.
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


def load_model(path: str | os.PathLike) -> keras.Model:
    """Reads a network of any depth.

    Args:
        path: a `.keras` or `.h5` file of Keras.

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
    """The operation in front of "caffe" networks: an .h5, unlike a .keras, does not say where its class is."""
    pixels = keras.Input((None, None, 3))
    return type(keras.Model(pixels, keras.ops.flip(pixels, -1)).operations[-1])
