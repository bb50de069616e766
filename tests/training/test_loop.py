import contextlib
import csv
import errno
import fcntl
import functools
import gc
import importlib
import json
import math
import os
import shutil
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, randomize
from PIL import Image

import keras_resnet
from keras_resnet import files, schedules
from keras_resnet.data import imagenet, records, shapes, sources
from keras_resnet.data.shards import Shards
from keras_resnet.files import RunError
from keras_resnet.training import Settings, engine, hardware, history, loop, objective, precision, recipes, tasks, train
from keras_resnet.training.folder import CHECKPOINT, Folder
from keras_resnet.training.signals import Stopped

BACKEND = keras.backend.backend()  # test_jax.py runs these tests on JAX
ENGINE = importlib.import_module(engine.ENGINES[BACKEND]).Engine
for_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="that is for TensorFlow")


def fewer_shapes(patch):
    """Nine batches of 16 for training, 32 images for validation, 48 for the test."""
    patch.setattr(sources, "SHAPES_EXAMPLES", {"train": 9 * 16 + 32, "test": 48})
    patch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 32})


@pytest.fixture
def small_shapes(monkeypatch):
    fewer_shapes(monkeypatch)


def settings(folder, **changes):
    defaults = {"depth": 8, "dataset": "shapes", "steps": 24, "batch_size": 16, "lr": 0.01, "checkpoint_every": 5}
    return Settings(**{**defaults, "output": str(folder), "name": "run", **changes})


def rows(folder):
    with open(folder / "run" / "history.csv") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return keras.saving.load_model(folder / "run" / "model.keras").get_weights()


def test_a_run_from_start_to_end(tmp_path, small_shapes, capsys):
    result = train(settings(tmp_path), verbose=0)
    folder = tmp_path / "run"
    assert {
        "args.json",
        "classes.json",
        "data.json",
        "history.csv",
        "curves.png",
        "checkpoint",
        "tensorboard",
        "model.keras",
        "result.json",
    } == set(os.listdir(folder))
    assert json.loads((folder / "args.json").read_text())["depth"] == 8
    assert [(r["epoch"], r["step"]) for r in rows(tmp_path)] == [("1", "9"), ("2", "18"), ("3", "24")]
    assert [float(r["learning_rate"]) for r in rows(tmp_path)] == [0.01, 0.01, 0.0001]  # drops at 12 and 18
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    # The saved model takes pixels and is what was tested.
    source = sources.load("shapes")
    model = keras.saving.load_model(folder / "model.keras")
    probabilities = model.predict(source.test.images, verbose=0)
    assert np.allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert result["test_error"] == pytest.approx((probabilities.argmax(-1) != source.test.labels).mean(), abs=1e-4)
    assert result["parameters"] == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert result["paper_test_error"] is None
    # A finished run is not trained again.
    before = os.path.getmtime(folder / "model.keras")
    assert train(settings(tmp_path), verbose=0) == result
    assert "run is finished; this is its result" in capsys.readouterr().out
    assert os.path.getmtime(folder / "model.keras") == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        fewer_shapes(patch)
        train(settings(folder), verbose=0)
    return folder


slow = pytest.mark.slow


@pytest.mark.parametrize("stop_at", [pytest.param(3, marks=slow), 9, 13, pytest.param(18, marks=slow), 24])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, small_shapes, whole, terminated_at, capsys, stop_at):
    with terminated_at(stop_at), pytest.raises(Stopped, match=f"SIGTERM at step {stop_at}"):
        train(settings(tmp_path / "parts"), verbose=0)
    assert f"resuming from step {stop_at}" not in capsys.readouterr().out
    train(settings(tmp_path / "parts"), verbose=0)
    assert f"resuming from step {stop_at}" in capsys.readouterr().out
    for expected, found in zip(rows(whole), rows(tmp_path / "parts"), strict=True):
        for column in ("epoch", "step", "learning_rate"):
            assert found[column] == expected[column]
        for column in ("loss", "error", "val_loss", "val_error"):
            assert float(found[column]) == pytest.approx(float(expected[column]), abs=2e-3)
    for a, b in zip(weights(whole), weights(tmp_path / "parts"), strict=True):
        assert np.allclose(a, b, rtol=1e-2, atol=1e-3)


def test_a_log_has_a_line_an_epoch_and_more_of_long_ones(tmp_path, small_shapes, monkeypatch, capsys):
    monkeypatch.setattr(history, "LINE_EVERY", -1.0)
    monkeypatch.setattr(loop.Loop, "next_pace", lambda *_: 1)
    train(settings(tmp_path, steps=12, accumulate=2), verbose=2)
    text = capsys.readouterr().out
    assert "\b" not in text and "\x1b" not in text and "\n\n" not in text
    lines = [line for line in text.splitlines() if line.startswith("epoch")]
    ends = [line for line in lines if "val_error" in line]
    row = rows(tmp_path)[1]
    assert [line[:21] for line in ends] == ["epoch 1/2, step 9/12,", "epoch 2/2, step 12/12"]
    for column in ("loss", "error", "val_loss", "val_error"):
        assert f" {column} {float(row[column]):.4f}" in ends[1]
    assert len(lines) == 12 and lines[0].startswith("epoch 1/2, step 1/12,")


def test_a_bar_counts_the_epochs_and_steps_of_the_run(tmp_path, small_shapes, terminated_at, capsys):
    with terminated_at(12), pytest.raises(Stopped):
        train(settings(tmp_path), verbose=1)
    assert capsys.readouterr().out.endswith("\n")
    train(settings(tmp_path), verbose=1)
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("Epoch")] == ["Epoch 2/3", "Epoch 3/3"]
    assert "m6/6" in text.split("Epoch 3/3")[1] and "/9" not in text.split("Epoch 3/3")[1]


def test_epochs_and_boundaries_have_one_unit(tmp_path, small_shapes):
    """An epoch of nine batches of 16, or four of 32, with micro-batches or without."""
    for options, length, divided_at in (
        ({"epochs": 3, "boundaries": (1, 2)}, 27, [9, 18]),
        ({"epochs": 3, "boundaries": (1, 2), "batch_size": 32, "accumulate": 2}, 12, [4, 8]),
        ({"epochs": 2}, 18, [9, 14]),
        ({"steps": 20, "boundaries": (3, 6)}, 20, [3, 6]),
        ({"dataset": str(tmp_path), "depth": 18, "epochs": 2, "boundaries": (1,)}, 18, [9]),
    ):
        found = settings(tmp_path, **{"steps": None, **options})
        rule = objective.schedule_of(found, 9 * 16 + 5)
        rate = lambda step: rule.rate(step, rule.first_state())  # noqa: B023
        assert found.schedule == "steps" and found.length(9 * 16 + 5) == length
        assert [step for step in range(1, length) if rate(step) < rate(step - 1)] == divided_at
    result = train(settings(tmp_path, steps=None, epochs=2, boundaries=(1,)), verbose=0)
    assert result["steps"] == 18 and [r["step"] for r in rows(tmp_path)] == ["9", "18"]
    assert [float(r["learning_rate"]) for r in rows(tmp_path)] == [0.01, 0.001]


def test_a_run_of_a_single_step_has_the_whole_rate(tmp_path, small_shapes):
    assert train(settings(tmp_path, steps=1), verbose=0)["images_per_second"] is None  # its only step was compiled
    assert [float(row["learning_rate"]) for row in rows(tmp_path)] == [0.01]
    assert train(settings(tmp_path / "two", steps=2), verbose=0)["images_per_second"] > 0


def test_epochs_of_a_run_whose_data_have_changed(tmp_path, small_shapes, monkeypatch, terminated_at):
    """Stopped in its second epoch of nine steps, it resumes with epochs of seven, and misses none."""
    with terminated_at(12), pytest.raises(Stopped):
        train(settings(tmp_path), verbose=0)
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 7 * 16 + 32, "test": 48})
    with pytest.raises(RunError, match="has changed since this run began"):
        train(settings(tmp_path), verbose=0)
    train(settings(tmp_path, data_changed=True), verbose=0)
    assert [(row["epoch"], row["step"]) for row in rows(tmp_path)] == [
        ("1", "9"),
        ("2", "14"),
        ("3", "21"),
        ("4", "24"),
    ]
    assert [float(row["learning_rate"]) for row in rows(tmp_path)] == [0.01, 0.01, 0.001, 0.0001]


def test_where_a_run_was_trained_is_kept(tmp_path, small_shapes, terminated_at, monkeypatch):
    """The same circumstances are one segment; others begin a new one at their first step."""
    for stop_at, cores in ((3, 1), (7, 1), (13, 2), (None, 1)):
        monkeypatch.setattr(hardware, "cores_in_words", lambda cores=cores: f"{cores} CPU cores")
        with terminated_at(stop_at), contextlib.suppress(Stopped):
            result = train(settings(tmp_path), verbose=0)
    found = [(one["from"], one["to"], one["devices"]) for one in result["segments"]]
    assert found == [(0, 7, ["1 CPU cores"]), (7, 13, ["2 CPU cores"]), (13, 24, ["1 CPU cores"])]
    assert all(one["backend"] == BACKEND and one["normalized_together"] == 16 for one in result["segments"])


def test_a_run_of_an_older_version_goes_on(tmp_path, small_shapes, terminated_at):
    with terminated_at(3), pytest.raises(Stopped):
        train(settings(tmp_path), verbose=0)
    path = tmp_path / "run" / "args.json"
    old = json.loads(path.read_text())
    for name in ("epochs", "boundaries", "patience", "warmup_epochs", "without"):
        del old[name]
    path.write_text(json.dumps(old))
    with pytest.raises(RunError, match=r"--boundaries +\[\] there, +\[3\] now"):
        train(settings(tmp_path, boundaries=(3,)), verbose=0)
    assert train(settings(tmp_path), verbose=0)["steps"] == 24


def test_a_gradual_warm_up_goes_on_in_its_middle(tmp_path, small_shapes, terminated_at, monkeypatch):
    """Two epochs of nine steps; a learning rate of .04 at a batch of 64 is .01 for 16 images."""
    monkeypatch.setitem(recipes.CIFAR, "batch_size", 4)
    arguments = {"lr": 0.04, "steps": None, "epochs": 4, "boundaries": (3,), "warmup_epochs": 2}
    made, run = [], ENGINE.run

    def record(engine, first, rates):
        made.extend((first + i, round(float(rate), 8)) for i, rate in enumerate(rates))
        return run(engine, first, rates)

    monkeypatch.setattr(ENGINE, "run", record)
    with terminated_at(5), pytest.raises(Stopped):
        train(settings(tmp_path, **arguments), verbose=0)
    assert train(settings(tmp_path, **arguments), verbose=0)["warm_at_step"] == 18
    assert [step for step, _ in made] == [*range(36)]
    for step in range(36):
        rate = 0.01 + 0.03 * step / 18 if step < 18 else 0.04 if step < 27 else 0.004
        assert made[step][1] == pytest.approx(rate, abs=1e-7)


def test_a_plateau_run_ends_when_the_rate_is_used_up(tmp_path, small_shapes, monkeypatch):
    arguments = settings(tmp_path, schedule="plateau", patience=1, steps=500)
    after = schedules.Plateau.after_epoch
    monkeypatch.setattr(schedules.Plateau, "after_epoch", lambda *rest: after(*rest[:-1], 0.9))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):  # just after the end
        patch.setattr(loop, "write_result", lambda *rest: 1 / 0)
        train(arguments, verbose=0)
    result = train(arguments, verbose=0)
    assert result["steps"] == 36 and [r["step"] for r in rows(tmp_path)] == ["9", "18", "27", "36"]
    assert [float(r["learning_rate"]) for r in rows(tmp_path)] == [0.01, 0.01, 0.001, 0.0001]


@pytest.mark.parametrize("classes", [10, 11])
def test_top5_error_beside_the_error_of_more_than_ten_classes(classes):
    outputs = np.random.default_rng(0).normal(size=(200, classes)).astype("float32")
    labels = np.arange(200) % classes
    order = np.argsort(-outputs, axis=1)
    expected = {"error": (order[:, 0] != labels).mean(), "top5_error": (order[:, :5] != labels[:, None]).all(1).mean()}
    found = {name: float(np.mean(one(labels, outputs))) for name, one in objective.errors(classes).items()}
    assert [*found] == (["error", "top5_error"] if classes > 10 else ["error"])
    assert all(found[name] == pytest.approx(expected[name]) for name in found)


def test_a_run_with_many_classes_shows_both_errors(tmp_path, small_shapes, monkeypatch, capsys):
    """Here the ten classes of the shapes count as "many"."""
    monkeypatch.setattr(objective, "TOP5_FROM", 9)
    result = train(settings(tmp_path), verbose=2)
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 3/3")][0]
    row, source = rows(tmp_path)[-1], sources.load("shapes")
    assert "" not in (row["top5_error"], row["val_top5_error"])
    assert f" top5_error {float(row['top5_error']):.4f}" in line and " val_top5_error " in line
    assert [result[f"{part}_top5_error"] for part in ("train", "val")] == [
        float(row["top5_error"]), float(row["val_top5_error"])
    ]  # fmt: skip
    outputs = keras.saving.load_model(tmp_path / "run" / "model.keras").predict(source.test.images, verbose=0)
    among = (np.argsort(-outputs, axis=1)[:, :5] == source.test.labels[:, None]).any(1)
    assert result["test_top5_error"] == pytest.approx(1 - among.mean(), abs=1e-4)


@for_tensorflow
def test_time_that_is_lost_waiting_for_data(tmp_path, small_shapes, monkeypatch):
    """Each batch takes 0.3 s to arrive; a step takes a fraction of that."""
    small_images = tasks.small_images

    def slow(folder):
        task = small_images(folder)

        def training(step, parts):
            wait = lambda *batch: tf.numpy_function(lambda *b: time.sleep(0.3) or b, batch, [b.dtype for b in batch])
            shape = lambda images, labels: (tf.ensure_shape(images, (16, 32, 32, 3)), tf.ensure_shape(labels, (16,)))
            return task.training(step, parts).map(wait).map(shape)

        return task._replace(training=training)

    monkeypatch.setattr(tasks, "small_images", slow)
    result = train(settings(tmp_path, steps=12), verbose=0)
    found = [float(row["waiting"]) for row in rows(tmp_path)]
    assert all(0.5 < share < 1 for share in (*found, result["waiting"]))


def test_a_profile_of_some_steps(tmp_path, small_shapes, monkeypatch):
    with pytest.raises(RunError, match="--profile skips the first 10 steps, and only 10 steps are left"):
        train(settings(tmp_path, steps=10), verbose=0, profile=2)
    with pytest.raises(RunError, match="--profile is a number of steps; found -1"):
        train(settings(tmp_path), verbose=0, profile=-1)
    monkeypatch.setattr(loop.Loop, "next_pace", lambda *_: 1)  # so that it has several spans
    train(settings(tmp_path), verbose=0, profile=2)
    (trace,) = (tmp_path / "run" / "tensorboard" / "train" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert trace.read_bytes().count(b"Conv2DBackpropFilter" if BACKEND == "tensorflow" else b"jit__step")


def test_other_settings_are_refused_with_the_difference(tmp_path, small_shapes):
    train(settings(tmp_path, steps=3), verbose=0)
    with pytest.raises(RunError, match=r"(?s)other settings:.*--lr +0.01 there, +0.02 now.*another --name"):
        train(settings(tmp_path, steps=3, lr=0.02), verbose=0)
    train(settings(tmp_path, steps=3, checkpoint_every=7), verbose=0)  # changes no result


def test_the_same_path_in_other_words_is_no_other_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    one = {"dataset": "images", "init_from": "a.keras", "colors": "c.npz", "image_size": 32}
    (tmp_path / "runs" / "images-resnet-18" / "checkpoint").mkdir(parents=True)
    Folder(Settings(**one)).open()
    (tmp_path / "runs" / "images-resnet-18" / CHECKPOINT).touch()
    again = {name: f"{tmp_path}/{value}" if isinstance(value, str) else value for name, value in one.items()}
    Folder(Settings(**again)).open()
    with pytest.raises(RunError, match=r"other settings:\n  --init-from +a.keras there, +b.keras now\nChoose"):
        Folder(Settings(**{**one, "init_from": "b.keras"})).open()
    with pytest.raises(RunError, match=r"other settings:\n  --colors +c.npz there, +None now\nChoose"):
        Folder(Settings(**{**one, "colors": None})).open()


def test_a_run_from_before_parts_were_a_setting_goes_on_with_the_whole_batch(tmp_path, small_shapes):
    train(settings(tmp_path, steps=3, bn_batch_size=16), verbose=0)
    path = tmp_path / "run" / "args.json"
    path.write_text(json.dumps({n: v for n, v in json.loads(path.read_text()).items() if n != "bn_batch_size"}))
    assert train(settings(tmp_path, steps=3, bn_batch_size=16), verbose=0)["settings"]["bn_batch_size"] == 16
    with pytest.raises(RunError, match="--bn-batch-size +16 there, +8 now"):
        train(settings(tmp_path, steps=3, bn_batch_size=8), verbose=0)


def test_a_run_that_failed_at_once_does_not_keep_its_name(tmp_path, small_shapes):
    output = tmp_path / "x.keras" / "runs"
    with pytest.raises(RunError, match="--batch-size is at most"):
        train(settings(output, batch_size=1000), verbose=0)
    extremes = {"seed": 2**31 - 1, "weight_decay": 0.0}
    assert train(settings(output, steps=3, **extremes), verbose=0)["settings"]["batch_size"] == 16
    assert set(os.listdir(output / "run" / "checkpoint")) == {"latest.npz", "lock", "lock.owner"}


def test_a_folder_that_was_there_stays(tmp_path, small_shapes):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="--batch-size is at most"):
        train(settings(tmp_path, batch_size=1000), verbose=0)
    assert (tmp_path / "run" / "notes.txt").exists()


def test_one_process_at_a_time_trains_a_run(tmp_path, small_shapes, monkeypatch, capsys):
    """Here this process is also the other one; test_fit.py has a second process, test_kills.py killed ones."""
    lock = tmp_path / "run" / "checkpoint" / "lock"
    lock.parent.mkdir(parents=True)
    for name in ("lock", "lock.owner"):  # which mean nothing without a lock
        (lock.parent / name).write_text("PID 1 on elsewhere")
    with files.locked(str(lock)), pytest.raises(RunError, match=f"another process .*, PID {os.getpid()} on .*run"):
        train(settings(tmp_path), verbose=0)
    with pytest.raises(RunError, match="lock/lock cannot be written"), files.locked(str(lock / "lock")):
        pass

    for number in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):  # file systems without locks, or without their server

        def unknown(file, operation, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", unknown)
        with files.locked(str(lock)):
            assert f"lock cannot be locked ({os.strerror(number)}): make sure" in capsys.readouterr().out
    result = train(settings(tmp_path, steps=3), verbose=0)
    assert "lock cannot be locked (No locks available): make sure" in capsys.readouterr().out
    lock.unlink()
    lock.mkdir()
    assert train(settings(tmp_path, steps=3), verbose=0) == result  # what is finished can be read by all


@pytest.fixture
def photographs(tmp_path):
    """An image folder: four classes of 12 drawn images for training and 3 for validation; one more is damaged."""
    images, labels = shapes.draw(60, seed=0, size=48)
    for label in range(4):
        for i, image in enumerate(images[labels == label].repeat(3, 0)[:15]):
            folder = tmp_path / "photographs" / ("val" if i < 3 else "train") / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.jpg")
    (folder / "damaged.jpg").write_bytes(b"nothing")
    return tmp_path / "photographs"


def photograph_settings(folder, photographs, **changes):
    defaults = {"depth": 18, "batch_size": 8, "steps": 8, "image_size": 32, "lr": 0.01, "skip_damaged": True}
    return Settings(**{**defaults, "dataset": str(photographs), "output": str(folder), "name": "run", **changes})


def streams_alive():
    iterator = type(iter(tf.data.Dataset.range(1)))
    return [each for each in gc.get_objects() if isinstance(each, iterator)]


def test_a_folder_of_photographs(tmp_path, photographs):
    gc.collect()
    gc.disable()  # the run itself ends its stream
    try:
        result = train(photograph_settings(tmp_path, photographs), verbose=0)
        assert not streams_alive()
    finally:
        gc.enable()
    assert result["test_error"] is None and 0 <= result["val_error"] <= 1 and result["damaged_files"] == 1
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == [f"class{i}" for i in range(4)]
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert model.input_shape == (None, None, None, 3) and model.output_shape == (None, 4)
    assert [r["step"] for r in rows(tmp_path)] == ["6", "8"]


def test_a_damaged_photograph_is_named(tmp_path, photographs):
    with pytest.raises(sources.DataError, match="damaged.jpg is damaged"):
        train(photograph_settings(tmp_path, photographs, skip_damaged=False), verbose=0)


@pytest.mark.parametrize("verbose", [1, 2])
def test_an_error_stands_in_a_line_of_its_own(tmp_path, photographs, monkeypatch, capsys, verbose):
    """Also a signal that arrives while the colours are measured."""

    def statistics(*arguments, verbose, **options):
        keras.utils.Progbar(2, verbose=verbose).update(1)
        raise sources.DataError

    monkeypatch.setattr(imagenet, "statistics", statistics)
    with pytest.raises(sources.DataError):
        train(photograph_settings(tmp_path, photographs), verbose)
    text = capsys.readouterr().out
    assert text.endswith("\n") and ("1/2" in text) == (verbose == 1)


def test_the_names_of_damaged_files_survive_a_stop(tmp_path, photographs, terminated_at, capsys):
    (photographs / "val" / "class0" / "other.jpg").write_bytes(b"nothing")
    arguments = photograph_settings(tmp_path, photographs, steps=12)
    gc.collect()
    with terminated_at(12), pytest.raises(Stopped) as error:  # no training image is read afterwards
        train(arguments, verbose=0)
    assert error.value.__traceback__ and not streams_alive()  # it holds the engine, but not its stream
    assert train(arguments, verbose=0)["damaged_files"] == 2
    names = (tmp_path / "run" / "damaged.txt").read_text().splitlines()
    assert [os.path.basename(name) for name in sorted(names)] == ["damaged.jpg", "other.jpg"]


def test_a_run_takes_the_advice_to_skip(tmp_path, photographs, terminated_at):
    """A file is damaged while it trains; what was trained did not need to skip it."""
    next(photographs.glob("*/*/damaged.jpg")).unlink()
    arguments = functools.partial(photograph_settings, tmp_path, photographs)
    with terminated_at(3), pytest.raises(Stopped):
        train(arguments(skip_damaged=False), verbose=0)
    (photographs / "val" / "class0" / "0.jpg").write_bytes(b"nothing")
    with pytest.raises(sources.DataError, match=r"(?s)is damaged.*--skip-damaged"):
        train(arguments(skip_damaged=False), verbose=0)
    assert train(arguments(), verbose=0)["damaged_files"] == 1


def test_a_run_goes_on_where_its_images_have_moved(tmp_path, photographs, terminated_at, capsys):
    with terminated_at(3), pytest.raises(Stopped):
        train(photograph_settings(tmp_path, photographs), verbose=0)
    moved = photographs.rename(tmp_path / "moved")
    train(photograph_settings(tmp_path, moved), verbose=0)
    assert "resuming from step 3" in capsys.readouterr().out
    shutil.copytree(moved, tmp_path / "fewer")
    with pytest.raises(RunError, match=r"(?s)other settings:.*--dataset .*/photographs there, .*/fewer now"):
        train(photograph_settings(tmp_path, tmp_path / "fewer"), verbose=0)  # a finished run is not its result
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "fewer" / "train" / "class0" / "5.jpg").unlink()
    with pytest.raises(RunError, match="fewer has changed since this run began"):
        train(photograph_settings(tmp_path, tmp_path / "fewer"), verbose=0)


def test_a_run_without_its_settings_is_not_resumed(tmp_path, small_shapes, terminated_at):
    with terminated_at(3), pytest.raises(Stopped):
        train(settings(tmp_path), verbose=0)
    (tmp_path / "run" / "args.json").unlink()
    before = sorted(os.listdir(tmp_path / "run"))
    with pytest.raises(RunError, match="args.json is missing, and .* holds a run, whose settings are .* not known"):
        train(settings(tmp_path, lr=0.3), verbose=0)
    assert sorted(os.listdir(tmp_path / "run")) == before


def test_a_damaged_result_is_written_again(tmp_path, small_shapes, capsys):
    result = train(settings(tmp_path), verbose=0)
    kept = weights(tmp_path)
    (tmp_path / "run" / "result.json").write_text("{")
    (tmp_path / "run" / "model.keras").unlink()
    with pytest.raises(RunError, match="delete result.json and repeat the run's command"):
        train(settings(tmp_path), verbose=0)
    (tmp_path / "run" / "result.json").unlink()
    assert train(settings(tmp_path), verbose=0) == result
    assert all(np.array_equal(a, b) for a, b in zip(kept, weights(tmp_path), strict=True))


def test_what_killed_writes_have_left_is_removed(tmp_path, small_shapes):
    (tmp_path / "run" / "checkpoint" / "latest.npz.abcd1234").mkdir(parents=True)
    (tmp_path / "run" / "model.keras.abcd1234").mkdir()
    (tmp_path / "run" / "model.keras.own").write_text("a user's file")
    train(settings(tmp_path, steps=3), verbose=0)
    assert {*os.listdir(tmp_path / "run" / "checkpoint")} == {"latest.npz", "lock", "lock.owner"}
    assert {"model.keras", "model.keras.own"} == {n for n in os.listdir(tmp_path / "run") if "model.keras" in n}


def test_a_profile_ends_with_a_run_that_fails(tmp_path, small_shapes, monkeypatch, terminated_at):
    ended = []

    @contextlib.contextmanager
    def profile(self, folder):
        yield
        ended.append(folder)

    monkeypatch.setattr(ENGINE, "profile", profile)
    with terminated_at(12), pytest.raises(Stopped) as kept:
        train(settings(tmp_path), verbose=0, profile=9)
    assert ended and kept  # while the frames of the run are still there


def test_an_accumulating_run_counts_the_optimizers_steps_and_resumes(tmp_path, photographs, terminated_at, capsys):
    arguments = photograph_settings(tmp_path, photographs, accumulate=2, steps=9)
    with terminated_at(3), pytest.raises(Stopped):
        train(arguments, verbose=0)
    train(arguments, verbose=0)
    assert "resuming from step 3" in capsys.readouterr().out
    assert [r["step"] for r in rows(tmp_path)] == ["6", "9"]


def test_parts_of_a_batch_in_turn_are_the_same_epochs_and_images(tmp_path, monkeypatch):
    """An epoch drops its partial batch; micro-batches have all images of a batch, in order."""
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 39 + 32, "test": 48})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 32})
    seen = {}
    for name, accumulate in (("whole", 1), ("parts", 2)):
        arguments = settings(tmp_path, name=name, steps=6, accumulate=accumulate)
        train(arguments, verbose=0)
        batches = tasks.of(Folder(arguments)).training(0, Shards(accumulate, range(accumulate)))
        seen[name] = np.concatenate([labels for _, labels in batches.take(2 * accumulate)])
        with open(tmp_path / name / "history.csv") as file:
            assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6"]
    assert np.array_equal(seen["whole"], seen["parts"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 64}, "--image-size is for ImageNet-style images, not for shapes"),
        ({"accumulate": 3}, "--batch-size must be a multiple of --accumulate; found 16 and 3"),
        (
            {"dataset": str(ROOT), "depth": 20},
            "--depth of networks for ImageNet is one of 18, 34, 50, 101, 152; found 20",
        ),
        (
            {"dataset": str(ROOT), "depth": 50, "plain": True},
            "--depth of networks for ImageNet with --plain is one of 18, 34; found 50",
        ),
        ({"dataset": str(ROOT), "depth": 200}, "found 200; 200 layers need --activation-order full"),
        ({"dataset": str(ROOT), "depth": 18, "stride_in": "1x1"}, "--stride-in is for bottlenecks, .* --depth 18"),
        (
            {"dataset": str(ROOT), "depth": 50, "activation_order": "relu_before_addition"},
            "is original or full_preactivation; found relu_before_addition",
        ),
        ({"depth": 21}, "--depth is 6n.2 with basic blocks; found 21, nearest 20 and 26"),
        ({"steps": 0}, "--steps is positive; found 0"),
        ({"lr": -1.0}, "--lr is positive"),
        ({"lr": math.inf}, "--lr is positive; found inf"),
        ({"lr": math.nan}, "--lr is positive; found nan"),
        ({"weight_decay": math.nan}, "--weight-decay is 0 or positive; found nan"),
        ({"weight_decay": -1.0}, "--weight-decay is 0 or positive; found -1.0"),
        ({"weight_decay": math.inf}, "--weight-decay is 0 or positive; found inf"),
        ({"epochs": 3}, "--epochs 3 and --steps 24 both set the length; give only one"),
        ({"epochs": 0, "steps": None}, "--epochs is positive; found 0"),
        ({"boundaries": (3, 6), "steps": None}, "--boundaries are in epochs with --epochs, in steps with --steps"),
        ({"boundaries": (6, 3)}, "--boundaries ascend and lie within --steps 24; found 6 3"),
        ({"boundaries": (3, 3)}, "--boundaries ascend"),
        ({"boundaries": (0, 3)}, "--boundaries ascend"),
        (
            {"boundaries": (3, 9), "epochs": 9, "steps": None},
            "--boundaries ascend and lie within --epochs 9; found 3 9",
        ),
        ({"boundaries": (3,), "schedule": "plateau"}, "--boundaries are for --schedule steps"),
        ({"patience": 3}, "--patience 3 is for --schedule plateau"),
        ({"patience": 0, "schedule": "plateau"}, "--patience is positive"),
        ({"schedule": "plateau", "train_on_all": True}, "--train-on-all leaves none"),
        ({"warmup_epochs": 1}, "must be below --lr; found 0.08 for --lr 0.01 and --batch-size 16"),
        ({"warmup_epochs": 0}, "--warmup-epochs is positive"),
        ({"warmup_epochs": 1, "warmup": True}, "--warmup and --warmup-epochs are two kinds of warm-up"),
        ({"warmup_epochs": 3, "epochs": 3, "steps": None}, "--warmup-epochs is less than --epochs 3; found 3"),
        ({"warmup_epochs": 20, "batch_size": 144}, "--warmup-epochs 20 is 20 steps, and .* at step 12; give fewer"),
        ({"seed": -1}, "--seed is 0 to 2147483647; found -1"),
        ({"seed": 2**31}, "--seed is 0 to 2147483647; found 2147483648"),
        ({"name": ".."}, "--name is the name of a folder in --output, not a path; found '..'"),
        ({"name": "."}, "--name is the name of a folder"),
        ({"name": "run/"}, "--name is the name of a folder"),
        ({"name": "../../run"}, "--name is the name of a folder"),
        ({"name": "/run"}, "--name is the name of a folder"),
        ({"batch_size": 1000}, "--batch-size is at most the number of training examples, 144; found 1000$"),
    ],
)
def test_settings_out_of_range(tmp_path, small_shapes, changes, message):
    with pytest.raises(RunError, match=message):
        train(settings(tmp_path, **changes), verbose=0)
    assert not os.listdir(tmp_path)


def test_fine_tuning_keeps_frozen_stages_as_they_were(tmp_path, small_shapes):
    pretrained = keras_resnet.CifarResNet(8, classes=7, normalization=(100.0, 50.0))
    randomize(pretrained)
    pretrained.save(tmp_path / "pretrained.keras")
    options = {"steps": 3, "lr": None, "init_from": str(tmp_path / "pretrained.keras")}
    result = train(settings(tmp_path, **options, freeze_until="conv3"), verbose=0)
    assert result["settings"]["lr"] == 0.01
    assert result["paper_test_error"] is None
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert np.allclose(model.get_layer("normalization").offset, -2.0) and len(model.trainable_weights) == 23
    for layer in pretrained.layers:
        now, before = model.get_layer(layer.name).get_weights(), layer.get_weights()
        if layer.name.startswith(("conv1", "conv2", "conv3")):
            assert all(np.array_equal(a, b) for a, b in zip(now, before, strict=True))
        elif layer.name.startswith("conv4") and before:
            assert not np.array_equal(now[0], before[0]) and np.allclose(now[0], before[0], atol=0.1)


def test_weights_that_are_not_finite_are_refused(tmp_path, small_shapes):
    pretrained = keras_resnet.CifarResNet(8)
    pretrained.get_layer("conv3_1_1_bn").moving_variance.assign(np.full(32, np.nan))
    pretrained.save(tmp_path / "pretrained.keras")
    message = "--init-from .*pretrained.keras has weights that are not finite, for example conv3_1_1_bn/moving_variance"
    with pytest.raises(RunError, match=message):
        train(settings(tmp_path, init_from=str(tmp_path / "pretrained.keras")), verbose=0)
    assert os.listdir(tmp_path) == ["pretrained.keras"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"depth": 14},
            "--init-from .*pretrained.keras .* has the network cifar_resnet8, and this run trains cifar_resnet14",
        ),
        ({"freeze_until": "conv5"}, "--freeze-until is one of conv1, conv2, conv3, conv4; found conv5"),
        ({"init_from": "nowhere.pth"}, "--init-from the weights 'nowhere.pth' do not exist"),
        ({"init_from": None, "freeze_until": "conv2"}, "it needs --init-from"),
        ({"init_from": None, "plain": True, "activation_order": "full_preactivation"}, "--plain has no shortcuts"),
        (
            {"init_from": None, "plain": True, "shortcut": "B"},
            "--plain has no shortcuts; found --shortcut B as well",
        ),
    ],
)
def test_fine_tuning_that_cannot_be(tmp_path, small_shapes, changes, message):
    keras_resnet.CifarResNet(8).save(tmp_path / "pretrained.keras")
    options = {"depth": 8, "init_from": str(tmp_path / "pretrained.keras"), **changes}
    with pytest.raises(RunError, match=message):
        train(settings(tmp_path, **options), verbose=0)


@pytest.mark.parametrize("data", [{"dataset": "cifar10"}, {"dataset": "imagenet2012", "depth": 50}])
def test_a_source_of_weights_is_looked_for_before_the_data(tmp_path, data, monkeypatch):
    monkeypatch.setattr(sources, "load", lambda *_: pytest.fail("the data were loaded"))
    monkeypatch.setattr(records, "splits", lambda *_: pytest.fail("the data were loaded"))
    with pytest.raises(RunError, match="the weights 'nowhere.pth' do not exist"):
        train(Settings(**data, output=str(tmp_path), init_from="nowhere.pth"), verbose=0)


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        train(settings(tmp_path / "file"), verbose=0)


def test_a_diverging_run_keeps_its_last_good_checkpoint(tmp_path, small_shapes, monkeypatch):
    with pytest.raises(RunError, match="(?s)diverged at step .*No checkpoint has been written yet.*lower --lr"):
        train(settings(tmp_path, lr=1e30), verbose=0)
    assert not os.path.exists(tmp_path / "run" / "checkpoint" / "latest.npz")

    run = ENGINE.run

    def poisoned(engine, first, rates):
        means = run(engine, first, rates)
        means[np.arange(first, first + len(rates)) == 7, 0] = np.nan
        return means

    monkeypatch.setattr(ENGINE, "run", poisoned)
    with pytest.raises(RunError, match="diverged at step 8: the loss is nan. The checkpoint .* is the last good one"):
        train(settings(tmp_path / "later"), verbose=0)
    with np.load(tmp_path / "later" / "run" / "checkpoint" / "latest.npz") as file:
        assert json.loads(file["state"].tobytes())["step"] == 5


@pytest.mark.parametrize("stop_at", [None, 5, 9])
def test_a_full_disk_is_told_where_no_step_follows(tmp_path, small_shapes, disk, terminated_at, stop_at):
    disk.full = True
    disk.ready.set()
    with terminated_at(stop_at), pytest.raises(RunError, match="latest.npz could not be written: the disk is full"):
        train(settings(tmp_path, steps=10, checkpoint_every=100), verbose=0)
    assert not (tmp_path / "run" / "model.keras").exists()


@pytest.mark.parametrize("loss", [1.0, np.nan])
def test_an_error_beside_the_writing_ends_with_a_whole_file(tmp_path, small_shapes, disk, monkeypatch, loss):
    run = ENGINE.run

    def failing(engine, first, rates):
        if first == 5:
            threading.Timer(0.5, disk.ready.set).start()
            if loss == 1:
                raise ZeroDivisionError
            return np.full((len(rates), 2), loss)
        return run(engine, first, rates)

    monkeypatch.setattr(ENGINE, "run", failing)
    with pytest.raises(ZeroDivisionError if loss == 1 else RunError, match=None if loss == 1 else "is the last good"):
        train(settings(tmp_path), verbose=0)
    with np.load(tmp_path / "run" / "checkpoint" / "latest.npz") as file:
        assert json.loads(file["state"].tobytes())["step"] == 5


@for_tensorflow
def test_steps_whose_gradients_overflow_count_in_the_history(tmp_path, small_shapes, monkeypatch, terminated_at):
    monkeypatch.setattr(precision.LossScaleOptimizer, "check_finite", lambda self, gradients: tf.constant(False))
    with terminated_at(12), pytest.raises(Stopped):
        train(settings(tmp_path, mixed_precision="float16"), verbose=0)
    train(settings(tmp_path, mixed_precision="float16"), verbose=0)
    assert [r["step"] for r in rows(tmp_path)] == ["9", "18", "24"]
