"""What training minimises, what it shows, and its learning rate: on any Keras backend."""

import keras
from keras import ops

from keras_resnet.files import RunError
from keras_resnet.normalization import Tensor
from keras_resnet.optimizers import PlateauSchedule, StepSchedule
from keras_resnet.training import recipes
from keras_resnet.training.settings import Settings

TOP5_FROM = 10  # with more classes the top-5 error is shown, too


def error(labels: Tensor, outputs: Tensor) -> Tensor:
    """1 if the largest output is not the label's, else 0."""
    return ops.cast(ops.not_equal(ops.argmax(outputs, axis=-1), ops.cast(labels, "int32")), "float32")


def top5_error(labels: Tensor, outputs: Tensor) -> Tensor:
    """1 if the label's output is not among the five largest, else 0."""
    return 1 - ops.cast(ops.in_top_k(ops.cast(labels, "int32"), outputs, 5), "float32")


def errors(classes: int) -> list:
    """The functions of labels and outputs whose means are shown: the error and, for many classes, the top-5 error."""
    return [error, top5_error] if classes > TOP5_FROM else [error]


def objective(classes: int) -> dict:
    """The cross-entropy of logits and the errors, as arguments of `keras.Model.compile`."""
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": [keras.metrics.MeanMetricWrapper(one, name=one.__name__) for one in errors(classes)],
    }


def schedule_of(settings: Settings, examples: int) -> StepSchedule | PlateauSchedule:
    """The callback that sets the learning rate of a run on `examples` images.

    Raises:
        RunError: the rate would be divided during the warm-up.
    """
    steps = settings.length(examples)
    warmup = {"warmup_rate": recipes.WARMUP_RATE if settings.warmup else None, "warmup_error": recipes.WARMUP_ERROR}
    if settings.warmup_epochs:
        warmup_steps = settings.steps_in(settings.warmup_epochs, examples)
        warmup |= {"warmup_rate": settings.warmup_from, "warmup_steps": warmup_steps}
    if settings.schedule == "plateau":
        return PlateauSchedule(settings.lr, **warmup, patience=settings.patience, divisions=recipes.DIVISIONS)
    in_steps = (lambda epochs: settings.steps_in(epochs, examples)) if settings.epochs else int
    boundaries = [*map(in_steps, settings.boundaries)] or [round(part * steps) for part in recipes.BOUNDARIES]
    if settings.warmup_epochs and boundaries[0] < warmup_steps:
        raise RunError(
            f"--warmup-epochs {settings.warmup_epochs} are {warmup_steps} steps, and the rate is divided at step "
            f"{boundaries[0]} already; fewer --warmup-epochs, later --boundaries or a longer run are possible"
        )
    return StepSchedule(settings.lr, boundaries, **warmup)
