"""What becomes of RGB pixels in [0, 255] before the first convolution: by a network's first layer, or outside."""

import keras
import numpy as np
from keras import layers, ops
from keras.applications import imagenet_utils

# What is subtracted from an image and what it is then divided by, for pixels in [0, 255].
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN, TORCH_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

NAME = "normalization"  # of the layer


def normalize(x, normalization):
    """The first layer: from RGB pixels in [0, 255] to what the network was trained on."""
    if normalization == "caffe":
        x = ops.flip(x, axis=-1)
    mean, std = numbers(normalization)
    for what, value in (("mean", mean), ("std", std)):
        if value.ndim and value.shape not in {(3,), tuple(x.shape[1:])}:
            raise ValueError(
                f"the {what} of a normalization is a number, one number a channel, or an image of the "
                f"network's input shape {tuple(x.shape[1:])}; found shape {value.shape}"
            )
    return layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name=NAME)(x)


def numbers(normalization):
    """The mean and what is divided by, float64; "caffe" has them in the order BGR."""
    if normalization == "caffe":
        mean, std = CAFFE_MEAN_BGR, 1.0
    elif normalization == "torch":
        mean, std = TORCH_MEAN, TORCH_STD
    elif isinstance(normalization, (tuple, list)) and len(normalization) == 2:
        mean, std = normalization
    else:
        raise ValueError(f'normalization is None, "caffe", "torch" or (mean, std); found {normalization!r}')
    return np.asarray(mean, "float64"), np.asarray(std, "float64")


def same(one, other):
    """Whether two normalizations do the same, to the precision of float32."""
    if (one == "caffe") != (other == "caffe"):
        return False  # only this one reverses the channels
    try:
        return all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(numbers(one), numbers(other), strict=True))
    except ValueError:  # mean images of two sizes
        return False


def of(model):
    """The normalization that a network of this package was built with: None, "caffe", "torch" or (mean, std)."""
    layer = next((layer for layer in model.layers if layer.name == NAME), None)
    if layer is None:
        return None
    if any(type(operation).__name__ == "Flip" for operation in model.operations):
        return "caffe"
    scale = np.asarray(layer.scale, "float64")
    found = (-np.asarray(layer.offset, "float64") / scale, 1 / scale)
    return "torch" if same(found, "torch") else found


def words(normalization):
    """A normalization for messages."""
    if isinstance(normalization, str):
        return repr(normalization)
    shown = [str(value.tolist()) if value.ndim < 2 else "an image" for value in numbers(normalization)]
    return f"(mean {shown[0]}, std {shown[1]})"


def preprocess_input(images, mode="caffe"):
    """Normalises outside of the network, for networks without such a first layer, as in keras.applications.

    Args:
        images: (height, width, 3) or (batch, height, width, 3), RGB in [0, 255], an array or a tensor.
        mode: what the weights were trained with. "caffe": the authors' own and those of keras.applications.
            "torch": those of torchvision, timm, transformers, keras_hub and akamaster.

    Returns:
        The normalised images, float; the argument is not changed.

    Raises:
        ValueError: there is no such mode.
    """
    if mode not in ("caffe", "torch"):
        raise ValueError(f'mode is "caffe" or "torch"; found {mode!r}')
    if isinstance(images, np.ndarray):
        images = images.copy()  # Keras writes over it
    return imagenet_utils.preprocess_input(images, mode=mode)


def decode_predictions(predictions, top=5):
    """Names the most probable of ImageNet's classes, as in keras.applications, whose list it fetches once.

    Args:
        predictions: (batch, 1000) probabilities.
        top: how many classes.

    Returns:
        For each image a list of (WordNet identifier, description, probability), the most probable first.

    Raises:
        ValueError: there are not 1000 classes.
    """
    return imagenet_utils.decode_predictions(keras.ops.convert_to_numpy(predictions), top=top)
