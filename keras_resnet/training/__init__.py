"""Training, from settings to a trained model and a record of the run.

The `Settings` define a run; its folder holds everything needed to resume it. Importing this package needs neither
Keras nor a backend; `train` needs both.
"""

import typing

from keras_resnet.training.settings import Settings
from keras_resnet.training.signals import Stopped

if typing.TYPE_CHECKING:
    from keras_resnet.training.loop import train

__all__ = ["Settings", "Stopped", "train"]


def __getattr__(name: str) -> typing.Any:
    if name == "train":
        from keras_resnet.training.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
