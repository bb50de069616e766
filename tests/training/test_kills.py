"""Crash recovery: runs that are killed at any moment end with the same result, bit for bit."""

import contextlib
import csv
import glob
import json
import multiprocessing
import os
import signal
import time

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet.data import shapes, sources
from keras_resnet.training import Settings, engine, loop, train
from keras_resnet.training.folder import CHECKPOINT, RESULT
from keras_resnet.training.signals import Stopped

# Processes that have imported everything before they are asked for.
context = multiprocessing.get_context("forkserver")
BACKEND = keras.backend.backend()  # test_jax.py runs these tests on JAX
context.set_forkserver_preload(["keras_resnet.training.loop", engine.ENGINES[BACKEND]])

SHAPES = {"dataset": "shapes", "depth": 8, "batch_size": 16, "steps": 210, "checkpoint_every": 7, "warmup": True}
PHOTOGRAPHS = {"depth": 18, "batch_size": 8, "steps": 20, "checkpoint_every": 1, "image_size": 32, "lr": 0.01}

TIMES = ("seconds", "waiting")  # columns that differ from run to run


@pytest.fixture
def photographs(tmp_path):
    """An image folder: four classes of 9 drawn images for training and 3 for validation."""
    images, labels = shapes.draw(120, seed=0, size=48)
    for label in range(4):
        for i, image in enumerate(images[labels == label][:12]):
            folder = tmp_path / "photographs" / ("val" if i < 3 else "train") / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.jpg")
    return str(tmp_path / "photographs")


def train_whole(settings):
    """Trains a run, on fewer drawn images. For a process."""
    sources.SHAPES_EXAMPLES, sources.VALIDATION_EXAMPLES = {"train": 1_664, "test": 32}, {"shapes": 64}
    train(settings, 0)


def start(settings):
    process = context.Process(target=train_whole, args=(settings,))
    process.start()
    return process


def finish(settings):
    process = start(settings)
    process.join(600)
    assert process.exitcode == 0


def modified(path):
    return os.stat(path).st_mtime_ns if os.path.exists(path) else None


def kill(settings, rng, early):
    """Resumes a run and kills it at a random moment; returns when, or None if it finished before.

    "start": before it saved anything, if `early`. "write": while a checkpoint is being written.
    """
    path = os.path.join(settings.folder, CHECKPOINT)
    before, process = modified(path), start(settings)
    while not early and process.is_alive() and modified(path) == before:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 4 if early else 1))
    process.kill()
    process.join()
    if os.path.exists(os.path.join(settings.folder, RESULT)):
        return None
    if modified(path) == before:
        return "start"
    return "write" if glob.glob(f"{glob.escape(path)}.*") else "step"


def left(settings):
    """The files of a run, except the times in them: weights, state and history."""
    with np.load(os.path.join(settings.folder, CHECKPOINT)) as file:
        arrays = {name: file[name] for name in file.files}
    state = json.loads(arrays.pop("state").tobytes())
    history, _ = state.pop("history"), state.pop("segments")
    with open(os.path.join(settings.folder, "history.csv")) as file:
        table = [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in history["rows"]]
    with open(os.path.join(settings.folder, RESULT)) as file:
        result = {name: value for name, value in json.load(file).items() if name.endswith("error")}
    return arrays, (state, rows, table, result)


def train_small(runs, stop_at=None):
    """Trains one run after the other on few images, each until a SIGTERM in its step `stop_at`. For a process."""

    def one_step(running, count, seconds):
        if running.state.step + count == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return 1

    loop.Loop.next_pace = one_step
    sources.SHAPES_EXAMPLES, sources.VALIDATION_EXAMPLES = {"train": 80, "test": 16}, {"shapes": 16}
    for settings in runs:
        with contextlib.suppress(Stopped):
            train(settings, 0)


def same(settings, expected):
    """Whether two runs have left the same files, bit for bit."""
    arrays, rest = left(settings)
    assert rest == expected[1]
    assert arrays.keys() == expected[0].keys()
    for name, array in arrays.items():
        assert array.tobytes() == expected[0][name].tobytes(), name


def survive(tmp_path, kills, **options):
    """Kills runs repeatedly, and compares each finished one with an uninterrupted run."""
    rng, always = np.random.default_rng(0), {"deterministic": BACKEND == "tensorflow", "output": str(tmp_path)}
    options |= always
    alone = Settings(**options, name="alone")
    finish(alone)
    expected = left(alone)
    counts, number = {"start": 0, "step": 0, "write": 0}, 0
    while sum(counts.values()) < kills:
        killed, number = Settings(**options, name=f"killed{number}"), number + 1
        while sum(counts.values()) < kills:
            how = kill(killed, rng, early=sum(counts.values()) % 5 == 4)
            if how is None:
                break
            counts[how] += 1
        finish(killed)
        same(killed, expected)
    print("kills survived:", ", ".join(f"{count} in a {when}" for when, count in counts.items()))
    return counts


def test_a_killed_run(tmp_path):
    counts = survive(tmp_path, 2, **SHAPES)
    assert not counts["start"]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="that is for TensorFlow")
def test_the_second_run_of_a_process_goes_on_in_another(tmp_path):
    """With all settings that create variables, whose numbers in Keras differ from process to process."""
    options = {**SHAPES, "batch_size": 16, "steps": 6, "mixed_precision": "float16", "accumulate": 2}
    options |= {"shortcut_variant": "dropout", "deterministic": True, "output": str(tmp_path)}
    alone, first, second = (Settings(**options, name=name) for name in ("alone", "first", "second"))
    for arguments in ([alone],), ([first, second], 5), ([second],):
        process = context.Process(target=train_small, args=arguments)
        process.start()
        process.join(600)
        assert process.exitcode == 0
    same(second, left(alone))


@pytest.mark.slow
def test_a_run_killed_often(tmp_path):
    survive(tmp_path, 60, **{**SHAPES, "checkpoint_every": 1})


@pytest.mark.slow
def test_a_run_on_photographs_killed_often(tmp_path, photographs):
    counts = survive(tmp_path, 60, dataset=photographs, **PHOTOGRAPHS)
    assert counts["write"]
