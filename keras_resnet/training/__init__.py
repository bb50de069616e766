"""Training, from settings to a trained model and a record of the run.

Importing this package needs no TensorFlow; `train` does.
"""

import typing

from keras_resnet.training.checkpoint import Stopped
from keras_resnet.training.settings import Settings

if typing.TYPE_CHECKING:
    from keras_resnet.training.run import train

__all__ = ["Settings", "Stopped", "train"]


def __getattr__(name: str) -> typing.Any:
    if name == "train":  # now, because it imports TensorFlow
        from keras_resnet.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
