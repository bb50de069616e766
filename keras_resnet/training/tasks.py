"""What a data set decides: the network, its batches, and what it is tested on."""

import json
import os
import re
import typing
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import models
from keras_resnet.data import cifar, color, imagenet, records, sources
from keras_resnet.data.parts import Parts
from keras_resnet.data.sources import DataError
from keras_resnet.files import RunError, write_whole
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit
from keras_resnet.training import distribution
from keras_resnet.training.history import own_line
from keras_resnet.training.settings import Settings
from keras_resnet.weights import load_weights, readers

# Kept with a run from its beginning: what its data are, and the colours of its photographs.
DATA, COLORS = "data.json", "colors.npz"
LISTED = 8  # differences that a message names


Batches: typing.TypeAlias = Callable[[int], tf.data.Dataset]


class Task(typing.NamedTuple):
    """`batches(step)` is an endless `tf.data.Dataset` from that step on, `examples` the number of images to train on.

    `build()` makes the network, the same one each time, which takes pixels in [0, 255] and gives probabilities.
    `validation` and `test` are data sets or None.
    `damaged` is the set of the files that were skipped.
    """

    classes: tuple[str, ...]
    examples: int
    build: Callable[[], keras.Model]
    batches: Batches
    validation: tf.data.Dataset | None
    test: tf.data.Dataset | None
    damaged: set[str]


def small_images(settings: Settings) -> Task:
    """CIFAR or the built-in shapes (P1 4.2): in memory, the per-pixel mean in the network's first layer."""
    trained = _trained(settings)  # first: a path with a typing error is noticed before data are downloaded
    source = sources.load(settings.dataset, settings.data_dir, settings.train_on_all)
    _check_batch(settings, len(source.train.labels))
    _check_data(settings, sources.describe(source))
    mean = cifar.per_pixel_mean(source.train.images)

    def build():
        keras.utils.set_random_seed(settings.seed)
        network = models.CifarResNet(
            settings.depth,
            block=settings.block,
            shortcut=None if settings.plain else settings.shortcut,
            classes=len(source.classes),
            normalization=trained.normalization or (mean, 1.0),
            activation_order=settings.activation_order or "original",
            shortcut_variant=settings.shortcut_variant,
        )
        return _initialized(network, trained, settings)

    def batches(step):
        seed = settings.seed
        return _parts_of_batches(
            settings,
            step,
            lambda first_step, parts: cifar.training_batches(
                source.train, mean, batch_size=settings.batch_size, seed=seed, first_step=first_step, parts=parts
            ),
        )

    def evaluation(split):
        return distribution.datasets(lambda parts: cifar.evaluation_batches(split, parts=parts))

    validation = source.validation and evaluation(source.validation)
    test = evaluation(source.test)
    return Task(source.classes, len(source.train.labels), build, batches, validation, test, set())


def photographs(settings, verbose=0):
    """Photographs (P1 3.4), read as they are needed; the mean that is subtracted is in the network's first layer.

    `verbose` is as for `run.train`.
    """
    trained = _trained(settings)
    data = records.photographs(settings.dataset, settings.data_dir, settings.seed)
    _check_batch(settings, len(data.train))
    _check_data(settings, records.describe(data, settings.dataset))
    damaged: set[str] = set()
    skipped = damaged if settings.skip_damaged else None
    with imagenet.errors_named():
        if skipped is not None and not any(imagenet.center_batches(data.validation, skipped=skipped)):
            raise DataError(f"not one of {len(data.validation)} validation images can be read")
        colors = _colors(data.train, settings, skipped, verbose)
    # P1 3.4 subtracts an image from the crop, and the network then takes this size alone.
    size = (settings.image_size, settings.image_size, 3)
    whole = settings.image_size == imagenet.IMAGE_SIZE and colors.mean.shape == size and not trained.normalization
    mean = colors.mean if whole else np.round(colors.channel_means, 3)
    options = {} if settings.plain else {"shortcut": settings.shortcut}

    def build():
        keras.utils.set_random_seed(settings.seed)
        network = settings.builder(
            input_shape=size if whole else None,
            classes=len(data.classes),
            stride_in=settings.stride_in or trained.stride_in,
            normalization=None if "mean" in settings.without else trained.normalization or (mean, 1.0),
            **options,
        )
        return _initialized(network, trained, settings)

    def batches(step):
        return _parts_of_batches(
            settings,
            step,
            lambda first_step, parts: imagenet.training_batches(
                data.train,
                batch_size=settings.batch_size,
                seed=settings.seed,
                first_step=first_step,
                image_size=settings.image_size,
                components=None if "color" in settings.without else colors.components,
                skipped=skipped,
                parts=parts,
                **{choice: choice not in settings.without for choice in ("scale", "crop", "flip")},
            ),
        )

    validation = distribution.datasets(
        lambda parts: imagenet.center_batches(
            data.validation, image_size=settings.image_size, skipped=skipped, parts=parts
        )
    )
    return Task(data.classes, len(data.train), build, batches, validation, None, damaged)


def _trained(settings):
    """The `readers.Source` of --init-from; an empty one without."""
    if settings.init_from is None:
        return readers.Source("nothing", None)
    small = f"cifar_{'plainnet' if settings.plain else 'resnet'}{settings.depth}"
    return readers.read(settings.init_from, settings.builder.__name__.lower() if settings.photographs else small)


def _initialized(network, trained, settings):
    """The network with trained weights, but for its last layer."""
    if settings.init_from:
        with recursion_limit(LOADING_DEPTH):
            load_weights(keras.Model(network.input, network.get_layer("pool").output, name=network.name), trained)
        bad = [variable.path for variable in network.weights if not np.isfinite(variable.numpy()).all()]
        if bad:
            raise RunError(f"--init-from {settings.init_from} has weights that are not finite, for example {bad[0]}")
    return network


def freeze(network: keras.Model, until: str | None) -> None:
    """Leaves the stages up to this one as they are; their batch normalisation works as in testing. None: freezes none.

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


def _parts_of_batches(settings, step, training_batches):
    """The data set from `step` on: a part of a batch for each device, or with --accumulate one after the other.

    `step` counts what is in memory at a time; `training_batches` takes a step of whole batches, and `Parts`.
    """
    if settings.accumulate == 1:
        return distribution.datasets(lambda parts: training_batches(step, parts))
    whole, begun = divmod(step, settings.accumulate)
    return training_batches(whole, Parts(settings.accumulate, range(settings.accumulate))).skip(begun)


def _check_batch(settings, examples):
    if settings.batch_size > examples:
        raise RunError(
            f"--batch-size is at most the number of training examples, {examples}; found {settings.batch_size}"
        )


def _check_data(settings, found):
    """Keeps what the data of a run are, `describe`d; RunError where a run that goes on has other data.

    On other data a class could have another's number, and validation images be drawn that were trained on.
    """
    path = os.path.join(settings.folder, DATA)
    if os.path.exists(path) and not settings.data_changed:
        try:
            with open(path) as file:
                kept = json.load(file)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is damaged: {error}. Delete it to go on with the data as they are.") from error
        different = [name for name in {**kept, **found} if kept.get(name) != found.get(name)]
        if different:
            rows = [f"  {name}: {kept.get(name, 'none')} then; {found.get(name, 'none')} now" for name in different]
            rows[LISTED:] = [f"  and {len(rows) - LISTED} more"] * (len(rows) > LISTED)
            raise RunError(
                f"{settings.dataset} has changed since this run was begun (number of examples, digest):\n"
                + "\n".join(rows)
                + "\nA class could now have another's number, and validation images be such that were trained on. Put "
                "the data back, choose another --name, or give --data-changed to go on nevertheless."
            )
    write_whole(path, lambda file: file.write(json.dumps(found, indent=0).encode()))


def _colors(files, settings, skipped, verbose):
    """The `color.Statistics` that --colors says, or those of the training data: measured once, kept with the run."""
    if settings.colors == "imagenet":
        return color.IMAGENET_STATISTICS
    if settings.colors:
        return color.load(settings.colors)
    path = os.path.join(settings.folder, COLORS)
    if not os.path.exists(path):
        print(f"measuring the colours of {min(len(files), imagenet.COLOR_SAMPLE)} photographs", flush=True)
        options = {"image_size": settings.image_size, "seed": settings.seed, "skipped": skipped}
        with own_line(verbose):
            found = imagenet.statistics(files, **options, verbose=int(verbose == 1))
        write_whole(path, found.save)
        return found
    return color.load(path)
