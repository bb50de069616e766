"""The paper's optimizer and learning-rate schedules, for any Keras backend.

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

LearningRate: typing.TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], Tensor]


def sync_variables(model: keras.Model) -> None:
    """Brings the model's variables up to date inside `fit`: on JAX they lag behind, on several devices they differ."""
    for name in ("jax_state_sync", "sync_replicas"):
        getattr(model, name, lambda: None)()


def _logged(logs, name, needed):
    if name not in (logs or {}):
        found = ", ".join(logs or {}) or "nothing"
        raise ValueError(f'the schedule follows "{name}", and this epoch logged {found}; {needed}')
    return logs[name]


def _check(name, value, zero=False):
    """ValueError if a number is out of range or nan."""
    if not (0 < value < math.inf or (zero and value == 0)):
        raise ValueError(f"{name} is {'not negative' if zero else 'positive'} and finite; found {value}")


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
        weight_decay: not negative; None is 0. Like the momentum it can be set later, which affects only training
            functions that are made after that.
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
                _check(argument, value, zero=True)
        super().__init__(learning_rate, momentum, weight_decay=weight_decay, name=name, **kwargs)

    @property
    def weight_decay(self) -> float:
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: float | None) -> None:
        _check("weight_decay", value or 0.0, zero=True)
        self._weight_decay = float(value or 0.0)

    def _apply_weight_decay(self, variables):
        """Disables Keras' own decay, which is not part of the gradient."""

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        if self.weight_decay and self._use_weight_decay(variable):
            decay = ops.cast(self.weight_decay, variable.dtype)
            gradient = ops.add(gradient, ops.multiply(variable, decay))
        super().update_step(gradient, variable, learning_rate)


class _DividedRate(keras.callbacks.Callback):
    """The base of both schedules: the warm-up, the optimizer's iterations, and the rate's division by 10.

    `drops` is how often the rate has been divided by 10. `StepSchedule` documents the state.
    """

    def __init__(self, learning_rate, warmup_rate, warmup_error, steps, warmup_steps):
        super().__init__()
        self.learning_rate = learning_rate
        self.warmup_rate = warmup_rate
        self.warmup_error = warmup_error
        self.steps = steps
        self.warmup_steps = warmup_steps
        for name in ("learning_rate", "warmup_rate", "steps", "warmup_steps"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name))
        if warmup_steps and warmup_rate is None:
            raise ValueError(f"warmup_steps {warmup_steps} need a warmup_rate to start from")
        self.state = self.first_state()
        self.optimizer = None  # the one that `state` belongs to
        self.step = 0  # iterations done, or more: batches are counted here, and the optimizer is asked when it matters
        self.end = math.inf if steps is None else steps
        self.current_rate = None
        self.warmed_by = None  # the error that ended the warm-up in this epoch
        self.warned = False  # that something else sets the rate, too

    def first_state(self) -> dict:
        """The `state` before training."""
        return {"trained": False, "warm_at_step": 0 if self.warmup_rate is None else self.warmup_steps}

    def warming_up(self, step):
        """Whether iteration `step` belongs to the warm-up."""
        return self.state["warm_at_step"] is None or step < self.state["warm_at_step"]

    def rate(self, step: int) -> float:
        """The rate of iteration `step`, counted from 0."""
        if self.warming_up(step):
            rise = step / self.warmup_steps if self.warmup_steps else 0
            return self.warmup_rate + (self.learning_rate - self.warmup_rate) * rise
        return self.learning_rate / 10 ** self.drops(step)

    def drops(self, step: int) -> int:
        """How often the rate has been divided by 10 before iteration `step`."""
        raise NotImplementedError

    def set_model(self, model):
        super().set_model(model)
        if self.optimizer not in (None, model.optimizer):
            self.state = self.first_state()
        self.optimizer = model.optimizer

    def on_train_begin(self, logs=None):
        self.current_rate = self.warmed_by = None
        if nothing_left := self.nothing_left():
            self._say(f"nothing is left to train: {nothing_left}")
            self.model.stop_training = True
            self.model._initial_epoch = sys.maxsize  # as BackupAndRestore tells `fit` where to begin

    def nothing_left(self) -> str:
        """Why no training is left to do; "" if some is."""
        made = self._ask()
        return f"the optimizer has made {made} iterations of {self.steps}" if made >= self.end else ""

    def on_train_end(self, logs=None):
        if self.model._initial_epoch == sys.maxsize:
            self.model._initial_epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self._ask()
        if self.current_rate is None and self.step and not self.state["trained"]:
            self.take_up(float(ops.convert_to_numpy(self.optimizer.learning_rate)))

    def take_up(self, rate: float) -> None:
        """If nobody restored the state, infers it from the optimizer's last learning rate."""
        if self.state["warm_at_step"] is None:
            warm = self.learning_rate / 10 ** self.drops(self.step - 1)
            if math.isclose(rate, warm, rel_tol=1e-3):
                self.state["warm_at_step"] = self.step

    def on_train_batch_begin(self, batch, logs=None):
        self.first_batch = batch
        self.state["trained"] = True
        if batch == 0:
            self._warn_of_others()
        self._set_rate()

    def on_train_batch_end(self, batch, logs=None):
        self.step += batch - self.first_batch + 1
        if batch + 1 == self.params.get("steps"):
            self._end_warm_up(logs)  # now, so that BackupAndRestore, which may be an earlier callback, saves this rate
        if self.step >= self.end or self.rate(self.step) != self.current_rate:
            # Only perhaps: an iteration can be several batches, or skipped. Asking the optimizer waits for the device.
            self.model.stop_training |= self._ask() >= self.end
            if late := self.passed():
                warnings.warn(
                    f"iteration {', '.join(map(str, late))} of the schedule lay within an execution of several steps, "
                    f"so that its change came late, at {self.step}; choose a steps_per_execution that divides it",
                    stacklevel=2,
                )

    def passed(self) -> list[int]:
        """Iterations at which a change was due and that have already passed."""
        return [self.steps] if self.steps is not None and self.steps < self.step else []

    def on_epoch_end(self, epoch, logs=None):
        self._end_warm_up(logs)  # in case the length of the epoch was unknown
        if self.warmed_by is not None:
            self._say(
                f"step {self.step}: training error {self.warmed_by:.1%} is below {self.warmup_error:.0%}, "
                f"learning rate {self.warmup_rate:g} -> {self.current_rate:g}"
            )
            self.warmed_by = None
        self._set_rate()  # now, so that a callback that saves the optimizer saves this rate

    def _end_warm_up(self, logs):
        """Ends the warm-up if the error in `logs`, those of a whole epoch, is low enough."""
        if self.state["warm_at_step"] is None:
            error = _logged(logs, "error", "compile the model with a metric of that name")
            if error < self.warmup_error:
                self.state["warm_at_step"], self.warmed_by = self._ask(), error
                self._set_rate()

    def _ask(self):
        """The optimizer's number of iterations. In `fit`, JAX updates the variables only when asked to."""
        getattr(self.model, "jax_state_sync", lambda: None)()
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
                    f"{type(self).__name__} sets the learning rate, and this optimizer has a schedule of its own; "
                    "compile with a number, or leave out the callback"
                ) from error

    def _warn_of_others(self):
        """Warns, once, if the optimizer's rate is not the one that was last set in this `fit`."""
        if self.current_rate is None or self.warned:
            return
        getattr(self.model, "jax_state_sync", lambda: None)()
        found = float(ops.convert_to_numpy(self.optimizer.learning_rate))
        if not math.isclose(found, self.current_rate, rel_tol=1e-3):
            self.warned = True
            warnings.warn(
                f"{type(self).__name__} has set the learning rate to {self.current_rate:g}, and now it is {found:g}: "
                "something else sets it, too, such as LearningRateScheduler, ReduceLROnPlateau or another schedule, so "
                "that each overwrites what the other has set; leave one of them out",
                stacklevel=2,
            )

    def _say(self, text):
        if verbose := (self.params or {}).get("verbose", 1):
            print("\n" * (verbose != 2) + text, flush=True)  # the line may have a progress bar


class StepSchedule(_DividedRate):
    """Divides the learning rate by 10 at each boundary, a number of iterations (P1 4.2).

    With `warmup_rate`, the rule of P1 4.2 for 110 layers and more: that rate until the training error of an epoch is
    below `warmup_error`, then the schedule. In the paper this took about 400 iterations, which is one epoch.

    With `warmup_steps` as well, the gradual warm-up of Goyal et al. (arXiv 1706.02677, 2.2) for large batches: from
    `warmup_rate`, theirs for a batch of 256, the rate grows by the same amount in each of these iterations.

    Iterations are counted by the optimizer: with gradient accumulation one iteration is several batches, and a step
    skipped by `LossScaleOptimizer` is none. So training continues from the optimizer's iteration, however it was
    restored. `state` is what a resumed run has to restore. If nobody restores it, as with BackupAndRestore, the
    optimizer's learning rate tells whether the warm-up is over. A model with another optimizer starts with a new state.

    The rate cannot change within one execution of `steps_per_execution` steps: a boundary inside takes effect at the
    end of the execution, with a warning. If something else sets the optimizer's rate during `fit`, too, there is a
    warning as well, once.

    Args:
        learning_rate: the first rate.
        boundaries: iterations at which the rate is divided by 10, in ascending order.
        warmup_rate: None for no warm-up, or the rate to start with.
        warmup_error: in [0, 1].
        steps: None, or the iteration after which training stops.
        warmup_steps: None, or the number of iterations in which the rate grows from `warmup_rate` to `learning_rate`.

    Raises:
        ValueError: an argument is out of its range.

    If `warmup_rate` is given without `warmup_steps`, the model has to be compiled with a metric named "error".
    """

    def __init__(
        self,
        learning_rate=0.1,
        boundaries=(32_000, 48_000),
        warmup_rate=None,
        warmup_error=0.8,
        steps=None,
        warmup_steps=None,
    ):
        super().__init__(learning_rate, warmup_rate, warmup_error, steps, warmup_steps)
        self.boundaries = tuple(boundaries)
        if list(self.boundaries) != sorted(self.boundaries):
            raise ValueError(f"boundaries ascend; found {self.boundaries}")
        if self.boundaries and self.boundaries[0] < (warmup_steps or 0):
            raise ValueError(f"boundaries lie behind the {warmup_steps} warmup_steps; found {self.boundaries}")

    def drops(self, step: int) -> int:
        return sum(step >= boundary for boundary in self.boundaries)

    def passed(self) -> list[int]:
        assert self.current_rate is not None  # a batch has begun
        late = [b for b in self.boundaries if b < self.step and self.rate(b) < self.current_rate]
        return late + super().passed()


class PlateauSchedule(_DividedRate):
    """Divides the learning rate by 10 when the validation error plateaus (P1 3.4).

    That is, when the best error of all epochs is `patience` epochs old; the paper does not state its criterion. Epochs
    of the warm-up do not count; epochs without validation count towards `patience` but set no best error.
    BackupAndRestore has to come after this callback; before it, it saves the rate of the epoch that ended, not of the
    next one.

    Args:
        learning_rate, warmup_rate, warmup_error, steps, warmup_steps: as in `StepSchedule`.
        patience: epochs, at least 1.
        divisions: None, or how often the rate is divided. Training stops at the next plateau after that.

    The model has to be compiled with a metric named "error" and fitted with validation data.
    """

    def __init__(
        self,
        learning_rate=0.1,
        warmup_rate=None,
        warmup_error=0.8,
        steps=None,
        patience=5,
        warmup_steps=None,
        divisions=None,
    ):
        super().__init__(learning_rate, warmup_rate, warmup_error, steps, warmup_steps)
        _check("patience", patience)
        _check("divisions", divisions or 0, zero=True)
        self.patience = patience
        self.divisions = math.inf if divisions is None else divisions
        self.not_validated = 0  # how many of the last epochs

    def first_state(self) -> dict:
        return {**super().first_state(), "best": None, "epochs_since": 0, "drops": 0, "used_up": False}

    def drops(self, step: int) -> int:
        return self.state["drops"]

    def nothing_left(self) -> str:
        return super().nothing_left() or "the error has plateaued at the last rate" * self.state["used_up"]

    def take_up(self, rate):
        rising = self.warmup_steps and self.warming_up(self.step)
        if self.state["best"] is None and not rising and not math.isclose(rate, self.warmup_rate or 0, rel_tol=1e-3):
            drops = round(math.log10(self.learning_rate / rate))
            if drops > 0 and math.isclose(rate, self.learning_rate / 10**drops, rel_tol=1e-3):
                self.state["drops"] = drops
        super().take_up(rate)

    def on_epoch_end(self, epoch, logs=None):
        warming_up = self.warming_up(max(self.step - 1, 0))  # the epoch's last iteration
        super().on_epoch_end(epoch, logs)
        state, error = self.state, self._validation_error(logs)
        if warming_up:
            return
        state["epochs_since"] += 1
        if error is None:
            return
        if state["best"] is None or error < state["best"]:
            state["best"], state["epochs_since"] = error, 0
        elif state["epochs_since"] >= self.patience:
            since, state["epochs_since"] = state["epochs_since"], 0
            state["used_up"] = state["drops"] >= self.divisions
            state["drops"] += not state["used_up"]
            self._set_rate()
            self.model.stop_training |= state["used_up"]
            self._say(
                f"step {self.step}: the validation error has not been below {state['best']:.1%} for {since} epochs, "
                + ("at the last rate: the end" if state["used_up"] else f"learning rate -> {self.current_rate:g}")
            )

    def _validation_error(self, logs):
        """None if the epoch was not validated, which `validation_freq` allows, but not for `patience` epochs."""
        if any(name.startswith("val_") for name in logs or {}):
            self.not_validated = 0
            return _logged(logs, "val_error", 'compile the model with a metric named "error"')
        self.not_validated += 1
        message = (
            f'the schedule follows "val_error", and of the last {self.not_validated} epochs none was validated; '
            f"fit with validation_data, and with a validation_freq of at most the patience, {self.patience}"
        )
        if self.not_validated >= self.patience:
            raise ValueError(message)
        if self.state["best"] is None and self.not_validated == 1:
            warnings.warn(message, stacklevel=2)
        return None
