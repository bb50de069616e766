"""The paper's learning-rate schedules without Keras: the learning rate of each step, and how errors change it.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385). A rule is immutable. Its state, a dict that can
be written as JSON, holds what training has shown so far; the methods take a state and return a new one.
"""

import dataclasses
import math
import typing

State: typing.TypeAlias = dict[str, typing.Any]


def check_number(name: str, value: float, zero: bool = False) -> None:
    """ValueError if a number is out of range or nan."""
    if not (0 < value < math.inf or (zero and value == 0)):
        raise ValueError(f"{name} is {'not negative' if zero else 'positive'} and finite; found {value}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What `Steps` and `Plateau` share: a warm-up, and after it a learning rate that is divided by 10.

    With `warmup_rate`, the rule of P1 4.2 for 110 layers and more: this learning rate until the training error of an
    epoch is below `warmup_error`, then the schedule. In the paper this took about 400 iterations, which is one epoch.

    With `warmup_steps` as well, the gradual warm-up of Goyal et al. (arXiv 1706.02677, 2.2) for large batches: the
    learning rate grows linearly from `warmup_rate`, theirs for a batch of 256, over these iterations.
    """

    learning_rate: float = 0.1  # the first one after the warm-up
    _: dataclasses.KW_ONLY
    warmup_rate: float | None = None  # None for no warm-up, or the first learning rate
    warmup_error: float = 0.8  # in [0, 1]
    warmup_steps: int | None = None  # None, or the iterations over which it grows to `learning_rate`

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup_rate", "warmup_steps"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.warmup_steps and self.warmup_rate is None:
            raise ValueError(f"warmup_steps {self.warmup_steps} need a warmup_rate to start from")

    def first_state(self) -> State:
        """The state before training. "warm_at_step" is the first iteration after the warm-up, None if unknown."""
        return {"warm_at_step": 0 if self.warmup_rate is None else self.warmup_steps}

    def warming_up(self, step: int, state: State) -> bool:
        """Whether iteration `step` belongs to the warm-up."""
        return state["warm_at_step"] is None or step < state["warm_at_step"]

    def drops(self, step: int, state: State) -> int:
        """How often the learning rate has been divided by 10 before iteration `step`."""
        raise NotImplementedError

    def rate(self, step: int, state: State) -> float:
        """The learning rate of iteration `step`, counted from 0."""
        if self.warmup_rate is not None and self.warming_up(step, state):
            rise = step / self.warmup_steps if self.warmup_steps else 0
            return self.warmup_rate + (self.learning_rate - self.warmup_rate) * rise
        return self.learning_rate / 10 ** self.drops(step, state)

    def after_epoch(self, step: int, state: State, error: float, val_error: float | None) -> tuple[State, str]:
        """The state after an epoch that ends after `step` iterations, and a sentence about the change, or "".

        `error` is the epoch's training error, in [0, 1], and `val_error` its validation error, or None.
        """
        if state["warm_at_step"] is not None or not error < self.warmup_error:
            return dict(state), ""
        new = {**state, "warm_at_step": step}
        rates = f"learning rate {self.warmup_rate:g} -> {self.rate(step, new):g}"
        return new, f"step {step}: training error {error:.1%} is below {self.warmup_error:.0%}, {rates}"

    def finished(self, state: State) -> bool:
        """Whether the schedule is finished: at the plateau after the last division."""
        return state.get("used_up", False)


@dataclasses.dataclass(frozen=True)
class Steps(Rule):
    """Divides the learning rate by 10 at each of the `boundaries`, ascending numbers of iterations (P1 4.2).

    The other arguments are those of `Rule`. ValueError if one is out of range.
    """

    boundaries: tuple[int, ...] = (32_000, 48_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.boundaries) != sorted(self.boundaries):
            raise ValueError(f"boundaries ascend; found {self.boundaries}")
        if self.boundaries and self.boundaries[0] < (self.warmup_steps or 0):
            raise ValueError(f"boundaries come after the {self.warmup_steps} warmup_steps; found {self.boundaries}")

    def drops(self, step: int, state: State) -> int:
        return sum(step >= boundary for boundary in self.boundaries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plateau(Rule):
    """Divides the learning rate by 10 when the validation error plateaus (P1 3.4).

    That is, when the best error of all epochs is `patience` epochs old; the paper does not state its criterion. Epochs
    of the warm-up do not count; epochs without validation count towards `patience` but set no best error. The other
    arguments are those of `Rule`. ValueError if one is out of range.
    """

    patience: int = 5
    divisions: int | None = None  # None, or how often the rate is divided; training ends at the next plateau

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("patience", self.patience)
        check_number("divisions", self.divisions or 0, zero=True)

    def first_state(self) -> State:
        return {**super().first_state(), "best": None, "epochs_since": 0, "drops": 0, "used_up": False}

    def drops(self, step: int, state: State) -> int:
        return state["drops"]

    def after_epoch(self, step: int, state: State, error: float, val_error: float | None) -> tuple[State, str]:
        if self.warming_up(max(step - 1, 0), state):  # the epoch's last iteration
            return super().after_epoch(step, state, error, val_error)
        since, best = state["epochs_since"] + 1, state["best"]
        if val_error is not None and (best is None or val_error < best):
            return {**state, "best": val_error, "epochs_since": 0}, ""
        if val_error is None or since < self.patience:
            return {**state, "epochs_since": since}, ""
        used_up = self.divisions is not None and state["drops"] >= self.divisions
        new = {**state, "epochs_since": 0, "drops": state["drops"] + (not used_up), "used_up": used_up}
        then = "at the last learning rate: finished" if used_up else f"learning rate -> {self.rate(step, new):g}"
        return new, f"step {step}: the validation error has not been below {best:.1%} for {since} epochs, {then}"
