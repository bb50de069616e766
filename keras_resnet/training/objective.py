"""What training minimises, what it shows, and its learning rate: on any Keras backend."""

from collections.abc import Callable

import keras
from keras import ops

from keras_resnet import schedules
from keras_resnet.files import RunError
from keras_resnet.normalization import Tensor
from keras_resnet.training import recipes
from keras_resnet.training.settings import Settings

TOP5_FROM = 10  # with more classes the top-5 error is shown, too


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
    """The loss and the errors of a model of logits, functions of labels and outputs, by their names."""
    return {"loss": loss, **errors(model.output.shape[-1])}


def schedule_of(settings: Settings, examples: int) -> schedules.Steps | schedules.Plateau:
    """The rule that gives the learning rate of a run on `examples` images.

    Raises:
        RunError: the rate would be divided during the warm-up.
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
        return schedules.Plateau(settings.lr, **warmup, patience=settings.patience, divisions=recipes.DIVISIONS)
    in_steps = (lambda epochs: settings.steps_in(epochs, examples)) if settings.epochs else int
    # A run of a step or two ends before its rate could be divided.
    boundaries = [*map(in_steps, settings.boundaries)] or [max(1, round(part * steps)) for part in recipes.BOUNDARIES]
    if settings.warmup_epochs and boundaries[0] < warmup_steps:
        raise RunError(
            f"--warmup-epochs {settings.warmup_epochs} are {warmup_steps} steps, and the rate is divided at step "
            f"{boundaries[0]} already; fewer --warmup-epochs, later --boundaries or a longer run are possible"
        )
    return schedules.Steps(settings.lr, tuple(boundaries), **warmup)
