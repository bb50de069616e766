"""Trained weights: read from many sources, loaded as a whole or not at all, and saved for other libraries.

A source has tensors, a table of their names, and the architecture inferred from them. Needs only Keras.
"""

from keras_resnet.files import WeightsError
from keras_resnet.weights.hub import save_keras_hub
from keras_resnet.weights.loading import load_weights, save_torchvision

__all__ = ["WeightsError", "load_weights", "save_keras_hub", "save_torchvision"]
