"""Trained weights from anywhere, and on to elsewhere."""

from keras_resnet.weights.loading import load_weights, save_torchvision
from keras_resnet.weights.readers import WeightsError

__all__ = ["WeightsError", "load_weights", "save_torchvision"]
