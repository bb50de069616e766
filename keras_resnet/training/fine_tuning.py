"""Trained weights that a run begins with, and the stages that stay as they were: --init-from and --freeze-until."""

import contextlib
import re
from collections.abc import Iterator

import keras
import numpy as np

from keras_resnet import normalization
from keras_resnet.files import RunError
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit
from keras_resnet.training.settings import Settings
from keras_resnet.weights import load_weights, readers
from keras_resnet.weights.readers import WeightsError

SMALL = (32, 32)  # pixels of CIFAR's images and the built-in shapes


def read(settings: Settings) -> readers.Source:
    """The trained weights of --init-from, for images of the run's size; without the flag an empty `Source`.

    A mean image of another size becomes its mean colour, with a line that says so.

    Raises:
        WeightsError: the weights cannot be read, or are those of another network.
    """
    if settings.init_from is None:
        return readers.Source("nothing", {})
    small = f"cifar_{'plainnet' if settings.plain else 'resnet'}{settings.depth}"
    network = settings.builder.__name__.lower() if settings.photographs else small
    source = readers.read(settings.init_from, network)
    if source.family and source.network != network:
        raise WeightsError(
            f"{source} has the network {source.network}, and this run trains {network}, which --depth, --plain and "
            "--activation-order choose; networks of other depths, and those for small images and for photographs, have "
            "no weights in common"
        )
    size = (settings.image_size, settings.image_size) if settings.photographs else SMALL
    fitted = normalization.for_size(source.normalization, size)
    if fitted is not source.normalization:
        print(
            f"--init-from {settings.init_from} subtracts a mean image, and images here have {size[0]}x{size[1]} "
            f"pixels, another size: its mean colour is subtracted, {normalization.described(fitted)}",
            flush=True,
        )
    return source._replace(normalization=fitted)


def initialize(network: keras.Model, source: readers.Source, settings: Settings) -> keras.Model:
    """Loads the trained weights of `read` into all of a network but its last layer, and returns it.

    Raises:
        WeightsError: the weights do not fit.
        RunError: some are not finite.
    """
    if settings.init_from:
        with recursion_limit(LOADING_DEPTH):
            load_weights(keras.Model(network.input, network.get_layer("pool").output, name=network.name), source)
        bad = [variable.path for variable in network.weights if not np.isfinite(variable.numpy()).all()]
        if bad:
            raise RunError(f"--init-from {settings.init_from} has weights that are not finite, for example {bad[0]}")
    return network


def freeze(network: keras.Model, until: str | None) -> None:
    """Freezes the stages up to this one; their batch normalisation runs in inference mode. None: freezes none.

    Raises:
        RunError: there is no such stage.
    """
    if until:
        stages = {layer: match[0] for layer in network.layers if (match := re.match(r"conv\d+", layer.name))}
        if until not in stages.values():
            names = ", ".join(sorted(set(stages.values())))
            raise RunError(f"--freeze-until is one of {names}; found {until}")
        for layer, stage in stages.items():
            layer.trainable = stage > until


@contextlib.contextmanager
def errors_named() -> Iterator[None]:
    """Inside this context, a WeightsError becomes a RunError with the name of the flag."""
    try:
        yield
    except WeightsError as error:
        raise RunError(f"--init-from {error}") from error
