import ast
import copy
import inspect
import json

import keras
import numpy as np
import pytest

from keras_resnet import schedules
from keras_resnet.optimizers import PlateauSchedule, StepSchedule
from keras_resnet.schedules import Plateau, Steps


def test_a_rule_needs_nothing_but_the_standard_library():
    nodes = [*ast.walk(ast.parse(inspect.getsource(schedules)))]
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    assert names == ["dataclasses", "math", "typing"]
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom)]


def test_a_rule_is_a_value():
    assert Steps(0.1, (5, 8)) == Steps(0.1, (5, 8)) != Steps(0.1, (5, 9))
    assert len({Steps(), Steps(0.1, (32_000, 48_000), warmup_rate=None), Plateau(), Plateau(0.1, patience=5)}) == 2
    with pytest.raises(AttributeError):
        Steps().learning_rate = 1.0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Steps(float("nan")), "learning_rate is positive and finite; found nan"),
        (lambda: Steps(warmup_rate=0.0), "warmup_rate is positive and finite; found 0.0"),
        (lambda: Plateau(0.1, warmup_rate=0.01, warmup_steps=0), "warmup_steps is positive and finite; found 0"),
        (lambda: Plateau(warmup_steps=5), "warmup_steps 5 need a warmup_rate to start from"),
        (lambda: Steps(boundaries=(8, 5)), r"boundaries ascend; found \(8, 5\)"),
        (lambda: Steps(1.0, (4,), warmup_rate=0.1, warmup_steps=5), r"come after the 5 warmup_steps; found \(4,\)"),
        (lambda: Plateau(patience=0), "patience is positive and finite; found 0"),
        (lambda: Plateau(divisions=-1), "divisions is not negative and finite; found -1"),
    ],
)
def test_rules_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_at_the_edge_of_their_range():
    assert Steps(0.1, (5, 5), warmup_rate=0.01, warmup_steps=5).boundaries == (5, 5)
    assert Plateau(patience=1, divisions=0).divisions == 0


def test_every_rate_of_the_papers_64_000_iterations():
    """P1 4.2: "a learning rate of 0.1, divide it by 10 at 32k and 48k iterations, and terminate training at 64k"."""
    expected, rate = [], 0.1
    for step in range(64_000):
        if step in (32_000, 48_000):
            rate /= 10
        expected.append(rate)
    rule = Steps()
    found = [rule.rate(step, rule.first_state()) for step in range(64_000)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_every_rate_of_a_gradual_warm_up():
    expected, rate = [], 0.1
    for step in range(60):
        expected.append(rate)
        if step < 10:
            rate += (0.8 - 0.1) / 10
        if step + 1 in (30, 40, 55):
            rate /= 10
    rule = Steps(0.8, (30, 40, 55), warmup_rate=0.1, warmup_steps=10)
    assert [rule.rate(step, rule.first_state()) for step in range(60)] == pytest.approx(expected, rel=1e-12)
    plateau = Plateau(0.8, warmup_rate=0.1, warmup_steps=10)
    assert [plateau.rate(step, plateau.first_state()) for step in range(30)] == pytest.approx(expected[:30], rel=1e-12)


@pytest.mark.parametrize("rule", [Steps(0.1, (350,), warmup_rate=0.01), Plateau(0.1, warmup_rate=0.01)])
def test_the_warm_up_ends_after_the_first_epoch_below_80_percent(rule):
    """P1 4.2: "0.01 to warm up the training until the training error is below 80% (about 400 iterations)"."""
    state, texts, rates = rule.first_state(), [], []
    for epoch, error in enumerate((0.9, 0.8, 0.799, 0.95)):
        rates += [rule.rate(step, state) for step in range(100 * epoch, 100 * epoch + 100)]
        state, text = rule.after_epoch(100 * epoch + 100, state, error, None)
        texts.append(text)
    last = [0.1] * 50 + [0.01] * 50 if isinstance(rule, Steps) else [0.1] * 100
    assert rates == pytest.approx([0.01] * 300 + last, rel=1e-12)
    assert state["warm_at_step"] == 300
    assert texts == ["", "", "step 300: training error 79.9% is below 80%, learning rate 0.01 -> 0.1", ""]
    assert [rule.rate(step, state) for step in (0, 299, 300)] == pytest.approx([0.01, 0.01, 0.1])  # also in hindsight
    assert rule.after_epoch(100, rule.first_state(), float("nan"), None)[0]["warm_at_step"] is None


def followed(rule, epochs, steps=10):
    """(learning rate of the next step, text) after each epoch of `steps` with these errors; the state."""
    state, found = rule.first_state(), []
    for epoch, (error, val_error) in enumerate(epochs, 1):
        before = copy.deepcopy(state)
        new, text = rule.after_epoch(epoch * steps, state, error, val_error)
        assert state == before and new is not state  # nothing is changed, and nothing shared
        state = json.loads(json.dumps(new))
        found.append((float(f"{rule.rate(epoch * steps, state):.4g}"), text))
    return found, state


def test_plateaus():
    """Two epochs without a new best error; an equal error is not better, and epochs without validation count."""
    errors = [0.5, 0.4, 0.4, 0.45, 0.39, None, 0.38, 0.41, None, 0.42, 0.4]
    found, state = followed(Plateau(0.1, patience=2), [(0.5, error) for error in errors])
    assert [rate for rate, _ in found] == [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.001, 0.001]
    assert [(number, text) for number, (_, text) in enumerate(found) if text] == [
        (3, "step 40: the validation error has not been below 40.0% for 2 epochs, learning rate -> 0.01"),
        (9, "step 100: the validation error has not been below 38.0% for 3 epochs, learning rate -> 0.001"),
    ]
    assert state == {"warm_at_step": 0, "best": 0.38, "epochs_since": 1, "drops": 2, "used_up": False}


def test_five_epochs_are_a_plateau_if_nothing_else_is_said():
    found, _ = followed(Plateau(), [(0.5, 0.4)] * 11)
    assert [rate for rate, _ in found] == [0.1] * 5 + [0.01] * 5 + [0.001]


def test_the_plateau_after_the_last_division_is_the_end():
    rule = Plateau(0.1, patience=1, divisions=1)
    assert not rule.finished(rule.first_state())
    found, state = followed(rule, [(0.5, 0.4)] * 2)
    assert found[-1][0] == 0.01 and not rule.finished(state)
    found, state = followed(rule, [(0.5, 0.4)] * 3)
    end = "step 30: the validation error has not been below 40.0% for 1 epochs, at the last learning rate: finished"
    assert found[-1] == (0.01, end) and rule.finished(state) is True and state["drops"] == 1
    assert not Steps().finished(Steps().first_state())
    assert followed(Plateau(0.1, patience=1, divisions=0), [(0.5, 0.4)] * 2)[1]["used_up"]


@pytest.mark.parametrize(
    "warmup_steps, expected",
    [  # the warm-up ends with the second epoch, within it, and with the first one
        (None, {"warm_at_step": 20, "best": 0.5, "drops": 1}),
        (15, {"warm_at_step": 15, "best": 0.2, "drops": 2}),
        (10, {"warm_at_step": 10, "best": 0.2, "drops": 2}),
    ],
)
def test_an_epoch_counts_if_its_last_step_is_after_the_warm_up(warmup_steps, expected):
    rule = Plateau(0.1, warmup_rate=0.05, patience=2, warmup_steps=warmup_steps)
    _, state = followed(rule, [(0.9, 0.1), (0.7, 0.2), (0.7, 0.6), (0.7, 0.5), (0.7, 0.5), (0.7, 0.5)])
    assert state == {**expected, "epochs_since": 0, "used_up": False}


def fit(schedule, epochs):
    """The learning rate of each step, with 8 steps and one of these errors per epoch."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    rates = []

    class Show(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
            logs["error"] = epochs[(len(rates) - 1) // 8][0]

        def on_epoch_end(self, epoch, logs=None):
            error, val_error = epochs[epoch]
            logs.update({"error": error} if val_error is None else {"error": error, "val_error": val_error})

    x = np.ones((32, 2), "float32")
    model.fit(x, x[:, :1], batch_size=4, epochs=len(epochs), verbose=0, callbacks=[Show(), schedule])
    return rates


EPOCHS = [*zip([0.9] + [0.7] * 11, [0.9, 0.8, 0.7, 0.7, None, 0.65, 0.66, 0.66, 0.6, 0.6, 0.6, 0.6], strict=True)]


@pytest.mark.parametrize("warmup", [{}, {"warmup_rate": 0.02}, {"warmup_rate": 0.02, "warmup_steps": 11}])
@pytest.mark.parametrize(
    "rule, callback, options",
    [(Steps, StepSchedule, {"boundaries": (29, 50)}), (Plateau, PlateauSchedule, {"patience": 2, "divisions": 1})],
)
def test_the_callback_has_the_rates_of_its_rule_at_all_steps(rule, callback, options, warmup):
    rule, schedule = rule(0.1, **options, **warmup), callback(0.1, **options, **warmup)
    state, expected = rule.first_state(), []
    for epoch, errors in enumerate(EPOCHS):
        expected += [rule.rate(step, state) for step in range(8 * epoch, 8 * epoch + 8)]
        state, _ = rule.after_epoch(8 * epoch + 8, state, *errors)
        if rule.finished(state):
            break
    assert fit(schedule, EPOCHS) == pytest.approx(expected, rel=1e-6)
    assert rule.finished(state) == isinstance(rule, Plateau) and len(expected) == 8 * (epoch + 1)
    assert schedule.state == {**state, "trained": True} and len(set(expected)) > 1
