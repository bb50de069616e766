"""Networks for inference: batch normalisation folded into the convolutions, weights in another type.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import keras
import numpy as np
from keras import layers

from keras_resnet.graphs import LOADING_DEPTH, recursion_limit


def fold(model, dtype="float32", batch_norm=True):
    """A copy of a network for inference.

    A trained batch normalisation multiplies each channel by a number and adds another one. Right after a convolution
    both can be had from the convolution: its kernel is multiplied, and it gets a bias.

    Args:
        model: a functional `keras.Model`. It stays as it is.
        dtype: of weights and arithmetic, for example "float32" or "bfloat16". Input, normalization, softmax and output
            stay float32.
        batch_norm: whether to fold batch normalisations. One that does not follow a convolution, or shares it with
            another layer (as after the additions of pre-activation networks), stays.

    Returns:
        A `keras.Model` of stock layers with the names of `model`'s. In float32 its outputs are the same within 1e-5.
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    folded = _foldable(model) if batch_norm else {}
    names = {bn.name for bn in folded.values()}

    def clone(layer):
        if not isinstance(layer, layers.Layer):  # a function of `keras.ops`
            return type(layer).from_config(layer.get_config())
        if isinstance(layer, keras.Model):
            return fold(layer, dtype, batch_norm)
        config = layer.get_config()
        if layer.name in folded:
            config["use_bias"] = True
        if not _is_exact(layer):
            config["dtype"] = dtype
        return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in names else layer(*args, **kwargs)

    with recursion_limit(LOADING_DEPTH):
        copy = keras.models.clone_model(model, clone_function=clone, call_function=call)
        if copy.output.dtype != "float32":
            outputs = layers.Activation("linear", dtype="float32", name="float32")(copy.output)
            copy = keras.Model(copy.input, outputs, name=model.name)
    for layer in copy.layers:
        if layer.weights and not isinstance(layer, keras.Model):
            source = model.get_layer(layer.name)
            layer.set_weights(_weights(source, folded[layer.name]) if layer.name in folded else source.get_weights())
    return copy


def _is_exact(layer):
    """Whether a layer stands before or after a network, where it is cheap and not to be rounded."""
    if isinstance(layer, layers.Activation):
        return layer.activation is keras.activations.softmax
    return isinstance(layer, (layers.Rescaling, layers.Normalization, layers.Softmax))


def _foldable(model):
    """The batch normalisations that alone follow a convolution, by the convolution's name."""
    found = {}
    for layer in model.layers:
        if type(layer) is layers.BatchNormalization and len(layer._inbound_nodes) == 1:
            convolution = layer.input._keras_history.operation
            linear = getattr(convolution, "activation", None) is keras.activations.linear
            alone = len(convolution._outbound_nodes) == 1 and convolution.output is not model.output
            if type(convolution) is layers.Conv2D and linear and alone:
                found[convolution.name] = layer
    return found


def _weights(convolution, bn):
    """Kernel and bias of the folded convolution, from gamma (conv(x) - mean) / sqrt(variance + epsilon) + beta."""
    arrays = lambda *variables: [keras.ops.convert_to_numpy(variable).astype("float64") for variable in variables]
    mean, variance = arrays(bn.moving_mean, bn.moving_variance)
    factor = 1 / np.sqrt(variance + bn.epsilon)
    if bn.scale:
        factor *= arrays(bn.gamma)[0]
    kernel, *bias = arrays(*convolution.weights)
    return [kernel * factor, (sum(bias) - mean) * factor + (arrays(bn.beta)[0] if bn.center else 0)]
