"""What leaves the house: SavedModels for TF Serving, and the forms of other runtimes."""

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
