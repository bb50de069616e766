import math
import subprocess
import sys
import warnings

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
    # Keras' own. In float32 each step rounds by up to 2^-25, and on PyTorch its factor 1 - 1e-5 as well.
    theirs = decayed(keras.optimizers.SGD(0.1, 0.9, weight_decay=1e-4))
    assert theirs == pytest.approx((1 - 0.1 * 1e-4) ** 1000, abs=1000 * 2**-24)


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
    """The gradient of L2(l) is 2 l w. Weight decay leaves the loss unchanged; the regulariser adds a penalty."""
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
    assert type(optimizer) is SGD and optimizer.weight_decay == 3e-4 and int(optimizer.iterations) == 1
    alone = f"import keras, keras_resnet; print(keras.saving.load_model({str(tmp_path / 'm.keras')!r}).optimizer)"
    found = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
    assert "keras_resnet.optimizers.SGD" in found.stdout


def test_weight_decay_reads_sets_and_saves_as_what_it_does():
    optimizer = SGD(0.1, weight_decay=3e-4)
    assert optimizer.weight_decay == optimizer.get_config()["weight_decay"] == 3e-4
    optimizer.weight_decay = 0.01
    assert optimizer.get_config()["weight_decay"] == 0.01
    assert decayed(optimizer, 50) == decayed(SGD(0.1, weight_decay=0.01), 50) != decayed(SGD(0.1), 50)
    optimizer.weight_decay = None
    assert optimizer.weight_decay == SGD(weight_decay=None).get_config()["weight_decay"] == 0
    assert decayed(SGD(0.1, weight_decay=None)) == 1


def test_what_is_excluded_does_not_decay():
    gamma, kernel = (keras.Variable(np.ones(3, "float32"), name=name) for name in ("gamma", "kernel"))
    optimizer = SGD(0.1, weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_names=["gamma"])
    zeros = np.zeros(3, "float32")
    optimizer.apply([keras.ops.convert_to_tensor(zeros)] * 2, [gamma, kernel])
    assert np.allclose(gamma, 1) and np.allclose(kernel, 1 - 0.1 * 0.01)


@pytest.mark.parametrize(
    "schedule, message",
    [
        (StepSchedule(warmup_rate=0.01), 'needs "error", but this epoch logged .*loss.*compile the model'),
        (PlateauSchedule(patience=1), 'needs "val_error", .*fit with validation_data'),
    ],
)
def test_a_schedule_says_what_it_needs(schedule, message):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(SGD(0.1), "mse")
    with pytest.raises(ValueError, match=message):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[schedule])


def fused(optimizer):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("that is for TensorFlow")
    from keras_resnet.training.fused import fuse_update

    fuse_update(optimizer)
    return optimizer


@pytest.mark.parametrize(
    "options, wrapper, jit",  # compilers of graphs may round otherwise, TensorFlow's own within a condition
    [
        ({}, None, False),
        ({}, None, True),
        ({"weight_decay": None, "nesterov": True, "clipnorm": 0.5}, None, False),
        ({"weight_decay": 0.1, "gradient_accumulation_steps": 3}, None, False),
        ({"weight_decay": 0.1, "use_ema": True}, "ours", False),
        ({"weight_decay": 0.1, "momentum": 0.0}, "Keras", False),
    ],
)
def test_the_fused_update_is_keras_own(options, wrapper, jit):
    weights = []
    for fuse in (fused, lambda optimizer: optimizer):
        optimizer = SGD(0.1, **options)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        model = toy(wrapped(fuse(optimizer), wrapper, 2.0))
        model.compile(model.optimizer, model.loss, jit_compile=jit)
        fit(StepSchedule(0.1, (5, 8)), model=model, epochs=2, examples=256)
        weights.append([*model.get_weights(), *(variable.numpy() for variable in model.optimizer.variables)])
    for ours, theirs in zip(*weights, strict=True):
        exact = not jit and "gradient_accumulation_steps" not in options
        assert np.array_equal(ours, theirs) if exact else np.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("number", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("argument", ["learning_rate", "momentum", "weight_decay"])
def test_numbers_that_are_none(argument, number):
    with pytest.raises(ValueError, match=f"{argument} .*found {number}"):
        SGD(**{argument: number})
    with pytest.raises(ValueError, match=f"found {number}"):
        SGD().weight_decay = number


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: StepSchedule(math.nan), "learning_rate is positive and finite; found nan"),
        (lambda: StepSchedule(warmup_rate=0.0), "warmup_rate is positive"),
        (lambda: StepSchedule(steps=0), "steps is positive"),
        (lambda: StepSchedule(boundaries=(8, 5)), r"boundaries ascend; found \(8, 5\)"),
        (lambda: PlateauSchedule(patience=0), "patience is positive"),
        (lambda: PlateauSchedule(divisions=-1), "divisions is not negative"),
        (lambda: StepSchedule(warmup_steps=5), "warmup_steps 5 need a warmup_rate to start from"),
        (lambda: StepSchedule(warmup_rate=0.01, warmup_steps=0), "warmup_steps is positive"),
        (
            lambda: StepSchedule(0.1, (4, 8), warmup_rate=0.01, warmup_steps=5),
            r"boundaries come after the 5 warmup_steps; found \(4, 8\)",
        ),
    ],
)
def test_schedules_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Recorder(keras.callbacks.Callback):
    """The learning rate of each execution."""

    def __init__(self, error=None, stop_at=None):
        super().__init__()
        self.rates = []
        self.error = error
        self.stop_at = stop_at

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(f"{float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)):.4g}"))
        if len(self.rates) == self.stop_at:
            raise KeyboardInterrupt
        if self.error:
            logs["error"] = self.error(len(self.rates))

    def on_epoch_end(self, epoch, logs=None):
        if self.error:  # what the schedule, which comes next, is shown
            logs["error"] = self.error(len(self.rates))


def fit(schedule, error=None, epochs=10, model=None, examples=64 * 16, before=(), behind=(), stop_at=None, **options):
    """The learning rate of each execution; 64 steps per epoch by default."""
    recorder, (x, y) = Recorder(error, stop_at), toy_data(examples)
    callbacks = [recorder, *before, schedule, *behind]
    options = {"verbose": 0, **options}
    try:
        (model or toy(SGD(0.5))).fit(x, y, batch_size=16, epochs=epochs, callbacks=callbacks, **options)
    except KeyboardInterrupt:
        assert len(recorder.rates) == stop_at
    return recorder.rates


def made(model):
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def toy_after(iterations):
    model = toy(SGD(0.5))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(iterations)
    return model


def test_step_schedule():
    assert fit(StepSchedule(0.1, (5, 8), steps=10)) == [0.1] * 5 + [0.01] * 3 + [0.001] * 2


def test_step_schedule_goes_on_from_the_optimizers_iteration():
    model = toy_after(4)
    assert fit(StepSchedule(0.1, (5, 8), steps=10), model=model) == [0.1] + [0.01] * 3 + [0.001] * 2
    assert made(model) == 10


def test_a_schedule_that_is_done_trains_nothing(capsys):
    schedule, model = StepSchedule(0.1, (5, 8), steps=10), toy_after(10)
    before = model.get_weights()
    assert fit(schedule, model=model, verbose=2) == []
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert "nothing left to train: the optimizer has made 10 iterations of 10" in capsys.readouterr().out
    assert len(fit(StepSchedule(0.1, (5, 8)), epochs=1, model=model)) == 64  # another goes on
    assert fit(schedule, model=model) == []  # and beyond the end, too


def executions(n):
    if keras.backend.backend() == "torch":
        pytest.skip("Keras has none on PyTorch")
    model = toy(SGD(0.5))
    model.compile(model.optimizer, model.loss, steps_per_execution=n)
    return model


def test_executions_of_several_steps(recwarn):
    model = executions(4)
    assert fit(StepSchedule(0.1, (8, 12), steps=20), model=model) == [0.1] * 2 + [0.01] + [0.001] * 2
    assert made(model) == 20
    # An epoch of 5 steps has an execution of 4 and one of 1.
    model = executions(4)
    assert fit(StepSchedule(0.1, (5,), steps=9), model=model, examples=5 * 16) == [0.1] * 2 + [0.01]
    assert made(model) == 9
    assert not [warning for warning in recwarn if "schedule" in str(warning.message)]


def test_what_an_execution_passes_is_told():
    model = executions(4)
    with pytest.warns(UserWarning, match="took effect late") as warnings:
        assert fit(StepSchedule(0.1, (6, 12), steps=15), model=model) == [0.1] * 2 + [0.01] + [0.001]
    found = [str(warning.message) for warning in warnings if "schedule" in str(warning.message)]
    assert ["iteration 6 of" in found[0], "at 8;" in found[0]] == [True, True]
    assert ["iteration 15 of" in found[1], "at 16;" in found[1]] == [True, True]
    assert len(found) == 2 and made(model) == 16


def wrapped(optimizer, wrapper, scale):
    if wrapper == "Keras":
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=scale)
    if wrapper == "ours":
        if keras.backend.backend() != "tensorflow":
            pytest.skip("that is for TensorFlow")
        from keras_resnet.training.precision import LossScaleOptimizer

        return LossScaleOptimizer(optimizer, initial_scale=scale)
    return optimizer


@pytest.mark.parametrize("wrapper", [None, "Keras", "ours"])
def test_accumulated_gradients(wrapper):
    model = toy(wrapped(SGD(0.5, gradient_accumulation_steps=4), wrapper, 2.0))
    assert fit(StepSchedule(0.1, (2, 3), steps=5), model=model) == [0.1] * 8 + [0.01] * 4 + [0.001] * 8
    assert made(model) == 5
    model = toy(wrapped(SGD(0.5, gradient_accumulation_steps=4), wrapper, 2.0))
    fit(StepSchedule(0.1, (2, 3)), model=model, stop_at=6)  # within the second iteration
    assert fit(StepSchedule(0.1, (2, 3), steps=5), model=model) == [0.1] * 2 + [0.01] * 4 + [0.001] * 8


@pytest.mark.parametrize("wrapper", ["Keras", "ours"])
def test_steps_that_are_left_out_do_not_count(wrapper):
    optimizer = wrapped(SGD(0.5), wrapper, 2.0**127)
    model = toy(optimizer)
    model.compile(optimizer, model.loss, loss_weights=8.0)  # so that the first ones overflow
    schedule, so_far = StepSchedule(0.1, (5, 8), steps=10), [0]

    def count(batch, logs):
        getattr(model, "jax_state_sync", lambda: None)()
        so_far.append(made(model))

    rates = fit(schedule, model=model, before=[keras.callbacks.LambdaCallback(on_train_batch_end=count)])
    assert made(model) == 10 and len(rates) > 11
    assert rates == pytest.approx([schedule.rate(iteration) for iteration in so_far[:-1]])


def test_the_optimizer_is_asked_only_when_it_matters(monkeypatch):
    """Reading its iterations waits for the device."""
    asked, ask = [], StepSchedule._ask
    monkeypatch.setattr(StepSchedule, "_ask", lambda schedule: asked.append(schedule.step) or ask(schedule))
    fit(StepSchedule(0.1, (100, 150), steps=160))
    assert asked == [0, 0, 64, 100, 128, 150, 160]


def test_another_model_starts_at_the_beginning():
    schedule, error = StepSchedule(0.1, (150,), warmup_rate=0.01, steps=160), lambda step: 0.5
    first = fit(schedule, error)
    assert first == [0.01] * 64 + [0.1] * 86 + [0.01] * 10
    assert fit(schedule, error) == first  # as in cross-validation
    model = toy(SGD(0.5))
    assert fit(schedule, error, model=model) == first
    model.compile(SGD(0.5), model.loss)
    assert fit(schedule, error, model=model) == first  # the same model, compiled again
    plateau = PlateauSchedule(0.1, patience=1)
    for _ in range(2):
        assert fit(plateau, epochs=1, validation_data=toy_data()) == [0.1] * 64
        plateau.state["drops"] = 1


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("stopped, boundary", [(70, 80), (140, 80), (140, 128)])
def test_backup_and_restore(tmp_path, place, stopped, boundary):
    """A fit continues after the last complete epoch, in a new process, too; the first epoch ends the warm-up."""
    expected = fit(StepSchedule(0.1, (boundary, 150), warmup_rate=0.01, steps=160), lambda step: 0.5)
    for again in (False, True):
        schedule = StepSchedule(0.1, (boundary, 150), warmup_rate=0.01, steps=160)
        backup = {place: [keras.callbacks.BackupAndRestore(tmp_path)]}
        stop_at = None if again else stopped
        rates = fit(schedule, lambda step: 0.5, **backup, stop_at=stop_at)
        assert rates == (expected[stopped // 64 * 64 :] if again else expected[:stopped])


def test_a_state_that_was_restored_is_believed():
    """The warm-up's learning rate may be one of the schedule's, so the optimizer's does not determine the state."""
    model = toy_after(64)
    model.optimizer.learning_rate = 0.01
    schedule = StepSchedule(0.1, (40, 100), warmup_rate=0.01, steps=128)
    schedule.state.update({"trained": True, "warm_at_step": None})
    assert fit(schedule, lambda step: 0.9, model=model) == [0.01] * 64
    model = toy_after(64)
    model.optimizer.learning_rate = 0.01
    assert fit(StepSchedule(0.1, (40, 100), warmup_rate=0.01, steps=128), lambda step: 0.9, model=model)[-1] < 0.002


def test_backup_and_restore_of_a_plateau(tmp_path):
    x, y = toy_data()
    for last in (False, True):
        schedule = PlateauSchedule(1e-5, patience=1, steps=None if last else 10_000)  # too slow for a better error
        model = toy_after(0)
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        rates = fit(schedule, model=model, epochs=4, behind=[backup], validation_data=(x, y), examples=64,
                    stop_at=None if last else 13)  # fmt: skip
        assert rates == [1e-7] * 4 if last else [1e-5] * 8 + [1e-6] * 4 + [1e-7]


def test_paper_boundaries():
    schedule = StepSchedule()
    assert [schedule.rate(step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


@pytest.mark.parametrize("verbose", [0, 2])
def test_warm_up_ends_when_the_training_error_falls_below_80_percent(capsys, verbose):
    schedule = StepSchedule(0.1, (150,), warmup_rate=0.01, steps=160)
    rates = fit(schedule, error=lambda step: 0.8 if step <= 64 else 0.79, verbose=verbose)  # an epoch has 64 steps
    assert rates == [0.01] * 128 + [0.1] * 22 + [0.01] * 10
    assert schedule.state["warm_at_step"] == 128
    told = "step 128: training error 79.0% is below 80%, learning rate 0.01 -> 0.1" in capsys.readouterr().out
    assert told == bool(verbose)


def test_gradual_warm_up_of_goyal_et_al():
    """2.2: from .1 to 3.2 in five epochs of 156 iterations, linearly; then divided at epochs 30, 60 and 80 of 90."""
    schedule = StepSchedule(3.2, (4680, 9360, 12480), warmup_rate=0.1, warmup_steps=780)
    rates = np.array([schedule.rate(step) for step in range(14_040)])
    expected = np.full(14_040, 3.2)
    expected[:780] = np.linspace(0.1, 3.2, 781)[:-1]
    for boundary in (4680, 9360, 12480):
        expected[boundary:] /= 10
    assert np.allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("batches", [1, 3])
def test_gradual_warm_up_in_fit_goes_on_where_the_optimizer_is(batches):
    """Also if an iteration is several batches and the first fit stopped within one."""
    make = lambda: StepSchedule(1.0, (8,), warmup_rate=0.2, warmup_steps=4, steps=10)
    expected = np.repeat([0.2, 0.4, 0.6, 0.8, *[1.0] * 4, *[0.1] * 2], batches).tolist()
    options = {"gradient_accumulation_steps": batches} if batches > 1 else {}
    assert fit(make(), model=toy(SGD(0.5, **options))) == expected
    for stop_at in (1, 3, 3 * batches + 1):
        model = toy(SGD(0.5, **options))
        fit(make(), model=model, stop_at=stop_at)
        assert fit(make(), model=model) == expected[stop_at:]


def test_the_gradual_warm_up_is_no_plateau_either():
    """Its learning rates may be tenths of the first one, and its errors do not count as best errors."""
    schedule, rates = PlateauSchedule(0.1, warmup_rate=0.01, warmup_steps=8, patience=1), []
    errors = iter([0.1, 0.1, 0.9, 0.9, 0.8])
    show = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_error=next(errors)))
    rates = fit(schedule, model=toy_after(0), epochs=5, examples=64, before=[show])
    assert rates[8:] == [0.1] * 8 + [0.01] * 4 and schedule.state["drops"] == 1
    model = toy_after(2)
    model.optimizer.learning_rate = 0.01  # as behind BackupAndRestore
    schedule = PlateauSchedule(0.1, warmup_rate=0.001, warmup_steps=11)
    fit(schedule, model=model, epochs=1, examples=64, validation_data=toy_data())
    assert schedule.state["drops"] == 0


def test_the_plateau_behind_the_last_division_ends_the_training(capsys):
    model = toy(SGD(0.5))
    schedule = PlateauSchedule(1e-9, patience=2, divisions=2)  # so slow that no error is ever better
    options = {"model": model, "examples": 64, "validation_data": toy_data(), "verbose": 2}
    rates = fit(schedule, epochs=50, **options)
    assert rates == [1e-9] * 12 + [1e-10] * 8 + [1e-11] * 8
    assert "for 2 epochs, at the last learning rate: finished" in capsys.readouterr().out
    again = PlateauSchedule(1e-9, patience=2, divisions=2)
    again.state.update(schedule.state)
    assert fit(again, epochs=50, **options) == []
    assert "nothing left to train: the error has plateaued at the last learning rate" in capsys.readouterr().out


def plateau(errors, model=None, **options):
    """The learning rates after epochs with these validation errors; None for an epoch without validation."""
    schedule, rates = PlateauSchedule(0.1, **options), []
    schedule.set_model(model or toy_after(0))
    for epoch, error in enumerate(errors):
        state, schedule = schedule.state, PlateauSchedule(0.1, **options)  # resumed after each epoch
        schedule.state.update(state)
        schedule.set_model(model or toy_after(0))
        logs = {"error": error if error else 0.9}
        schedule.on_epoch_end(epoch, logs if error is None else {**logs, "val_error": error})
        rates.append(float(f"{schedule.rate(0):.4g}"))
    return rates


def test_plateau_divides_the_rate_and_remembers():
    """Two epochs without a new best error; a new process needs only the state."""
    errors = [0.9, 0.8, 0.85, 0.8, 0.7, 0.7, 0.71, 0.72, 0.72]
    assert plateau(errors, patience=2) == [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001, 0.0001]


def test_the_warm_up_is_no_plateau():
    """Its error is not a best error either: at ten times the learning rate the next may be worse at first."""
    assert plateau([0.9] * 6 + [0.7], warmup_rate=0.01, patience=2) == [0.01] * 6 + [0.1]
    errors = [0.9, 0.6, 0.85, 0.84, 0.83, 0.83, 0.83]
    assert plateau(errors, warmup_rate=0.01, patience=2) == [0.01] + [0.1] * 5 + [0.01]


def test_epochs_without_validation_only_make_the_best_error_older():
    assert plateau([0.9, None, 0.8, None, 0.8, None, 0.7], patience=2) == [0.1] * 4 + [0.01] * 3
    assert plateau([0.9, None, 0.9, None, 0.9], patience=3) == [0.1] * 4 + [0.01]
    with pytest.warns(UserWarning, match="none of the last 1 epochs was validated; fit with validation_data"):
        model, schedule = toy(SGD(0.5)), PlateauSchedule(1e-9, patience=2)
        options = {"validation_data": toy_data(), "validation_freq": 2}
        fit(schedule, model=model, epochs=6, examples=64, **options)
    assert schedule.state["drops"] == 2 and schedule.current_rate == pytest.approx(1e-11)
    none = "none of the last [12] epochs was validated; .*at most the patience, 2"
    with pytest.warns(UserWarning, match=none), pytest.raises(ValueError, match=none):
        fit(PlateauSchedule(patience=2), model=model, epochs=6, examples=64)


@pytest.mark.parametrize("verbose", [0, 2])
def test_plateau_in_fit(capsys, verbose):
    model, (x, y) = toy(SGD(0.5)), toy_data()
    recorder = Recorder()
    schedule = PlateauSchedule(1e-9, patience=1, steps=12)  # so slow that no error is ever better
    options = {"validation_data": (x, y), "callbacks": [recorder, schedule], "verbose": verbose}
    model.fit(x, y, batch_size=16, epochs=5, **options)
    assert schedule.state["drops"] == 2 and len(recorder.rates) == 12
    assert ("for 1 epochs, learning rate -> 1e-10" in capsys.readouterr().out) == bool(verbose)


class Sets(keras.callbacks.Callback):
    """Sets the learning rate when the batch with this number begins."""

    def __init__(self, rate, batch):
        super().__init__()
        self.rate = rate
        self.batch = batch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            self.model.optimizer.learning_rate = self.rate


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    "other, at",
    [
        (lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.05), "0.05"),
        (lambda: keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=1e9, min_lr=1e-9), "0.05"),
        (lambda: PlateauSchedule(0.02), "0.02"),
        (lambda: Sets(0.03, batch=50), "0.03"),
    ],
)
def test_something_else_that_sets_the_rate_is_told_once(place, other, at):
    """Before the next epoch, or at the next boundary."""
    validation = {"validation_data": toy_data()} if at == "0.02" else {}
    model = toy(SGD(0.5))
    with pytest.warns(UserWarning, match="learning rate to .*remove one of them") as found:
        fit(StepSchedule(0.1, (200,)), lambda step: 0.5, 4, model, **{place: [other()]}, **validation)
    told = [str(warning.message) for warning in found if "has set the learning rate" in str(warning.message)]
    first, second = ("0.02", "0.1") if (place, at) == ("before", "0.02") else ("0.1", at)  # of two, the first one tells
    assert len(told) == 1 and f"to {first}, but now it is {second}:" in told[0]


def test_a_rate_that_was_set_between_fits_is_no_conflict(tmp_path):
    """Neither are a restored learning rate, a division, a warm-up and a wrapped optimizer."""
    model = toy(keras.optimizers.LossScaleOptimizer(SGD(0.5), initial_scale=1.0))
    schedule = StepSchedule(0.1, (80, 100, 140), warmup_rate=0.01, steps=300)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for rate in (0.3, 0.7):
            model.optimizer.learning_rate = rate
            behind = [keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)]
            fit(schedule, lambda step: 0.5, 2, model, behind=behind)
        plateau = PlateauSchedule(0.1, patience=1)
        fit(plateau, lambda step: 0.5, 4, model=toy(SGD(0.5)), validation_data=toy_data())
    assert made(model) >= 128


def test_two_schedules_of_one_rate_are_refused():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)), "mse")
    with pytest.raises(ValueError, match="StepSchedule sets the learning rate, but this optimizer has"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0, callbacks=[StepSchedule(0.1, (3,))])
