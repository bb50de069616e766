"""What an engine is: how one backend trains, behind one protocol."""

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

    `count` is their number, in all processes; `names` is for records and `str` for people. `writes` says whether this
    process is the one that writes files.
    """

    count: int
    names: list[str]
    writes: bool

    def exchange(self, *numbers: int) -> np.ndarray:
        """The integers of all processes, a row for each, once all have called this: (processes, numbers)."""
        ...


class Engine(typing.Protocol):
    """How a backend trains a network, up to its logits, on the batches of a task.

    `measures` are the names of what a step measures, the loss first. `together` is the number of images that batch
    normalisation sees together, and `note` what else people should know, for the end of a line and for lines below it.
    `waited` is the time in seconds for which steps have waited for batches; None if batches are made where they are
    used.
    """

    network: keras.Model
    measures: tuple[str, ...]
    together: int
    note: str
    waited: float | None

    def variables(self) -> dict[str, keras.Variable]:
        """What a checkpoint holds, as `checkpoint.variables_of` names it."""
        ...

    def run(self, first: int, rates: np.ndarray) -> np.ndarray:
        """Trains the steps from `first` on, each at its rate; returns the means over each batch, (steps, measures)."""
        ...

    def evaluate(self, network: keras.Model, split: str) -> dict[str, float]:
        """The means of a network's measures over the task's images of this split, by their names."""
        ...

    def profile(self, folder: str) -> typing.ContextManager:
        """Inside this context, what is computed is traced into a folder, for TensorBoard."""
        ...


def engine_of(settings: Settings) -> types.ModuleType:
    """The module of the engine for Keras' backend, with its `devices`, `writes` and `Engine`.

    Raises:
        RunError: there is none, or it cannot do what a setting asks for.
    """
    backend = keras.backend.backend()
    if backend not in ENGINES:
        raise RunError(f"networks are trained on {' or '.join(ENGINES)}; KERAS_BACKEND is {backend}")
    settings.check_engine(backend)
    return importlib.import_module(ENGINES[backend])


def writes(settings: Settings) -> bool:
    """Whether this process writes the files of a run: it is alone, or the first of those that train it."""
    return engine_of(settings).writes(settings.strategy)
