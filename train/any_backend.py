"""Chooses the first installed Keras backend, for programs that run on any of them."""

import importlib.util
import os
import sys

import interrupted  # noqa: F401

installed = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
if not (installed and importlib.util.find_spec("keras")):
    sys.exit(
        f"{os.path.basename(sys.argv[0])} needs Keras and one of its backends TensorFlow, JAX and PyTorch: "
        'pip install ".[train]"; or pip install . and jax or torch'
    )
if os.environ.setdefault("KERAS_BACKEND", installed[0]) == "tensorflow":
    import quiet  # noqa: F401
