"""The networks of the papers: tables, and the one builder that reads them.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep
Residual Networks" (arXiv 1603.05027).
"""

import functools
import inspect
import math
import operator
import re

import keras
from keras import layers

from keras_resnet import blocks
from keras_resnet.graphs import recursion_limit
from keras_resnet.normalization import UNKNOWN, normalize, numbers
from keras_resnet.weights import load_weights
from keras_resnet.weights.readers import IMAGENET, WeightsError, own_layers, read

# Blocks in each of the four stages (P1 Table 1).
IMAGENET_STAGES = {
    18: (blocks.basic, (2, 2, 2, 2)),
    34: (blocks.basic, (3, 4, 6, 3)),
    50: (blocks.bottleneck, (3, 4, 6, 3)),
    101: (blocks.bottleneck, (3, 4, 23, 3)),
    152: (blocks.bottleneck, (3, 8, 36, 3)),
    200: (blocks.bottleneck, (3, 24, 36, 3)),  # P2 Table 5
}
# Convolutions in each block of the CIFAR networks, which have three stages of n blocks (P1 4.2, P2).
CIFAR_BLOCKS = {"basic": (blocks.basic, 2), "bottleneck": (blocks.bottleneck, 3)}


def _choose(argument, value, choices):
    if value not in choices:
        raise ValueError(f"{argument} is one of {', '.join(map(repr, choices))}; found {value!r}")


def _model(inputs, outputs, name, depth_in_blocks):
    with recursion_limit(1000 + 20 * depth_in_blocks):
        return keras.Model(inputs, outputs, name=name)


def _build(
    default_name,
    convolutions,
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
    stride_in=None,
    stem="7x7",
    shortcut_initializer=None,
    normalization="auto",
    output_stride=None,
    preactivation=False,
    activation_order=None,
    shortcut_variant=None,
):
    """Reads one row: `repetitions` blocks in each stage, `width` filters in the first, twice as many in the next."""
    if shortcut is not None:
        _choose("shortcut", shortcut, ("A", "B", "C"))
    _choose("stride_in", stride_in, (None, "1x1", "3x3"))
    _choose("stem", stem, ("7x7", "3x3"))
    _choose("pooling", pooling, (None, "avg", "max"))
    _choose("activation_order", activation_order, (None, *blocks.ORDERS, *blocks.OTHER_ORDERS))
    _choose("shortcut_variant", shortcut_variant, (None, *blocks.SHORTCUT_VARIANTS))
    if preactivation and activation_order:
        raise ValueError(
            f"preactivation, which V2 networks have, is the activation_order 'full_preactivation'; found "
            f"{activation_order!r} as well; give one of the two"
        )
    activation_order = activation_order or ("full_preactivation" if preactivation else "original")
    if shortcut is None and (activation_order != "original" or shortcut_variant):
        raise ValueError("a plain network has no shortcut, so it takes no other order of activations and no variant")
    order = (blocks.ORDERS | blocks.OTHER_ORDERS)[activation_order]
    if not order.stem and stem != "3x3":  # a pooling that pads with zeros needs what is not negative
        raise ValueError(f'activation_order={activation_order!r} is of networks with stem="3x3"')
    whole_stride = (4 if stem == "7x7" else 1) * 2 ** (len(repetitions) - 1)
    _choose("output_stride", output_stride, (None, *(n for n in (8, 16) if n <= whole_stride)))
    if keras.config.image_data_format() != "channels_last":
        raise ValueError('these networks are "channels_last"; call keras.config.set_image_data_format("channels_last")')
    _check_shape(input_shape)
    inputs = layers.Input(input_shape or (None, None, 3), name="images") if input_tensor is None else input_tensor
    published = isinstance(weights, str) and weights == "imagenet"
    if published and default_name in IMAGENET:  # before they are fetched
        needed = {
            "shortcut": "B",
            "stem": "7x7",
            "activation_order": "original",
            "shortcut_variant": None,
            "channels": 3,
        }
        given = (shortcut, stem, activation_order, shortcut_variant, inputs.shape[-1])
        for option, found in zip(needed, given, strict=True):
            if found != needed[option]:
                raise ValueError(
                    f'weights="imagenet" are of a network with {option}={needed[option]!r}; found {found!r}'
                )
    if weights is not None:
        weights = read(weights, default_name)
        stride_in = stride_in or weights.stride_in
    if isinstance(normalization, str) and normalization == "auto":
        normalization = None if weights is None else weights.normalization
    stride_in = stride_in or "1x1"

    unknown = isinstance(normalization, str) and normalization == UNKNOWN
    x = inputs
    if normalization is not None and not unknown:
        x = normalize(x, normalization)
    if stem == "7x7":
        x = blocks.activate(blocks.convolve(x, "conv1", 7, width, strides=2), order.stem, "conv1")
        x = layers.MaxPooling2D(3, 2, name="pool1")(blocks.pad(x, 1, "pool1"))  # zeros: x is not negative
    else:
        x = blocks.activate(blocks.convolve(x, "conv1", 3, width), order.stem, "conv1")
    stride, dilation = (4 if stem == "7x7" else 1), 1
    for stage, blocks_in_stage in enumerate(repetitions, 2):
        for i in range(1, blocks_in_stage + 1):
            strides = 2 if i == 1 and stage > 2 else 1  # conv3_1, conv4_1 and conv5_1 (P1 Table 1)
            before = dilation
            if stride * strides > (output_stride or math.inf):
                strides, dilation = 1, dilation * strides
            stride *= strides
            x = blocks.block(
                x,
                convolutions(width * 2 ** (stage - 2), strides, (before, dilation), stride_in),
                f"conv{stage}_{i}",
                option=shortcut,
                order=order,
                activated=(stage, i) == (2, 1) and bool(order.stem),  # by conv1's (P2, appendix)
                variant=shortcut_variant,
                initializer=shortcut_initializer,
            )
    x = blocks.activate(x, order.before, "post")  # of the last block's sum (P2, appendix)
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="pool")(x)
    if include_top:
        x = layers.Dense(operator.index(classes), kernel_initializer=blocks.classifier_normal(), name="fc")(x)
        if classifier_activation:
            x = layers.Activation(classifier_activation, dtype="float32", name="predictions")(x)
    if input_tensor is not None:
        inputs = keras.utils.get_source_inputs(input_tensor)
        inputs = inputs[0] if len(inputs) == 1 else inputs
    model = _model(inputs, x, name or default_name, sum(repetitions))
    if weights is not None:
        other_classes = published and include_top and classes != 1000  # whose last layer is to be trained
        body = _model(inputs, model.get_layer("pool").output, model.name, sum(repetitions)) if other_classes else model
        load_weights(body, weights)
    if unknown:
        raise WeightsError(
            f"{weights or 'the weights'}: nothing says how the images were normalised that this network was trained "
            'on. Say it: normalization="cifar10" (mean .4914 .4822 .4465, std .2023 .1994 .2010), "cifar100" (.5070 '
            '.4865 .4409, .2673 .2564 .2761), "torch" (ImageNet\'s), (mean, std) of pixels in [0, 255], or None for an '
            "input that is normalised outside; with convert.py: --normalization cifar10"
        )
    return model


def _check_shape(input_shape):
    if input_shape is None:
        return
    if len(input_shape) != 3 or input_shape[-1] is None:
        raise ValueError(f"input_shape is (height, width, channels); found {input_shape}")
    first, second, last = input_shape
    if last > 4 and (first == 3 or (first in (1, 4) and second == last)):
        raise ValueError(
            f"input_shape is (height, width, channels); found {input_shape}, which looks like (channels, height, width)"
        )


def _check_options(function, options):
    """TypeError for a keyword that no network has, with the name of the function that was called."""
    known = list(inspect.signature(_build).parameters)[4:]  # but the row
    if unknown := [option for option in options if option not in known]:
        raise TypeError(f"{function}() has no argument {unknown[0]!r}; it has {', '.join(known)}")


def logits(model):
    """The same network up to `fc`: what is trained, because cross-entropy on logits is exact.

    Args:
        model: a network of this module with its top.

    Returns:
        A model that shares all layers and variables with `model` and ends before the softmax.
    """
    return _model(model.input, model.get_layer("fc").output, model.name, len(model.layers))


def features(model):
    """The same network up to the last block of each stage, for detection and segmentation.

    Args:
        model: a network of this module, with or without its top.

    Returns:
        A model that shares all layers and variables with `model`. Output: a dictionary of the stages' feature maps,
        (batch, height, width, channels) each: "conv2" to "conv5", P1's names; CIFAR networks end with "conv4".

    Raises:
        ValueError: `model` is another network, or contains the network as a layer; the message says which.
    """
    ends = [re.fullmatch(r"(conv\d+)_\d+", layer.name) for layer in own_layers(model)]
    outputs = {end[1]: model.get_layer(end[0]).output for end in ends if end}  # the last block of a stage stays
    if not outputs:
        raise ValueError(f"{model.name} is no network of this package: it has no blocks conv2_1, conv2_2 and so on")
    return _model(model.input, outputs, model.name, len(model.layers))


OPTIONS = """
    Args:
        include_top: whether to end with average pooling, the fully connected layer and the softmax.
        weights: None; a path or a Keras model, of this package, torchvision, timm, transformers, keras.applications,
            keras_hub, akamaster, kuangliu, chenyaofo or pytorchcv (`readers.read`); or "imagenet" for published weights
            of `ResNet18` to `ResNet152`, where any other number of `classes` than 1000 gets a new last layer.
        input_tensor: a Keras tensor to build the network on, instead of a new input. The model's inputs are those that
            it was computed from.
        input_shape: (height, width, channels); None for a size is any size. Default: any size, three channels.
        pooling: without the top: None for the last feature map, "avg" or "max" to pool it over all positions.
        classes: number of classes.
        classifier_activation: "softmax", or None for logits.
        name: the model's name.
        shortcut: "A" (identity, zeros as new channels), "B" (projection where the shape changes) or
            "C" (projection everywhere), P1 4.1.
        stride_in: where a bottleneck has its stride: "1x1" (the paper) or "3x3" (Facebook, torchvision, "v1.5").
            Basic blocks have theirs in the first 3x3. Default: that of the weights; without, "1x1".
        stem: "7x7" (stride 2, then 3x3 max pooling) or "3x3" (stride 1, no pooling: for small images).
        shortcut_initializer: initializer of the projections; default He. "average" fills them with
            1 / input channels. As everywhere in Keras, one with an integer seed gives the same values each time.
        normalization: a first layer for pixels in [0, 255]: "caffe", "torch", "cifar10" or "cifar100" (RGB;
            `normalization.NAMED`), or (mean, std), each a number, one number a channel or an image. "auto": that of
            the weights, so that the network takes pixels; without weights, none. None: none; the input is normalised
            outside, by `preprocess_input(images, mode)`.
        output_stride: None, or 8 or 16 for feature maps at that fraction of the input's size: the last strides become
            dilation, with the same parameters. The values at the positions of the undilated network remain the same.
        preactivation: whether batch normalisation and nonlinearity come before each convolution (P2).
        activation_order: an order of P2 Fig. 4 by name, for its experiments: "original", "bn_after_addition",
            "relu_before_addition", "relu_only_preactivation" or "full_preactivation"; or "bare_stem_preactivation", the
            last one with nothing after conv1, as pytorchcv's networks.
        shortcut_variant: what P2 Table 1 does to the shortcut, for its experiments: None, "constant_scaling",
            "exclusive_gate", "shortcut_gate" or "dropout". Its 1x1 convolution is option C.

    Returns:
        A `keras.Model`. Input: (batch, height, width, channels), float. Output: (batch, classes) probabilities, or
        the features. Block 1 of stage 3 ends in the layer `conv3_1`; its convolutions are `conv3_1_1`, `conv3_1_2`.

    Raises:
        ValueError: an argument is none of the above, or the weights do not fit; the message says which ones do.
    """


def _row(name, depth, **fixed):
    """The public function of one row of IMAGENET_STAGES, with its own name, signature and documentation."""
    builder = functools.partial(_build, name.lower(), *IMAGENET_STAGES[depth], 64)
    signature = inspect.signature(builder)

    def network(*args, **kwargs):
        if given := fixed.keys() & kwargs.keys():
            raise TypeError(f"{name} takes no {', '.join(given)}: it has {fixed}")
        _check_options(name, kwargs)
        return builder(*args, **kwargs, **fixed)

    network.__name__ = network.__qualname__ = name
    network.__signature__ = signature.replace(
        parameters=[parameter for parameter in signature.parameters.values() if parameter.name not in fixed]
    )
    kind = "plain" if "shortcut" in fixed else "residual"
    source = "P2" if "preactivation" in fixed else "P1 Table 1"
    network.__doc__ = f"The {depth}-layer {kind} network ({source}).\n{OPTIONS}"
    return network


ResNet18 = _row("ResNet18", 18)
ResNet34 = _row("ResNet34", 34)
ResNet50 = _row("ResNet50", 50)
ResNet101 = _row("ResNet101", 101)
ResNet152 = _row("ResNet152", 152)
ResNet18V2 = _row("ResNet18V2", 18, preactivation=True)
ResNet34V2 = _row("ResNet34V2", 34, preactivation=True)
ResNet50V2 = _row("ResNet50V2", 50, preactivation=True)
ResNet101V2 = _row("ResNet101V2", 101, preactivation=True)
ResNet152V2 = _row("ResNet152V2", 152, preactivation=True)
ResNet200V2 = _row("ResNet200V2", 200, preactivation=True)
PlainNet18 = _row("PlainNet18", 18, shortcut=None)
PlainNet34 = _row("PlainNet34", 34, shortcut=None)


def cifar_row(depth, block):
    """The block function and the number of blocks in each stage of a CIFAR network; ValueError where there is none."""
    _choose("block", block, CIFAR_BLOCKS)
    try:
        depth = operator.index(depth)
    except TypeError as error:
        raise ValueError(f"depth is an integer; found {depth!r}") from error
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
    _check_options("CifarResNet", options)
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
    _check_options("CifarPlainNet", {option: value for option, value in options.items() if option != "block"})
    return CifarResNet(depth, shortcut=None, **options)


def from_weights(source, normalization="auto"):
    """The network that any weights are of, as their tensors describe it, with these weights.

    Args:
        source: as `weights` in `ResNet50`, but "imagenet" and `.weights.h5`, which describe no network.
        normalization: as in `ResNet50`. "auto": the source's own. Networks for small images in files of PyTorch often
            do not say it; then it is asked for.

    Returns:
        A `keras.Model`, which takes pixels in [0, 255] if it normalises them. It has a top if the source has one. What
        a Keras model tells beyond its tensors is kept: the last activation, the pooling, the output stride.

    Raises:
        WeightsError: the source cannot be read, or is of no network that this module builds, or nothing says how its
            input was normalised.
    """
    source = read(source)
    if source.family is None:
        raise WeightsError(f"{source} names no layers; build its network and call load_weights(model, path)")
    repetitions, stem, top = source.repetitions(), source.array("conv1"), source.array("fc")
    first = source.array("conv2_1_1")
    if stem is None or first is None:
        raise WeightsError(f"{source} has no first convolution or no first block")
    if isinstance(normalization, str) and normalization == "auto":
        normalization = source.normalization
    channels = stem.shape[2]
    size = source.input_size or (32, 32) if source.stages == 3 else (None, None)
    if isinstance(normalization, (tuple, list)) and (mean := numbers(normalization)[0]).ndim == 3:
        size = mean.shape[:2]
    return _build(
        source.network,
        {2: blocks.basic, 3: blocks.bottleneck}[source.convolutions],
        repetitions,
        first.shape[-1],
        include_top=top is not None,
        weights=source,
        input_shape=(*size, channels),
        pooling=source.pooling,
        classes=0 if top is None else top.shape[-1],
        classifier_activation=source.classifier_activation,
        shortcut=source.shortcut,
        stem="7x7" if stem.shape[0] == 7 else "3x3",
        normalization=normalization,
        output_stride=source.output_stride,
        activation_order=source.activation_order,
        shortcut_variant=source.shortcut_variant,
    )
