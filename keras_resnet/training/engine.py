"""The interface of an engine, which trains with one backend."""

import importlib
import types
import typing

import keras
import numpy as np

from keras_resnet.files import RunError
from keras_resnet.training.settings import Settings

ENGINES = {"tensorflow": "keras_resnet.training.tensorflow", "jax": "keras_resnet.training.jax"}


class Devices(typing.Protocol):
    """The devices that train together, in one or several processes.

    `count` is their number, in all processes; `names` is for records and `str` for messages. `writes`: whether this
    process writes the files.
    """

    count: int
    names: list[str]
    writes: bool

    def exchange(self, *numbers: int) -> np.ndarray:
        """Gathers the integers of all processes, which all must call this: (processes, numbers)."""
        ...


class Engine(typing.Protocol):
    """Trains a network, up to its logits, on the batches of a task.

    `measures` are the names of the metrics, the loss first. `together` is the number of images that batch normalisation
    sees together, and `note` has remarks for the user: the end of a line, and perhaps more lines. `waited` is the time
    in seconds that steps have waited for batches; None if the devices make the batches themselves.
    """

    network: keras.Model
    measures: tuple[str, ...]
    together: int
    note: str
    waited: float | None

    def variables(self) -> dict[str, keras.Variable]:
        """The variables in a checkpoint, with names from `checkpoint.variables_of`."""
        ...

    def run(self, first: int, rates: np.ndarray) -> np.ndarray:
        """Trains from step `first` on, one step per learning rate; returns the batch means, (steps, measures)."""
        ...

    def evaluate(self, network: keras.Model, split: str) -> dict[str, float]:
        """The means of a network's metrics over the task's images of this split, by name."""
        ...

    def profile(self, folder: str) -> typing.ContextManager:
        """Inside this context, the computation is traced into a folder, for TensorBoard."""
        ...

    def close(self) -> None:
        """Ends the stream of training batches now, not when Python collects garbage: see `imagenet._check_lost`."""
        ...


def engine_of(settings: Settings) -> types.ModuleType:
    """The module of the engine for Keras' backend, with its `devices`, `writes` and `Engine`.

    Raises:
        RunError: the backend has no engine, or does not support a setting.
    """
    backend = keras.backend.backend()
    if backend not in ENGINES:
        raise RunError(f"training needs the backend {' or '.join(ENGINES)}; KERAS_BACKEND is {backend}")
    settings.check_engine(backend)
    return importlib.import_module(ENGINES[backend])


def batch_norm_notes(settings: Settings, together: int, ghosts: int, devices: int) -> list[str]:
    """A sentence if batch normalisation sees another number of images `together` than the settings say."""
    if together == settings.bn_batch_size:
        return []
    why = [f"--accumulate {settings.accumulate}"] * (settings.accumulate > 1) + [f"{devices} devices"] * (devices > 1)
    return [
        f"batch normalisation sees {together} images together, not {settings.bn_batch_size}: {settings.batch_size} are "
        f"in {ghosts} ghost batches" + f", because of {' and '.join(why)}" * bool(why)
    ]


def writes(settings: Settings) -> bool:
    """Whether this process writes the files of a run, as the only one or the first of its cluster."""
    return engine_of(settings).writes(settings.strategy)
