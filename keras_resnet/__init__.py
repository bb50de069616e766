"""Deep residual networks in Keras, as in the papers of He, Zhang, Ren and Sun."""

from keras_resnet.analysis import features
from keras_resnet.environment import __version__
from keras_resnet.graphs import fold, recursion_limit
from keras_resnet.models import (
    CifarPlainNet,
    CifarResNet,
    PlainNet18,
    PlainNet34,
    ResNet18,
    ResNet18V2,
    ResNet34,
    ResNet34V2,
    ResNet50,
    ResNet50V2,
    ResNet101,
    ResNet101V2,
    ResNet152,
    ResNet152V2,
    ResNet200V2,
    from_weights,
)
from keras_resnet.normalization import decode_predictions, preprocess_input
from keras_resnet.optimizers import SGD, PlateauSchedule, StepSchedule
from keras_resnet.runs import list_weights
from keras_resnet.weights import load_weights, save_keras_hub, save_torchvision

__all__ = [
    "CifarPlainNet",
    "CifarResNet",
    "PlainNet18",
    "PlainNet34",
    "PlateauSchedule",
    "ResNet101",
    "ResNet101V2",
    "ResNet152",
    "ResNet152V2",
    "ResNet18",
    "ResNet18V2",
    "ResNet200V2",
    "ResNet34",
    "ResNet34V2",
    "ResNet50",
    "ResNet50V2",
    "SGD",
    "StepSchedule",
    "decode_predictions",
    "features",
    "fold",
    "from_weights",
    "list_weights",
    "load_weights",
    "preprocess_input",
    "recursion_limit",
    "save_keras_hub",
    "save_torchvision",
]


def __getattr__(name: str) -> type:
    if name == "ResNetHyperModel":  # needs keras_tuner and TensorFlow; the networks do not
        from keras_resnet.training.tuning import ResNetHyperModel

        return ResNetHyperModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
