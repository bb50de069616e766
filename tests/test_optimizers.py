import keras
import numpy as np
import pytest

from keras_resnet.optimizers import SGD, PlateauSchedule, StepSchedule


def decayed(optimizer, steps=1000):
    """A weight of 1.0 after `steps` steps whose data gradient is zero."""
    weight = keras.Variable(1.0)
    for _ in range(steps):
        optimizer.apply([keras.ops.zeros(())], [weight])
    return float(weight)


def test_weight_decay_is_inside_the_momentum():
    weight, velocity = 1.0, 0.0
    for _ in range(1000):
        velocity = 0.9 * velocity - 0.1 * 1e-4 * weight
        weight = weight + velocity
    assert weight == pytest.approx(0.9056, abs=5e-5)
    assert decayed(SGD(0.1, 0.9, 1e-4)) == pytest.approx(weight, abs=1e-5)
    assert decayed(keras.optimizers.SGD(0.1, 0.9, weight_decay=1e-4)) == pytest.approx(0.9901, abs=5e-5)


def toy(optimizer, regularizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "relu", kernel_regularizer=regularizer, bias_regularizer=regularizer),
            keras.layers.Dense(3, kernel_regularizer=regularizer, bias_regularizer=regularizer),
        ]
    )
    wrong = lambda labels, logits: 1 - keras.metrics.sparse_categorical_accuracy(labels, logits)
    error = keras.metrics.MeanMetricWrapper(wrong, name="error")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=[error])
    return model


def toy_data(n=64):
    x = np.random.default_rng(0).normal(size=(n, 8)).astype("float32")
    return x, x[:, :3].argmax(-1)


def test_equals_half_the_l2_penalty_with_a_pure_loss():
    """The gradient of L2(l) is 2 l w. Ours leaves the loss as it is; theirs adds the penalty to it."""
    ours, theirs = toy(SGD(0.1, 0.9, 1e-2)), toy(keras.optimizers.SGD(0.1, 0.9), keras.regularizers.L2(5e-3))
    x, y = toy_data()
    for model in (ours, theirs):
        model.fit(x, y, epochs=10, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert np.allclose(a, b, atol=1e-5)
    logits = ours.predict(x, verbose=0)
    cross_entropy = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(y)), y]
    assert ours.evaluate(x, y, verbose=0)[0] == pytest.approx(cross_entropy.mean(), rel=1e-4)


def test_config_round_trip():
    copy = SGD.from_config(SGD(0.05, 0.8, 3e-4).get_config())
    assert (float(copy.learning_rate), copy.momentum) == (pytest.approx(0.05), 0.8)
    assert decayed(copy, 50) == pytest.approx(decayed(SGD(0.05, 0.8, 3e-4), 50))


def test_a_compiled_model_opens_again(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(SGD(0.1, weight_decay=3e-4), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    model.save(tmp_path / "m.keras")
    optimizer = keras.saving.load_model(tmp_path / "m.keras").optimizer
    assert type(optimizer) is SGD and optimizer.coupled_weight_decay == 3e-4 and int(optimizer.iterations) == 1


def test_what_is_excluded_does_not_decay():
    gamma, kernel = (keras.Variable(np.ones(3, "float32"), name=name) for name in ("gamma", "kernel"))
    optimizer = SGD(0.1, weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_names=["gamma"])
    zeros = np.zeros(3, "float32")
    optimizer.apply([keras.ops.convert_to_tensor(zeros)] * 2, [gamma, kernel])
    assert np.allclose(gamma, 1) and np.allclose(kernel, 1 - 0.1 * 0.01)
    assert SGD(weight_decay=None).coupled_weight_decay == 0


@pytest.mark.parametrize(
    "schedule, message",
    [
        (StepSchedule(warmup_rate=0.01), 'follows "error", and this epoch logged .*loss.*compile the model'),
        (PlateauSchedule(), 'follows "val_error", .*fit with validation_data'),
    ],
)
def test_a_schedule_says_what_it_needs(schedule, message):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(SGD(0.1), "mse")
    with pytest.raises(ValueError, match=message):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[schedule])


def test_negative_weight_decay():
    with pytest.raises(ValueError, match="found -1"):
        SGD(weight_decay=-1)


class Recorder(keras.callbacks.Callback):
    """The learning rate that each step was made with."""

    def __init__(self, error=None):
        super().__init__()
        self.rates = []
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(round(float(self.model.optimizer.learning_rate), 6))
        self.on_epoch_end(None, logs)

    def on_epoch_end(self, epoch, logs=None):
        if self.error:  # what the schedule, which comes next, is shown
            logs["error"] = self.error(len(self.rates))


def fit(schedule, error=None, epochs=10, initial=None):
    model = toy(SGD(0.5))
    if initial:
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(initial)
    recorder = Recorder(error)
    x, y = toy_data(64 * 16)
    model.fit(x, y, batch_size=16, epochs=epochs, verbose=0, callbacks=[recorder, schedule])
    return recorder.rates


def test_step_schedule():
    assert fit(StepSchedule(0.1, (5, 8), steps=10)) == [0.1] * 5 + [0.01] * 3 + [0.001] * 2


def test_step_schedule_goes_on_from_the_optimizers_iteration():
    assert fit(StepSchedule(0.1, (5, 8), steps=10), initial=4) == [0.1] + [0.01] * 3 + [0.001] * 2


def test_paper_boundaries():
    schedule = StepSchedule()
    assert [schedule.rate(step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_warm_up_ends_when_the_training_error_falls_below_80_percent(capsys):
    schedule = StepSchedule(0.1, (150,), warmup_rate=0.01, steps=160)
    rates = fit(schedule, error=lambda step: 0.8 if step <= 64 else 0.79)  # an epoch has 64 steps
    assert rates == [0.01] * 128 + [0.1] * 22 + [0.01] * 10
    assert schedule.state["warm_at_step"] == 128
    assert "step 128: training error 79.0% is below 80%, learning rate 0.01 -> 0.1" in capsys.readouterr().out


def test_plateau_divides_the_rate_and_remembers():
    """Two epochs without a new best error; the state is all that a new process needs."""
    errors = [0.9, 0.8, 0.85, 0.8, 0.7, 0.7, 0.71, 0.72, 0.72]
    rates, schedule = [], PlateauSchedule(0.1, patience=2)
    for i, error in enumerate(errors):
        if i in (3, 6):  # resumed
            state, schedule = schedule.state, PlateauSchedule(0.1, patience=2)
            schedule.state.update(state)
        schedule.on_epoch_end(i, {"error": 0.5, "val_error": error})
        rates.append(schedule.rate(i))
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_plateau_in_fit():
    model, (x, y) = toy(SGD(0.5)), toy_data()
    recorder = Recorder()
    schedule = PlateauSchedule(1e-9, patience=1, steps=12)  # so slow that no error is ever better
    model.fit(x, y, batch_size=16, epochs=5, verbose=0, callbacks=[recorder, schedule], validation_data=(x, y))
    assert schedule.state["drops"] == 2 and len(recorder.rates) == 12
