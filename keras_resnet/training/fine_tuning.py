"""Initialises a run with trained weights and freezes stages: --init-from and --freeze-until."""

import contextlib
import dataclasses
import re
import typing
from collections.abc import Iterator

import keras
import numpy as np

from keras_resnet import models, normalization
from keras_resnet.files import RunError, WeightsError
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit
from keras_resnet.training.settings import Settings
from keras_resnet.weights import load_weights, readers
from keras_resnet.weights.tensors import Source

SMALL = (32, 32)  # pixels of CIFAR's images and the built-in shapes


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Inside this context, a WeightsError becomes a RunError that names the flag."""
    try:
        yield
    except WeightsError as error:
        raise RunError(f"--init-from {error}") from error


@_named()
def read(settings: Settings) -> Source:
    """The trained weights of --init-from, for images of the run's size; without the flag an empty `Source`.

    A mean image of another size is replaced by its mean colour, and a line about it is printed.

    Raises:
        RunError: the weights cannot be read, or belong to another network.
    """
    if settings.init_from is None:
        return Source("nothing", {})
    network = settings.architecture.name
    source = readers.read(settings.init_from, network)
    if source.architecture and source.architecture.name != network:
        raise WeightsError(
            f"{source} has the network {source.architecture.name}, and this run trains {network}, chosen by --depth, "
            "--plain and --activation-order; weights do not transfer to another depth, or between networks for small "
            "images and for ImageNet"
        )
    size = (settings.image_size, settings.image_size) if settings.imagenet_style else SMALL
    fitted = normalization.for_size(source.normalization, size)
    if fitted is not source.normalization:
        print(
            f"--init-from {settings.init_from} subtracts a mean image whose size is not that of the images here, "
            f"{size[0]}x{size[1]}: its mean colour is subtracted instead, {normalization.described(fitted)}",
            flush=True,
        )
    return source._replace(normalization=fitted)


@_named()
def build(source: Source, settings: Settings, **options: typing.Any) -> keras.Model:
    """Builds a run's network, the same one each time, with the trained weights of `read` in all but its last layer.

    Args:
        source: as `read` returns it.
        settings: of the run.
        options: other arguments of `models.build`.

    Raises:
        RunError: the weights do not fit, or some are not finite.
    """
    keras.utils.set_random_seed(settings.seed)
    architecture = settings.architecture
    if source.architecture and architecture.stride_in is None:
        architecture = dataclasses.replace(architecture, stride_in=source.architecture.stride_in)
    network = models.build(architecture, **options)
    if settings.init_from:
        with recursion_limit(LOADING_DEPTH):
            load_weights(keras.Model(network.input, network.get_layer("pool").output, name=network.name), source)
        bad = [variable.path for variable in network.weights if not np.isfinite(variable.numpy()).all()]
        if bad:
            raise RunError(f"--init-from {settings.init_from} has weights that are not finite, for example {bad[0]}")
    return network


def freeze(network: keras.Model, until: str | None) -> None:
    """Freezes the stages up to this one; their batch normalisation runs in inference mode. None freezes nothing.

    Raises:
        RunError: the network has no such stage.
    """
    if until:
        stages = {layer: match[0] for layer in network.layers if (match := re.match(r"conv\d+", layer.name))}
        if until not in stages.values():
            names = ", ".join(sorted(set(stages.values())))
            raise RunError(f"--freeze-until is one of {names}; found {until}")
        for layer, stage in stages.items():
            layer.trainable = stage > until
