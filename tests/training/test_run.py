import concurrent.futures
import contextlib
import csv
import errno
import fcntl
import json
import math
import os
import pathlib
import re
import resource
import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, randomize
from PIL import Image

import keras_resnet
from keras_resnet import files
from keras_resnet.analysis import logits
from keras_resnet.data import records, shapes, sources
from keras_resnet.files import RunError
from keras_resnet.optimizers import PlateauSchedule, StepSchedule
from keras_resnet.training import checkpoint, distribution, history, objective, precision, recipes, run, tasks
from keras_resnet.training.checkpoint import Checkpoint, Stopped, StopSignals
from keras_resnet.training.folder import check_data
from keras_resnet.training.fused import fuse_batch_norm
from keras_resnet.training.run import Settings, train


@pytest.fixture
def small_shapes(monkeypatch):
    """Nine batches of 16 for training, 32 images for validation, 48 for the test."""
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 9 * 16 + 32, "test": 48})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 32})


def settings(folder, **changes):
    defaults = {"depth": 8, "dataset": "shapes", "steps": 24, "batch_size": 16, "lr": 0.01, "checkpoint_every": 5}
    return Settings(**{**defaults, "output": str(folder), "name": "run", **changes})


def rows(folder):
    with open(folder / "run" / "history.csv") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return keras.saving.load_model(folder / "run" / "model.keras").get_weights()


def test_a_run_from_start_to_end(tmp_path, small_shapes):
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
    assert os.path.getmtime(folder / "model.keras") == before


@pytest.mark.parametrize("stop_at", [3, 9, 13, 18, 24])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, small_shapes, terminated_at, capsys, stop_at):
    train(settings(tmp_path / "whole"), verbose=0)

    with terminated_at(stop_at), pytest.raises(Stopped, match=f"SIGTERM at step {stop_at}"):
        train(settings(tmp_path / "parts"), verbose=0)
    assert f"resuming from step {stop_at}" not in capsys.readouterr().out
    train(settings(tmp_path / "parts"), verbose=0)
    assert f"resuming from step {stop_at}" in capsys.readouterr().out
    for whole, parts in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        for column in ("epoch", "step", "learning_rate"):
            assert whole[column] == parts[column]
        for column in ("loss", "error", "val_loss", "val_error"):
            assert float(parts[column]) == pytest.approx(float(whole[column]), abs=2e-3)
    for a, b in zip(weights(tmp_path / "whole"), weights(tmp_path / "parts"), strict=True):
        assert np.allclose(a, b, rtol=1e-2, atol=1e-3)


def test_a_log_has_a_line_an_epoch_and_more_of_long_ones(tmp_path, small_shapes, monkeypatch, capsys):
    monkeypatch.setattr(history, "LINE_EVERY", -1.0)
    train(settings(tmp_path, steps=12, accumulate=2), verbose=2)  # an epoch has 18 parts of a batch
    text = capsys.readouterr().out
    assert "\b" not in text and "\x1b" not in text and "\n\n" not in text
    lines = [line for line in text.splitlines() if line.startswith("epoch")]
    ends = [line for line in lines if "val_error" in line]
    row = rows(tmp_path)[1]
    assert [line[:21] for line in ends] == ["epoch 1/2, step 9/12,", "epoch 2/2, step 12/12"]
    for column in ("loss", "error", "val_loss", "val_error"):
        assert f" {column} {float(row[column]):.4f}" in ends[1]
    assert len(lines) == 2 + 24 and lines[1].startswith("epoch 1/2, step 1/12,")


def test_a_bar_counts_the_epochs_and_steps_of_the_run(tmp_path, small_shapes, terminated_at, capsys):
    with terminated_at(12), pytest.raises(Stopped):
        train(settings(tmp_path), verbose=1)
    assert capsys.readouterr().out.endswith("\n")
    train(settings(tmp_path), verbose=1)
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("Epoch")] == ["Epoch 2/3", "Epoch 3/3"]
    assert "m6/6" in text.split("Epoch 3/3")[1] and "/9" not in text.split("Epoch 3/3")[1]


def test_a_gpu_that_tensorflow_does_not_use_is_told(monkeypatch):
    """Here TensorFlow is asked in earnest, by a driver's program that is none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(distribution.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(distribution.shutil, "which", lambda program: None)
    assert distribution.unused_gpu() is None
    monkeypatch.setattr(distribution.shutil, "which", lambda program: f"/usr/bin/{program}")
    if tf.config.list_physical_devices("GPU"):
        assert distribution.unused_gpu() is None
        return
    if tf.test.is_built_with_cuda():
        assert re.search("(?i)cuda", distribution.unused_gpu()) and "\n" not in distribution.unused_gpu()
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: False)
    assert distribution.unused_gpu() == f"TensorFlow {tf.__version__} is built without CUDA"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert distribution.unused_gpu() is None


LOG = """
I0000 00:00:1.5 1 port.cc:153] oneDNN custom operations are on.
{}W0000 00:00:1.7 1 gpu_device.cc:2365] Cannot dlopen some GPU libraries. Please make sure that they are installed.
Skipping registering GPU devices...
"""
CUINIT = "E0000 00:00:1.6 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: UNKNOWN ERROR (303)\n"


@pytest.mark.parametrize(
    "log, told",
    [
        (LOG.format(""), "Cannot dlopen some GPU libraries. Please make sure that they are installed."),
        (LOG.format(CUINIT), "failed call to cuInit: INTERNAL: CUDA error: UNKNOWN ERROR (303)"),
        ("", "it does not say why"),
    ],
)
def test_the_reason_is_the_log_s_most_serious_line_about_gpus(log, told):
    assert distribution.reason(log) == told


def test_epochs_and_boundaries_have_one_unit(tmp_path, small_shapes):
    """An epoch of nine batches of 16, or of four of 32, in parts or not."""
    for options, length, divided_at in (
        ({"epochs": 3, "boundaries": (1, 2)}, 27, [9, 18]),
        ({"epochs": 3, "boundaries": (1, 2), "batch_size": 32, "accumulate": 2}, 12, [4, 8]),
        ({"epochs": 2}, 18, [9, 14]),
        ({"steps": 20, "boundaries": (3, 6)}, 20, [3, 6]),
        ({"dataset": str(tmp_path), "depth": 18, "epochs": 2, "boundaries": (1,)}, 18, [9]),
    ):
        found = settings(tmp_path, **{"steps": None, **options})
        schedule = run.schedule_of(found, 9 * 16 + 5)
        assert found.schedule == "steps" and found.length(9 * 16 + 5) == length
        assert [step for step in range(1, length) if schedule.rate(step) < schedule.rate(step - 1)] == divided_at
    result = train(settings(tmp_path, steps=None, epochs=2, boundaries=(1,)), verbose=0)
    assert result["steps"] == 18 and [r["step"] for r in rows(tmp_path)] == ["9", "18"]
    assert [float(r["learning_rate"]) for r in rows(tmp_path)] == [0.01, 0.001]


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
    """Two epochs of nine steps; at a batch of 64 with rate .04, that for 16 images would be .01."""
    monkeypatch.setitem(recipes.SMALL_IMAGES, "batch_size", 4)
    arguments = {"lr": 0.04, "steps": None, "epochs": 4, "boundaries": (3,), "warmup_epochs": 2}
    made, set_rate = [], StepSchedule._set_rate

    def record(schedule):
        set_rate(schedule)
        made.append((schedule.step, round(schedule.current_rate, 8)))

    monkeypatch.setattr(StepSchedule, "_set_rate", record)
    with terminated_at(5), pytest.raises(Stopped):
        train(settings(tmp_path, **arguments), verbose=0)
    assert train(settings(tmp_path, **arguments), verbose=0)["warm_at_step"] == 18
    for step in range(36):
        rate = 0.01 + 0.03 * step / 18 if step < 18 else 0.04 if step < 27 else 0.004
        assert {found for at, found in made if at == step} == {round(rate, 8)}


def test_a_plateau_run_ends_when_the_rate_is_used_up(tmp_path, small_shapes, monkeypatch):
    arguments = settings(tmp_path, schedule="plateau", patience=1, steps=500)
    monkeypatch.setattr(PlateauSchedule, "_validation_error", lambda schedule, logs: 0.9)
    finish, killed = run.finish, []
    monkeypatch.setattr(run, "finish", lambda *rest: killed.append(rest) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # just after the end
        train(arguments, verbose=0)
    monkeypatch.setattr(run, "finish", finish)
    result = train(arguments, verbose=0)
    assert result["steps"] == 36 and [r["step"] for r in rows(tmp_path)] == ["9", "18", "27", "36"]
    assert [float(r["learning_rate"]) for r in rows(tmp_path)] == [0.01, 0.01, 0.001, 0.0001]


@pytest.mark.parametrize("classes", [10, 11])
def test_top5_error_beside_the_error_of_more_than_ten_classes(classes):
    outputs = np.random.default_rng(0).normal(size=(200, classes)).astype("float32")
    labels = np.arange(200) % classes
    order = np.argsort(-outputs, axis=1)
    expected = {"error": (order[:, 0] != labels).mean(), "top5_error": (order[:, :5] != labels[:, None]).all(1).mean()}
    model = keras.Sequential([keras.Input((classes,))])
    model.compile(**run.objective(classes))
    found = model.evaluate(outputs, labels, verbose=0, return_dict=True)
    names = ["error", "top5_error"] if classes > 10 else ["error"]
    assert set(found) == {"loss", *names} and all(found[name] == pytest.approx(expected[name]) for name in names)


def test_a_run_with_many_classes_shows_both_errors(tmp_path, small_shapes, monkeypatch, terminated_at, capsys):
    """Here "many" are the ten of the shapes; the run was begun by a version that did not count top 5's."""
    with terminated_at(12), pytest.raises(Stopped):
        train(settings(tmp_path), verbose=0)
    monkeypatch.setattr(objective, "TOP5_FROM", 9)
    capsys.readouterr()
    result = train(settings(tmp_path), verbose=2)
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 3/3")][0]
    row, source = rows(tmp_path)[-1], sources.load("shapes")
    assert "" not in (row["top5_error"], row["val_top5_error"]) and rows(tmp_path)[0]["top5_error"] == ""
    assert f" top5_error {float(row['top5_error']):.4f}" in line and " val_top5_error " in line
    assert [result[f"{part}_top5_error"] for part in ("train", "val")] == [
        float(row["top5_error"]), float(row["val_top5_error"])
    ]  # fmt: skip
    outputs = keras.saving.load_model(tmp_path / "run" / "model.keras").predict(source.test.images, verbose=0)
    among = (np.argsort(-outputs, axis=1)[:, :5] == source.test.labels[:, None]).any(1)
    assert result["test_top5_error"] == pytest.approx(1 - among.mean(), abs=1e-4)


def test_time_that_is_lost_waiting_for_data(tmp_path, small_shapes, monkeypatch):
    """Each batch comes 0.3 s after it was asked for; a step takes a fraction of that."""
    small_images = tasks.small_images

    def slow(settings):
        task = small_images(settings)

        def batches(step):
            wait = lambda *batch: tf.numpy_function(lambda *b: time.sleep(0.3) or b, batch, [b.dtype for b in batch])
            shape = lambda images, labels: (tf.ensure_shape(images, (16, 32, 32, 3)), tf.ensure_shape(labels, (16,)))
            return task.batches(step).map(wait).map(shape)

        return task._replace(batches=batches)

    monkeypatch.setattr(tasks, "small_images", slow)
    result = train(settings(tmp_path, steps=12), verbose=0)
    found = [float(row["waiting"]) for row in rows(tmp_path)]
    assert all(0.5 < share < 1 for share in (*found, result["waiting"]))


def test_a_profile_of_some_steps(tmp_path, small_shapes):
    with pytest.raises(RunError, match="--profile leaves out the first 10 batches, and 10 are left"):
        train(settings(tmp_path, steps=10), verbose=0, profile=2)
    with pytest.raises(RunError, match="--profile is a number of steps; found -1"):
        train(settings(tmp_path), verbose=0, profile=-1)
    train(settings(tmp_path), verbose=0, profile=2)
    (trace,) = (tmp_path / "run" / "tensorboard" / "train" / "plugins" / "profile").glob("*/*.xplane.pb")
    content = trace.read_bytes()
    assert content.count(b"Conv2DBackpropFilter") and content.count(b"Profiled batch")


def test_other_settings_are_refused_with_the_difference(tmp_path, small_shapes):
    train(settings(tmp_path, steps=3), verbose=0)
    with pytest.raises(RunError, match=r"(?s)other settings:.*--lr +0.01 there, +0.02 now.*another --name"):
        train(settings(tmp_path, steps=3, lr=0.02), verbose=0)
    train(settings(tmp_path, steps=3, checkpoint_every=7), verbose=0)  # changes no result


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
    """Here the other one is this process, too; test_fit.py has a real one, and test_kills.py those that were killed."""
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
            assert f"lock cannot be locked ({os.strerror(number)}): no other" in capsys.readouterr().out
    result = train(settings(tmp_path, steps=3), verbose=0)
    assert "lock cannot be locked (No locks available): no other process may" in capsys.readouterr().out
    lock.unlink()
    lock.mkdir()
    assert train(settings(tmp_path, steps=3), verbose=0) == result  # what is finished can be read by all


@pytest.fixture
def photographs(tmp_path):
    """Four classes of 12 drawn photographs to train on and 3 for validation; one more to train on is damaged."""
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


def test_a_folder_of_photographs(tmp_path, photographs):
    result = train(photograph_settings(tmp_path, photographs), verbose=0)
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
    """Also one that comes while the colours are measured."""

    def statistics(*arguments, verbose, **options):
        keras.utils.Progbar(2, verbose=verbose).update(1)
        raise sources.DataError

    monkeypatch.setattr(tasks.imagenet, "statistics", statistics)
    with pytest.raises(sources.DataError):
        train(photograph_settings(tmp_path, photographs), verbose)
    text = capsys.readouterr().out
    assert text.endswith("\n") and ("1/2" in text) == (verbose == 1)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Without batch normalisation, which sees the parts."""
    x, y = np.random.default_rng(0).normal(size=(32, 8)).astype("float32"), np.arange(32) % 3
    weights = []
    for accumulate in (1, 4):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8,))
        model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(16, "relu")(inputs)))
        run.compile_for_training(model, 0.1, 1e-2, accumulate)
        model.fit(x, y, batch_size=8 // accumulate, epochs=3, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for whole, parts in zip(*weights, strict=True):
        assert np.allclose(whole, parts, atol=1e-5)


def test_an_accumulating_run_counts_the_optimizers_steps_and_resumes(tmp_path, photographs, terminated_at, capsys):
    arguments = photograph_settings(tmp_path, photographs, accumulate=2, steps=9)
    with terminated_at(7), pytest.raises(Stopped):  # half-way in the fourth step
        train(arguments, verbose=0)
    train(arguments, verbose=0)
    assert "resuming from step 3" in capsys.readouterr().out
    assert [r["step"] for r in rows(tmp_path)] == ["6", "9"]


def test_parts_of_a_batch_in_turn_are_the_same_epochs_and_images(tmp_path, monkeypatch):
    """Steps end with epochs, whatever is left over; all of a batch's images are in its parts, in their order."""
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 39 + 32, "test": 48})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 32})
    seen = {}
    for name, accumulate in (("whole", 1), ("parts", 2)):
        arguments = settings(tmp_path, name=name, steps=6, accumulate=accumulate)
        train(arguments, verbose=0)
        batches = tasks.small_images(arguments).batches(0)
        seen[name] = np.concatenate([labels for _, labels in batches.take(2 * accumulate)])
        with open(tmp_path / name / "history.csv") as file:
            assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6"]
    assert np.array_equal(seen["whole"], seen["parts"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 64}, "--image-size is for photographs, not for shapes"),
        ({"accumulate": 3}, "--batch-size is a multiple of --accumulate; found 16 and 3"),
        ({"dataset": str(ROOT), "depth": 20}, "--depth is one of 18, 34, 50, 101, 152 here; found 20"),
        ({"dataset": str(ROOT), "depth": 50, "plain": True}, "--depth is one of 18, 34 here; found 50"),
        ({"depth": 21}, "--depth is 6n.2 with basic blocks; found 21, nearest 20 and 26"),
        ({"steps": 0}, "--steps is positive; found 0"),
        ({"lr": -1.0}, "--lr is positive"),
        ({"lr": math.inf}, "--lr is positive; found inf"),
        ({"lr": math.nan}, "--lr is positive; found nan"),
        ({"weight_decay": math.nan}, "--weight-decay is 0 or positive; found nan"),
        ({"weight_decay": -1.0}, "--weight-decay is 0 or positive; found -1.0"),
        ({"weight_decay": math.inf}, "--weight-decay is 0 or positive; found inf"),
        ({"epochs": 3}, "--epochs 3 and --steps 24 are two lengths; give one of them"),
        ({"epochs": 0, "steps": None}, "--epochs is positive; found 0"),
        ({"boundaries": (3, 6), "steps": None}, "--boundaries are epochs with --epochs, and steps with --steps; give"),
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
        ({"warmup_epochs": 1}, "is for larger ones; found --batch-size 16, whose --lr 0.01 is 0.08 there"),
        ({"warmup_epochs": 0}, "--warmup-epochs is positive"),
        ({"warmup_epochs": 1, "warmup": True}, "--warmup and --warmup-epochs are two ways to begin"),
        ({"warmup_epochs": 3, "epochs": 3, "steps": None}, "--warmup-epochs is less than --epochs 3; found 3"),
        ({"warmup_epochs": 20, "batch_size": 144}, "--warmup-epochs 20 are 20 steps, and .* at step 12 already"),
        ({"seed": -1}, "--seed is 0 to 2147483647; found -1"),
        ({"seed": 2**31}, "--seed is 0 to 2147483647; found 2147483648"),
        ({"name": ".."}, "--name is that of one folder, in --output; found '..'"),
        ({"name": "."}, "--name is that of one folder"),
        ({"name": "run/"}, "--name is that of one folder"),
        ({"name": "../../run"}, "--name is that of one folder"),
        ({"name": "/run"}, "--name is that of one folder"),
        ({"batch_size": 1000}, "--batch-size is at most the number of training examples, 144; found 1000"),
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
        ({"init_from": None, "plain": True, "activation_order": "full_preactivation"}, "--plain is without shortcuts"),
        (
            {"init_from": None, "plain": True, "shortcut": "B"},
            "--plain is without shortcuts; found --shortcut B as well",
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
    monkeypatch.setattr(records, "photographs", lambda *_: pytest.fail("the data were loaded"))
    with pytest.raises(RunError, match="the weights 'nowhere.pth' do not exist"):
        train(Settings(**data, output=str(tmp_path), init_from="nowhere.pth"), verbose=0)


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        train(settings(tmp_path / "file"), verbose=0)


def test_a_diverging_run_keeps_its_last_good_checkpoint(tmp_path, small_shapes, monkeypatch):
    with pytest.raises(RunError, match="(?s)diverged at step .*No checkpoint was written yet.*lower --lr"):
        train(settings(tmp_path, lr=1e30), verbose=0)
    assert not os.path.exists(tmp_path / "run" / "checkpoint" / "latest.npz")

    class Poisoner(Checkpoint):
        def on_train_batch_end(self, batch, logs=None):
            logs = {**logs, "loss": np.nan} if self.step == 7 else logs
            super().on_train_batch_end(batch, logs)

    monkeypatch.setattr(run, "Checkpoint", Poisoner)
    with pytest.raises(RunError, match="diverged at step 8: the loss is nan. The checkpoint .* is the last good one"):
        train(settings(tmp_path / "later"), verbose=0)
    with np.load(tmp_path / "later" / "run" / "checkpoint" / "latest.npz") as file:
        assert json.loads(file["state"].tobytes())["step"] == 5


def same(arrays, others):
    return all(np.array_equal(a, b) for a, b in zip(arrays, others, strict=True))


def saved(folder, depth=8, seed=0, model=None, **options):
    """A compiled model with its checkpoint callback, at step 5."""
    keras.utils.set_random_seed(seed)
    model = model or logits(keras_resnet.CifarResNet(depth))
    run.compile_for_training(model, **options)
    callback = Checkpoint(
        str(folder / "latest.npz"), model, every=1, steps_per_epoch=10, steps=20,
        callbacks=[history.History(str(folder), "")], stop=StopSignals(),
    )  # fmt: skip
    callback.step = 5
    return model, callback


def save(callback):
    callback.save()
    callback.wait()


def test_a_damaged_checkpoint_changes_nothing_and_says_so(tmp_path):
    _, writer = saved(tmp_path)
    save(writer)
    good = (tmp_path / "latest.npz").read_bytes()
    model, reader = saved(tmp_path, seed=1)
    before = model.get_weights()
    rng = np.random.default_rng(0)
    cut = [good[: int(part * len(good))] for part in (0, 0.1, 0.5, 0.999)]
    flipped = []
    for position in rng.integers(0, len(good), 40):
        flipped.append(good[:position] + bytes([good[position] ^ 255]) + good[position + 1 :])
    damaged = 0
    for bad in [*cut, *flipped, b"not a checkpoint"]:
        (tmp_path / "latest.npz").write_bytes(bad)
        try:
            reader.restore()
        except RunError as error:
            damaged += 1
            assert "latest.npz" in str(error) and "Delete it" in str(error) and "pickle" not in str(error)
            assert same(before, model.get_weights())
        else:  # a byte that means nothing, such as a file's date
            assert same(writer.model.get_weights(), model.get_weights())
            for variable, value in zip(model.weights, before, strict=True):
                variable.assign(value)
    assert damaged >= 40
    (tmp_path / "latest.npz").write_bytes(good)
    assert reader.restore() == 5
    assert same(writer.model.get_weights(), model.get_weights())


@pytest.mark.parametrize(
    "path, lacks",
    [
        (("step",), "'step'"),
        (("metrics",), "'metrics'"),
        (("callbacks",), "'callbacks'"),
        (("callbacks", "History"), "'History'"),
        (("callbacks", "History", "rows"), "History.rows"),
        (("callbacks", "History", "waited"), None),  # which those of older versions do not have
    ],
)
def test_a_checkpoint_whose_state_lacks_something(tmp_path, path, lacks):
    _, writer = saved(tmp_path)
    save(writer)
    with np.load(tmp_path / "latest.npz") as file:
        arrays = dict(file)
    state = json.loads(arrays["state"].tobytes())
    inner = state
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    np.savez(tmp_path / "latest.npz", **arrays | {"state": np.frombuffer(json.dumps(state).encode(), "uint8")})
    model, reader = saved(tmp_path, seed=1)
    before = model.get_weights()
    if lacks is None:
        assert reader.restore() == 5
        return
    with pytest.raises(RunError, match=f"latest.npz is damaged: it.* lacks {lacks}. Delete it") as error:
        reader.restore()
    assert same(before, model.get_weights()) and "\n" not in str(error.value)


@pytest.mark.parametrize("state", [b"[1, 2]", b"", b'{"step": 5, "metrics": 0, "callbacks": {"History": 3}}'])
def test_a_checkpoint_whose_state_is_another(tmp_path, state):
    _, writer = saved(tmp_path)
    save(writer)
    with np.load(tmp_path / "latest.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "latest.npz", **arrays | {"state": np.frombuffer(state, "uint8")})
    with pytest.raises(RunError, match="latest.npz is damaged: .* Delete it to start from the beginning"):
        saved(tmp_path)[1].restore()


@pytest.mark.parametrize("content", ["[1, 2]", "", "\x89"])
def test_damaged_digests_of_the_data(tmp_path, content):
    chosen = settings(tmp_path)
    (tmp_path / "run").mkdir()
    check_data(chosen, {"train": "5, 0123"})
    (tmp_path / "run" / "data.json").write_text(content)
    with pytest.raises(RunError, match="data.json is damaged: .* Delete it to go on with the data as they are"):
        check_data(chosen, {"train": "5, 0123"})


def test_a_checkpoint_of_another_network(tmp_path):
    save(saved(tmp_path)[1])
    with pytest.raises(RunError, match="is of another network; for example"):
        saved(tmp_path, depth=14)[1].restore()


@pytest.fixture
def full_disk():
    """A context within which no file may become larger than 1,000 bytes, as on a full disk."""

    @contextlib.contextmanager
    def full():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


def test_a_file_is_written_whole_or_not_at_all(tmp_path, full_disk):
    path = tmp_path / "file.txt"
    files.write_whole(str(path), lambda file: file.write(b"good"))
    (tmp_path / "link").symlink_to(path)
    files.write_whole(str(tmp_path / "link"), lambda file: file.write(b"better"))
    assert (tmp_path / "link").is_symlink() and path.read_bytes() == b"better"
    with full_disk(), pytest.raises(RunError, match="file.txt could not be written: .*File too large"):
        files.write_whole(str(path), lambda file: file.write(b"bad" * 1000))
    with pytest.raises(ZeroDivisionError):
        files.write_whole(str(path), lambda file: file.write(b"bad") / 0)
    assert path.read_bytes() == b"better" and set(os.listdir(tmp_path)) == {"file.txt", "link"}
    with pytest.raises(RunError, match="/dev/full could not be written: .*No space left on device"):
        files.write_whole("/dev/full", lambda file: file.write(b"bad"))
    files.write_whole(os.devnull, lambda file: file.write(b"bad"))
    assert not os.path.isfile(os.devnull)


def test_a_model_on_a_full_disk_leaves_the_last_one(tmp_path, full_disk):
    path = tmp_path / "a.keras" / "model.keras"
    path.parent.mkdir()
    with files.whole(str(path)) as temporary:
        keras_resnet.CifarResNet(8, classes=3).save(temporary)
    other = keras_resnet.CifarResNet(8, classes=4)
    with full_disk(), pytest.raises(RunError, match="model.keras could not"), files.whole(str(path)) as temporary:
        other.save(temporary)
    assert keras.saving.load_model(path).output_shape == (None, 3) and os.listdir(path.parent) == ["model.keras"]


VARIABLES = [
    {"mixed_precision": "float16"},
    {"accumulate": 2},
    {"mixed_precision": "float16", "accumulate": 2},
    {"shortcut_variant": "dropout"},
]


@pytest.mark.parametrize("options", VARIABLES, ids=lambda options: "-".join(map(str, options.values())))
def test_the_second_model_of_a_process_has_the_names_of_the_first(tmp_path, options):
    names = []
    for _ in range(2):
        network = keras_resnet.CifarResNet(8, shortcut_variant=options.get("shortcut_variant"))
        compiled = {name: value for name, value in options.items() if name != "shortcut_variant"}
        callback = saved(tmp_path, model=logits(network), **compiled)[1]
        names.append(list(callback.variables()))
        assert len(names[-1]) == len({id(v) for v in [*callback.model.variables, *callback.model.optimizer.variables]})
    assert names[0] == names[1]


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    model, callback = saved(tmp_path)
    save(callback)
    model.get_layer("fc").bias.assign([np.nan] * 10)
    with pytest.raises(RunError, match="model/fc/bias is not finite"):
        callback.save()
    assert saved(tmp_path)[1].restore() == 5


@pytest.fixture
def disk(monkeypatch):
    """A disk on which checkpoints are written when its `ready` is set, one at a time, and not when it is `full`."""

    class Disk:
        def __init__(self):
            self.ready, self.full, self.busy, self.written = threading.Event(), False, False, []

        def write_whole(self, path, write):
            assert not self.busy
            self.busy = True
            assert self.ready.wait(10)
            self.busy = False
            if self.full:
                raise RunError(f"{path} could not be written: the disk is full")
            write_whole(path, write)
            self.written.append(pathlib.Path(path).read_bytes())

    disk, write_whole = Disk(), files.write_whole
    monkeypatch.setattr(checkpoint, "write_whole", disk.write_whole)
    yield disk
    disk.ready.set()


def test_a_checkpoint_does_not_wait_for_the_disk(tmp_path, disk):
    """What is written is the run as it was. Who saves again waits: there is one writer at a time."""
    model, callback = saved(tmp_path)
    callback.every, before = 100, model.get_weights()
    callback.save()
    for variable in model.variables:
        variable.assign(variable + 1)
    callback.on_train_batch_begin(0)
    callback.on_train_batch_end(0, {"loss": 1.0})
    assert callback.step == 6 and not (tmp_path / "latest.npz").exists()
    again = threading.Thread(target=callback.save)
    again.start()
    again.join(0.3)
    assert again.is_alive()
    disk.ready.set()
    again.join()
    callback.wait()
    other, reader = saved(tmp_path, seed=1)
    for step, content, weights in zip((5, 6), disk.written, (before, model.get_weights()), strict=True):
        (tmp_path / "latest.npz").write_bytes(content)
        assert reader.restore() == step
        assert same(weights, other.get_weights())


def test_a_full_disk_is_told_at_the_next_step(tmp_path, disk):
    callback = saved(tmp_path)[1]
    callback.every, disk.full = 100, True
    callback.save()
    callback.on_train_batch_begin(0)
    callback.on_train_batch_end(0, {"loss": 1.0})
    disk.ready.set()
    concurrent.futures.wait([callback.writing])
    callback.on_train_batch_begin(1)
    with pytest.raises(RunError, match="the disk is full"):
        callback.on_train_batch_end(1, {"loss": 1.0})


@pytest.mark.parametrize("stop_at", [None, 5, 9])
def test_a_full_disk_is_told_where_no_step_follows(tmp_path, small_shapes, disk, terminated_at, stop_at):
    disk.full = True
    disk.ready.set()
    with terminated_at(stop_at), pytest.raises(RunError, match="latest.npz could not be written: the disk is full"):
        train(settings(tmp_path, steps=10, checkpoint_every=100), verbose=0)
    assert not (tmp_path / "run" / "model.keras").exists()


@pytest.mark.parametrize("loss", [1.0, np.nan])
def test_an_error_beside_the_writing_ends_with_a_whole_file(tmp_path, small_shapes, disk, monkeypatch, loss):
    class Failing(Checkpoint):
        def on_train_batch_end(self, batch, logs=None):
            if self.step == 5:
                threading.Timer(0.5, disk.ready.set).start()
                super().on_train_batch_end(batch, {"loss": loss})
                raise ZeroDivisionError
            super().on_train_batch_end(batch, logs)

    monkeypatch.setattr(run, "Checkpoint", Failing)
    with pytest.raises(ZeroDivisionError if loss == 1 else RunError, match=None if loss == 1 else "is the last good"):
        train(settings(tmp_path), verbose=0)
    with np.load(tmp_path / "run" / "checkpoint" / "latest.npz") as file:
        assert json.loads(file["state"].tobytes())["step"] == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_is_noted_and_a_second_one_does_as_usual(number, ignored):
    """Whether or not the process that runs the tests ignores SIGINT, as one in the background of a script does."""

    class Usual(Exception):
        pass

    def usual(number, frame):
        raise Usual

    before = signal.signal(number, signal.SIG_IGN if ignored else usual)
    try:
        with StopSignals() as stop:
            signal.raise_signal(number)
            assert stop.received == (None if ignored else number)
            with contextlib.nullcontext() if ignored else pytest.raises(Usual):
                signal.raise_signal(number)
        assert signal.getsignal(number) is (signal.SIG_IGN if ignored else usual)
    finally:
        signal.signal(number, before)


def test_steps_whose_gradients_overflow_count_in_the_history(tmp_path, small_shapes, monkeypatch, terminated_at):
    monkeypatch.setattr(precision.LossScaleOptimizer, "check_finite", lambda self, gradients: tf.constant(False))
    with terminated_at(12), pytest.raises(Stopped):
        train(settings(tmp_path, mixed_precision="float16"), verbose=0)
    train(settings(tmp_path, mixed_precision="float16"), verbose=0)
    assert [r["step"] for r in rows(tmp_path)] == ["9", "18", "24"]


def test_fused_batch_normalisation_is_keras_own():
    """Outputs, gradients and moving statistics, in training and in inference."""
    x = np.random.default_rng(0).normal(3, 2, (4, 8, 8, 16)).astype("float32")
    results = []
    for fused in (False, True):
        layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        model = keras.Sequential([keras.Input((8, 8, 16)), layer])
        layer.gamma.assign(np.linspace(0.5, 2, 16))
        layer.beta.assign(np.linspace(-1, 1, 16))
        if fused:
            fuse_batch_norm(model)
            assert layer.call.__func__ is not keras.layers.BatchNormalization.call
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            outputs = model(inputs, training=True)
            loss = tf.reduce_sum(outputs**3)
        gradients = tape.gradient(loss, [inputs, *variables])
        results.append([outputs, *gradients, *layer.get_weights(), model(x, training=False)])
    for stock, fused in zip(*results, strict=True):
        assert np.allclose(stock, fused, rtol=1e-3, atol=2e-3)
    assert np.allclose(results[0][-2], results[1][-2], rtol=1e-6)  # the moving variance is the biased one


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("jit, known", [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("size", [(6, 5, 5), (1, 1, 1)])
def test_fused_moving_averages_are_keras_own(size, jit, known, policy):
    """After three steps, in 16 bits too, of a batch whose size is known to the graph or not, and of a single pixel."""
    x = np.random.default_rng(0).normal(3, 2, (3, *size, 16)).astype("float32")
    found = []
    for fused in (False, True):
        layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=policy)
        model = keras.Sequential([keras.Input((None, None, 16)), layer])
        if fused:
            fuse_batch_norm(model)
        shape = [*size, 16] if known else [None, None, None, 16]
        step = tf.function(lambda x, model=model: model(x, training=True), [tf.TensorSpec(shape)], jit_compile=jit)
        outputs = [step(part) for part in x]
        found.append([*outputs, *layer.get_weights()])
    *outputs, gamma, beta, mean, variance = zip(*found, strict=True)
    tolerance = 1e-5 if policy == "float32" else 0.05
    assert all(np.allclose(*pair, rtol=tolerance, atol=tolerance) for pair in outputs)
    assert np.allclose(*mean, rtol=1e-6) and np.allclose(*variance, rtol=1e-5)


def test_curves_of_one_and_many_epochs(tmp_path):
    row = {"step": 100, "error": 0.5, "val_error": 0.6}
    history.draw([row], "one", tmp_path / "one.png", test_error=0.7)
    history.draw([{**row, "step": 100 * i} for i in range(1, 40)], "many", tmp_path / "many.png")
    history.draw([{"step": 1, "error": 0.5}], "no validation", tmp_path / "none.png")
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize("last, drawn, label", [(50, 50, "iterations"), (4000, 4, "iterations (thousands)")])
def test_the_axis_of_a_short_run_counts_single_steps(last, drawn, label):
    row = {"step": last // 2, "error": 0.5}
    (axes,) = history._draw_curves([row, {**row, "step": last}], "title", None).axes
    assert axes.get_xlabel() == label and axes.lines[0].get_xdata().tolist() == [drawn / 2, drawn]


def test_durations():
    assert [history.clock(seconds) for seconds in (56.4, 3599.7, 36000)] == ["0:00:56", "1:00:00", "10:00:00"]
