"""The loss, the metrics and the learning rate of training, on any Keras backend."""

from collections.abc import Callable

import keras
from keras import ops

from keras_resnet import schedules
from keras_resnet.files import RunError
from keras_resnet.normalization import Tensor
from keras_resnet.training import recipes
from keras_resnet.training.settings import Settings

TOP5_FROM = 10  # with more classes the top-5 error is shown as well


def loss(labels: Tensor, outputs: Tensor) -> Tensor:
    """The cross-entropy of each example; labels (n,), outputs (n, classes), logits."""
    return keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)


def error(labels: Tensor, outputs: Tensor) -> Tensor:
    """1 if the largest output is not the label's, else 0."""
    return ops.cast(ops.not_equal(ops.argmax(outputs, axis=-1), ops.cast(labels, "int32")), "float32")


def top5_error(labels: Tensor, outputs: Tensor) -> Tensor:
    """1 if the label's output is not among the five largest, else 0."""
    return 1 - ops.cast(ops.in_top_k(ops.cast(labels, "int32"), outputs, 5), "float32")


def errors(classes: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The functions of labels and outputs whose means are shown: the error and, for many classes, the top-5 error."""
    return {"error": error, "top5_error": top5_error} if classes > TOP5_FROM else {"error": error}


def measures(model: keras.Model) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The metrics of a model of logits, its loss and errors: functions of labels and outputs, by name."""
    return {"loss": loss, **errors(model.output.shape[-1])}


def schedule_of(settings: Settings, examples: int) -> schedules.Steps | schedules.Plateau:
    """The learning-rate schedule of a run on `examples` images.

    Raises:
        RunError: the learning rate would be divided during the warm-up.
    """
    steps = settings.length(examples)
    warmup: dict = {
        "warmup_rate": recipes.WARMUP_RATE if settings.warmup else None,
        "warmup_error": recipes.WARMUP_ERROR,
    }
    if settings.warmup_epochs:
        warmup_steps = settings.steps_in(settings.warmup_epochs, examples)
        warmup |= {"warmup_rate": settings.warmup_from, "warmup_steps": warmup_steps}
    if settings.schedule == "plateau":
        patience = settings.patience
        if patience == recipes.PATIENCE:
            patience = max(patience, -(-recipes.PLATEAU_STEPS // settings.steps_per_epoch(examples)))
        return schedules.Plateau(settings.lr, **warmup, patience=patience, divisions=recipes.DIVISIONS)
    in_steps = (lambda epochs: settings.steps_in(epochs, examples)) if settings.epochs else int
    # A run of a step or two ends before its learning rate could be divided.
    boundaries = [*map(in_steps, settings.boundaries)] or [max(1, round(part * steps)) for part in recipes.BOUNDARIES]
    if settings.warmup_epochs and boundaries[0] < warmup_steps:
        raise RunError(
            f"--warmup-epochs {settings.warmup_epochs} is {warmup_steps} steps, and the learning rate is divided at "
            f"step {boundaries[0]}; give fewer --warmup-epochs, later --boundaries or a longer run"
        )
    return schedules.Steps(settings.lr, tuple(boundaries), **warmup)
