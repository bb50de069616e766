"""The networks of the papers: tables, and the one builder that reads them.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep
Residual Networks" (arXiv 1603.05027).
"""

import contextlib
import functools
import inspect
import os
import sys

import keras
import numpy as np
from keras import layers, ops

from keras_resnet import blocks

# Blocks in each of the four stages (P1 Table 1).
IMAGENET_STAGES = {
    18: (blocks.basic, (2, 2, 2, 2)),
    34: (blocks.basic, (3, 4, 6, 3)),
    50: (blocks.bottleneck, (3, 4, 6, 3)),
    101: (blocks.bottleneck, (3, 4, 23, 3)),
    152: (blocks.bottleneck, (3, 8, 36, 3)),
}
# Convolutions in each block of the CIFAR networks, which have three stages of n blocks (P1 4.2, P2).
CIFAR_BLOCKS = {"basic": (blocks.basic, 2), "bottleneck": (blocks.bottleneck, 3)}

# What is subtracted from an image and what it is then divided by, for pixels in [0, 255].
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN, TORCH_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def _choose(argument, value, choices):
    if value not in choices:
        raise ValueError(f"{argument} is one of {', '.join(map(repr, choices))}; found {value!r}")


@contextlib.contextmanager
def recursion_limit(n):
    """Keras walks the graph of a network recursively, several calls a block deep."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, n))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _model(inputs, outputs, name, depth_in_blocks):
    with recursion_limit(1000 + 20 * depth_in_blocks):
        return keras.Model(inputs, outputs, name=name)


def _normalize(x, normalization):
    """The first layer: from RGB pixels in [0, 255] to what the network was trained on."""
    if normalization == "caffe":
        x, mean, std = ops.flip(x, axis=-1), CAFFE_MEAN_BGR, 1.0
    elif normalization == "torch":
        mean, std = TORCH_MEAN, TORCH_STD
    elif isinstance(normalization, (tuple, list)) and len(normalization) == 2:
        mean, std = normalization
    else:
        raise ValueError(f'normalization is None, "caffe", "torch" or (mean, std); found {normalization!r}')
    mean, std = np.asarray(mean, "float64"), np.asarray(std, "float64")
    for what, value in (("mean", mean), ("std", std)):
        if value.ndim and value.shape not in {(3,), tuple(x.shape[1:])}:
            raise ValueError(
                f"the {what} of a normalization is a number, one number a channel, or an image of the "
                f"network's input shape {tuple(x.shape[1:])}; found shape {value.shape}"
            )
    return layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name="normalization")(x)


def _build(
    default_name,
    block,
    repetitions,
    width,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name=None,
    *,
    shortcut="B",
    stride_in="1x1",
    stem="7x7",
    shortcut_initializer=None,
    normalization=None,
):
    """Reads one row: `repetitions` blocks in each stage, `width` filters in the first, twice as many in the next."""
    if shortcut is not None:
        _choose("shortcut", shortcut, ("A", "B", "C"))
    _choose("stride_in", stride_in, ("1x1", "3x3"))
    _choose("stem", stem, ("7x7", "3x3"))
    _choose("pooling", pooling, (None, "avg", "max"))
    if keras.config.image_data_format() != "channels_last":
        raise ValueError('these networks are "channels_last"; call keras.config.set_image_data_format("channels_last")')

    inputs = layers.Input(input_shape or (None, None, 3), name="images") if input_tensor is None else input_tensor
    x = inputs
    if normalization is not None:
        x = _normalize(x, normalization)
    if stem == "7x7":
        x = blocks.conv_bn(x, width, 7, "conv1", strides=2)
        x = layers.MaxPooling2D(3, 2, name="pool1")(blocks.pad(x, 1, "pool1"))  # zeros: x is not negative
    else:
        x = blocks.conv_bn(x, width, 3, "conv1")
    for stage, blocks_in_stage in enumerate(repetitions, 2):
        for i in range(1, blocks_in_stage + 1):
            x = block(
                x,
                width * 2 ** (stage - 2),
                f"conv{stage}_{i}",
                strides=2 if i == 1 and stage > 2 else 1,  # conv3_1, conv4_1 and conv5_1 (P1 Table 1)
                stride_in=stride_in,
                option=shortcut,
                initializer=shortcut_initializer,
            )
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="pool")(x)
    if include_top:
        x = layers.Dense(classes, kernel_initializer=blocks.classifier_normal(), name="fc")(x)
        if classifier_activation:
            x = layers.Activation(classifier_activation, dtype="float32", name="predictions")(x)
    if input_tensor is not None:
        (inputs,) = keras.utils.get_source_inputs(input_tensor)
    model = _model(inputs, x, name or default_name, sum(repetitions))
    if weights is not None:
        _load(model, weights)
    return model


def _load(model, weights):
    path = os.fspath(weights)
    if not path.endswith((".keras", ".weights.h5")) or not os.path.isfile(path):
        raise ValueError(
            f"weights is None or the path of a .keras or .weights.h5 file that this package wrote; found {path!r}"
            + ("" if os.path.exists(path) else ", which does not exist")
        )
    model.load_weights(path)


def logits(model):
    """The same network up to `fc`: what is trained, because cross-entropy on logits is exact.

    Args:
        model: a network of this module with its top.

    Returns:
        A model that shares all layers and variables with `model` and ends before the softmax.
    """
    return _model(model.input, model.get_layer("fc").output, model.name, len(model.layers))


OPTIONS = """
    Args:
        include_top: whether to end with average pooling, the fully connected layer and the softmax.
        weights: None, or the path of a `.keras` or `.weights.h5` file of this package.
        input_tensor: a Keras tensor to build the network on, instead of a new input.
        input_shape: (height, width, channels); None for a size is any size. Default: any size, three channels.
        pooling: without the top: None for the last feature map, "avg" or "max" to pool it over all positions.
        classes: number of classes.
        classifier_activation: "softmax", or None for logits.
        name: the model's name.
        shortcut: "A" (identity, zeros as new channels), "B" (projection where the shape changes) or
            "C" (projection everywhere), P1 4.1.
        stride_in: where a bottleneck has its stride: "1x1" (the paper) or "3x3" (Facebook, torchvision, "v1.5").
            Basic blocks have theirs in the first 3x3.
        stem: "7x7" (stride 2, then 3x3 max pooling) or "3x3" (stride 1, no pooling: for small images).
        shortcut_initializer: initializer of the projections; default He. "average" fills them with
            1 / input channels.
        normalization: a first layer for RGB pixels in [0, 255]: None, "caffe", "torch" or (mean, std), each a
            number, one number a channel or an image.

    Returns:
        A `keras.Model`. Input: (batch, height, width, channels), float. Output: (batch, classes) probabilities, or
        the features. Block 1 of stage 3 ends in the layer `conv3_1`; its convolutions are `conv3_1_1`, `conv3_1_2`.

    Raises:
        ValueError: an argument is none of the above; the message says which ones are.
    """


def _row(name, depth, **fixed):
    """The public function of one row of IMAGENET_STAGES, with its own name, signature and documentation."""
    builder = functools.partial(_build, name.lower(), *IMAGENET_STAGES[depth], 64)
    signature = inspect.signature(builder)

    def network(*args, **kwargs):
        return builder(*args, **kwargs, **fixed)

    network.__name__ = network.__qualname__ = name
    network.__signature__ = signature.replace(
        parameters=[parameter for parameter in signature.parameters.values() if parameter.name not in fixed]
    )
    kind = "plain" if "shortcut" in fixed else "residual"
    network.__doc__ = f"The {depth}-layer {kind} network (P1 Table 1).\n{OPTIONS}"
    return network


ResNet18 = _row("ResNet18", 18)
ResNet34 = _row("ResNet34", 34)
ResNet50 = _row("ResNet50", 50)
ResNet101 = _row("ResNet101", 101)
ResNet152 = _row("ResNet152", 152)
PlainNet18 = _row("PlainNet18", 18, shortcut=None)
PlainNet34 = _row("PlainNet34", 34, shortcut=None)


def cifar_row(depth, block):
    """The block function and the number of blocks in each stage of a CIFAR network; ValueError where there is none."""
    _choose("block", block, CIFAR_BLOCKS)
    function, convolutions = CIFAR_BLOCKS[block]
    per_n = 3 * convolutions
    n, rest = divmod(depth - 2, per_n)
    if rest or n < 1:
        nearest = sorted({per_n * max(k, 1) + 2 for k in (n, n + 1)})
        raise ValueError(
            f"depth is {per_n}n+2 with {block} blocks; found {depth}, nearest {' and '.join(map(str, nearest))}"
        )
    return function, (n, n, n)


def CifarResNet(depth, *, block="basic", shortcut="A", classes=10, input_shape=(32, 32, 3), **options):
    """The network for small images (P1 4.2): a 3x3 stem and three stages of 16, 32 and 64 filters.

    Args:
        depth: 6n+2 (20, 32, 44, 56, 110, 1202 in the paper); with bottlenecks 9n+2 (164, 1001 in P2).
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1).
        shortcut: "A" (the paper's), "B" or "C".
        classes, input_shape, options: as in `ResNet50`.

    Returns:
        A `keras.Model`. Input: (batch, 32, 32, 3), float. Output: (batch, classes) probabilities.

    Raises:
        ValueError: no network has this depth; the message names the nearest ones.
    """
    return _build(
        f"cifar_{'resnet' if shortcut else 'plainnet'}{depth}",
        *cifar_row(depth, block),
        16,
        classes=classes,
        input_shape=input_shape,
        shortcut=shortcut,
        **{"stem": "3x3", **options},
    )


def CifarPlainNet(depth, **options):
    """`CifarResNet` without shortcuts (P1 4.2): as many parameters as with option A."""
    return CifarResNet(depth, shortcut=None, **options)
