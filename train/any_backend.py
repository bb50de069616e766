"""Chooses the first installed Keras backend, for programs that run on any of them, and imports the library."""

import os
import sys

import arguments

from keras_resnet import environment

BACKENDS = ("tensorflow", "jax", "torch")
installed = [name for name in BACKENDS if not environment.missing(name)]
if not installed or environment.missing("keras"):
    sys.exit(
        f"{arguments.program} needs Keras and one of its backends TensorFlow, JAX and PyTorch: "
        "pip install keras, and tensorflow, jax or torch"
    )
if os.environ.setdefault("KERAS_BACKEND", installed[0]) == "tensorflow":
    import quiet  # noqa: F401
elif lacking := environment.needed(os.environ["KERAS_BACKEND"]):
    sys.exit(f"{arguments.program} {lacking}; KERAS_BACKEND chooses it")
else:
    arguments.load_library()
