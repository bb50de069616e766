"""The papers' tests of classifiers: one crop, ten crops, many sizes, and ensembles.

A protocol defines the views of an image that are averaged. Every image counts once. Needs TensorFlow.
"""

from keras_resnet.choices import SPLITS
from keras_resnet.evaluation.examples import load_data
from keras_resnet.evaluation.protocols import default_crop, evaluate, gives_logits
from keras_resnet.evaluation.results import EvaluationError, Result
from keras_resnet.runs import class_names, load_model, model_file, run_settings

__all__ = [
    "EvaluationError",
    "SPLITS",
    "Result",
    "class_names",
    "default_crop",
    "evaluate",
    "gives_logits",
    "load_data",
    "load_model",
    "model_file",
    "run_settings",
]
