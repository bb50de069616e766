"""The runs behind the papers' tables and figures, and the page that shows their results."""

from keras_resnet.experiments.experiments import EXPERIMENTS, RESULTS, Experiment, Row, load, run

__all__ = ["EXPERIMENTS", "Experiment", "RESULTS", "Row", "load", "run"]
