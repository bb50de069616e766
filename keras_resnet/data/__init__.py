"""Data sets: where their examples come from, and batches of them with the papers' augmentation.

The only room that reads images. Importing it needs no TensorFlow; its modules that make `tf.data` pipelines do.
"""

from keras_resnet.data.sources import cifar10, cifar100

__all__ = ["cifar10", "cifar100"]
