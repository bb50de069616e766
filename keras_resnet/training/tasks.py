"""What a data set decides: the network, its batches, and what it is tested on."""

import json
import os
import typing

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import models
from keras_resnet.data import cifar, color, folders, imagenet, sources
from keras_resnet.training import distribution
from keras_resnet.training.checkpoint import RunError, write_whole

COLOR_SAMPLE = 10_000  # photographs whose colours are measured


class Task(typing.NamedTuple):
    """`batches(step)` is an endless `tf.data.Dataset` from that step on, `examples` the number of images to train on.

    `network` takes pixels in [0, 255] and gives probabilities. `validation` and `test` are data sets or None.
    `damaged` is the set of the files that were skipped.
    """

    classes: tuple
    examples: int
    network: keras.Model
    batches: typing.Callable
    validation: tf.data.Dataset | None
    test: tf.data.Dataset | None
    damaged: set


def small_images(settings):
    """CIFAR or the built-in shapes (P1 4.2): in memory, the per-pixel mean in the network's first layer."""
    source = sources.load(settings.dataset, settings.data_dir, settings.train_on_all)
    _check_batch(settings, len(source.train.labels))
    mean = cifar.per_pixel_mean(source.train.images)
    keras.utils.set_random_seed(settings.seed)
    network = models.CifarResNet(
        settings.depth,
        block=settings.block,
        shortcut=None if settings.plain else settings.shortcut,
        classes=len(source.classes),
        normalization=(mean, 1.0),
    )

    def batches(step):
        size, seed = settings.batch_in_memory, settings.seed
        return distribution.datasets(
            lambda parts: cifar.training_batches(
                source.train, mean, batch_size=size, seed=seed, first_step=step, parts=parts
            )
        )

    def evaluation(split):
        return distribution.datasets(lambda parts: cifar.evaluation_batches(split, parts=parts))

    validation = source.validation and evaluation(source.validation)
    test = evaluation(source.test)
    return Task(source.classes, len(source.train.labels), network, batches, validation, test, set())


def photographs(settings):
    """A folder of photographs (P1 3.4): read as they are needed, the channels' means in the network's first layer."""
    folder = folders.load(settings.dataset, settings.seed)
    _check_batch(settings, len(folder.train.labels))
    damaged = set()
    skipped = damaged if settings.skip_damaged else None
    with imagenet.errors_named():
        mean, components = _colors(folder.train, os.path.join(settings.folder, "colors.json"), settings, skipped)
    keras.utils.set_random_seed(settings.seed)
    name = f"{'PlainNet' if settings.plain else 'ResNet'}{settings.depth}"
    options = {} if settings.plain else {"shortcut": settings.shortcut}
    network = getattr(models, name)(
        classes=len(folder.classes), stride_in=settings.stride_in, normalization=(mean, 1.0), **options
    )

    def batches(step):
        return distribution.datasets(
            lambda parts: imagenet.training_batches(
                folder.train,
                batch_size=settings.batch_in_memory,
                seed=settings.seed,
                first_step=step,
                image_size=settings.image_size,
                components=components,
                skipped=skipped,
                parts=parts,
                **{choice: choice not in settings.without for choice in ("scale", "crop", "flip")},
            )
        )

    validation = distribution.datasets(
        lambda parts: imagenet.center_batches(
            folder.validation, image_size=settings.image_size, skipped=skipped, parts=parts
        )
    )
    return Task(folder.classes, len(folder.train.labels), network, batches, validation, None, damaged)


def _check_batch(settings, examples):
    if settings.batch_in_memory > examples:
        raise RunError(
            f"--batch-size is at most the number of training examples, {examples}; found {settings.batch_in_memory}"
        )


def _colors(files, path, settings, skipped):
    """The channels' means, a list, and the `color.Components`, or None; measured once and kept in the run's folder."""
    if not os.path.exists(path):
        sample = np.random.default_rng(settings.seed).permutation(len(files.paths))[:COLOR_SAMPLE]
        sample = folders.Files([files.paths[i] for i in sample], files.labels[sample])
        print(f"measuring the colours of {len(sample.paths)} photographs")
        mean, components = imagenet.mean_and_components(sample, image_size=settings.image_size, skipped=skipped)
        found = {
            "mean": np.round(mean.mean((0, 1), dtype="float64"), 3).tolist(),
            "eigenvalues": components.values.tolist(),
            "eigenvectors": components.vectors.tolist(),
        }
        write_whole(path, lambda file: file.write(json.dumps(found, indent=2).encode()))
    else:
        with open(path) as file:
            found = json.load(file)
    values, vectors = (np.array(found[name], "float32") for name in ("eigenvalues", "eigenvectors"))
    return found["mean"], None if "color" in settings.without else color.Components(values, vectors)
