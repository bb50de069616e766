"""The building blocks of the papers: functions from tensors to tensors.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep
Residual Networks" (arXiv 1603.05027).

Names follow one rule. The convolution `conv3_1_2` is the second one of block `conv3_1`; its batch
normalisation is `conv3_1_2_bn`, its nonlinearity `conv3_1_2_relu`. The shortcut's layers start with
`conv3_1_shortcut`, the sum is `conv3_1_add`, and the layer named `conv3_1` is the block's output.
"""

import typing
from collections.abc import Iterable

from keras import KerasTensor, initializers, layers, random

from keras_resnet.architecture import Architecture

Initializer: typing.TypeAlias = str | initializers.Initializer | None

BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5
GATE_BIAS = -6.0  # the best value in P2 Table 1: gates start closed


def basic(
    x: KerasTensor, name: str, filters: int, strides: int = 1, rates: tuple[int, int] = (1, 1), *,
    network: Architecture, activated: bool = False, initializer: Initializer = None,
) -> KerasTensor:  # fmt: skip
    """Two 3x3 convolutions and the shortcut around them (P1 Fig. 5 left).

    In the original order: convolution, BN, ReLU, convolution, BN, addition of the shortcut, ReLU.

    Args:
        x: a tensor (batch, height, width, channels).
        name, filters, strides, rates: as in `architecture.Block`.
        network: the architecture, which all blocks share.
        activated: whether x is already activated; a pre-activation block then leaves out its first activation.
        initializer: of the shortcut's projection; default He.

    Returns:
        A tensor (batch, height / strides, width / strides, filters).
    """
    before, behind, last, added, *_ = network.order
    y = start = x if activated else activate(x, before, f"{name}_1")
    y = convolve(y, f"{name}_1", 3, filters, strides, rates[0])
    y = activate(y, behind, f"{name}_1")
    y = activate(y, before, f"{name}_2")
    y = convolve(y, f"{name}_2", 3, filters, 1, rates[1])
    y = activate(y, last, f"{name}_2")
    if network.shortcut:
        x = shortcut(x, start, f"{name}_shortcut", filters, strides, network=network, initializer=initializer)
        y = add(x, y, name, network)
    return activate(y, added, name, relu_name=name)


def bottleneck(
    x: KerasTensor, name: str, filters: int, strides: int = 1, rates: tuple[int, int] = (1, 1), *,
    network: Architecture, activated: bool = False, initializer: Initializer = None,
) -> KerasTensor:  # fmt: skip
    """1x1, 3x3 and 1x1 convolution to four times `filters`, and the shortcut around them (P1 Fig. 5 right).

    In the paper the first 1x1 has the stride. Later networks ("v1.5") have it in the 3x3, which costs 6 % more.
    The arguments are those of `basic`.
    """
    before, behind, last, added, *_ = network.order
    in_3x3 = network.stride_in == "3x3"
    y = start = x if activated else activate(x, before, f"{name}_1")
    y = convolve(y, f"{name}_1", 1, filters, 1 if in_3x3 else strides)
    y = activate(y, behind, f"{name}_1")
    y = activate(y, before, f"{name}_2")
    y = convolve(y, f"{name}_2", 3, filters, strides if in_3x3 else 1, rates[0] if in_3x3 else rates[1])
    y = activate(y, behind, f"{name}_2")
    y = activate(y, before, f"{name}_3")
    y = convolve(y, f"{name}_3", 1, 4 * filters)
    y = activate(y, last, f"{name}_3")
    if network.shortcut:
        x = shortcut(x, start, f"{name}_shortcut", 4 * filters, strides, network=network, initializer=initializer)
        y = add(x, y, name, network)
    return activate(y, added, name, relu_name=name)


BLOCKS = {"basic": basic, "bottleneck": bottleneck}


def shortcut(
    x: KerasTensor, start: KerasTensor, name: str, filters: int, strides: int, *, network: Architecture,
    initializer: Initializer = None,
) -> KerasTensor:  # fmt: skip
    """The shortcut connection to `filters` channels at 1/`strides` of the size (P1 3.3, 4.1).

    A: identity; where the shape changes, every `strides`-th pixel and zeros as additional channels.
    B: identity; where the shape changes, a 1x1 projection.
    C: a 1x1 projection everywhere.

    Where the shape changes, the shortcut starts from `start`, as the residual branch does: in pre-activation networks
    this is x after the activation (P2, appendix), in others x. The initializer "average" initialises a projection as
    the mean of its inputs.
    """
    channels = x.shape[-1]
    changes = strides > 1 or channels != filters
    x = start if changes else x
    if network.shortcut == "C" or (network.shortcut == "B" and changes):
        if isinstance(initializer, str) and initializer == "average":
            initializer = initializers.Constant(1 / channels)
        x = convolve(x, name, 1, filters, strides, initializer=initializer)
        return activate(x, [step for step in network.order.last if step == "BN"], name)
    if strides > 1:
        x = layers.MaxPooling2D(1, strides, name=f"{name}_subsample")(x)
    if channels != filters:
        # ZeroPadding2D pads the last two axes of "channels_first" data; here these are width and channels.
        zeros = ((0, 0), (0, filters - channels))
        x = layers.ZeroPadding2D(zeros, data_format="channels_first", name=f"{name}_zeros")(x)
    return x


def add(x: KerasTensor, residual: KerasTensor, name: str, network: Architecture) -> KerasTensor:
    """The sum of shortcut and residual, which the network's variant changes first."""
    if network.shortcut_variant:
        x, residual = VARIANT_FUNCTIONS[network.shortcut_variant](x, residual, name)
    # Keras traverses a graph recursively; this order of the inputs needs the least depth.
    return layers.Add(name=f"{name}_add" if network.order.added else name)([x, residual])


def convolve(
    x: KerasTensor, name: str, kernel_size: int, filters: int, strides: int = 1, rate: int = 1,
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
        dilation_rate=rate,
        use_bias=False,
        kernel_initializer=he_normal() if initializer is None else _fresh(initializer),
        name=name,
    )(x)


def pad(x: KerasTensor, pixels: int, name: str) -> KerasTensor:
    """Zeros on all four sides. Keras' `padding="same"` would pad a strided layer on the right and bottom only."""
    return layers.ZeroPadding2D(pixels, name=f"{name}_pad")(x) if pixels else x


def activate(x: KerasTensor, steps: Iterable[str], name: str, relu_name: str | None = None) -> KerasTensor:
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
    """A copy with its own random state: an initializer without a seed returns the same values at each call."""
    keeps_state = isinstance(getattr(initializer, "seed", None), random.SeedGenerator)
    return initializer if keeps_state or not isinstance(initializer, initializers.Initializer) else initializer.clone()


def constant_scaling(x: KerasTensor, residual: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
    """Shortcut and residual are halved (P2 Fig. 2 b)."""
    halved = layers.Rescaling(0.5, name=f"{name}_half")(residual)
    return layers.Rescaling(0.5, name=f"{name}_half_shortcut")(x), halved


def exclusive_gate(x: KerasTensor, residual: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
    """A gate g scales the residual, and 1 - g scales the shortcut (P2 Fig. 2 c)."""
    gate = _gate(x, name)
    return _closed(x, gate, name), layers.Multiply(name=f"{name}_gated")([residual, gate])


def shortcut_gate(x: KerasTensor, residual: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
    """A gate on the shortcut alone (P2 Fig. 2 d)."""
    return _closed(x, _gate(x, name), name), residual


def dropout(x: KerasTensor, residual: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
    """Half of the shortcut's values are dropped while training (P2 Fig. 2 f).

    The paper's dropout scales the shortcut by 0.5 on average, the paper's reason why the network fails (P2 3.1). Keras'
    layer doubles the values that it keeps; the rescaling undoes this, and halves the shortcut at inference.
    """
    x = layers.Dropout(0.5, name=f"{name}_dropout")(x)
    return layers.Rescaling(0.5, name=f"{name}_halved_shortcut")(x), residual


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
    closed = layers.Rescaling(-1.0, 1.0, name=f"{name}_closed")(gate)
    return layers.Multiply(name=f"{name}_gated_shortcut")([x, closed])


_VARIANTS = constant_scaling, exclusive_gate, shortcut_gate, dropout
VARIANT_FUNCTIONS = {function.__name__: function for function in _VARIANTS}
