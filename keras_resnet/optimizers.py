"""The paper's optimizer, and its learning-rate schedules as callbacks of `fit`, for any Keras backend.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import math
import sys
import typing
import warnings
from collections.abc import Callable

import keras
from keras import ops

from keras_resnet.normalization import Tensor
from keras_resnet.schedules import Plateau, Steps, check_number

LearningRate: typing.TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], Tensor]


def sync_variables(model: keras.Model) -> None:
    """Updates the model's variables inside `fit`, where they lag behind on JAX."""
    getattr(model, "jax_state_sync", lambda: None)()


def _check_logged(logs, name, needed):
    if name not in (logs or {}):
        found = ", ".join(logs or {}) or "nothing"
        raise ValueError(f'the schedule needs "{name}", but this epoch logged {found}; {needed}')


@keras.saving.register_keras_serializable("keras_resnet")
class SGD(keras.optimizers.SGD):
    """SGD with momentum whose weight decay is part of the gradient, as in P1 3.4 and its Caffe models.

        m = momentum m - learning_rate (gradient + weight_decay w)
        w = w + m

    Keras' own `weight_decay` bypasses the momentum, which makes it 1 / (1 - momentum) = ten times weaker. The
    regulariser `L2(weight_decay / 2)` would be equivalent, but it adds to the loss. All trainable variables decay
    except those of `exclude_from_weight_decay`.

    Args:
        learning_rate: a float, a schedule or a callable, as in `keras.optimizers.SGD`.
        momentum: in [0, 1].
        weight_decay: not negative; None is 0. Like the momentum it can be changed later; only training functions
            that are built after the change use it.
        kwargs: as in `keras.optimizers.SGD`.

    Raises:
        ValueError: a number is negative, infinite or nan.
    """

    def __init__(
        self, learning_rate: LearningRate = 0.1, momentum: float = 0.9, weight_decay: float | None = 1e-4,
        name: str = "sgd", **kwargs: typing.Any,
    ):  # fmt: skip
        for argument, value in (("learning_rate", learning_rate), ("momentum", momentum)):
            if isinstance(value, float):
                check_number(argument, value, zero=True)
        super().__init__(learning_rate, momentum, weight_decay=weight_decay, name=name, **kwargs)

    @property
    def weight_decay(self) -> float:
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: float | None) -> None:
        check_number("weight_decay", value or 0.0, zero=True)
        self._weight_decay = float(value or 0.0)

    def _apply_weight_decay(self, variables):
        """Disables Keras' own decay, which is not part of the gradient."""

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        if self.weight_decay and self._use_weight_decay(variable):
            decay = ops.cast(self.weight_decay, variable.dtype)
            gradient = ops.add(gradient, ops.multiply(variable, decay))
        super().update_step(gradient, variable, learning_rate)


class _Schedule(keras.callbacks.Callback):
    """The base of both schedules: sets the optimizer's learning rate to that of a rule, whose state is `state`."""

    def __init__(self, rule, steps):
        super().__init__()
        if steps is not None:
            check_number("steps", steps)
        self.rule = rule
        self.end = math.inf if steps is None else steps
        self.state = self._first_state()
        self.optimizer = None  # the one that `state` belongs to
        self.step = 0  # iterations done, or more: batches are counted; the optimizer's number is read if it matters
        self.current_rate = None
        self.text = ""  # the rule's message about this epoch
        self.warned = False  # that something else sets the learning rate, too

    def _first_state(self):
        return {"trained": False, **self.rule.first_state()}

    def rate(self, step: int) -> float:
        """The learning rate of iteration `step`, counted from 0."""
        return self.rule.rate(step, self.state)

    def set_model(self, model):
        super().set_model(model)
        if self.optimizer not in (None, model.optimizer):
            self.state = self._first_state()
        self.optimizer = model.optimizer

    def on_train_begin(self, logs=None):
        self.current_rate, self.text = None, ""
        reason = "the error has plateaued at the last learning rate" if self.rule.finished(self.state) else ""
        if self._ask() >= self.end:
            reason = f"the optimizer has made {self.step} iterations of {self.end}"
        if reason:
            self._say(f"nothing left to train: {reason}")
            self.model.stop_training = True
            self.model._initial_epoch = sys.maxsize  # as BackupAndRestore sets the first epoch of `fit`

    def on_train_end(self, logs=None):
        if self.model._initial_epoch == sys.maxsize:
            self.model._initial_epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self._ask()
        if self.current_rate is None and self.step and not self.state["trained"]:
            self._take_up(float(ops.convert_to_numpy(self.optimizer.learning_rate)))

    def _take_up(self, rate):
        """If the state was not restored, infers it from the optimizer's last learning rate."""
        # It is that of the last iteration or, if saved after this callback, already that of the next one.
        warm = [self.rule.rate(step, {**self.state, "warm_at_step": 0}) for step in (self.step - 1, self.step)]
        if self.state["warm_at_step"] is None and any(math.isclose(rate, other, rel_tol=1e-3) for other in warm):
            self.state["warm_at_step"] = self.step

    def on_train_batch_begin(self, batch, logs=None):
        self.first_batch = batch
        self.state["trained"] = True
        if batch == 0:
            self._warn_of_others()
        self._set_rate()

    def on_train_batch_end(self, batch, logs=None):
        self.step += batch - self.first_batch + 1
        if batch + 1 == self.params.get("steps") and self.state["warm_at_step"] is None:
            self._end_epoch(logs)  # now, so that BackupAndRestore, which may be an earlier callback, saves this rate
        if self.step >= self.end or self.rate(self.step) != self.current_rate:
            # Perhaps not yet: an iteration can be several batches, or skipped. Reading its number waits for the device.
            self.model.stop_training |= self._ask() >= self.end
            due = getattr(self.rule, "boundaries", ())
            late = [b for b in due if b < self.step and self.rate(b) < self.current_rate]
            if late := late + [self.end] * (self.end < self.step):
                warnings.warn(
                    f"iteration {', '.join(map(str, late))} of the schedule was within an execution of several steps, "
                    f"so it took effect late, at {self.step}; choose a steps_per_execution that divides it",
                    stacklevel=2,
                )

    def on_epoch_end(self, epoch, logs=None):
        self._end_epoch(logs)
        self._say(self.text)
        self.text = ""
        self.model.stop_training |= self.rule.finished(self.state)

    def _end_epoch(self, logs):
        """Passes the epoch's errors to the rule; during the warm-up also once before the epoch is validated."""
        if self.state["warm_at_step"] is None:
            _check_logged(logs, "error", "compile the model with a metric of that name")
            self._ask()
        errors = [(logs or {}).get(name) for name in ("error", "val_error")]
        self.state, text = self.rule.after_epoch(self.step, self.state, *errors)
        self.text = text or self.text
        self._set_rate()  # now, so that a callback that saves the optimizer saves this rate

    def _ask(self):
        """The optimizer's number of iterations."""
        sync_variables(self.model)
        self.step = int(ops.convert_to_numpy(self.optimizer.iterations))
        return self.step

    def _set_rate(self):
        if self.current_rate != self.rate(self.step):
            self._warn_of_others()
            self.current_rate = self.rate(self.step)
            try:
                self.optimizer.learning_rate = self.current_rate
            except TypeError as error:
                raise ValueError(
                    f"{type(self).__name__} sets the learning rate, but this optimizer has its own schedule; "
                    "compile it with a number, or leave out the callback"
                ) from error

    def _warn_of_others(self):
        """Warns, once, if the optimizer's learning rate is not the one last set in this `fit`."""
        if self.current_rate is None or self.warned:
            return
        sync_variables(self.model)
        found = float(ops.convert_to_numpy(self.optimizer.learning_rate))
        if not math.isclose(found, self.current_rate, rel_tol=1e-3):
            self.warned = True
            warnings.warn(
                f"{type(self).__name__} has set the learning rate to {self.current_rate:g}, but now it is {found:g}: "
                "something else sets it, too, such as LearningRateScheduler, ReduceLROnPlateau or another schedule, "
                "and they overwrite each other; remove one of them",
                stacklevel=2,
            )

    def _say(self, text):
        if text and (verbose := (self.params or {}).get("verbose", 1)):
            print("\n" * (verbose != 2) + text, flush=True)  # a progress bar may be on this line


class StepSchedule(_Schedule):
    """`schedules.Steps` as a callback: divides the learning rate by 10 at each boundary, a number of iterations.

    The optimizer counts the iterations: with gradient accumulation one iteration is several batches, and a step skipped
    by `LossScaleOptimizer` is not counted. So training continues from the optimizer's iteration, however it was
    restored. A resumed run has to restore `state`. If it does not, as with BackupAndRestore, the optimizer's learning
    rate shows whether the warm-up is over. A model with another optimizer starts with a new state.

    The learning rate cannot change within one execution of `steps_per_execution` steps: a boundary inside takes effect
    at the end of the execution, with a warning. There is one warning, too, if something else sets the learning rate
    during `fit`.

    Args:
        learning_rate, boundaries, warmup_rate, warmup_error, warmup_steps: as in `schedules.Steps`.
        steps: None, or the iteration after which training stops.

    Raises:
        ValueError: an argument is out of range.

    If `warmup_rate` is given without `warmup_steps`, the model has to be compiled with a metric named "error".
    """

    def __init__(
        self, learning_rate=0.1, boundaries=(32_000, 48_000), warmup_rate=None, warmup_error=0.8, steps=None,
        warmup_steps=None,
    ):  # fmt: skip
        warmup = {"warmup_rate": warmup_rate, "warmup_error": warmup_error, "warmup_steps": warmup_steps}
        super().__init__(Steps(learning_rate, tuple(boundaries), **warmup), steps)


class PlateauSchedule(_Schedule):
    """`schedules.Plateau` as a callback: divides the learning rate by 10 when the validation error plateaus.

    BackupAndRestore has to come after this callback; before it, it saves the learning rate of the epoch that ended, not
    of the next one. Iterations, `state` and warnings are as in `StepSchedule`.

    Args:
        learning_rate, warmup_rate, warmup_error, patience, warmup_steps: as in `schedules.Plateau`.
        steps: None, or the iteration after which training stops.
        divisions: None, or how often the learning rate is divided. Training stops at the next plateau after that.

    The model has to be compiled with a metric named "error" and fitted with validation data.
    """

    def __init__(
        self, learning_rate=0.1, warmup_rate=None, warmup_error=0.8, steps=None, patience=5, warmup_steps=None,
        divisions=None,
    ):  # fmt: skip
        warmup = {"warmup_rate": warmup_rate, "warmup_error": warmup_error, "warmup_steps": warmup_steps}
        super().__init__(Plateau(learning_rate, **warmup, patience=patience, divisions=divisions), steps)
        self.not_validated = 0  # how many of the last epochs

    def _take_up(self, rate):
        rule = self.rule
        rising = rule.warmup_steps and rule.warming_up(self.step, self.state)
        if self.state["best"] is None and not rising and not math.isclose(rate, rule.warmup_rate or 0, rel_tol=1e-3):
            drops = round(math.log10(rule.learning_rate / rate))
            if drops > 0 and math.isclose(rate, rule.learning_rate / 10**drops, rel_tol=1e-3):
                self.state["drops"] = drops
        super()._take_up(rate)

    def on_epoch_end(self, epoch, logs=None):
        if any(name.startswith("val_") for name in logs or {}):
            self.not_validated = 0
            _check_logged(logs, "val_error", 'compile the model with a metric named "error"')
        else:  # `validation_freq` allows this, but not for `patience` epochs
            self.not_validated += 1
            message = (
                f'the schedule needs "val_error", but none of the last {self.not_validated} epochs was validated; '
                f"fit with validation_data, and with a validation_freq of at most the patience, {self.rule.patience}"
            )
            if self.not_validated >= self.rule.patience:
                raise ValueError(message)
            if self.state["best"] is None and self.not_validated == 1:
                warnings.warn(message, stacklevel=2)
        super().on_epoch_end(epoch, logs)
