"""Data to train and test on. This door needs no TensorFlow; the modules behind it that make `tf.data` pipelines do."""

from keras_resnet.data.sources import cifar10, cifar100

__all__ = ["cifar10", "cifar100"]
