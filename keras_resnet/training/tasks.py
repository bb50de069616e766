"""The parts of a run that depend on the data set: the network, the batches, the validation and test data."""

import contextlib
import os
import typing
from collections.abc import Callable, Iterator

import keras
import numpy as np

from keras_resnet import environment, normalization
from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.data import color, sources
from keras_resnet.files import DataError, own_line
from keras_resnet.training import fine_tuning
from keras_resnet.training.folder import COLORS, Folder

if typing.TYPE_CHECKING:
    import tensorflow as tf

    from keras_resnet.data.shards import Shards


class Task(typing.NamedTuple):
    """The network and the data of a run.

    `examples` is the number of training images. `build()` builds the network, the same one each time; it takes pixels
    in [0, 255] and returns probabilities. `training(step, shards)` returns an endless `tf.data.Dataset` of the `Shards`
    of the batches from that step on; `held_out["validation"](shards)` and `held_out["test"](shards)` return the
    validation and test images. `in_memory` is None, or holds small images and their mean as arrays. `damaged` is the
    set of files that were skipped.
    """

    classes: tuple[str, ...]
    examples: int
    build: Callable[[], keras.Model]
    training: "Callable[[int, Shards], tf.data.Dataset]"
    held_out: "dict[str, Callable[[Shards], tf.data.Dataset]]"
    in_memory: tuple[sources.Source, np.ndarray] | None
    damaged: set[str]


def of(folder: Folder, verbose: int = 0) -> Task:
    """The task of a run; `verbose` as in `loop.train`."""
    return imagenet_style(folder, verbose) if folder.settings.imagenet_style else small_images(folder)


def small_images(folder: Folder) -> Task:
    """CIFAR or the built-in shapes (P1 4.2), in memory. The preprocessing layer subtracts the per-pixel mean."""
    settings = folder.settings
    trained = fine_tuning.read(settings)  # first, to report a mistyped path before data are downloaded
    source = sources.load(settings.dataset, settings.data_dir, settings.train_on_all)
    settings.steps_per_epoch(len(source.train.labels))  # raises if a batch is too large
    folder.check_data(sources.describe(source))
    mean = sources.per_pixel_mean(source.train.images)

    def build():
        first = trained.normalization or (mean, 1.0)
        return fine_tuning.build(
            trained, settings, input_shape=mean.shape, classes=len(source.classes), normalization=first
        )

    def training(step, shards):
        from keras_resnet.data import cifar  # here, because it needs TensorFlow, and JAX does not

        options = {"batch_size": settings.batch_size, "seed": settings.seed, "first_step": step}
        return cifar.training_batches(source.train, mean, **options, shards=shards)

    def evaluation(split):
        def batches(shards):
            from keras_resnet.data import cifar

            return cifar.evaluation_batches(split, shards=shards)

        return batches

    splits = {"validation": source.validation, "test": source.test}
    held_out = {name: evaluation(split) for name, split in splits.items() if split is not None}
    return Task(source.classes, len(source.train.labels), build, training, held_out, (source, mean), set())


def imagenet_style(folder: Folder, verbose: int = 0) -> Task:
    """ImageNet-style images (P1 3.4), read on demand. The preprocessing layer subtracts the mean."""
    settings = folder.settings
    if lacking := environment.needed("tensorflow"):
        raise DataError(
            f"training on {settings.dataset}, ImageNet-style images, {lacking}; TensorFlow reads them on every backend"
        )
    environment.import_tensorflow()
    from keras_resnet.data import imagenet, records

    trained = fine_tuning.read(settings)
    data = records.splits(settings.dataset, settings.data_dir, settings.seed)
    settings.steps_per_epoch(len(data.train))
    folder.check_data(records.describe(data, settings.dataset))
    damaged: set[str] = set()
    skipped = damaged if settings.skip_damaged else None
    with imagenet.errors_named():
        if skipped is not None and not any(imagenet.center_batches(data.validation, skipped=skipped)):
            raise DataError(f"none of the {len(data.validation)} validation images can be read")
        colors = _colors(data.train, folder, skipped, verbose)
    # P1 3.4 subtracts a mean image from the crop, which limits the network to this size.
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

    def training(step, shards):
        return imagenet.training_batches(
            data.train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            first_step=step,
            image_size=settings.image_size,
            components=None if "color" in settings.without else colors.components,
            skipped=skipped,
            shards=shards,
            **{choice: choice not in settings.without for choice in ("scale", "crop", "flip")},
        )

    def validation(shards):
        return imagenet.center_batches(data.validation, image_size=settings.image_size, skipped=skipped, shards=shards)

    return Task(data.classes, len(data.train), build, training, {"validation": validation}, None, damaged)


def _colors(files, folder, skipped, verbose):
    """The `color.Statistics` of --colors, or of the training data, measured once and saved in the run's folder."""
    from keras_resnet.data import imagenet

    settings = folder.settings
    if settings.colors == "imagenet":
        return color.IMAGENET_STATISTICS
    if settings.colors:
        return color.load(settings.colors)
    path = folder.path(COLORS)
    if not os.path.exists(path):
        print(f"measuring the colours of {min(len(files), imagenet.COLOR_SAMPLE)} images", flush=True)
        options = {"image_size": settings.image_size, "seed": settings.seed, "skipped": skipped}
        with own_line(verbose):
            found = imagenet.statistics(files, **options, verbose=int(verbose == 1))
        folder.write(COLORS, found.save)
        return found
    return color.load(path)


@contextlib.contextmanager
def errors_named(task: Task) -> Iterator[None]:
    """Inside this context, an image that cannot be read raises a DataError that names its file."""
    if task.in_memory:
        yield
        return
    from keras_resnet.data import imagenet

    with imagenet.errors_named():
        yield
