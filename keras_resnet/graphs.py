"""Keras walks the graph of a network recursively; the deepest ones need a higher limit."""

import contextlib
import sys

LOADING_DEPTH = 20_000  # of the recursion in which Keras reads a network; ResNet-1202 needs up to 2,000


@contextlib.contextmanager
def recursion_limit(n):
    """Lets Python recurse `n` calls deep; building a network takes several calls for each block."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, n))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
