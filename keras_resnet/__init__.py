"""Deep residual networks in Keras, as in the papers of He, Zhang, Ren and Sun."""

from keras_resnet.models import (
    CifarPlainNet,
    CifarResNet,
    PlainNet18,
    PlainNet34,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    features,
    from_weights,
)
from keras_resnet.normalization import decode_predictions, preprocess_input
from keras_resnet.weights import load_weights, save_torchvision
