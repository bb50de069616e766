"""The runs behind the papers' tables and figures, the page that shows their results, and cards of trained networks.

Importing this package needs no TensorFlow, and neither do the cards; the experiments do.
"""

import typing

if typing.TYPE_CHECKING:
    from keras_resnet.experiments.experiments import EXPERIMENTS, RESULTS, Experiment, Row, load, run

__all__ = ["EXPERIMENTS", "Experiment", "RESULTS", "Row", "load", "run"]


def __getattr__(name: str) -> typing.Any:
    if name in __all__:  # now, because they import TensorFlow
        from keras_resnet.experiments import experiments

        return getattr(experiments, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
