"""The runs behind the papers' tables and figures, and the page that shows their results."""

from keras_resnet.experiments.experiments import RESULTS, load, run
from keras_resnet.experiments.tables import EXPERIMENTS, Experiment, Row

__all__ = ["EXPERIMENTS", "Experiment", "RESULTS", "Row", "load", "run"]
