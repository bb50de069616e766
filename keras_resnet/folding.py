"""Networks for inference: batch normalisation folded into the convolutions, weights in another dtype.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import collections

import keras
import numpy as np
from keras import layers

from keras_resnet.graphs import LOADING_DEPTH, recursion_limit


def fold(model: keras.Model, dtype: str = "float32", batch_norm: bool = True) -> keras.Model:
    """A copy of a network for inference.

    At inference batch normalisation multiplies each channel by a constant and adds another one. Right after a
    convolution both can be folded into the convolution: its kernel is scaled, and it gets a bias.

    Args:
        model: a functional `keras.Model`. It does not change.
        dtype: of weights and arithmetic, for example "float32" or "bfloat16". Input, normalization, softmax and output
            stay float32.
        batch_norm: whether to fold batch normalisations. Those remain that do not follow a convolution (as after the
            additions of pre-activation networks), that normalise another axis than the channels, or whose convolution
            is applied twice, feeds another layer as well or is an output.

    Returns:
        A `keras.Model` of stock layers with the same names as in `model`, and the same structure of inputs and outputs.
        In float32 its outputs are the same within 1e-5.

    Raises:
        ValueError: a layer was changed by `quantize`.
    """
    for layer in model.layers:
        if getattr(layer, "quantization_mode", None):
            raise ValueError(f"{model.name}: {layer.name} was changed by quantize(); fold before that")
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
        if dtype != "float32":
            copy = keras.Model(copy.input, keras.tree.map_structure(_to_float32, copy.output), name=model.name)
    for layer in copy.layers:
        if layer.weights and not isinstance(layer, keras.Model):
            source = model.get_layer(layer.name)
            layer.set_weights(_weights(source, folded[layer.name]) if layer.name in folded else source.get_weights())
    return copy


def _to_float32(output):
    if output.dtype == "float32" or not keras.backend.is_float_dtype(output.dtype):
        return output
    return layers.Activation("linear", dtype="float32", name=f"{output._keras_history.operation.name}_float32")(output)


def _is_exact(layer):
    """Whether a layer belongs to the input or output of a network, where float32 is cheap and rounding would harm."""
    if isinstance(layer, layers.Activation):
        return layer.activation is keras.activations.softmax
    return isinstance(layer, (layers.Rescaling, layers.Normalization, layers.Softmax))


def _foldable(model):
    """The batch normalisations that are the only layer after a convolution, by the convolution's name."""
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]  # a layer's own are of all its models
    makers = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
    calls = collections.Counter(id(node.operation) for node in nodes)
    uses = collections.Counter(map(id, [*model.outputs, *(tensor for node in nodes for tensor in node.input_tensors)]))
    found = {}
    for bn, inputs in ((node.operation, node.input_tensors) for node in nodes if node.input_tensors):
        convolution = makers[id(inputs[0])]
        if type(bn) is layers.BatchNormalization and type(convolution) is layers.Conv2D:
            alone = calls[id(bn)] == calls[id(convolution)] == uses[id(inputs[0])] == 1
            plain = len(convolution.weights) == 1 + convolution.use_bias  # neither LoRA's weights nor scales of int8
            linear = convolution.activation is keras.activations.linear
            channels = {"channels_last": 3, "channels_first": 1}[convolution.data_format]
            if alone and plain and linear and bn.axis % 4 == channels:
                found[convolution.name] = bn
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
