"""Chooses JAX as Keras' backend, or ends the program with a message that says what is missing."""

import importlib.util
import os
import sys

import interrupted  # noqa: F401

for package in ("keras", "jax", "matplotlib"):
    if not importlib.util.find_spec(package):
        program = os.path.basename(sys.argv[0])
        sys.exit(f'{program} needs the package {package}: pip install . matplotlib "jax[cuda13]", or jax for a CPU')
os.environ["KERAS_BACKEND"] = "jax"
