"""Chooses Keras' backend, and imports the library and the backend without TensorFlow's log lines at import."""

import os
import sys

import arguments

from keras_resnet import environment

BACKENDS = ("tensorflow", "jax", "torch")
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def choose(*accepted):
    """Imports the library on the backend of KERAS_BACKEND or, without it, on the first of `accepted` that is installed.

    If no backend, or the library or a package is missing, the program ends with a message that says what to install.
    """
    installed = [name for name in accepted if not environment.missing(name)]
    chosen = os.environ.get("KERAS_BACKEND")
    if chosen not in (None, *accepted):
        sys.exit(
            f"{arguments.program} runs on {_listed(accepted, 'or')}; KERAS_BACKEND is {chosen}. Unset it, or choose "
            f"{' or '.join(accepted)}."
        )
    if not chosen and len(accepted) > 1 and (not installed or environment.missing("keras")):
        sys.exit(
            f"{arguments.program} needs Keras and one of its backends {_listed(accepted, 'and')}: pip install keras, "
            f"and {' or '.join(', '.join(accepted).rsplit(', ', 1))}"
        )
    os.environ["KERAS_BACKEND"] = chosen = chosen or (installed or accepted)[0]
    if lacking := environment.needed("keras", chosen):
        sys.exit(f"{arguments.program} {lacking}" + "; KERAS_BACKEND chooses the backend" * (len(accepted) > 1))
    try:
        if chosen == "tensorflow":
            environment.import_tensorflow(arguments.load_library)
        arguments.load_library()
    except ModuleNotFoundError as error:  # a package that TensorFlow itself needs
        sys.exit(f"{arguments.program} needs the package {environment.install(error.name)}")


def _listed(backends, word):
    return f" {word} ".join(", ".join(NAMES[name] for name in backends).rsplit(", ", 1))
