"""Data sets. Importing this package needs no TensorFlow; its modules that make `tf.data` pipelines do."""

from keras_resnet.data.sources import cifar10, cifar100

__all__ = ["cifar10", "cifar100"]
