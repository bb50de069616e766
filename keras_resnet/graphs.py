"""Keras walks the graph of a network recursively; the deepest ones need a higher limit."""

import contextlib
import sys
import threading

LOADING_DEPTH = 20_000  # of the recursion in which Keras reads a network; ResNet-1202 needs up to 2,000

# The limit is the process's, so all threads count: the one at rest, and those that are wanted at the moment.
_lock = threading.Lock()
_at_rest: list[int] = []
_wanted: list[int] = []


@contextlib.contextmanager
def recursion_limit(n):
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
