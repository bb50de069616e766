"""Chooses Keras' backend, and imports the library and the backend without the lines that TensorFlow logs first."""

import os
import sys

import arguments

from keras_resnet import environment

BACKENDS = ("tensorflow", "jax", "torch")
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def choose(*accepted):
    """Imports the library on the backend of KERAS_BACKEND or, without it, on the first of `accepted` that is installed.

    If there is none, or the library or a package is missing, the program ends with a message that says what to do.
    """
    installed = [name for name in accepted if not environment.missing(name)]
    chosen = os.environ.setdefault("KERAS_BACKEND", (installed or accepted)[0])
    if chosen not in accepted:
        sys.exit(
            f"{arguments.program} runs on {' or '.join(NAMES[name] for name in accepted)}; KERAS_BACKEND is {chosen}. "
            f"Unset it, or choose {' or '.join(accepted)}."
        )
    if lacking := environment.needed("keras", chosen):
        others = [name for name in accepted if name != chosen]
        sys.exit(f"{arguments.program} {lacking}" + f"; KERAS_BACKEND chooses {' or '.join(others)}" * bool(others))
    try:
        if chosen == "tensorflow":
            environment.import_quietly("tensorflow", arguments.load_library)
        arguments.load_library()
    except ModuleNotFoundError as error:  # of what TensorFlow itself needs
        sys.exit(f"{arguments.program} needs the package {environment.install(error.name)}")
