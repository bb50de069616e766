"""What leaves the house: SavedModels for TF Serving, other runtimes, and a page in which the network runs.

A version appears whole or not at all, and its answers are compared with the network's first. Needs TensorFlow.
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
