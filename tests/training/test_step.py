"""The training step against two networks that each train on one ghost batch, and against two devices."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from keras_resnet import models
from keras_resnet.training import Settings, precision, recipes
from keras_resnet.training.fused import fuse_batch_norm
from keras_resnet.training.settings import ghost_batches
from keras_resnet.training.tensorflow import Step, moving_statistics, optimizer_of

IMAGES = np.random.default_rng(0).uniform(0, 255, (12, 32, 32, 3)).astype("float32")
LABELS = np.arange(12) % 10
RATE = 0.05


def network(fused=True, seed=1, **options):
    keras.utils.set_random_seed(seed)
    model = models.CifarResNet(8, classifier_activation=None, normalization=(120.0, 60.0), **options)
    if fused:
        fuse_batch_norm(model)
    return model


def step_of(model, parts, mixed_precision=None, **options):
    precision.set_precision(model, mixed_precision)
    return Step(model, optimizer_of(model, RATE, mixed_precision=mixed_precision), parts, **options)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("count", [12, 11])
def test_a_step_is_the_mean_of_its_ghost_batches(count, fused):
    """The formula, with `GradientTape` on another network for each ghost batch: w - lr mean(gradient + decay w)."""
    images, labels = IMAGES[:count], LABELS[:count]
    model = network(fused)
    step = step_of(model, 2)
    before = model.get_weights()
    edges = [0, count // 2, count]
    expected = [np.zeros_like(weight) for weight in before]
    losses, errors = [], []
    for begin, end in zip(edges, edges[1:], strict=False):
        other = network(fused=False)  # in Keras' own arithmetic
        share = (end - begin) / count
        with tf.GradientTape() as tape:
            outputs = other(images[begin:end], training=True)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels[begin:end], outputs)
        losses.append(share * float(loss))
        errors.append(share * np.mean(np.argmax(outputs, -1) != labels[begin:end]))
        gradients = tape.gradient(loss, other.trainable_weights)
        trained = {id(v): np.asarray(g) for v, g in zip(other.trainable_weights, gradients, strict=True)}
        for i, (variable, old) in enumerate(zip(other.weights, before, strict=True)):
            moved = variable.numpy()  # the averages have moved already
            if id(variable) in trained:
                moved = old - RATE * (trained[id(variable)] + recipes.WEIGHT_DECAY * old)
            expected[i] += share * moved
    assert step(tf.constant(images), tf.constant(labels)).numpy() == pytest.approx([sum(losses), sum(errors)], rel=1e-4)
    for variable, found, right in zip(model.weights, model.get_weights(), expected, strict=True):
        assert np.allclose(found, right, rtol=1e-3, atol=2e-5), variable.path
    together = network()
    step_of(together, 1)(tf.constant(images), tf.constant(labels))
    assert not all(
        np.allclose(*pair, rtol=1e-3, atol=2e-5) for pair in zip(together.get_weights(), expected, strict=True)
    )


@pytest.mark.parametrize("beside, turns", [(1, 4), (2, 2)])
def test_parts_in_turn_are_parts_beside_each_other(beside, turns):
    """Gradients, moving averages and metrics; --accumulate once moved the averages at each micro-batch."""
    images, labels, found = tf.constant(IMAGES), tf.constant(LABELS), []
    for parts, shape in ((4, (12,)), (beside, (turns, 12 // turns))):
        model = network(fused=False)
        shown = step_of(model, parts)(tf.reshape(images, (*shape, 32, 32, 3)), tf.reshape(labels, shape))
        found.append([shown.numpy(), *model.get_weights()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_frozen_layers_stay_as_they_are():
    model = network()
    for layer in model.layers:
        layer.trainable = not layer.name.startswith(("conv1", "conv2"))
    step = step_of(model, 2)
    assert len(moving_statistics(model)) == 2 * 4
    before = {variable.path: variable.numpy() for variable in model.weights}
    for _ in range(2):
        step(tf.constant(IMAGES), tf.constant(LABELS))
    changed = {v.path.split("/")[0][:5] for v in model.weights if not np.array_equal(v.numpy(), before[v.path])}
    assert changed == {"conv3", "conv4", "fc"}


@pytest.mark.parametrize("shape", [(12,), (2, 6)])
def test_each_part_drops_others(shape):
    """Dropout's random state continues over ghost batches, micro-batches and steps."""

    def seeds(steps, parts, shape):
        step = step_of(network(shortcut_variant="dropout"), parts)
        for _ in range(steps):
            step(tf.reshape(tf.constant(IMAGES), (*shape, 32, 32, 3)), tf.reshape(tf.constant(LABELS), shape))
        return [seed.numpy() for seed in step.seeds]

    once = seeds(1, 2 if shape == (12,) else 1, shape)
    assert len(once) and np.array_equal(once, seeds(2, 1, (12,))) and not np.array_equal(once, seeds(0, 1, (12,)))


@pytest.mark.parametrize("mixed_precision, jit", [("bfloat16", False), ("float16", False), ("float16", True)])
def test_every_way_to_compute_trains_alike(mixed_precision, jit):
    losses = []
    for parts in (1, 2):
        step = step_of(network(), parts, mixed_precision, jit=jit)
        losses.append([float(step(tf.constant(IMAGES), tf.constant(LABELS))[0]) for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_one_device_with_two_ghost_batches_is_two_devices():
    """In double precision, because the first steps amplify the rounding errors of single precision."""
    program = """if True:
        import json, keras, numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        keras.config.set_floatx("float64")
        from keras_resnet.data import cifar, shapes, sources
        from keras_resnet.training import distribution
        from test_step import network, step_of
        source = sources.Split(*shapes.draw(96, seed=0))
        mean = sources.per_pixel_mean(source.images)
        def train(strategy, parts):
            with strategy.scope():
                devices = distribution.Devices(strategy)
                model = network(fused=False)
                step = step_of(model, parts, replicas=devices.count)
                batches = cifar.training_batches(source, mean, batch_size=16, seed=0, shards=devices.shards())
                for _, batch in zip(range(6), devices.distribute(batches)):
                    step(*batch)
            return model.get_weights()
        mirrored = distribution.strategy("mirrored")
        runs = [train(tf.distribute.get_strategy(), 2), train(mirrored, 1), train(tf.distribute.get_strategy(), 1)]
        runs += [train(tf.distribute.get_strategy(), 4), train(mirrored, 2)]
        apart = lambda a, b: max(float(np.abs(x - y).max()) for x, y in zip(a, b))
        print(json.dumps([apart(runs[a], runs[b]) for a, b in ((0, 1), (3, 4), (0, 2), (0, 3))]))
    """
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "training")))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    two, four, whole, others = json.loads(done.stdout.splitlines()[-1])
    assert two < 1e-5 and four < 1e-5 and whole > 1e-3 and others > 1e-3


@pytest.mark.parametrize(
    "given, together",
    [
        ({}, 64),
        ({"batch_size": 32}, 32),
        ({"sync_bn": True}, 128),
        ({"bn_batch_size": 16}, 16),
        ({"bn_batch_size": 128}, 128),
    ],
)
def test_how_many_images_are_normalised_together(given, together):
    assert Settings(**given).bn_batch_size == together


def test_parts_of():
    assert [ghost_batches(n, 64) for n in (1, 64, 65, 128, 129, 256)] == [1, 1, 2, 2, 3, 4]
