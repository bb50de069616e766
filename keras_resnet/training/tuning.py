"""Hyperparameter search with keras_tuner.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import typing
from collections.abc import Iterable

import keras
import keras_tuner
import numpy as np

from keras_resnet import models
from keras_resnet.data import cifar, sources
from keras_resnet.optimizers import SGD, StepSchedule
from keras_resnet.training import recipes
from keras_resnet.training.objective import errors

OBJECTIVE = keras_tuner.Objective("val_error", "min")
# Search ranges around the paper's values.
LEARNING_RATES = (0.01, 1.0)
WEIGHT_DECAYS = (1e-5, 1e-3)
BATCH_SIZES = (64, 128, 256)


class ResNetHyperModel(keras_tuner.HyperModel):
    """`CifarResNet` and its training (P1 4.2) for the tuners of keras_tuner.

        tuner = keras_tuner.Hyperband(ResNetHyperModel(20), keras_tuner.Objective("val_error", "min"), max_epochs=27)
        tuner.search(images, labels, validation_data=(more_images, more_labels))

    The hyperparameters are "shortcut", "lr", "weight_decay", "batch_size" and "warmup". Images are padded, cropped and
    flipped as in the paper, and the learning rate is divided by 10 after 1/2 and 3/4 of a trial's epochs. The models
    end with logits, so that their cross-entropy is numerically exact.

    Args:
        depth: as in `CifarResNet`; 6n+2, with bottlenecks 9n+2.
        seed: of weights, order and augmentation.
        options: other arguments of `CifarResNet` except `shortcut`, such as `classes`. The default `normalization`
            subtracts 127.5, the middle of the range, from the pixels.
    """

    def __init__(self, depth: int = 20, seed: int = 0, **options: typing.Any):
        super().__init__()
        self.depth = depth
        self.seed = seed
        self.options = {"normalization": (127.5, 1.0), **options}

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A compiled network for images (batch, 32, 32, 3), RGB in [0, 255]."""
        shortcut = hp.Choice("shortcut", ["A", "B", "C"])
        lr = hp.Float("lr", *LEARNING_RATES, sampling="log", default=recipes.LEARNING_RATE)
        weight_decay = hp.Float("weight_decay", *WEIGHT_DECAYS, sampling="log", default=recipes.WEIGHT_DECAY)
        hp.Choice("batch_size", BATCH_SIZES, default=recipes.CIFAR["batch_size"])
        hp.Boolean("warmup", default=self.depth >= recipes.WARMUP_DEPTH)
        keras.utils.set_random_seed(self.seed)
        model = models.CifarResNet(self.depth, shortcut=shortcut, classifier_activation=None, **self.options)
        metrics = [keras.metrics.MeanMetricWrapper(one, name) for name, one in errors(model.output.shape[-1]).items()]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = SGD(lr, recipes.MOMENTUM, weight_decay)
        if keras.backend.backend() == "tensorflow":
            from keras_resnet.training import fused  # here, because it needs TensorFlow

            fused.fuse_batch_norm(model)
            fused.fuse_update(optimizer)
        optimizer.build(model.trainable_variables)  # so that a trial can load the weights of another one
        model.compile(optimizer, loss, metrics=metrics, jit_compile=keras.backend.backend() == "jax")
        return model

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, x: np.ndarray, y: np.ndarray, *,
        validation_data: tuple[np.ndarray, np.ndarray], epochs: int = 1, initial_epoch: int = 0,
        callbacks: Iterable[keras.callbacks.Callback] = (), **options: typing.Any,
    ) -> keras.callbacks.History:  # fmt: skip
        """Trains a model of `build`, from epoch `initial_epoch` to epoch `epochs`.

        Args:
            hp: the hyperparameters that the model was built with.
            model: the model.
            x, y: images, uint8 (n, height, width, 3), RGB, and labels, integers (n,).
            validation_data: a pair of images and labels.
            epochs, initial_epoch, callbacks, options: as in `keras.Model.fit`.

        Returns:
            The `keras.callbacks.History`.

        Raises:
            ValueError: there are fewer images than `batch_size`.
        """
        split, batch_size = sources.Split(x, y), hp.get("batch_size")
        if batch_size > len(y):
            raise ValueError(f"trials have batches of {max(BATCH_SIZES)}, and only {len(y)} images are given")
        steps_per_epoch, mean = len(y) // batch_size, sources.per_pixel_mean(x)
        first_step, steps = initial_epoch * steps_per_epoch, epochs * steps_per_epoch
        boundaries = [round(part * steps) for part in recipes.BOUNDARIES]
        warmup_rate = recipes.WARMUP_RATE if hp.get("warmup") and not initial_epoch else None
        schedule = StepSchedule(hp.get("lr"), boundaries, warmup_rate, recipes.WARMUP_ERROR, steps)
        model.optimizer.iterations.assign(first_step)  # the loaded ones are those of the best epoch so far
        training = {"batch_size": batch_size, "seed": self.seed, "first_step": first_step}
        return model.fit(
            cifar.training_batches(split, mean, **training),
            initial_epoch=initial_epoch,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            validation_data=cifar.evaluation_batches(sources.Split(*validation_data)),
            callbacks=[schedule, *callbacks],
            shuffle=False,
            **options,
        )
