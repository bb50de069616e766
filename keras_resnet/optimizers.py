"""The paper's optimizer and its learning rate, for any Keras backend.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import keras
from keras import ops


def sync_variables(model):
    """Brings the model's variables up to date inside `fit`: on JAX they lag behind, on several devices they differ."""
    for name in ("jax_state_sync", "sync_replicas"):
        getattr(model, name, lambda: None)()


@keras.saving.register_keras_serializable("keras_resnet")
class SGD(keras.optimizers.SGD):
    """SGD with momentum and weight decay inside the gradient, as in P1 3.4 and its Caffe models.

        m = momentum m - learning_rate (gradient + weight_decay w)
        w = w + m

    Keras' own `weight_decay` stands outside the momentum, which makes it 1 / (1 - momentum) = ten times weaker;
    as a regulariser, `L2(weight_decay / 2)` would be right but shows in the loss. All trainable variables decay, but
    those of `exclude_from_weight_decay`.

    Args:
        learning_rate: a float, a schedule or a callable, as in `keras.optimizers.SGD`.
        momentum: in [0, 1].
        weight_decay: not negative; None is 0.
        kwargs: as in `keras.optimizers.SGD`.

    Raises:
        ValueError: `weight_decay` is negative.
    """

    def __init__(self, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, name="sgd", **kwargs):
        super().__init__(learning_rate, momentum, name=name, **kwargs)
        self.coupled_weight_decay = weight_decay or 0.0
        if self.coupled_weight_decay < 0:
            raise ValueError(f"weight_decay is not negative; found {weight_decay}")

    def update_step(self, gradient, variable, learning_rate):
        if self._use_weight_decay(variable):
            decay = ops.cast(self.coupled_weight_decay, variable.dtype)
            gradient = ops.add(gradient, ops.multiply(variable, decay))
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "weight_decay": self.coupled_weight_decay}


def _logged(logs, name, needed):
    if name not in (logs or {}):
        found = ", ".join(logs or {}) or "nothing"
        raise ValueError(f'the schedule follows "{name}", and this epoch logged {found}; {needed}')
    return logs[name]


class StepSchedule(keras.callbacks.Callback):
    """The learning rate by iteration: divided by 10 at each boundary (P1 4.2).

    With `warmup_rate`, the rule of P1 4.2 for 110 layers and more: that rate until the training error of an epoch is
    below `warmup_error`, then the schedule. In the paper that took about 400 iterations, which is one epoch. `state`
    is what a resumed run has to restore. Where gradients are accumulated, an iteration is one batch of those.

    Args:
        learning_rate: the first rate.
        boundaries: iterations at which the rate is divided by 10.
        warmup_rate: None for no warm-up, or the rate to start with.
        warmup_error: in [0, 1].
        steps: None, or the iteration after which training stops.

    The model is to be compiled with a metric named "error" where `warmup_rate` is given.
    """

    def __init__(self, learning_rate=0.1, boundaries=(32_000, 48_000), warmup_rate=None, warmup_error=0.8, steps=None):
        super().__init__()
        self.learning_rate = learning_rate
        self.boundaries = tuple(boundaries)
        self.warmup_rate = warmup_rate
        self.warmup_error = warmup_error
        self.steps = steps
        self.state = {"step": 0, "warm_at_step": None if warmup_rate else 0}

    def rate(self, step):
        """The rate of iteration `step`, counted from 0."""
        if self.state["warm_at_step"] is None:
            return self.warmup_rate
        return self.learning_rate / 10 ** self.drops(step)

    def drops(self, step):
        """How often the rate has been divided by 10 before iteration `step`."""
        return sum(step >= boundary for boundary in self.boundaries)

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        done = int(ops.convert_to_numpy(optimizer.iterations)) * (optimizer.gradient_accumulation_steps or 1)
        self.state["step"] = max(self.state["step"], done)
        self.current_rate = None

    def on_train_batch_begin(self, batch, logs=None):
        if self.current_rate != self.rate(self.state["step"]):
            sync_variables(self.model)
            self.current_rate = self.rate(self.state["step"])
            self.model.optimizer.learning_rate = self.current_rate

    def on_train_batch_end(self, batch, logs=None):
        self.state["step"] += 1
        if self.state["step"] == self.steps:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if self.state["warm_at_step"] is not None:
            return
        error = _logged(logs, "error", "compile the model with a metric of that name")
        if error < self.warmup_error:
            step = self.state["warm_at_step"] = self.state["step"]
            print(
                f"\nstep {step}: training error {error:.1%} is below {self.warmup_error:.0%}, "
                f"learning rate {self.warmup_rate:g} -> {self.rate(step):g}"
            )


class PlateauSchedule(StepSchedule):
    """The learning rate by validation error: divided by 10 when it plateaus (P1 3.4).

    That is, when the best error of all epochs is `patience` epochs old; the paper does not say how it judged.

    Args:
        learning_rate, warmup_rate, warmup_error, steps: as in `StepSchedule`.
        patience: epochs.

    The model is to be compiled with a metric named "error" and fitted with validation data.
    """

    def __init__(self, learning_rate=0.1, warmup_rate=None, warmup_error=0.8, steps=None, patience=5):
        super().__init__(learning_rate, (), warmup_rate, warmup_error, steps)
        self.patience = patience
        self.state |= {"best": None, "epochs_since": 0, "drops": 0}

    def drops(self, step):
        return self.state["drops"]

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        state = self.state
        error = _logged(logs, "val_error", 'compile the model with a metric named "error" and fit with validation_data')
        if state["best"] is None or error < state["best"]:
            state["best"], state["epochs_since"] = error, 0
            return
        state["epochs_since"] += 1
        if state["epochs_since"] == self.patience:
            state["drops"], state["epochs_since"] = state["drops"] + 1, 0
            print(
                f"\nstep {state['step']}: the validation error has not been below {state['best']:.1%} for "
                f"{self.patience} epochs, learning rate -> {self.rate(state['step']):g}"
            )
