"""The network, the batch and the step of the benchmarks."""

import contextlib

import keras
import numpy as np

import keras_resnet
from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.data import shapes
from keras_resnet.optimizers import SGD
from keras_resnet.training import precision, recipes, settings

RESNET50 = 50  # the one network for ImageNet of these benchmarks


def network(depth):
    """The network of this depth, up to its logits: ImageNet's for 50, else CIFAR's."""
    if depth == RESNET50:
        shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
        return keras_resnet.ResNet50(classifier_activation=None, normalization=(120.0, 1.0), input_shape=shape)
    return keras_resnet.CifarResNet(depth, classifier_activation=None, normalization=(120.0, 1.0))


def ghost_batches(depth, batch_size):
    """The number of ghost batches into which fit.py splits a batch."""
    return 1 if depth == RESNET50 else settings.ghost_batches(batch_size, recipes.BN_BATCH_SIZE)


def batch(size, depth=20):
    """Images, float32, and labels, int64, of the network's shape: arrays."""
    if depth == RESNET50:
        shape = (size, IMAGE_SIZE, IMAGE_SIZE, 3)
        return np.random.default_rng(0).uniform(0, 255, shape).astype("float32"), np.arange(size)
    images, labels = shapes.draw(size, seed=0)
    return images.astype("float32"), labels


def our_step(depth, batch_size=128, mixed_precision=None):
    """The engine's step on one batch in memory, a function that returns the loss; the model and the optimizer."""
    model = network(depth)
    precision.set_precision(model, mixed_precision)
    data, number = batch(batch_size, depth), ghost_batches(depth, batch_size)
    if keras.backend.backend() == "jax":
        return _step_of_jax(model, data, number)
    import tensorflow as tf

    from keras_resnet.training import fused, tensorflow

    fused.fuse_batch_norm(model)
    optimizer = tensorflow.optimizer_of(model, 0.1, mixed_precision=mixed_precision)
    step, data = tensorflow.Step(model, optimizer, number), [tf.constant(values) for values in data]
    return lambda: float(step(*data)[0]), model, optimizer


def _step_of_jax(model, data, number):
    import jax

    from keras_resnet.training import mesh
    from keras_resnet.training.jax import Step

    optimizer = SGD()
    optimizer.build(model.trainable_variables)
    step = Step(model, optimizer, number, 1, mesh.Devices(jax.devices()[:1]))
    run, state, data = jax.jit(step.__call__, donate_argnums=0), step.state(), [jax.numpy.asarray(x) for x in data]

    def once():
        nonlocal state
        state, means = run(state, *data, np.float32(0.1))
        return float(means[0])

    return once, model, optimizer


def keras_step(model, batch_size, depth):
    """The step of Keras' own `fit` for a compiled model; returns a function as `our_step` does."""
    data = batch(batch_size, depth)
    return lambda: float(model.train_on_batch(*data))


def as_keras_is(depth):
    """The network as a Keras user would compile it."""
    model = network(depth)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGD(), loss, jit_compile=keras.backend.backend() == "jax")
    return model


def as_fit_runs():
    """The context in which fit.py runs its graphs."""
    if keras.backend.backend() == "jax":
        return contextlib.nullcontext()
    from keras_resnet.training.fused import graphs_as_traced

    return graphs_as_traced()
