"""The model, the batch and the step of the benchmarks."""

import keras
import tensorflow as tf
from keras_resnet.training.step import TrainingModel

import keras_resnet
from keras_resnet.architecture import IMAGE_SIZE, IMAGENET
from keras_resnet.data import shapes
from keras_resnet.optimizers import SGD
from keras_resnet.training import recipes, run
from keras_resnet.training.fused import fuse_batch_norm
from keras_resnet.training.settings import parts_of


def network(depth):
    """The network of a depth, up to its logits: ImageNet's for 18 to 152, else CIFAR's."""
    if depth in IMAGENET:
        shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
        builder = getattr(keras_resnet, f"ResNet{depth}")
        return builder(classifier_activation=None, normalization=(120.0, 1.0), input_shape=shape)
    return keras_resnet.CifarResNet(depth, classifier_activation=None, normalization=(120.0, 1.0))


def parts(depth, batch_size):
    """The number of parts into which fit.py splits a batch."""
    return 1 if depth in IMAGENET else parts_of(batch_size, recipes.BN_BATCH_SIZE)


def trainer(depth, as_fit=True, batch_size=128, mixed_precision=None):
    """The model as fit.py trains it, or as a Keras user would compile it."""
    model = network(depth)
    if as_fit:
        with keras_resnet.models.recursion_limit(20 * depth):
            model = TrainingModel(model.input, model.output, parts(depth, batch_size))
        fuse_batch_norm(model)
        run.compile_for_training(model, mixed_precision=mixed_precision)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(SGD(), loss, metrics=["accuracy"], jit_compile=False)
    return model


def batch(size, depth=20):
    """Images and labels of the network's shape."""
    if depth in IMAGENET:
        shape = (size, IMAGE_SIZE, IMAGE_SIZE, 3)
        return tf.random.uniform(shape, 0, 255, seed=0), tf.range(size, dtype="int64")
    images, labels = shapes.draw(size, seed=0)
    return tf.constant(images, "float32"), tf.constant(labels)


def bare_step(model, data):
    """The compiled training step on one batch in memory."""
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(data).repeat())
    return lambda: float(model.train_function(batches)["loss"])
