"""Training, from settings to a trained model and a record of the run."""

from keras_resnet.training.checkpoint import Stopped
from keras_resnet.training.run import train
from keras_resnet.training.settings import Settings

__all__ = ["Settings", "Stopped", "train"]
