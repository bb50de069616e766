"""Trained weights: read from many sources, loaded as a whole or not at all, and saved for others.

A source is tensors, a table of their names, and the architecture that they show. Needs Keras alone.
"""

from keras_resnet.weights.hub import save_keras_hub
from keras_resnet.weights.loading import load_weights, save_torchvision
from keras_resnet.weights.readers import WeightsError

__all__ = ["WeightsError", "load_weights", "save_keras_hub", "save_torchvision"]
