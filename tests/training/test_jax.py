"""Training with JAX: each step against that of TensorFlow, and the run as a user sees it."""

import csv
import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, WITHOUT_TENSORFLOW, write_cifar10

import keras_resnet
from keras_resnet import evaluation
from keras_resnet.data import cifar, shapes, sources
from keras_resnet.experiments import experiments
from keras_resnet.training import run
from keras_resnet.training.settings import Settings
from keras_resnet.weights import published

pytest.importorskip("jax", reason="jax is not installed")

STEPS, BATCH = 3, 32
TRAIN = """
import sys
import keras, keras_resnet, numpy as np
from keras_resnet.data import sources
from keras_resnet.optimizers import SGD
from keras_resnet.training.on_jax import Trainer, augment
from keras_resnet.training.settings import Settings

folder, parts = sys.argv[1], int(sys.argv[2])
data = np.load(f"{folder}/data.npz")
source = sources.load("shapes")
network = keras_resnet.CifarResNet(8, normalization=(sources.per_pixel_mean(source.train.images), 1.0))
network.load_weights(f"{folder}/initial.weights.h5")
model = keras.Model(network.input, network.get_layer("fc").output)
model.compile(SGD(0.1))
model.optimizer.build(model.trainable_variables)
trainer = Trainer(model, parts, source.train, sources.per_pixel_mean(source.train.images))
logs = trainer.run(data["order"], data["draws"], data["rates"], len(data["order"]))
found = {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}
batch = data["order"][0]
np.savez(
    f"{folder}/{parts}.npz",
    crops=augment(source.train.images[batch], trainer.mean, data["draws"][batch]),
    logs=[logs["loss"], logs["error"]],
    iterations=model.optimizer.iterations,
    **found,
)
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A function from the number of parts to what JAX finds in three steps; and TensorFlow's, in two parts."""
    folder = tmp_path_factory.mktemp("steps")
    source = sources.load("shapes")
    mean = sources.per_pixel_mean(source.train.images)
    settings = Settings(depth=8, dataset="shapes", batch_size=BATCH, bn_batch_size=BATCH // 2)
    network = keras_resnet.CifarResNet(8, normalization=(mean, 1.0))
    network.save_weights(folder / "initial.weights.h5")
    trained = run.training_model(settings, network, replicas=1)
    run.compile_for_training(trained, 0.1)
    n, rates = len(source.train.labels), [0.02, 0.01, 0.02]
    # The random numbers of data.cifar for epoch 0, as that module documents and computes them.
    order_seed, draw_seed = tf.unstack(tf.random.split([0, 0], 2))
    order = tf.random.experimental.stateless_shuffle(tf.range(n), order_seed).numpy()
    draws = tf.random.stateless_uniform((n, 3), draw_seed).numpy()
    draws = np.stack([*(draws[:, :2] * 9).astype("int32").T, draws[:, 2] < 0.5], 1).astype("int32")
    batches = list(cifar.training_batches(source.train, mean, batch_size=BATCH, seed=0).take(STEPS))
    order = order[: STEPS * BATCH].reshape(STEPS, BATCH)
    np.savez(folder / "data.npz", order=order, draws=draws, rates=np.array(rates, "float32"))
    losses = []
    for rate, (images, labels) in zip(rates, batches, strict=True):
        trained.optimizer.learning_rate = rate
        losses.append(trained.train_on_batch(images, labels, return_dict=True)["loss"])
        trained.reset_metrics()
    weights = {variable.path: keras.ops.convert_to_numpy(variable) for variable in network.weights}

    def train(parts):
        environment = os.environ | {"KERAS_BACKEND": "jax"}
        subprocess.run([sys.executable, "-c", TRAIN, folder, str(parts)], check=True, env=environment)
        return dict(np.load(folder / f"{parts}.npz"))

    return train, {"crops": batches[0][0].numpy(), "loss": np.mean(losses), "weights": weights}


def distance(found, expected):
    return max(abs(found[path] - expected[path]).max() / abs(expected[path]).max() for path in expected)


def test_steps_are_those_of_tensorflow(steps):
    train, expected = steps
    found = train(2)
    np.testing.assert_array_equal(found["crops"], expected["crops"])
    np.testing.assert_allclose(found["logs"][0], expected["loss"], rtol=1e-5)
    assert found["iterations"] == STEPS
    kernels = {path: value for path, value in expected["weights"].items() if "beta" not in path}
    assert distance(found, kernels) < 1e-5
    assert distance(found, expected["weights"]) < 1e-2  # near 0, and rounding moves some inputs over the edge of a ReLU
    assert distance(train(1), kernels) > 1e-3  # the parts would be missed


IMAGES = {"train": 330, "test": 100}
RUN = ["--depth", "8", "--train-on-all", "--batch-size", "32", "--steps", "25", "--bn-batch-size", "16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Little data in the layout of CIFAR-10."""
    folder = tmp_path_factory.mktemp("data")
    splits = [shapes.draw(count, seed=seed) for seed, count in enumerate(IMAGES.values())]
    write_cifar10(folder / "cifar-10-batches-py", *splits, shapes.CLASSES)
    return folder


def fit(folder, *flags, program="fit_jax.py", code=""):
    """Runs a program as where TensorFlow is not installed, unless it needs it."""
    path = ROOT / "train" / program
    lines = "" if program == "fit.py" else WITHOUT_TENSORFLOW
    lines += f"import runpy, sys; sys.argv[0] = {str(path)!r}; sys.path.insert(0, {str(path.parent)!r})\n{code}\n"
    lines += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    command = [sys.executable, "-c", lines, *map(str, flags), "--output", folder]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def rows(folder):
    with open(folder / "history.csv") as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run without interruption: two epochs of ten steps and a part of one."""
    folder = tmp_path_factory.mktemp("whole")
    done = fit(folder, *RUN, "--data-dir", data)
    assert done.returncode == 0, done.stderr
    assert "ResNet-8 on cifar10, 25 steps" in done.stdout and "test error" in done.stdout
    return folder / "cifar10-resnet-8"


def test_a_run_leaves_what_a_run_of_fit_leaves(whole, data):
    names = {"args.json", "classes.json", "data.json", "history.csv", "curves.png", "result.json", "model.keras"}
    assert {*os.listdir(whole)} >= names
    result = json.loads((whole / "result.json").read_text())
    assert {"jax", "keras", "devices"} < result["made"].keys() and "tensorflow" not in result["made"]
    assert result["steps"] == 25 and result["normalized_together"] == 16
    found = [(row["step"], row["learning_rate"]) for row in rows(whole)]  # the rate of an epoch's first step
    assert found == [("10", "0.1"), ("20", "0.1"), ("25", "0.001")]
    # TensorFlow evaluates the saved network.
    test = sources.load("cifar10", data, train_on_all=True).test
    wrong = evaluation.load_model(whole).predict(test.images, verbose=0).argmax(-1) != test.labels
    assert wrong.mean() == pytest.approx(result["test_error"], abs=0.011)  # one image
    assert result["train_error"] < 0.85  # chance is .9


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(whole, data, tmp_path):
    stop = """
import os, signal
os.environ["KERAS_BACKEND"] = "jax"
from keras_resnet.training import on_jax
run = on_jax.Trainer.run
def stopped(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return run(*arguments)
on_jax.Trainer.run = stopped
"""
    command = [*RUN, "--data-dir", data]
    done = fit(tmp_path, *command, code=stop)
    assert done.returncode == 143 and "stopped by SIGTERM at step 10" in done.stderr, done.stderr
    done = fit(tmp_path, *command)
    assert done.returncode == 0 and "resuming from step 10" in done.stdout, done.stderr
    assert rows(tmp_path / "cifar10-resnet-8") == rows(whole)
    again, before = (evaluation.load_model(path).get_weights() for path in (tmp_path / "cifar10-resnet-8", whole))
    assert all(np.array_equal(a, b) for a, b in zip(again, before, strict=True))
    assert "is finished" in fit(tmp_path, *command).stdout


def test_the_warm_up_ends_after_the_epoch_whose_error_is_low_enough(data, tmp_path):
    done = fit(tmp_path, *RUN[:-4], "--steps", 150, "--boundaries", 145, "--warmup", "--data-dir", data)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "cifar10-resnet-8" / "result.json").read_text())
    table = rows(tmp_path / "cifar10-resnet-8")
    warm = next(number for number, row in enumerate(table, 1) if float(row["error"]) < 0.8)
    assert result["warm_at_step"] == 10 * warm and warm < 15
    assert [row["learning_rate"] for row in table] == ["0.01"] * warm + ["0.1"] * (15 - warm)


def test_a_run_begun_on_another_backend_is_refused(data, tmp_path):
    """Its random numbers are others: images would repeat within an epoch."""
    stop = "from keras_resnet.training import checkpoint; checkpoint.StopSignals.__enter__ = lambda self: self\n"
    stop += "checkpoint.StopSignals.received = property(lambda self: 15, lambda self, value: None)"
    command = [*RUN, "--data-dir", data]
    done = fit(tmp_path, *command, program="fit.py", code=stop)
    assert done.returncode == 143 and "stopped by SIGTERM at step 1" in done.stderr, done.stderr
    before = (tmp_path / "cifar10-resnet-8" / "checkpoint" / "latest.npz").read_bytes()
    done = fit(tmp_path, *command)
    assert done.returncode == 1 and "was begun on tensorflow, and this is jax" in done.stderr
    assert "Go on with fit.py" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "cifar10-resnet-8" / "checkpoint" / "latest.npz").read_bytes() == before


def test_settings_without_a_flag_are_refused():
    code = """
from keras_resnet.files import RunError
from keras_resnet.training import Settings, on_jax
for setting in ({"jit": True}, {"strategy": "mirrored"}, {"accumulate": 2}, {"schedule": "plateau"}):
    try:
        on_jax.check(Settings(dataset="shapes", **setting))
    except RunError as error:
        assert f"--{list(setting)[0]} needs fit.py" in str(error), error
    else:
        raise AssertionError(setting)
on_jax.check(Settings(dataset="shapes"))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"KERAS_BACKEND": "jax"})


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dataset", ROOT], "photographs, here"),
        (["--mixed-precision", "float16"], "bfloat16"),
        (["--depth", "110", "--shortcut-variant", "dropout"], "dropout"),
        (["--batch-size", "130"], "3 parts of the same size"),
        (["--batch-size", "20000", "--bn-batch-size", "20000"], "at most the number of training examples"),
        (["--sync-bn"], "unrecognized arguments"),
        (["--depth", "21"], "--depth"),
    ],
)
def test_what_is_not_possible_is_refused(tmp_path, flags, message):
    done = fit(tmp_path, *([] if "--dataset" in flags else ["--dataset", "shapes"]), *flags)
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr
    assert not os.listdir(tmp_path)


def test_the_other_program_takes_the_finished_run_and_says_who_made_it(whole, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.VALIDATION_EXAMPLES, "cifar10", 20)
    folder = shutil.copytree(whole, tmp_path / "runs" / "one")
    settings = json.loads((folder / "args.json").read_text())
    settings = Settings(**{**settings, "output": str(tmp_path / "runs"), "name": "one"})
    record = experiments.run(settings, tmp_path / "results", verbose=0)
    assert record["command"].startswith("python train/fit_jax.py --depth 8 ")
    assert record["made"] == json.loads((whole / "result.json").read_text())["made"]
    assert record["weights_sha256"] == published.weights_sha256(evaluation.load_model(folder))


def test_without_jax_the_program_says_so(tmp_path):
    code = "import importlib.util; found = importlib.util.find_spec\n"
    code += "importlib.util.find_spec = lambda name: None if name == 'jax' else found(name)"
    done = fit(tmp_path, *RUN, code=code)
    assert done.returncode == 1 and "needs the package jax" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("platforms", ["cuda", "no_such_platform"])
def test_a_device_that_is_not_there_is_a_sentence(platforms):
    fit = [sys.executable, ROOT / "train" / "fit_jax.py", "--dataset", "shapes"]
    done = subprocess.run(fit, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": platforms})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"fit_jax.py: JAX finds no device for JAX_PLATFORMS={platforms}" in done.stderr
