"""Reads a Keras model: its tensors, and from its layers the architecture, preprocessing and last activation."""

import dataclasses
import math
import re

import keras

from keras_resnet import normalization
from keras_resnet.architecture import CONVOLUTIONS, ORDERS, OTHER_ORDERS, POST, STEMS, VARIANTS
from keras_resnet.blocks import BN_EPSILON
from keras_resnet.files import WeightsError
from keras_resnet.weights import families
from keras_resnet.weights.tensors import Source, architecture, recognized


def of_model(model: keras.Model, name: str) -> Source:
    """The weights of a model; `name` is for messages. WeightsError if the network is of no known family."""
    tensors = {
        f"{layer}/{kind}": keras.ops.convert_to_numpy(variable).astype("float32")
        for (layer, kind), variable in variables(model).items()
    }
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            tensors[f"{layer.name}/moving_variance"] += layer.epsilon - BN_EPSILON
    source, first = recognized(name, tensors), normalization.of(model)
    if source.architecture:
        source = source._replace(architecture=_seen(model, source))
    if first is not None or source.family is families.OURS:
        source = source._replace(normalization=first)
    size = tuple(model.inputs[0].shape[1:3]) if getattr(model, "inputs", None) else None
    return source._replace(input_size=size, **_head(model))


def _seen(model, source):
    """The architecture of a Keras model, from its tensors and, where these do not determine it, its layers."""
    convolutions = {layer.name: layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    for layer in convolutions.values():
        if layer.padding == "same" and max(layer.strides) > 1 and max(layer.kernel_size) > 1:
            raise WeightsError(f'{model.name}: {layer.name} pads as "same" with a stride, so right and bottom only')
    found_by = lambda name: convolutions.get(source.tensor(name, "kernel").rsplit("/", 1)[0])
    strides = lambda name: max(found_by(name).strides) if found_by(name) else 1
    network, dilated = source.architecture, any(max(layer.dilation_rate) > 1 for layer in convolutions.values())
    found: dict = {}
    if network.block == "bottleneck":  # stage 3 has a stride in every network
        found["stride_in"] = "3x3" if strides("conv3_1_1") == 1 else "1x1"
    if source.family is families.OURS:
        residual = any(isinstance(layer, keras.layers.Add) for layer in model.layers)
        found |= {"shortcut": network.shortcut if residual else None, **_identity_mappings(model, network.block)}
    if dilated:
        parts = range(1, CONVOLUTIONS[network.block] + 1)
        firsts = [f"conv{stage}_1" for stage in range(2, len(network.repetitions) + 2)]
        found["output_stride"] = STEMS[network.stem] * math.prod(
            max(strides(f"{first}_{part}") for part in parts) for first in firsts
        )
    network = architecture(model.name, **dataclasses.asdict(network) | found)
    for name, stride in _strides(network).items():
        if found_by(name) and strides(name) != stride:
            raise WeightsError(f"{model.name}: {name} has the stride {strides(name)}; in the papers it is {stride}")
    return network


def _strides(network):
    """The stride of each convolution, by its name."""
    found, strided = {"conv1": 2 if network.stem == "7x7" else 1}, 2 if network.stride_in == "3x3" else 1
    for block in network.blocks():
        parts = range(1, CONVOLUTIONS[network.block] + 1)
        found |= {f"{block.name}_{part}": block.strides if part == strided else 1 for part in parts}
        found[f"{block.name}_shortcut"] = block.strides
    return found


def _identity_mappings(model, block):
    """`activation_order` and `shortcut_variant` of a model, recognised by their layers.

    The variables do not suffice: some orders and variants have the same variables.
    """
    names, last = {layer.name for layer in model.layers}, CONVOLUTIONS[block]
    of_order = {name for name in names if re.fullmatch(rf"(conv1|conv2_1(_[123])?|{POST})_(bn|relu)", name)}
    order = next((n for n, order in (ORDERS | OTHER_ORDERS).items() if order.layers(last) == of_order), "original")
    variant = next((variant for variant, mark in VARIANTS.items() if f"conv2_1_{mark}" in names), None)
    return {"activation_order": order, "shortcut_variant": variant}


def own_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model; WeightsError if it contains models with weights."""
    if inner := [layer.name for layer in model.layers if isinstance(layer, keras.Model) and layer.weights]:
        raise WeightsError(
            f"{model.name} contains models, {', '.join(inner)}; give one of them: model.get_layer({inner[0]!r})"
        )
    return model.layers


def variables(model: keras.Model) -> dict[tuple[str, str], keras.Variable]:
    """The variables of a network by (layer, kind), without those of a stock `Normalization` in front of it."""
    found: dict[tuple[str, str], keras.Variable] = {}
    for layer in own_layers(model):
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            names = ", ".join(variable.name for variable in layer.weights)
            raise WeightsError(
                f"the layer {layer.name} of {model.name} has other variables, {names}, after enable_lora() or "
                "quantize(); load and convert weights before"
            )
        if not isinstance(layer, keras.layers.Normalization):
            found |= {(layer.name, variable.name): variable for variable in layer.weights}
    return found


def _head(model):
    """How the model ends after the last feature map, as `classifier_activation` and `pooling` in `ResNet50`."""
    layers = keras.layers
    found = {"classifier_activation": "softmax", "pooling": None}
    for layer in model.layers:
        if isinstance(layer, (layers.Dense, layers.Activation, layers.Softmax)):
            found["classifier_activation"] = _activation(layer)
        elif isinstance(layer, (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)):
            found["pooling"] = "avg" if isinstance(layer, layers.GlobalAveragePooling2D) else "max"
    return found


def _activation(layer):
    """The name of a layer's activation, or the function itself if it has no name in Keras; None if there is none."""
    function = getattr(layer, "activation", keras.activations.softmax)
    if function is keras.activations.linear:
        return None
    name = getattr(function, "__name__", "")
    return name if getattr(keras.activations, name, None) is function else function
