"""The building blocks of the papers: functions from tensors to tensors.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep
Residual Networks" (arXiv 1603.05027).

Names follow one rule. The convolution `conv3_1_2` is the second one of block `conv3_1`; its batch
normalisation is `conv3_1_2_bn`, its nonlinearity `conv3_1_2_relu`. The shortcut's layers start with
`conv3_1_shortcut`, the sum is `conv3_1_add`, and the layer named `conv3_1` is the block's output.
"""

import typing
from collections.abc import Sequence

from keras import KerasTensor, initializers, layers, random

Initializer: typing.TypeAlias = str | initializers.Initializer | None

BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5
GATE_BIAS = -6.0  # the best of those that P2 Table 1 tried: gates are closed at first

# The operations of a block in order, as in P2 Fig. 4 (a) to (e): W is a convolution, + the addition of the shortcut.
# Bottlenecks repeat what is between the two W between all three of their convolutions.
ORDERS = {
    "original": "W BN ReLU W BN + ReLU",
    "bn_after_addition": "W BN ReLU W + BN ReLU",
    "relu_before_addition": "W BN ReLU W BN ReLU +",
    "relu_only_preactivation": "ReLU W BN ReLU W BN +",
    "full_preactivation": "BN ReLU W BN ReLU W +",
}
# Not in P2: as full_preactivation, but with nothing after conv1, so that the first block starts from its bare output;
# and with nothing after the last block either.
BARE_STEM, BARE_ENDS = "bare_stem_preactivation", "bare_ends_preactivation"
OTHER_ORDERS = dict.fromkeys((BARE_STEM, BARE_ENDS), ORDERS["full_preactivation"])

POST = "post"  # the name of the activation after the last block, the same as before each convolution (P2, appendix)
# Layers that only networks of one order have; a saved network is recognised by them. `N` is a block's last convolution.
ORDER_MARKS = {
    f"{POST}_bn": "full_preactivation",
    f"{POST}_relu": "relu_only_preactivation",
    "conv2_1_bn": "bn_after_addition",
    "conv2_1_N_relu": "relu_before_addition",
}


class Order(typing.NamedTuple):
    """The operations `before` each convolution, `behind` each but the last, after the `last`, and after the addition.

    Each is a tuple of "BN" and "ReLU". The layers in `before` are named after the convolution that follows them.
    """

    before: tuple[str, ...]
    behind: tuple[str, ...]
    last: tuple[str, ...]
    added: tuple[str, ...]


def read_order(drawing: str) -> Order:
    """Parses one of ORDERS."""
    path, added = drawing.split("+")
    before, between, last = (part.split() for part in path.split("W"))
    behind = between[: len(between) - len(before)]  # the rest belongs to the next convolution's `before`
    return Order(tuple(before), tuple(behind), tuple(last), tuple(added.split()))


class Convolution(typing.NamedTuple):
    """One convolution of a block."""

    kernel_size: int
    filters: int
    strides: int = 1
    dilation: int = 1


def basic(filters: int, strides: int, dilation: tuple[int, int], stride_in: str) -> tuple[Convolution, ...]:
    """Two 3x3 convolutions (P1 Fig. 5 left). The first has the stride; `stride_in` does not apply.

    `dilation` has two rates: for convolutions up to the one with the stride, and for those after it. They differ where
    the stride has been replaced by dilation.
    """
    before, behind = dilation
    return Convolution(3, filters, strides, before), Convolution(3, filters, 1, behind)


def bottleneck(filters: int, strides: int, dilation: tuple[int, int], stride_in: str) -> tuple[Convolution, ...]:
    """1x1, 3x3 and 1x1 to four times `filters` (P1 Fig. 5 right).

    In the paper the first 1x1 has the stride. Later networks ("v1.5") have it in the 3x3, which costs 6 % more.
    `dilation` is as in `basic`.
    """
    before, behind = dilation
    if stride_in == "1x1":
        return Convolution(1, filters, strides), Convolution(3, filters, 1, behind), Convolution(1, 4 * filters)
    return Convolution(1, filters), Convolution(3, filters, strides, before), Convolution(1, 4 * filters)


def block(
    x: KerasTensor, convolutions: Sequence[Convolution], name: str, *, option: str | None, order: Order,
    activated: bool = False, variant: str | None = None, initializer: Initializer = None,
) -> KerasTensor:  # fmt: skip
    """A residual block (P1 Fig. 2), or a plain one where `option` is None.

    In the original order: convolution, BN, ReLU, convolution, BN, addition of the shortcut, ReLU.

    Args:
        x: a tensor (batch, height, width, channels).
        convolutions: those of `basic` or `bottleneck`.
        name: the name of the block and its output.
        option, initializer: those of the shortcut.
        order: the positions of batch normalisation and the nonlinearity.
        activated: whether `order.before` has already been applied to `x`.
        variant: None, or one of SHORTCUT_VARIANTS.
    """
    filters, strides = convolutions[-1].filters, max(convolution.strides for convolution in convolutions)
    y = x
    for i, convolution in enumerate(convolutions, 1):
        part = f"{name}_{i}"
        if i > 1 or not activated:
            y = activate(y, order.before, part)
        if i == 1 and (strides > 1 or x.shape[-1] != filters):
            x = y  # where the shape changes, both paths are activated (P2, appendix)
        y = convolve(y, part, *convolution)
        y = activate(y, order.behind if i < len(convolutions) else order.last, part)
    if option:
        x = shortcut(
            x, filters, f"{name}_shortcut", strides, option, normalized="BN" in order.last, initializer=initializer
        )
        if variant:
            x, y = SHORTCUT_VARIANTS[variant](x, y, name)
        # Keras walks a graph recursively; this order of the inputs needs the least depth.
        y = layers.Add(name=f"{name}_add" if order.added else name)([x, y])
    return activate(y, order.added, name, relu_name=name)


def shortcut(
    x: KerasTensor, filters: int, name: str, strides: int, option: str, *, normalized: bool = True,
    initializer: Initializer = None,
) -> KerasTensor:  # fmt: skip
    """The shortcut connection to `filters` channels at 1/`strides` of the size (P1 3.3, 4.1).

    A: identity; where the shape changes, every `strides`-th pixel and zeros as additional channels.
    B: identity; where the shape changes, a 1x1 projection.
    C: a 1x1 projection everywhere.

    `normalized`: whether batch normalisation follows a projection. `initializer` is the projection's; with "average" it
    starts as the mean of its inputs.
    """
    channels = x.shape[-1]
    changes = strides > 1 or channels != filters
    if option == "C" or (option == "B" and changes):
        if isinstance(initializer, str) and initializer == "average":
            initializer = initializers.Constant(1 / channels)
        x = convolve(x, name, 1, filters, strides, initializer=initializer)
        return activate(x, ("BN",) if normalized else (), name)
    if strides > 1:
        x = layers.MaxPooling2D(1, strides, name=f"{name}_subsample")(x)
    if channels != filters:
        # ZeroPadding2D pads the last two axes of "channels_first" data; here these are width and channels.
        zeros = ((0, 0), (0, filters - channels))
        x = layers.ZeroPadding2D(zeros, data_format="channels_first", name=f"{name}_zeros")(x)
    return x


def convolve(
    x: KerasTensor, name: str, kernel_size: int, filters: int, strides: int = 1, dilation: int = 1,
    initializer: Initializer = None,
) -> KerasTensor:  # fmt: skip
    """Convolution without bias, padded symmetrically."""
    if strides > 1:
        x = pad(x, kernel_size // 2, name)
    return layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="valid" if strides > 1 else "same",
        dilation_rate=dilation,
        use_bias=False,
        kernel_initializer=he_normal() if initializer is None else _fresh(initializer),
        name=name,
    )(x)


def pad(x: KerasTensor, pixels: int, name: str) -> KerasTensor:
    """Zeros on all four sides. Keras' `padding="same"` would pad a strided layer on the right and below only."""
    return layers.ZeroPadding2D(pixels, name=f"{name}_pad")(x) if pixels else x


def activate(x: KerasTensor, steps: tuple[str, ...], name: str, relu_name: str | None = None) -> KerasTensor:
    """Batch normalisation for each "BN" and the nonlinearity for each "ReLU" in `steps`."""
    for step in steps:
        if step == "BN":
            x = layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=f"{name}_bn")(x)
        else:
            x = layers.ReLU(name=relu_name or f"{name}_relu")(x)
    return x


def he_normal() -> initializers.Initializer:
    """Gaussian with standard deviation sqrt(2 / fan_in) (P1 3.4); Keras' `he_normal` truncates the tails."""
    return initializers.VarianceScaling(2.0, mode="fan_in", distribution="untruncated_normal")


def classifier_normal() -> initializers.Initializer:
    """Gaussian with standard deviation 0.01, for the last layer: P1 does not state it; its authors' later papers do.

    Identity shortcuts add up the variance of all blocks, and with `he_normal` the first loss is 5 instead of ln(10)
    (Goyal et al., arXiv 1706.02677, 5.1).
    """
    return initializers.RandomNormal(stddev=0.01)


def _fresh(initializer):
    """A copy with a random state of its own: one initializer without a seed gives the same values at each call."""
    keeps_state = isinstance(getattr(initializer, "seed", None), random.SeedGenerator)
    return initializer if keeps_state or not isinstance(initializer, initializers.Initializer) else initializer.clone()


# P2 Table 1: operations on shortcut and residual before the addition. The names of their layers end in one of these; a
# saved network is recognised by them.
HALF, GATED, CLOSED, DROPOUT = "_half", "_gated", "_closed", "_dropout"


def constant_scaling(x: KerasTensor, residual: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
    """Shortcut and residual are halved (P2 Fig. 2 b)."""
    halved = layers.Rescaling(0.5, name=f"{name}{HALF}")(residual)
    return layers.Rescaling(0.5, name=f"{name}_half_shortcut")(x), halved


def exclusive_gate(x: KerasTensor, residual: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
    """A gate g scales the residual, and 1 - g scales the shortcut (P2 Fig. 2 c)."""
    gate = _gate(x, name)
    return _closed(x, gate, name), layers.Multiply(name=f"{name}{GATED}")([residual, gate])


def shortcut_gate(x: KerasTensor, residual: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
    """A gate on the shortcut alone (P2 Fig. 2 d)."""
    return _closed(x, _gate(x, name), name), residual


def dropout(x: KerasTensor, residual: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
    """Half of the shortcut's values are dropped while training (P2 Fig. 2 f)."""
    return layers.Dropout(0.5, name=f"{name}{DROPOUT}")(x), residual


def _gate(x, name):
    return layers.Conv2D(
        x.shape[-1],
        1,
        activation="sigmoid",
        kernel_initializer=he_normal(),
        bias_initializer=initializers.Constant(GATE_BIAS),
        name=f"{name}_gate",
    )(x)


def _closed(x, gate, name):
    closed = layers.Rescaling(-1.0, 1.0, name=f"{name}{CLOSED}")(gate)
    return layers.Multiply(name=f"{name}_gated_shortcut")([x, closed])


# Fig. 2 e, a convolution, is option C.
SHORTCUT_VARIANTS = {
    "constant_scaling": constant_scaling,
    "exclusive_gate": exclusive_gate,
    "shortcut_gate": shortcut_gate,
    "dropout": dropout,
}
# Both gates have a CLOSED layer, so the order of this table matters.
VARIANT_MARKS = {"constant_scaling": HALF, "exclusive_gate": GATED, "shortcut_gate": CLOSED, "dropout": DROPOUT}
