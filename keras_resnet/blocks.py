"""The building blocks of the papers: functions from tensors to tensors.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).

Names follow one rule. The convolution `conv3_1_2` is the second one of block `conv3_1`; its batch
normalisation is `conv3_1_2_bn`, its nonlinearity `conv3_1_2_relu`. The shortcut's layers start with
`conv3_1_shortcut`, the sum is `conv3_1_add`, and the layer named `conv3_1` is the block's output.
"""

from keras import initializers, layers

BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5


def he_normal():
    """Gaussian with standard deviation sqrt(2 / fan_in) (P1 3.4); Keras' `he_normal` cuts its tails off."""
    return initializers.VarianceScaling(2.0, mode="fan_in", distribution="untruncated_normal")


def classifier_normal():
    """Gaussian with standard deviation 0.01, for the last layer: P1 does not say; its authors' later papers do.

    Identity shortcuts add up the variance of all blocks, and with `he_normal` the first loss is 5 instead of ln(10)
    (Goyal et al., arXiv 1706.02677, 5.1).
    """
    return initializers.RandomNormal(stddev=0.01)


def pad(x, pixels, name):
    """Zeros on all four sides. Keras' `padding="same"` would pad a strided layer right and below only."""
    return layers.ZeroPadding2D(pixels, name=f"{name}_pad")(x) if pixels else x


def conv_bn(x, filters, kernel_size, name, *, strides=1, dilation=1, relu=True, initializer=None):
    """Convolution without bias, batch normalisation and, unless `relu` is False, the nonlinearity."""
    if strides > 1:
        x = pad(x, kernel_size // 2, name)
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="valid" if strides > 1 else "same",
        dilation_rate=dilation,
        use_bias=False,
        kernel_initializer=initializer or he_normal(),
        name=name,
    )(x)
    x = layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def shortcut(x, filters, name, *, strides, option, initializer=None):
    """The shortcut connection to `filters` channels at 1/`strides` of the size (P1 3.3, 4.1).

    A: identity; where the shape changes, every `strides`-th pixel and zeros as additional channels.
    B: identity; where the shape changes, a 1x1 projection.
    C: a 1x1 projection everywhere.

    `initializer` is the projection's; "average" lets it start as the mean of its inputs.
    """
    channels = x.shape[-1]
    changes = strides > 1 or channels != filters
    if option == "C" or (option == "B" and changes):
        if initializer == "average":
            initializer = initializers.Constant(1 / channels)
        return conv_bn(x, filters, 1, name, strides=strides, relu=False, initializer=initializer)
    if strides > 1:
        x = layers.MaxPooling2D(1, strides, name=f"{name}_subsample")(x)
    if channels != filters:
        # ZeroPadding2D pads the last two axes of "channels_first" data; here these are width and channels.
        zeros = ((0, 0), (0, filters - channels))
        x = layers.ZeroPadding2D(zeros, data_format="channels_first", name=f"{name}_zeros")(x)
    return x


def join(x, residual, name, *, strides, option, initializer):
    """Adds the shortcut, unless `option` is None (a plain network), and applies the last nonlinearity."""
    if option:
        x = shortcut(x, residual.shape[-1], f"{name}_shortcut", strides=strides, option=option, initializer=initializer)
        # In this order Keras, which walks a graph recursively, needs the least depth.
        residual = layers.Add(name=f"{name}_add")([x, residual])
    return layers.ReLU(name=name)(residual)


def basic(x, filters, name, *, strides, dilation, stride_in, **join_options):
    """Two 3x3 convolutions (P1 Fig. 5 left). The stride is in the first; `stride_in` does not apply.

    `dilation` has two rates: of a convolution up to the stride, and of one behind it. They differ where the stride has
    been traded for dilation.
    """
    before, behind = dilation
    y = conv_bn(x, filters, 3, f"{name}_1", strides=strides, dilation=before)
    y = conv_bn(y, filters, 3, f"{name}_2", dilation=behind, relu=False)
    return join(x, y, name, strides=strides, **join_options)


def bottleneck(x, filters, name, *, strides, dilation, stride_in, **join_options):
    """1x1, 3x3 and 1x1 to four times `filters` (P1 Fig. 5 right).

    The paper's stride is in the first 1x1; in the 3x3 it costs 6 % more and is what later networks do ("v1.5").
    `dilation` as in `basic`.
    """
    before, behind = dilation
    first, second, rate = (strides, 1, behind) if stride_in == "1x1" else (1, strides, before)
    y = conv_bn(x, filters, 1, f"{name}_1", strides=first)
    y = conv_bn(y, filters, 3, f"{name}_2", strides=second, dilation=rate)
    y = conv_bn(y, 4 * filters, 1, f"{name}_3", relu=False)
    return join(x, y, name, strides=strides, **join_options)
