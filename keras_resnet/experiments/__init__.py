"""The papers' tables and figures as runs, and their records, report and model cards.

A record belongs to its settings, not to an experiment, so a network in several tables is trained once.
"""

from keras_resnet.experiments.experiments import RESULTS, load, run
from keras_resnet.experiments.tables import EXPERIMENTS, Experiment, Row

__all__ = ["EXPERIMENTS", "Experiment", "RESULTS", "Row", "load", "run"]
