"""Normalisation of RGB pixels in [0, 255] before the first convolution, by a preprocessing layer or outside."""

import typing
from collections.abc import Sequence

import keras
import numpy as np
from keras import KerasTensor, layers, ops
from keras.applications import imagenet_utils

# Mean and standard deviation, for pixels in [0, 255].
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN, TORCH_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NAMED: dict[str, tuple] = {
    "caffe": (CAFFE_MEAN_BGR, 1.0),
    "torch": (TORCH_MEAN, TORCH_STD),
    # 255 times (.4914 .4822 .4465) and (.2023 .1994 .2010): kuangliu, chenyaofo, pytorchcv, timm's CIFAR networks
    "cifar10": ((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)),
    # 255 times (.5070 .4865 .4409) and (.2673 .2564 .2761): chenyaofo
    "cifar100": ((129.285, 124.0575, 112.4295), (68.1615, 65.382, 70.4055)),
}
UNKNOWN = "unknown"  # of weights: trained on normalised images, but how they were normalised is not stated
UNSAID = (
    "the weights do not state how the images were normalised that the network was trained on. Choose: "
    'normalization="cifar10" (mean .4914 .4822 .4465, std .2023 .1994 .2010), "cifar100" (.5070 .4865 .4409, '
    '.2673 .2564 .2761), "torch" (ImageNet\'s), (mean, std) of pixels in [0, 255], or None for an input that is '
    "normalised outside; with convert.py: --normalization cifar10"
)

NAME = "normalization"  # of the layer
FLIP = "Flip"  # Keras' class for the operation that reverses the channels for "caffe"

# Stock layers that return their input at inference, in addition to those whose names begin with "Random".
TRAINING_ONLY = (
    *("ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "Dropout", "GaussianDropout", "GaussianNoise"),
    *("MixUp", "RandAugment", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
)
ACT_ALWAYS = ("RandomCrop",)  # crops or resizes at inference, too

Normalization: typing.TypeAlias = str | tuple | list | None  # as in `ResNet50`
Tensor: typing.TypeAlias = typing.Any  # of the current backend: the backends' tensors have no common class


def normalize(x: KerasTensor, normalization: Normalization) -> KerasTensor:
    """The preprocessing layer: normalises pixels in [0, 255] as the network needs them."""
    shape = tuple(x.shape[1:])
    if isinstance(normalization, str) and normalization in NAMED and shape[-1] != 3:
        raise ValueError(
            f"normalization={normalization!r} is for three channels, the network's input has {shape[-1]}; "
            "give (mean, std), each a number or one number a channel"
        )
    if normalization == "caffe":
        x = ops.flip(x, axis=-1)
    mean, std = mean_and_std(normalization)
    for what, value in (("mean", mean), ("std", std)):
        if value.ndim and value.shape not in {shape[-1:], shape}:
            raise ValueError(
                f"the {what} of a normalization is a number, one number a channel, or an image of the "
                f"network's input shape {shape}; found shape {value.shape}"
            )
    return layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name=NAME)(x)


def mean_and_std(normalization: Normalization) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation, float64; "caffe" has them in the order BGR."""
    if isinstance(normalization, str) and normalization in NAMED:
        normalization = NAMED[normalization]
    if not (isinstance(normalization, (tuple, list)) and len(normalization) == 2):
        raise ValueError(
            f"normalization is None, {', '.join(map(repr, NAMED))} or (mean, std); found {normalization!r}"
        )
    mean, std = (np.asarray(value, "float64") for value in normalization)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"the mean of a normalization is finite and its std positive; found {normalization!r}")
    return mean, std


def for_size(normalization: Normalization, size: tuple[int | None, ...]) -> Normalization:
    """The normalization for images of this (height, width), None for any.

    A mean image of another size is replaced by its mean colour, and an image of standard deviations likewise; otherwise
    `normalization` itself is returned.
    """
    if normalization is None or isinstance(normalization, str):
        return normalization
    pair = mean_and_std(normalization)
    if all(value.ndim < 3 or value.shape[:2] == tuple(size) for value in pair):
        return normalization
    return tuple(value.mean(axis=(0, 1)) if value.ndim == 3 else value for value in pair)


def same(one: Normalization, other: Normalization) -> bool:
    """Whether two normalizations are the same function, to the precision of float32."""
    if (one == "caffe") != (other == "caffe"):
        return False  # only this one reverses the channels
    try:
        return all(
            np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(mean_and_std(one), mean_and_std(other), strict=True)
        )
    except ValueError:  # mean images of two sizes
        return False


def of(model: keras.Model) -> Normalization:
    """How a Keras model normalises its input before the first convolution, as `normalization` in `ResNet50`.

    Read from this package's preprocessing layer, or from stock `Rescaling` and `Normalization` layers. Layers that act
    in training only, such as `RandomFlip`, are ignored. None if there are no such layers, UNKNOWN if there are others.
    """
    scale, offset, found, reversed_channels = np.ones(()), np.zeros(()), False, False
    for operation in getattr(model, "operations", model.layers):
        if isinstance(operation, (layers.Conv2D, layers.Dense)):
            break
        adapted = isinstance(operation, layers.Normalization) and operation.mean is not None
        if adapted or isinstance(operation, layers.Rescaling):
            factor, shift = affine(operation)
            scale, offset, found = scale * factor, offset * factor + shift, True
        elif type(operation).__name__ == FLIP and not found and operation.axis in (-1, 3):
            reversed_channels = not reversed_channels
        elif not (isinstance(operation, (layers.InputLayer, layers.ZeroPadding2D)) or acts_in_training_only(operation)):
            return UNKNOWN
    if not (found or reversed_channels):
        return None
    normalization = ((0 - offset) / scale, 1 / scale)
    if reversed_channels:
        return (
            "caffe" if all(np.allclose(a, b) for a, b in zip(normalization, NAMED["caffe"], strict=True)) else UNKNOWN
        )
    return next((name for name in NAMED if name != "caffe" and same(normalization, name)), normalization)


def acts_in_training_only(layer: keras.Layer) -> bool:
    """Whether this is a stock layer that returns its input at inference, such as `Dropout` and `RandomFlip`."""
    name = type(layer).__name__
    stock = getattr(layers, name, None) is type(layer)
    return stock and (name in TRAINING_ONLY or (name.startswith("Random") and name not in ACT_ALWAYS))


def affine(layer: layers.Rescaling | layers.Normalization) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset of a `Rescaling` or `Normalization`: numbers, one number per channel, or images."""
    if isinstance(layer, layers.Rescaling):
        return np.asarray(layer.scale, "float64"), np.asarray(layer.offset, "float64")
    mean, variance = (np.asarray(ops.convert_to_numpy(x), "float64")[0] for x in (layer.mean, layer.variance))
    if mean.shape[:2] == (1, 1):
        mean, variance = mean.ravel(), variance.ravel()
    std = np.maximum(np.sqrt(variance), keras.config.epsilon())
    return (std, mean) if layer.invert else (1 / std, -mean / std)


def described(normalization: Normalization) -> str:
    """A normalization as text, for messages."""
    if isinstance(normalization, str):
        return repr(normalization)
    shown = [
        str(np.round(value, 4).tolist()) if value.ndim < 2 else "an image" for value in mean_and_std(normalization)
    ]
    return f"(mean {shown[0]}, std {shown[1]})"


def preprocess_input(images: np.ndarray | Tensor, mode: str = "auto") -> np.ndarray | Tensor:
    """Prepares images for a network of this package, as the function of the same name in keras.applications.

    A network built with `weights=` takes pixels: a layer normalises them (`normalization="auto"`). By default
    this function therefore returns the images unchanged, and code written for keras.applications stays correct. A
    network built with `normalization=None` needs the mode that its weights were trained with.

    Args:
        images: (height, width, 3) or (batch, height, width, 3), RGB in [0, 255], an array or a tensor.
        mode: "auto": no change, for networks that normalise their input themselves. "caffe": for the authors' own
            weights and those of keras.applications. "torch": for those of torchvision, timm, transformers, keras_hub
            and akamaster. "cifar10", "cifar100": for those of most CIFAR networks for PyTorch.

    Returns:
        The images; normalised and float unless the mode is "auto". The argument does not change.

    Raises:
        ValueError: `mode` is none of these.
    """
    if mode not in ("auto", *NAMED):
        raise ValueError(f"mode is one of 'auto', {', '.join(map(repr, NAMED))}; found {mode!r}")
    if mode == "auto":
        return images
    array = isinstance(images, np.ndarray)
    x = images.astype(keras.config.floatx()) if array else ops.cast(images, keras.config.floatx())
    if mode == "caffe":
        x = (np if array else ops).flip(x, axis=-1)
    mean, std = (value.astype(keras.config.floatx()) for value in mean_and_std(mode))
    return (x - mean) / std


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def decode_predictions(
    predictions: typing.Any, top: int = 5, classes: str | Sequence[str] = "imagenet"
) -> list[list[tuple[str, str, float]]]:
    """Names the most probable classes, as the function of the same name in keras.applications.

    Args:
        predictions: (batch, classes) probabilities.
        top: how many classes.
        classes: "imagenet", whose 1000 names keras.applications downloads once; "cifar10"; or the names in their order.

    Returns:
        For each image a list of (identifier, name, probability), the most probable first. The identifier is the WordNet
        ID for ImageNet, and the class index, such as "3", for other classes.

    Raises:
        ValueError: `top` is not positive, the numbers of classes and names differ, a prediction is not finite, or
            `classes` is another string.
    """
    predictions = ops.convert_to_numpy(predictions)
    if not isinstance(top, (int, np.integer)) or top < 1:
        raise ValueError(f"top is a positive integer; found {top!r}")
    if isinstance(classes, str) and classes not in ("imagenet", "cifar10"):
        raise ValueError(
            f'classes is "imagenet", "cifar10" or a list of the names, such as ["cat", "dog"]; found {classes!r}'
        )
    if not np.isfinite(predictions).all():
        raise ValueError("predictions are probabilities; found some that are not finite. Has the training diverged?")
    if isinstance(classes, str) and classes == "imagenet":
        if predictions.ndim == 2 and (number := predictions.shape[1]) != 1000:
            raise ValueError(
                f'these are predictions of {number} classes, {predictions.shape}; give classes="cifar10" or the names'
            )
        return imagenet_utils.decode_predictions(predictions, top=top)
    names = CIFAR10_CLASSES if isinstance(classes, str) else tuple(classes)
    if predictions.ndim != 2 or predictions.shape[1] != len(names):
        raise ValueError(f"predictions are (batch, {len(names)}) for {len(names)} classes; found {predictions.shape}")
    best = np.argsort(-predictions, axis=1, kind="stable")[:, :top]
    return [[(str(i), names[i], float(row[i])) for i in order] for row, order in zip(predictions, best, strict=True)]
