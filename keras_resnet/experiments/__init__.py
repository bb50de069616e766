"""The papers' tables and figures as runs, and the page that shows them."""

from keras_resnet.experiments.experiments import EXPERIMENTS, RESULTS, Experiment, Row, load, run

__all__ = ["EXPERIMENTS", "Experiment", "RESULTS", "Row", "load", "run"]
