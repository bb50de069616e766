"""The networks of the papers under their usual names, and the builder of them all.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep
Residual Networks" (arXiv 1603.05027). `architecture` has the tables, `blocks` the blocks.
"""

import dataclasses
import functools
import operator
import typing

import keras
from keras import KerasTensor, layers

from keras_resnet import blocks
from keras_resnet.architecture import POST, Architecture, choose, cifar, imagenet
from keras_resnet.blocks import Initializer
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit
from keras_resnet.normalization import UNKNOWN, UNSAID, Normalization, for_size, mean_and_std, normalize
from keras_resnet.weights import WeightsError, load_weights, published, readers
from keras_resnet.weights.tensors import architecture_of

Weights: typing.TypeAlias = readers.Readable | None
Shape: typing.TypeAlias = tuple[int | None, ...] | None
Activation: typing.TypeAlias = str | typing.Callable | None


@dataclasses.dataclass(frozen=True)
class ResNet:
    """A residual network for ImageNet (P1 Table 1, P2 Table 5). Call it to build it: `ResNet50(classes=10)`."""

    architecture: Architecture
    __name__ = property(lambda self: _public_name(self.architecture))

    def __call__(
        self, include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
        input_shape: Shape = None, pooling: str | None = None, classes: int = 1000,
        classifier_activation: Activation = "softmax", name: str | None = None, *, shortcut: str | None = "B",
        stride_in: str | None = None, stem: str = "7x7", shortcut_initializer: Initializer = None,
        normalization: Normalization = "auto", output_stride: int | None = None,
    ) -> keras.Model:  # fmt: skip
        """Builds the network. The signature begins as in keras.applications.

        Args:
            include_top: whether to end with average pooling, the fully connected layer and the softmax.
            weights: None; a path or a Keras model, of this package, torchvision, timm, transformers,
                keras.applications, keras_hub, akamaster, kuangliu, chenyaofo or pytorchcv (docs/weights.md); or
                "imagenet" for the published weights of `ResNet18` to `ResNet152`, "cifar10" for those of CIFAR
                networks that this package contains. If `classes` differs from their number of classes, the last
                layer is newly initialised; a path or a model must have `classes` classes (or use include_top=False).
            input_tensor: a Keras tensor to build the network on, instead of a new input. The model's inputs are those
                from which the tensor was computed.
            input_shape: (height, width, channels); a height or width of None allows any. Default: (None, None, 3).
            pooling: without the top: None for the last feature map, "avg" or "max" for global pooling.
            classes: number of classes.
            classifier_activation: "softmax", or None for logits.
            name: the model's name.
            shortcut: "A" (identity, new channels filled with zeros), "B" (projection where the shape changes) or
                "C" (projection everywhere), P1 4.1.
            stride_in: which convolution of a bottleneck has the stride: "1x1" (the paper) or "3x3" (Facebook,
                torchvision, "v1.5"). Basic blocks have it in the first 3x3. Default: as in the weights, or "1x1".
            stem: "7x7" (stride 2, then 3x3 max pooling) or "3x3" (stride 1, no pooling: for small images).
            shortcut_initializer: initializer of the projections; default He. "average" fills them with
                1 / input channels. An initializer with an integer seed gives the same values each time, as always in
                Keras.
            normalization: how the preprocessing layer normalises pixels in [0, 255]: "caffe", "torch", "cifar10" or
                "cifar100" (RGB; `normalization.NAMED`), or (mean, std), each a number, one number per channel or an
                image. "auto": as the weights need it; a mean image is replaced by its mean colour if the input has
                another size; without weights there is no such layer. None: no such layer; normalise the input with
                `preprocess_input(images, mode)`.
            output_stride: None, or 8 or 16 for the ratio of the input's size to the last feature map's: the last
                strides are replaced by dilation, with the same parameters. At the positions of the undilated network
                the values are the same.

        Returns:
            A `keras.Model`. Input: (batch, height, width, channels), float. Output: (batch, classes) probabilities, or
            the features. Block 1 of stage 3 ends with `conv3_1`; its convolutions are `conv3_1_1` and `conv3_1_2`.

        Raises:
            ValueError: an argument is none of the above, or the weights do not fit; the message lists the choices.
        """
        network = dataclasses.replace(
            self.architecture, shortcut=shortcut, stride_in=stride_in, stem=stem, output_stride=output_stride
        )
        return build(
            network, include_top, weights, input_tensor, input_shape, pooling, classes, classifier_activation, name,
            shortcut_initializer=shortcut_initializer, normalization=normalization,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PlainNet:
    """A plain network for ImageNet (P1 Table 1). Call it to build it: `PlainNet34(classes=10)`."""

    architecture: Architecture
    __name__ = property(lambda self: _public_name(self.architecture))

    def __call__(
        self, include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
        input_shape: Shape = None, pooling: str | None = None, classes: int = 1000,
        classifier_activation: Activation = "softmax", name: str | None = None, *,
        stride_in: str | None = None, stem: str = "7x7", normalization: Normalization = "auto",
        output_stride: int | None = None,
    ) -> keras.Model:  # fmt: skip
        """Builds the network; arguments as of `ResNet50`."""
        network = dataclasses.replace(self.architecture, stride_in=stride_in, stem=stem, output_stride=output_stride)
        return build(
            network, include_top, weights, input_tensor, input_shape, pooling, classes, classifier_activation, name,
            normalization=normalization,
        )  # fmt: skip


def _public_name(architecture):
    return architecture.name.replace("resnet", "ResNet").replace("plainnet", "PlainNet").replace("v2", "V2")


ResNet18 = ResNet(imagenet(18))
ResNet34 = ResNet(imagenet(34))
ResNet50 = ResNet(imagenet(50))
ResNet101 = ResNet(imagenet(101))
ResNet152 = ResNet(imagenet(152))

ResNet18V2 = ResNet(imagenet(18, activation_order="full_preactivation"))
ResNet34V2 = ResNet(imagenet(34, activation_order="full_preactivation"))
ResNet50V2 = ResNet(imagenet(50, activation_order="full_preactivation"))
ResNet101V2 = ResNet(imagenet(101, activation_order="full_preactivation"))
ResNet152V2 = ResNet(imagenet(152, activation_order="full_preactivation"))
ResNet200V2 = ResNet(imagenet(200, activation_order="full_preactivation"))

PlainNet18 = PlainNet(imagenet(18, shortcut=None))
PlainNet34 = PlainNet(imagenet(34, shortcut=None))


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
            "relu_only_preactivation" or "full_preactivation" (P2's networks). Two more are full pre-activation without
            layers after conv1, "bare_stem_preactivation" (pytorchcv's networks), and also without layers after the last
            block, "bare_ends_preactivation" (kuangliu's).
        shortcut_variant: a variant of the shortcut in P2 Table 1: None, "constant_scaling", "exclusive_gate",
            "shortcut_gate" or "dropout". The 1x1 convolution of that table is option C.
        classes, input_shape, include_top, weights, input_tensor, pooling, name: as of `ResNet50`.
        classifier_activation, stride_in, shortcut_initializer, normalization, output_stride: the same.

    Returns:
        A `keras.Model`. Input: (batch, 32, 32, 3), float. Output: (batch, classes) probabilities.

    Raises:
        ValueError: no network has this depth; the message names the nearest ones. Or as `ResNet50`.
    """
    network = cifar(
        depth, block, shortcut, stride_in=stride_in, activation_order=activation_order,
        shortcut_variant=shortcut_variant, output_stride=output_stride,
    )  # fmt: skip
    return build(
        network, include_top, weights, input_tensor, input_shape, pooling, classes, classifier_activation, name,
        shortcut_initializer=shortcut_initializer, normalization=normalization,
    )  # fmt: skip


def CifarPlainNet(
    depth: int, *, block: str = "basic", classes: int = 10, input_shape: Shape = (32, 32, 3), include_top: bool = True,
    weights: Weights = None, input_tensor: KerasTensor | None = None, pooling: str | None = None,
    classifier_activation: Activation = "softmax", name: str | None = None, stride_in: str | None = None,
    normalization: Normalization = "auto", output_stride: int | None = None,
) -> keras.Model:  # fmt: skip
    """`CifarResNet` without shortcuts (P1 4.2): as many parameters as with option A."""
    network = cifar(depth, block, None, stride_in=stride_in, output_stride=output_stride)
    return build(
        network, include_top, weights, input_tensor, input_shape, pooling, classes, classifier_activation, name,
        normalization=normalization,
    )  # fmt: skip


def from_weights(source: readers.Readable, normalization: Normalization = "auto") -> keras.Model:
    """Builds the network that the tensors of `source` describe, with these weights.

    Args:
        source: as `weights` of `ResNet50`, except "imagenet" and `.weights.h5`, which do not describe a network.
        normalization: as of `ResNet50`. "auto": the source's own. PyTorch files of networks for small images often do
            not state it; then it must be given.

    Returns:
        A `keras.Model`, which takes pixels in [0, 255] if it normalises them. It has a top if the source has one. The
        last activation, the pooling and the output stride of a Keras model are kept.

    Raises:
        WeightsError: the source cannot be read, or this module cannot build its network, or it does not state how its
            input was normalised.
    """
    network = architecture_of(found := readers.read(source))
    if isinstance(normalization, str) and normalization == "auto":
        normalization = found.normalization
    top = found.array("fc")
    size = found.input_size or (32, 32) if len(network.repetitions) == 3 else (None, None)
    if isinstance(normalization, (tuple, list)) and (mean := mean_and_std(normalization)[0]).ndim == 3:
        size = mean.shape[:2]
    return build(
        network,
        include_top=top is not None,
        weights=found,
        input_shape=(*size, found.channels),
        pooling=found.pooling,
        classes=0 if top is None else top.shape[-1],
        classifier_activation=found.classifier_activation,
        normalization=normalization,
    )


def build(
    network: Architecture, include_top: bool = True, weights: Weights = None, input_tensor: KerasTensor | None = None,
    input_shape: Shape = None, pooling: str | None = None, classes: int = 1000,
    classifier_activation: Activation = "softmax", name: str | None = None, *,
    shortcut_initializer: Initializer = None, normalization: Normalization = "auto",
) -> keras.Model:  # fmt: skip
    """Builds any network; arguments as of `ResNet50`."""
    choose("pooling", pooling, (None, "avg", "max"))
    _check_shape(input_shape or (None, None, 3))
    if keras.config.image_data_format() != "channels_last":
        raise ValueError('these networks are "channels_last"; call keras.config.set_image_data_format("channels_last")')
    inputs = layers.Input(input_shape or (None, None, 3), name="images") if input_tensor is None else input_tensor
    by_name = published.PUBLISHED.get(weights) if isinstance(weights, str) else None
    if isinstance(weights, str) and by_name:
        published.check(weights, network, inputs.shape[-1])  # before anything is downloaded
    source = None if weights is None else readers.read(weights, network.name)
    if network.stride_in is None and network.block == "bottleneck":
        stated = source and source.architecture and source.architecture.stride_in
        network = dataclasses.replace(network, stride_in=stated or "1x1")
    if isinstance(normalization, str) and normalization == "auto":
        normalization = for_size(source.normalization, inputs.shape[1:3]) if source else None
    unknown = isinstance(normalization, str) and normalization == UNKNOWN

    x = inputs if normalization is None or unknown else normalize(inputs, normalization)
    x = _stem(x, network)
    block = functools.partial(blocks.BLOCKS[network.block], network=network, initializer=shortcut_initializer)
    activated = bool(network.order.stem)  # for the first block (P2, appendix)
    for row in network.blocks():
        x = block(x, *row, activated=activated)
        activated = False
    x = blocks.activate(x, network.order.post, POST)
    x = _head(x, include_top, pooling, classes, classifier_activation)

    if input_tensor is not None:
        inputs = keras.utils.get_source_inputs(input_tensor)
        inputs = inputs[0] if len(inputs) == 1 else inputs
    model = _model(inputs, x, name or network.name)
    if source:
        new_top = by_name and include_top and classes != by_name.classes  # still to be trained
        load_weights(_model(inputs, model.get_layer("pool").output if new_top else x, model.name), source)
    if unknown:
        raise WeightsError(f"{source}: {UNSAID}")
    return model


def _stem(x, network):
    """7x7, 64, stride 2, and 3x3 max pooling, stride 2 (P1 Table 1); or 3x3, 16 (P1 4.2)."""
    if network.stem == "3x3":
        return blocks.activate(blocks.convolve(x, "conv1", 3, network.width), network.order.stem, "conv1")
    x = blocks.activate(blocks.convolve(x, "conv1", 7, network.width, strides=2), network.order.stem, "conv1")
    return layers.MaxPooling2D(3, 2, name="pool1")(blocks.pad(x, 1, "pool1"))  # zeros suffice: x is not negative


def _head(x, include_top, pooling, classes, classifier_activation):
    """Average pooling, the fully connected layer, softmax (P1 Table 1), or without the top the last feature map."""
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="pool")(x)
    if include_top:
        if not hasattr(classes, "__index__") or operator.index(classes) < 1:
            raise ValueError(f"classes is the number of classes, a positive integer; found {classes!r}")
        x = layers.Dense(operator.index(classes), kernel_initializer=blocks.classifier_normal(), name="fc")(x)
        if classifier_activation:
            x = layers.Activation(classifier_activation, dtype="float32", name="predictions")(x)
    return x


def _model(inputs, outputs, name):
    with recursion_limit(LOADING_DEPTH):
        return keras.Model(inputs, outputs, name=name)


def _check_shape(input_shape):
    expected = f"input_shape is (height, width, channels); found {input_shape}"
    if len(input_shape) != 3 or input_shape[-1] is None:
        raise ValueError(expected)
    first, second, last = input_shape
    if last > 4 and (first == 3 or (first in (1, 4) and second == last)):
        raise ValueError(f"{expected}, which looks like (channels, height, width)")
