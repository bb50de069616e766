"""Data sets: where their examples come from, and batches of them with the papers' augmentation.

Only this package reads images. Importing it needs no TensorFlow, but its modules with `tf.data` pipelines do.
"""

from keras_resnet.data.sources import cifar10, cifar100

__all__ = ["cifar10", "cifar100"]
