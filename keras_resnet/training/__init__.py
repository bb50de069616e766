"""Training, from settings to a trained model and a record of the run.

A run is what its `Settings` say; its folder holds what it needs to go on. Importing this room needs neither Keras nor
its backend; `train` needs both.
"""

import typing

from keras_resnet.training.settings import Settings

if typing.TYPE_CHECKING:
    from keras_resnet.training.checkpoint import Stopped
    from keras_resnet.training.loop import train

__all__ = ["Settings", "Stopped", "train"]


def __getattr__(name: str) -> typing.Any:
    if name == "Stopped":
        from keras_resnet.training.checkpoint import Stopped

        return Stopped
    if name == "train":
        from keras_resnet.training.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
