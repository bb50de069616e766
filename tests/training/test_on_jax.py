"""Training with JAX: each step against that of TensorFlow, and the run as a user sees it."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from keras_resnet.data import cifar, sources
from keras_resnet.training import run
from keras_resnet.training.settings import Settings

pytest.importorskip("jax", reason="jax is not installed")

STEPS, BATCH = 3, 32
TRAIN = """
import sys, types
import keras, numpy as np
from keras_resnet.data import sources
from keras_resnet.optimizers import SGD
from keras_resnet.training.on_jax import Trainer, augment
from keras_resnet.training.settings import Settings

folder, parts = sys.argv[1], int(sys.argv[2])
data = np.load(f"{folder}/data.npz")
source = sources.load("shapes")
network = Settings(depth=8, dataset="shapes").small_network(10, (sources.per_pixel_mean(source.train.images), 1.0))
network.load_weights(f"{folder}/initial.weights.h5")
model = keras.Model(network.input, network.get_layer("fc").output)
model.compile(SGD(0.1))
model.optimizer.build(model.trainable_variables)
trainer = Trainer(model, parts, source)
logs = trainer.run(data["order"], data["draws"], data["rates"], 0, len(data["order"]))
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
    network = settings.small_network(10, (mean, 1.0))
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


def fit(folder, *flags, program="fit_jax.py", **options):
    command = [sys.executable, ROOT / "train" / program, *map(str, flags)]
    environment = os.environ | {"KERAS_BACKEND": "jax" if program == "fit_jax.py" else "tensorflow"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **options)
