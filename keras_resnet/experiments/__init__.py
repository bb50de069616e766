"""The papers' tables and figures as runs, and what is said of them: records, the report, model cards.

A record belongs to its settings and not to an experiment, so what several tables show is trained once.
"""

from keras_resnet.experiments.experiments import RESULTS, load, run
from keras_resnet.experiments.tables import EXPERIMENTS, Experiment, Row

__all__ = ["EXPERIMENTS", "Experiment", "RESULTS", "Row", "load", "run"]
