"""Parts of a network as models (logits, features), and measurements on it.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import math
import re
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_resnet import graphs
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit
from keras_resnet.normalization import Tensor
from keras_resnet.weights.keras_models import own_layers


def logits(model: keras.Model) -> keras.Model:
    """The same network up to `fc`. Training uses this model, because cross-entropy on logits is numerically exact.

    Args:
        model: a network of this package with its top.

    Returns:
        A model that shares all layers and variables with `model` and ends before the softmax.

    Raises:
        ValueError: `model` has no top.
    """
    if "fc" not in (layer.name for layer in model.layers):
        raise ValueError(f"{model.name} has no layer fc; build it with its top, include_top=True")
    return _shared(model, model.get_layer("fc").output)


def features(model: keras.Model) -> keras.Model:
    """The same network up to the last block of each stage, for detection and segmentation.

    Args:
        model: a network of this package, with or without its top.

    Returns:
        A model that shares all layers and variables with `model`. Output: a dictionary of the stages' feature maps,
        (batch, height, width, channels) each: "conv2" to "conv5", P1's names; CIFAR networks end with "conv4".

    Raises:
        ValueError: `model` is not a network of this package, or contains one as a layer; the message says which.
    """
    ends = [re.fullmatch(r"(conv\d+)_\d+", layer.name) for layer in own_layers(model)]
    outputs = {end[1]: model.get_layer(end[0]).output for end in ends if end}  # the last block of a stage stays
    if not outputs:
        raise ValueError(f"{model.name} is not a network of this package: it has no blocks conv2_1, conv2_2 and so on")
    return _shared(model, outputs)


def _shared(model, outputs):
    """A model that shares the layers of another one and ends at `outputs`."""
    with recursion_limit(LOADING_DEPTH):
        return keras.Model(model.input, outputs, name=model.name)


def count_macs(model: keras.Model, input_shape: tuple[int, ...] | None = None) -> int:
    """Multiply-adds of all convolutions and fully connected layers for one image, as P1 Table 1 counts its FLOPs.

    Args:
        model: a functional or sequential Keras model with one image input. Depthwise convolutions are counted too.
        input_shape: (height, width, channels), needed if the model takes any size.

    Raises:
        ValueError: the model takes any size and no `input_shape` was given, or it contains another model, or a layer
            whose multiply-adds are not counted here.
    """
    shape = input_shape or tuple(model.input_shape[1:])
    if None in shape:
        raise ValueError(f"{model.name} takes any size, {shape}; give input_shape=(height, width, channels)")
    layers = _layers(model, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense))
    for layer in own_layers(model):
        if layer not in layers and any(len(variable.shape) > 1 for variable in layer.weights):
            raise ValueError(f"{type(layer).__name__} layers, such as {layer.name} of {model.name}, are not counted")
    with recursion_limit(LOADING_DEPTH):
        probe = keras.Model(model.inputs[0], [layer.output for layer in layers])
        outputs = probe.compute_output_spec(keras.KerasTensor((1, *shape)))
    positions = [math.prod(output.shape[1:-1]) for output in outputs]
    return sum(math.prod(layer.kernel.shape) * n for layer, n in zip(layers, positions, strict=True))


STATISTICS = ("moving_mean", "moving_variance", "mean", "variance", "count")  # not trained by gradients


def count_parameters(model: keras.Model) -> int:
    """The number of a network's parameters, frozen or not, without the statistics of normalisation layers."""
    return sum(math.prod(variable.shape) for variable in model.weights if variable.name not in STATISTICS)


def response_std(model: keras.Model, images: np.ndarray | Tensor, batch_size: int = 128) -> dict[str, float]:
    """The standard deviation of the responses of each 3x3 convolution (P1 Fig. 7).

    The response is the output of the batch normalisation that follows the convolution, before the nonlinearity and the
    addition. If none follows, it is the convolution's own output, as for the last convolution of a pre-activation
    block; the other convolutions of that block are followed by the batch normalisation of the next one.

    Args:
        model: a network of this package, or another functional or sequential Keras model.
        images: (n, height, width, channels), as the model takes them.
        batch_size: images in a forward pass.

    Raises:
        ValueError: the model has no 3x3 convolution, or it contains another model.

    Returns:
        A dictionary from the convolutions' names, in the order of their depth, to standard deviations over images,
        positions and channels.
    """
    convolutions = [layer for layer in _layers(model, keras.layers.Conv2D) if layer.kernel_size == (3, 3)]
    if not convolutions:
        raise ValueError(f"{model.name} has no 3x3 convolution")
    normalized = {id(layer.input): layer.output for layer in _layers(model, keras.layers.BatchNormalization)}
    moments = [_moments(normalized.get(id(layer.output), layer.output)) for layer in convolutions]
    with recursion_limit(LOADING_DEPTH):
        probe = keras.Model(model.inputs[0], keras.ops.stack(moments, axis=1))
    means = probe.predict(images, batch_size, verbose=0).mean(axis=0, dtype="float64")
    variances = np.maximum(means[:, 1] - means[:, 0] ** 2, 0)  # rounding can make it negative
    return {layer.name: float(std) for layer, std in zip(convolutions, np.sqrt(variances), strict=True)}


def _moments(responses):
    """The mean and the mean square of each example's responses, in float32: (batch, 2)."""
    responses, axes = keras.ops.cast(responses, "float32"), tuple(range(1, len(responses.shape)))
    return keras.ops.stack([keras.ops.mean(responses, axes), keras.ops.mean(keras.ops.square(responses), axes)], 1)


def recalibrate_bn(model: keras.Model, batches: Iterable[np.ndarray | Tensor]) -> None:
    """Replaces the moving averages of all batch normalisations with the mean over batches of training images.

    P1's released models did this: "the statistics are the average of a sufficiently large training batch, after
    training".

    Args:
        model: a Keras model. Its averages change, including those of frozen layers and of nested models. Its weights
            do not.
        batches: arrays or tensors of images, as the model takes them, without labels.

    Raises:
        ValueError: there are no batches.
    """
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before, count = [(layer.momentum, layer.trainable) for layer in layers], 0
    try:
        for images in batches:
            for layer in layers:
                layer.momentum, layer.trainable = count / (count + 1), True  # turns the moving average into the mean
            model(images, training=True)
            count += 1
    finally:
        for layer, (momentum, trainable) in zip(layers, before, strict=True):
            layer.momentum, layer.trainable = momentum, trainable
    if not count:
        raise ValueError("there are no batches to average over; has the iterator been consumed already?")


def gradient_norms(model: keras.Model, images: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> dict[str, float]:
    """The norm of the loss gradient for each layer's kernel, to see whether it vanishes towards the first layers.

    Args:
        model: a network of this package with its top.
        images, labels: a batch: (n, height, width, channels), and integers (n,).

    Raises:
        ValueError: the model has no top, or it contains another model.

    Returns:
        A dictionary from the names of convolutions and fully connected layers, in the order of their depth, to the
        L2 norms of the cross-entropy's gradient, with batch normalisation in training mode; frozen layers are included.
        They are always computed in float32, because small ones would underflow in a smaller dtype.
    """

    def in_float32(layer):
        dtype = {"dtype": "float32"} if keras.backend.is_float_dtype(layer.compute_dtype) else {}
        return type(layer).from_config(layer.get_config() | dtype)

    copy = graphs.copy(logits(model), in_float32)
    for layer in copy.layers:
        layer.trainable = True
    # After one step from rest the optimizer's momentum is the gradient, on every backend.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float32")
    copy.compile(keras.optimizers.SGD(1.0, momentum=0.9), loss, auto_scale_loss=False)
    copy.train_on_batch(images, labels)
    gradients = dict(zip((v.path for v in copy.trainable_variables), copy.optimizer.momentums, strict=True))
    layers = _layers(copy, (keras.layers.Conv2D, keras.layers.Dense))
    norm = lambda layer: float(np.linalg.norm(keras.ops.convert_to_numpy(gradients[layer.kernel.path])))
    return {layer.name: norm(layer) for layer in layers}


def class_activation_map(
    model: keras.Model, images: np.ndarray | Tensor, class_index: int | Sequence[int] | np.ndarray | None = None,
    batch_size: int = 128,
) -> np.ndarray:  # fmt: skip
    """The evidence for a class at each position of the last feature map (Zhou et al., arXiv 1512.04150, section 2).

    The last feature map is followed by global average pooling and one fully connected layer. So the logit of a class is
    the mean of this map over all positions, plus the class's bias.

    Args:
        model: a network of this package with its top, or another functional or sequential Keras model that ends with
            global average pooling, one fully connected layer, and at most an activation.
        images: (n, height, width, channels), as the model takes them.
        class_index: the class in [0, classes), one for all images or one for each; None: each image's most probable.
        batch_size: images in a forward pass.

    Raises:
        ValueError: the model ends differently, or `class_index` is out of range, or is not one for each image.

    Returns:
        (n, rows, columns), float32, of the last feature map's size. Positive values are evidence for the class. In a
        network of this package the value at (i, j) has a receptive field around the pixel (stride i, stride j), where
        stride is the input's size divided by the map's: 32, 4 in the networks for small images, or the `output_stride`.
    """
    pool, fc = _pool_and_fc(model)
    with recursion_limit(LOADING_DEPTH):
        probe = keras.Model(model.inputs[0], [pool.input, fc.output])
    maps, scores = (np.asarray(x, "float32") for x in probe.predict(images, batch_size, verbose=0))
    classes = scores.argmax(axis=-1) if class_index is None else np.asarray(class_index)
    if classes.shape not in {(), (len(maps),)} or classes.dtype.kind not in "iu":
        raise ValueError(
            f"class_index is an integer or one for each of {len(maps)} images; found {classes.dtype} {classes.shape}"
        )
    if not ((classes >= 0) & (classes < scores.shape[-1])).all():
        raise ValueError(f"{model.name} has the classes 0 to {scores.shape[-1] - 1}; found class_index={class_index}")
    kernel = np.asarray(keras.ops.convert_to_numpy(fc.kernel), "float32")
    return np.einsum("nijc,nc->nij", maps, kernel.T[np.broadcast_to(classes, len(maps))])


def _pool_and_fc(model):
    """The two layers that a classifier ends with, before its last activation."""
    fc = model.outputs[0]._keras_history.operation
    if isinstance(fc, (keras.layers.Activation, keras.layers.Softmax)):
        fc = fc.input._keras_history.operation
    pool = fc.input._keras_history.operation if isinstance(fc, keras.layers.Dense) else None
    if not isinstance(pool, keras.layers.GlobalAveragePooling2D):
        raise ValueError(
            f"{model.name} does not end with global average pooling and one fully connected layer; "
            "build a network of this package with its top, include_top=True"
        )
    return pool, fc


def _layers(model, kind):
    return [layer for layer in own_layers(model) if isinstance(layer, kind)]
