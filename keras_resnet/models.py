"""The networks of the papers: their tables, and the one builder that reads them.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep
Residual Networks" (arXiv 1603.05027). `ResNet50` documents the arguments that all networks share.
"""

import math
import operator
import re
import typing

import keras
from keras import KerasTensor, layers

from keras_resnet import blocks
from keras_resnet.blocks import Initializer
from keras_resnet.graphs import recursion_limit
from keras_resnet.normalization import UNKNOWN, Normalization, mean_and_std, normalize
from keras_resnet.weights import WeightsError, load_weights, published, readers

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

Weights: typing.TypeAlias = readers.Readable | None
Shape: typing.TypeAlias = tuple[int | None, ...] | None
Activation: typing.TypeAlias = str | typing.Callable | None


def ResNet18(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 18-layer residual network (P1 Table 1). Arguments as `ResNet50`."""
    return _imagenet("resnet18", 18, locals())


def ResNet34(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 34-layer residual network (P1 Table 1). Arguments as `ResNet50`."""
    return _imagenet("resnet34", 34, locals())


def ResNet50(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 50-layer residual network (P1 Table 1).

    Args:
        include_top: whether to end with average pooling, the fully connected layer and the softmax.
        weights: None; a path or a Keras model, of this package, torchvision, timm, transformers, keras.applications,
            keras_hub, akamaster, kuangliu, chenyaofo or pytorchcv (docs/weights.md); or "imagenet" for the published
            weights of `ResNet18` to `ResNet152`, "cifar10" for those of CIFAR networks that this package contains. If
            `classes` differs from these weights, the last layer is newly initialised.
        input_tensor: a Keras tensor to build the network on, instead of a new input. The model's inputs are those that
            it was computed from.
        input_shape: (height, width, channels); a height or width of None allows any. Default: any size, three channels.
        pooling: without the top: None for the last feature map, "avg" or "max" for global pooling.
        classes: number of classes.
        classifier_activation: "softmax", or None for logits.
        name: the model's name.
        shortcut: "A" (identity, new channels filled with zeros), "B" (projection where the shape changes) or
            "C" (projection everywhere), P1 4.1.
        stride_in: which convolution of a bottleneck has the stride: "1x1" (the paper) or "3x3" (Facebook, torchvision,
            "v1.5"). Basic blocks have it in the first 3x3. Default: as in the weights; without weights, "1x1".
        stem: "7x7" (stride 2, then 3x3 max pooling) or "3x3" (stride 1, no pooling: for small images).
        shortcut_initializer: initializer of the projections; default He. "average" fills them with
            1 / input channels. As everywhere in Keras, one with an integer seed gives the same values each time.
        normalization: what the first layer does with pixels in [0, 255]: "caffe", "torch", "cifar10" or "cifar100"
            (RGB; `normalization.NAMED`), or (mean, std), each a number, one number per channel or an image. "auto": as
            the weights need it, so that the network takes pixels; without weights there is no such layer. None: no such
            layer; the input is normalised outside, by `preprocess_input(images, mode)`.
        output_stride: None, or 8 or 16 for the ratio of the input's size to the last feature map's: the last strides
            are replaced by dilation, with the same parameters. At the positions of the undilated network the values
            stay the same.

    Returns:
        A `keras.Model`. Input: (batch, height, width, channels), float. Output: (batch, classes) probabilities, or
        the features. Block 1 of stage 3 ends with the layer `conv3_1`; its convolutions are `conv3_1_1`, `conv3_1_2`.

    Raises:
        ValueError: an argument is none of the above, or the weights do not fit; the message says what is possible.
    """
    return _imagenet("resnet50", 50, locals())


def ResNet101(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 101-layer residual network (P1 Table 1). Arguments as `ResNet50`."""
    return _imagenet("resnet101", 101, locals())


def ResNet152(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 152-layer residual network (P1 Table 1). Arguments as `ResNet50`."""
    return _imagenet("resnet152", 152, locals())


def ResNet18V2(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 18-layer pre-activation network (P2). Arguments as `ResNet50`."""
    return _imagenet("resnet18v2", 18, locals(), activation_order="full_preactivation")


def ResNet34V2(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 34-layer pre-activation network (P2). Arguments as `ResNet50`."""
    return _imagenet("resnet34v2", 34, locals(), activation_order="full_preactivation")


def ResNet50V2(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 50-layer pre-activation network (P2). Arguments as `ResNet50`."""
    return _imagenet("resnet50v2", 50, locals(), activation_order="full_preactivation")


def ResNet101V2(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 101-layer pre-activation network (P2). Arguments as `ResNet50`."""
    return _imagenet("resnet101v2", 101, locals(), activation_order="full_preactivation")


def ResNet152V2(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 152-layer pre-activation network (P2). Arguments as `ResNet50`."""
    return _imagenet("resnet152v2", 152, locals(), activation_order="full_preactivation")


def ResNet200V2(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str = "B",
    stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 200-layer pre-activation network (P2). Arguments as `ResNet50`."""
    return _imagenet("resnet200v2", 200, locals(), activation_order="full_preactivation")


def PlainNet18(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *,
    stride_in: str | None = None, stem: str = "7x7", normalization: Normalization = "auto",
    output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 18-layer plain network (P1 Table 1). Arguments as `ResNet50`."""
    return _imagenet("plainnet18", 18, locals(), shortcut=None)


def PlainNet34(
    include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *,
    stride_in: str | None = None, stem: str = "7x7", normalization: Normalization = "auto",
    output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """The 34-layer plain network (P1 Table 1). Arguments as `ResNet50`."""
    return _imagenet("plainnet34", 34, locals(), shortcut=None)


def cifar_row(depth: int, block: str) -> tuple[typing.Callable, tuple[int, ...]]:
    """The block function and the number of blocks in each stage of a CIFAR network; ValueError if there is none."""
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


def CifarResNet(
    depth: int, *, block: str = "basic", shortcut: str | None = "A", classes: int = 10,
    input_shape: Shape = (32, 32, 3), include_top: bool = True, weights: Weights = None,
    input_tensor: KerasTensor | None = None, pooling: str | None = None,
    classifier_activation: Activation = "softmax", name: str | None = None, stride_in: str | None = None,
    shortcut_initializer: Initializer = None, normalization: Normalization = "auto", output_stride: int | None = None,
    activation_order: str = "original", shortcut_variant: str | None = None,
) -> keras.Model:  # fmt: skip
    """The network for small images (P1 4.2): a 3x3 stem and three stages of 16, 32 and 64 filters.

    Args:
        depth: 6n+2 (20, 32, 44, 56, 110, 1202 in the paper); with bottlenecks 9n+2 (164, 1001 in P2).
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1).
        shortcut: "A" (the paper's), "B", "C", or None for a plain network.
        activation_order: an order of P2 Fig. 4 by name: "original", "bn_after_addition", "relu_before_addition",
            "relu_only_preactivation" or "full_preactivation" (P2's networks). Two more are full pre-activation with
            nothing after conv1, "bare_stem_preactivation" (pytorchcv's networks), and with nothing after the last block
            either, "bare_ends_preactivation" (kuangliu's).
        shortcut_variant: a variant of the shortcut in P2 Table 1: None, "constant_scaling", "exclusive_gate",
            "shortcut_gate" or "dropout". The 1x1 convolution of that table is option C.
        classes, input_shape, include_top, weights, input_tensor, pooling, classifier_activation, name, stride_in,
            shortcut_initializer, normalization, output_stride: as in `ResNet50`.

    Returns:
        A `keras.Model`. Input: (batch, 32, 32, 3), float. Output: (batch, classes) probabilities.

    Raises:
        ValueError: no network has this depth; the message names the nearest ones. Or as `ResNet50`.
    """
    options = locals()
    row = cifar_row(options.pop("depth"), options.pop("block"))
    return _build(f"cifar_{'resnet' if shortcut else 'plainnet'}{depth}", *row, 16, stem="3x3", **options)


def CifarPlainNet(
    depth: int, *, block: str = "basic", classes: int = 10, input_shape: Shape = (32, 32, 3), include_top: bool = True,
    weights: Weights = None, input_tensor: KerasTensor | None = None, pooling: str | None = None,
    classifier_activation: Activation = "softmax", name: str | None = None, stride_in: str | None = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """`CifarResNet` without shortcuts (P1 4.2): as many parameters as with option A."""
    return CifarResNet(**locals(), shortcut=None)


def from_weights(source: readers.Readable, normalization: Normalization = "auto") -> keras.Model:
    """Builds the network that the tensors of `source` describe, with these weights.

    Args:
        source: as `weights` in `ResNet50`, except "imagenet" and `.weights.h5`, which describe no network.
        normalization: as in `ResNet50`. "auto": the source's own. PyTorch files of networks for small images often do
            not state it; then it has to be given.

    Returns:
        A `keras.Model`, which takes pixels in [0, 255] if it normalises them. It has a top if the source has one. What
        a Keras model states beyond its tensors is kept: the last activation, the pooling, the output stride.

    Raises:
        WeightsError: the source cannot be read, or is no network that this module builds, or does not state how its
            input was normalised.
    """
    found = readers.read(source)
    if found.family is None:
        raise WeightsError(f"{found} names no layers; build its network and call load_weights(model, path)")
    repetitions, stem, top = found.repetitions(), found.array("conv1"), found.array("fc")
    first = found.array("conv2_1_1")
    if stem is None or first is None:
        raise WeightsError(f"{found} has no first convolution or no first block")
    if isinstance(normalization, str) and normalization == "auto":
        normalization = found.normalization
    channels = stem.shape[2]
    size = found.input_size or (32, 32) if found.stages == 3 else (None, None)
    if isinstance(normalization, (tuple, list)) and (mean := mean_and_std(normalization)[0]).ndim == 3:
        size = mean.shape[:2]
    return _build(
        found.network,
        {2: blocks.basic, 3: blocks.bottleneck}[found.convolutions],
        repetitions,
        first.shape[-1],
        include_top=top is not None,
        weights=found,
        input_shape=(*size, channels),
        pooling=found.pooling,
        classes=0 if top is None else top.shape[-1],
        classifier_activation=found.classifier_activation,
        shortcut=found.shortcut,
        stem="7x7" if stem.shape[0] == 7 else "3x3",
        normalization=normalization,
        output_stride=found.output_stride,
        activation_order=found.activation_order,
        shortcut_variant=found.shortcut_variant,
    )


def logits(model: keras.Model) -> keras.Model:
    """The same network up to `fc`. This is what is trained, because cross-entropy on logits is numerically exact.

    Args:
        model: a network of this module with its top.

    Returns:
        A model that shares all layers and variables with `model` and ends before the softmax.

    Raises:
        ValueError: `model` has no top.
    """
    if "fc" not in (layer.name for layer in model.layers):
        raise ValueError(f"{model.name} has no layer fc; build it with its top, include_top=True")
    return _model(model.input, model.get_layer("fc").output, model.name, len(model.layers))


def features(model: keras.Model) -> keras.Model:
    """The same network up to the last block of each stage, for detection and segmentation.

    Args:
        model: a network of this module, with or without its top.

    Returns:
        A model that shares all layers and variables with `model`. Output: a dictionary of the stages' feature maps,
        (batch, height, width, channels) each: "conv2" to "conv5", P1's names; CIFAR networks end with "conv4".

    Raises:
        ValueError: `model` is not a network of this package, or contains one as a layer; the message says which.
    """
    ends = [re.fullmatch(r"(conv\d+)_\d+", layer.name) for layer in readers.own_layers(model)]
    outputs = {end[1]: model.get_layer(end[0]).output for end in ends if end}  # the last block of a stage stays
    if not outputs:
        raise ValueError(f"{model.name} is no network of this package: it has no blocks conv2_1, conv2_2 and so on")
    return _model(model.input, outputs, model.name, len(model.layers))


def _imagenet(default_name, depth, arguments, **fixed):
    """The network of one row of IMAGENET_STAGES."""
    return _build(default_name, *IMAGENET_STAGES[depth], 64, **arguments, **fixed)


def _build(
    default_name, convolutions, repetitions, width, *, include_top, weights, input_shape, classes,
    classifier_activation, shortcut, stem, normalization, input_tensor=None, pooling=None, name=None, stride_in=None,
    shortcut_initializer=None, output_stride=None, activation_order="original", shortcut_variant=None,
):  # fmt: skip
    """Builds one row: `repetitions` blocks in each stage, `width` filters in the first, twice as many in the next."""
    _check_graph(shortcut, stride_in, stem, pooling, activation_order, shortcut_variant)
    _check_stride(output_stride, stem, len(repetitions))
    _check_shape(input_shape)
    inputs = layers.Input(input_shape or (None, None, 3), name="images") if input_tensor is None else input_tensor
    by_name = isinstance(weights, str) and weights in published.PUBLISHED
    if by_name:  # before anything is downloaded
        _check_published(
            weights,
            default_name,
            block=convolutions.__name__,
            shortcut=shortcut,
            stem=stem,
            activation_order=activation_order,
            shortcut_variant=shortcut_variant,
            channels=inputs.shape[-1],
        )
    source = None if weights is None else readers.read(weights, default_name)
    if isinstance(normalization, str) and normalization == "auto":
        normalization = source.normalization if source else None
    unknown = isinstance(normalization, str) and normalization == UNKNOWN
    order = blocks.read_order((blocks.ORDERS | blocks.OTHER_ORDERS)[activation_order])
    bare = activation_order in blocks.OTHER_ORDERS

    x = inputs if normalization is None or unknown else normalize(inputs, normalization)
    x = _conv1(x, stem, width, bare)
    x = _conv2_to_conv5(
        x,
        convolutions,
        repetitions,
        width,
        stride=STEM_STRIDES[stem],
        output_stride=output_stride or math.inf,
        stride_in=stride_in or (source and source.stride_in) or "1x1",
        activated=not bare,
        option=shortcut,
        order=order,
        variant=shortcut_variant,
        initializer=shortcut_initializer,
    )
    if activation_order != blocks.BARE_ENDS:
        x = blocks.activate(x, order.before, blocks.POST)  # after the last addition (P2, appendix)
    x = _head(x, include_top, pooling, classes, classifier_activation)

    if input_tensor is not None:
        inputs = keras.utils.get_source_inputs(input_tensor)
        inputs = inputs[0] if len(inputs) == 1 else inputs
    model = _model(inputs, x, name or default_name, sum(repetitions))
    if source:
        new_top = by_name and include_top and classes != published.PUBLISHED[weights].classes  # still to be trained
        loaded = _model(inputs, model.get_layer("pool").output, model.name, sum(repetitions)) if new_top else model
        load_weights(loaded, source)
    if unknown:
        raise WeightsError(
            f"{source or 'the weights'}: nothing says how the images were normalised that this network was trained "
            'on. Say it: normalization="cifar10" (mean .4914 .4822 .4465, std .2023 .1994 .2010), "cifar100" (.5070 '
            '.4865 .4409, .2673 .2564 .2761), "torch" (ImageNet\'s), (mean, std) of pixels in [0, 255], or None for an '
            "input that is normalised outside; with convert.py: --normalization cifar10"
        )
    return model


STEM_STRIDES = {"7x7": 4, "3x3": 1}


def _conv1(x, stem, width, bare):
    """7x7, 64, stride 2, and 3x3 max pooling, stride 2 (P1 Table 1); or 3x3, 16 (P1 4.2)."""
    activation = () if bare else ("BN", "ReLU")
    if stem == "3x3":
        return blocks.activate(blocks.convolve(x, "conv1", 3, width), activation, "conv1")
    x = blocks.activate(blocks.convolve(x, "conv1", 7, width, strides=2), activation, "conv1")
    return layers.MaxPooling2D(3, 2, name="pool1")(blocks.pad(x, 1, "pool1"))  # zeros will do: x is not negative


def _conv2_to_conv5(
    x, convolutions, repetitions, width, *, stride, output_stride, stride_in, activated, **options
):  # fmt: skip
    """The stages conv2_x to conv5_x (P1 Table 1), in CIFAR networks to conv4_x; `stride` is that of `x`."""
    dilation = 1
    for stage, blocks_in_stage in enumerate(repetitions, 2):
        for i in range(1, blocks_in_stage + 1):
            strides = 2 if i == 1 and stage > 2 else 1  # conv3_1, conv4_1 and conv5_1 (P1 Table 1)
            before = dilation
            if stride * strides > output_stride:
                strides, dilation = 1, dilation * strides
            stride *= strides
            x = blocks.block(
                x,
                convolutions(width * 2 ** (stage - 2), strides, (before, dilation), stride_in),
                f"conv{stage}_{i}",
                activated=activated and (stage, i) == (2, 1),  # conv1 has activated it (P2, appendix)
                **options,
            )
    return x


def _head(x, include_top, pooling, classes, classifier_activation):
    """Average pooling, the fully connected layer, softmax (P1 Table 1), or without the top the last feature map."""
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="pool")(x)
    if include_top:
        x = layers.Dense(operator.index(classes), kernel_initializer=blocks.classifier_normal(), name="fc")(x)
        if classifier_activation:
            x = layers.Activation(classifier_activation, dtype="float32", name="predictions")(x)
    return x


def _model(inputs, outputs, name, depth_in_blocks):
    with recursion_limit(1000 + 20 * depth_in_blocks):
        return keras.Model(inputs, outputs, name=name)


def _choose(argument, value, choices):
    if value not in choices:
        raise ValueError(f"{argument} is one of {', '.join(map(repr, choices))}; found {value!r}")


def _check_graph(shortcut, stride_in, stem, pooling, activation_order, shortcut_variant):
    if shortcut is not None:
        _choose("shortcut", shortcut, ("A", "B", "C"))
    _choose("stride_in", stride_in, (None, "1x1", "3x3"))
    _choose("stem", stem, STEM_STRIDES)
    _choose("pooling", pooling, (None, "avg", "max"))
    _choose("activation_order", activation_order, (*blocks.ORDERS, *blocks.OTHER_ORDERS))
    _choose("shortcut_variant", shortcut_variant, (None, *blocks.SHORTCUT_VARIANTS))
    if shortcut is None and (activation_order != "original" or shortcut_variant):
        raise ValueError("a plain network has no shortcut, so it takes no other order of activations and no variant")
    if activation_order in blocks.OTHER_ORDERS and stem != "3x3":  # max pooling with zero padding needs positive values
        raise ValueError(f'activation_order={activation_order!r} is of networks with stem="3x3"')
    if keras.config.image_data_format() != "channels_last":
        raise ValueError('these networks are "channels_last"; call keras.config.set_image_data_format("channels_last")')


def _check_stride(output_stride, stem, stages):
    whole = STEM_STRIDES[stem] * 2 ** (stages - 1)
    _choose("output_stride", output_stride, (None, *(n for n in (8, 16) if n <= whole)))


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


def _check_published(weights, network, **found):
    """ValueError if the network with published weights differs from this one in more than its last layer."""
    found_there = published.PUBLISHED[weights]
    if network not in found_there.files:
        return  # `readers.read` says which there are
    for option, allowed in found_there.options.items():
        if found[option] not in allowed:
            needed = " or ".join(f"{option}={value!r}" for value in allowed)
            raise ValueError(f'weights="{weights}" are of a network with {needed}; found {found[option]!r}')
