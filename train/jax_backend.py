"""Chooses JAX as Keras' backend and imports the library; without JAX the program ends with a message."""

import os
import sys

import arguments

from keras_resnet import environment

if lacking := environment.needed("keras", "jax"):
    sys.exit(f'{arguments.program} {lacking}; for NVIDIA GPUs: pip install "jax[cuda13]"')
import jax

try:
    jax.devices()
except (AssertionError, RuntimeError) as error:
    asked = f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}" if os.environ.get("JAX_PLATFORMS") else "this installation"
    sys.exit(
        f"{arguments.program}: JAX finds no device for {asked}"
        + f" ({error})" * bool(str(error))
        + '. Unset JAX_PLATFORMS, or install what the device needs, as pip install "jax[cuda13]"'
    )
os.environ["KERAS_BACKEND"] = "jax"
arguments.load_library()
