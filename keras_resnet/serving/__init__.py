"""Exports: SavedModels for TF Serving, models for other runtimes, and a web page that runs the network.

A version appears whole or not at all, and other runtimes are compared with the network first. Needs TensorFlow.
"""

from keras_resnet.serving.exporting import ABOUT, CALIBRATION_IMAGES, DTYPES, FORMATS, TOP_K, export, export_run
from keras_resnet.serving.formats import ExportError
from keras_resnet.serving.signatures import MAX_PIXELS

__all__ = [
    "ABOUT",
    "CALIBRATION_IMAGES",
    "DTYPES",
    "ExportError",
    "FORMATS",
    "MAX_PIXELS",
    "TOP_K",
    "export",
    "export_run",
]
