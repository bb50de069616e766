"""What is trained in the benchmarks: a model, a batch, a step."""

import keras
import tensorflow as tf

from keras_resnet import models
from keras_resnet.data import shapes
from keras_resnet.optimizers import SGD
from keras_resnet.training import run
from keras_resnet.training.fused import fuse_batch_norm
from keras_resnet.training.step import TrainingModel


def trainer(depth, as_fit=True, parts=1):
    """The model that fit.py trains, on so many parts of a batch, or the same as a Keras user would compile it."""
    model = models.CifarResNet(depth, classifier_activation=None, normalization=(120.0, 1.0))
    if as_fit:
        with models.recursion_limit(20 * depth):
            model = TrainingModel(model.input, model.output, parts, model.name)
        fuse_batch_norm(model)
        run.compile_for_training(model)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(SGD(), loss, metrics=["accuracy"], jit_compile=False)
    return model


def batch(size):
    images, labels = shapes.draw(size, seed=0)
    return tf.constant(images, "float32"), tf.constant(labels)


def bare_step(model, data):
    """The compiled train step on one batch that is already there."""
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(data).repeat())
    return lambda: float(model.train_function(batches)["loss"])
