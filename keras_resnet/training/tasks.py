"""What depends on the data set: the network, its batches, and its validation and test data."""

import os
import typing
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import normalization
from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.data import cifar, color, imagenet, records, sources
from keras_resnet.data.parts import Parts
from keras_resnet.data.sources import DataError
from keras_resnet.files import own_line, write_whole
from keras_resnet.training import distribution, fine_tuning
from keras_resnet.training.folder import COLORS, check_data
from keras_resnet.training.settings import Settings

Batches: typing.TypeAlias = Callable[[int], tf.data.Dataset]


class Task(typing.NamedTuple):
    """The network and the data of a run.

    `examples` is the number of training images, and `batches(step)` an endless `tf.data.Dataset` from that step on.
    `build()` makes the network, the same one each time, which takes pixels in [0, 255] and returns probabilities.
    `validation` and `test` are data sets or None. `damaged` is the set of files that were skipped.
    """

    classes: tuple[str, ...]
    examples: int
    build: Callable[[], keras.Model]
    batches: Batches
    validation: tf.data.Dataset | None
    test: tf.data.Dataset | None
    damaged: set[str]


def small_images(settings: Settings) -> Task:
    """CIFAR or the built-in shapes (P1 4.2), in memory. The network's first layer subtracts the per-pixel mean."""
    trained = fine_tuning.read(settings)  # first, so that a mistyped path is noticed before data are downloaded
    source = sources.load(settings.dataset, settings.data_dir, settings.train_on_all)
    settings.steps_per_epoch(len(source.train.labels))  # refuses too large batches
    check_data(settings, sources.describe(source))
    mean = sources.per_pixel_mean(source.train.images)

    def build():
        first = trained.normalization or (mean, 1.0)
        return fine_tuning.build(
            trained, settings, input_shape=mean.shape, classes=len(source.classes), normalization=first
        )

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


def photographs(settings: Settings, verbose: int = 0) -> Task:
    """Photographs (P1 3.4), read when they are needed. The network's first layer subtracts the mean.

    `verbose` is as in `run.train`.
    """
    trained = fine_tuning.read(settings)
    data = records.photographs(settings.dataset, settings.data_dir, settings.seed)
    settings.steps_per_epoch(len(data.train))
    check_data(settings, records.describe(data, settings.dataset))
    damaged: set[str] = set()
    skipped = damaged if settings.skip_damaged else None
    with imagenet.errors_named():
        if skipped is not None and not any(imagenet.center_batches(data.validation, skipped=skipped)):
            raise DataError(f"not one of {len(data.validation)} validation images can be read")
        colors = _colors(data.train, settings, skipped, verbose)
    # P1 3.4 subtracts a mean image from the crop; then the network takes only this size.
    shape = (settings.image_size, settings.image_size, 3)
    whole = settings.image_size == IMAGE_SIZE and colors.mean.shape == shape
    measured = colors.mean if whole else np.round(colors.channel_means, 3)
    first = None if "mean" in settings.without else trained.normalization or (measured, 1.0)
    any_size = normalization.for_size(first, (None, None)) is first

    def build():
        input_shape = None if any_size else shape
        return fine_tuning.build(
            trained, settings, input_shape=input_shape, classes=len(data.classes), normalization=first
        )

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


def _parts_of_batches(settings, step, training_batches):
    """The data set from `step` on, with each batch in parts: one for each device, or several in turn for --accumulate.

    `step` counts forward passes. `training_batches` takes a step, counted in whole batches, and `Parts`.
    """
    if settings.accumulate == 1:
        return distribution.datasets(lambda parts: training_batches(step, parts))
    whole, begun = divmod(step, settings.accumulate)
    return training_batches(whole, Parts(settings.accumulate, range(settings.accumulate))).skip(begun)


def _colors(files, settings, skipped, verbose):
    """The `color.Statistics` of --colors, or those of the training data, measured once and kept in the run's folder."""
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
