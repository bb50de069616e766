"""Loads trained weights from many sources and saves them for others."""

from keras_resnet.weights.hub import save_keras_hub
from keras_resnet.weights.loading import load_weights, save_torchvision
from keras_resnet.weights.readers import WeightsError

__all__ = ["WeightsError", "load_weights", "save_keras_hub", "save_torchvision"]
