"""Keras' values of the process as Keras ships them, whatever `keras.json` and the environment of the user say."""

import contextlib
import sys
from collections.abc import Iterator

import keras

DEFAULTS = {
    "floatx": "float32",
    "dtype_policy": "float32",
    "epsilon": 1e-7,
    "image_data_format": "channels_last",
    "max_epochs": None,  # KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH cut every `fit` short
    "max_steps_per_epoch": None,
}


def set_values(values: dict) -> None:
    """Sets these values of `keras.config`, by the names in DEFAULTS."""
    for name, value in values.items():
        getattr(keras.config, f"set_{name}")(value)


@contextlib.contextmanager
def bars_at_terminals() -> Iterator[None]:
    """Inside this context, Keras draws progress bars, such as those of downloads, at a terminal but not into a file."""
    before = keras.config.is_interactive_logging_enabled()
    if not sys.stdout.isatty():
        keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if before:
            keras.config.enable_interactive_logging()


@contextlib.contextmanager
def as_shipped() -> Iterator[None]:
    """Inside this context, Keras' values are DEFAULTS."""
    before = {name: getattr(keras.config, name)() for name in DEFAULTS}
    set_values(DEFAULTS)
    try:
        yield
    finally:
        set_values(before)
