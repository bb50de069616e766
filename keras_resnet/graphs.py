"""Copies of networks for inference, with batch normalisation folded into the convolutions, and graphs of any depth.

Keras traverses the graph of a network recursively, also when it loads or copies one, so deep networks need a higher
recursion limit.
"""

import collections
import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras import layers

from keras_resnet import normalization

LOADING_DEPTH = 20_000  # recursion limit while Keras loads or copies a network; ResNet-1202 needs up to 2,000

# The process has one limit for all threads. The limit outside of the context, and those now requested inside it:
_lock = threading.Lock()
_at_rest: list[int] = []
_wanted: list[int] = []


@contextlib.contextmanager
def recursion_limit(n: int) -> Iterator[None]:
    """Lets Python recurse `n` calls deep; building a network takes several calls for each block.

    Python has one limit for all threads of a process. Inside this context it is the highest limit that any of
    them requests. When the last thread leaves, the old limit is restored.
    """
    with _lock:
        if not _wanted:
            _at_rest[:] = [sys.getrecursionlimit()]
        _wanted.append(n)
        sys.setrecursionlimit(max(_at_rest + _wanted))
    try:
        yield
    finally:
        with _lock:
            _wanted.remove(n)
            sys.setrecursionlimit(max(_at_rest + _wanted))


def load_model(path: str | os.PathLike) -> keras.Model:
    """Loads a network of any depth.

    Args:
        path: a `.keras` or `.h5` file.

    Returns:
        The `keras.Model`, not compiled.

    Raises:
        Exception: as raised by Keras; its type depends on the damage.
    """
    flip = _flip()
    operations = {flip.__name__: flip} if os.fspath(path).endswith(".h5") else None
    with recursion_limit(LOADING_DEPTH):
        return keras.saving.load_model(path, compile=False, custom_objects=operations)


def _flip():
    """The class that reverses the channels of "caffe" networks; an .h5 file, unlike a .keras file, lacks its module."""
    pixels = keras.Input((None, None, 3))
    return type(keras.Model(pixels, keras.ops.flip(pixels, -1)).operations[-1])


def copy(
    model: keras.Model, layer: Callable | None = None, state: Callable | None = None, inputs: Callable | None = None,
) -> keras.Model:  # fmt: skip
    """A copy of a network with its whole state: the weights, and the state of adapted preprocessing layers.

    Args:
        model: a functional or sequential `keras.Model`. It does not change.
        layer: a function from a layer of the network, or of a nested model, to a new layer, or to None to leave it out.
            Default: `same_layer`.
        state: a function (layer, new layer) that sets the state of the new layer. Default: `give_state`.
        inputs: a function from an input tensor of the network, or of a nested model, to a new `keras.Input`. Default:
            the same shape, dtype and name.

    Returns:
        A functional `keras.Model`, not compiled. The names of its layers, and the structure of its inputs and outputs,
        are those of `model`. Layers that `model` uses several times are shared in the copy, too.

    Raises:
        ValueError: `model` is neither functional nor sequential.
    """
    if not _has_graph(model):
        raise ValueError(f"{model.name} is neither functional nor sequential, so the order of its layers is unknown")
    new: dict[int, tuple] = {}  # by the id of a layer, model or operation: itself, its copy

    def clone(original):
        if id(original) not in new:
            if _has_graph(original):
                new[id(original)] = original, clone_graph(original)
            elif isinstance(original, layers.Layer):
                new[id(original)] = original, (layer or same_layer)(original)
            else:  # a function of `keras.ops`
                new[id(original)] = original, same_layer(original)
        return new[id(original)][1]

    def call(copied, *args, **kwargs):
        return args[0] if copied is None else copied(*args, **kwargs)

    def clone_graph(original):
        graph = _functional(original)
        tensors = keras.tree.map_structure(inputs, graph.input) if inputs else None
        return keras.models.clone_model(graph, tensors, clone, call)

    with recursion_limit(LOADING_DEPTH):
        whole = clone_graph(model)
    for original, copied in new.values():
        if isinstance(copied, layers.Layer) and not _has_graph(original):
            (state or give_state)(original, copied)
    return whole


def same_layer(layer: layers.Layer) -> layers.Layer:
    """A new layer with the same configuration, without the state."""
    return type(layer).from_config(layer.get_config())


def give_state(layer: layers.Layer, copied: layers.Layer) -> None:
    """Copies what Keras would save of a layer and its sublayers, variables and vocabularies, to another layer."""
    for one, other in zip(layer._flatten_layers(), copied._flatten_layers(), strict=True):
        variables: dict = {}
        one.save_own_variables(variables)
        other.load_own_variables({name: keras.ops.convert_to_numpy(value) for name, value in variables.items()})
        if hasattr(one, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                one.save_assets(folder)
                other.load_assets(folder)


def _has_graph(model):
    return isinstance(model, keras.Model) and getattr(model, "outputs", None) is not None


def _functional(model):
    """The graph of a functional or sequential model as a functional one, not compiled."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def fold(model: keras.Model, dtype: str = "float32", batch_norm: bool = True) -> keras.Model:
    """A copy of a network for inference.

    At inference batch normalisation multiplies each channel by a constant and adds another one. Right after a
    convolution both can be folded into the convolution: its kernel is scaled, and it gets a bias. Layers that act in
    training only, such as `Dropout` and `RandomFlip`, are left out. A `Normalization` becomes a `Rescaling`.

    Args:
        model: a functional or sequential `keras.Model`. It does not change.
        dtype: of weights and arithmetic, for example "float32" or "bfloat16". Input, normalization, softmax and output
            are float32.
        batch_norm: whether to fold batch normalisations. A batch normalisation is kept if it does not follow a
            convolution (as after the additions of pre-activation networks), if it does not normalise the channels, or
            if its convolution is applied twice, also feeds another layer or is an output.

    Returns:
        A `keras.Model` of stock layers with the same names as in `model`, and the same structure of inputs and outputs.
        In float32 its outputs are the same within 1e-5.

    Raises:
        ValueError: a layer was changed by `quantize`, or `model` is neither functional nor sequential.
    """
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None):
            raise ValueError(f"{model.name}: {layer.name} was changed by quantize(); call fold before")
    folded = _foldable(model) if batch_norm else {}
    normalizations = {id(bn) for bn in folded.values()}

    def new_layer(layer):
        if id(layer) in normalizations or _returns_its_input(layer):
            return None
        if type(layer) is layers.Normalization:  # its constants are lost in ONNX
            scale, offset = (array.tolist() for array in normalization.affine(layer))
            return layers.Rescaling(scale, offset, dtype="float32", name=layer.name)
        config = layer.get_config()
        if id(layer) in folded:
            config["use_bias"] = True
        if keras.backend.is_float_dtype(layer.compute_dtype):
            config["dtype"] = "float32" if _is_exact(layer) else dtype
        return type(layer).from_config(config)

    def state(layer, copied):
        if id(layer) in folded:
            copied.set_weights(_weights(layer, folded[id(layer)]))
        elif type(layer) is type(copied):
            give_state(layer, copied)

    whole = copy(model, new_layer, state)
    if dtype == "float32":
        return whole
    with recursion_limit(LOADING_DEPTH):
        return keras.Model(whole.input, keras.tree.map_structure(_to_float32, whole.output), name=model.name)


def _to_float32(output):
    if output.dtype == "float32" or not keras.backend.is_float_dtype(output.dtype):
        return output
    return layers.Activation("linear", dtype="float32", name=f"{output._keras_history.operation.name}_float32")(output)


def _returns_its_input(layer):
    """Whether a layer acts in training only, such as `Dropout`; not on integers, which `RandomFlip` makes floats."""
    floats = all(keras.backend.is_float_dtype(node.input_tensors[0].dtype) for node in layer._inbound_nodes)
    return floats and normalization.acts_in_training_only(layer)


def _is_exact(layer):
    """Whether a layer is at the input or output of a network, where float32 is cheap and rounding does harm."""
    if isinstance(layer, layers.Activation):
        return layer.activation is keras.activations.softmax
    return isinstance(layer, (layers.Rescaling, layers.Softmax))


def _foldable(model):
    """The batch normalisations that are the only layer after a convolution, by the convolution's id."""
    with recursion_limit(LOADING_DEPTH):
        graphs = [_functional(layer) for layer in model._flatten_layers() if _has_graph(layer)]
    # By id: a layer's nodes are those of all models that use it, and two models in a network can share nodes.
    nodes = {id(node): node for graph in graphs for found in graph._nodes_by_depth.values() for node in found}.values()
    outputs = {id(tensor): tensor for graph in graphs for tensor in graph.outputs}.values()
    makers = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
    calls = collections.Counter(id(node.operation) for node in nodes)
    uses = collections.Counter(map(id, [*outputs, *(tensor for node in nodes for tensor in node.input_tensors)]))
    found = {}
    for bn, inputs in ((node.operation, node.input_tensors) for node in nodes if node.input_tensors):
        convolution = makers[id(inputs[0])]
        if type(bn) is layers.BatchNormalization and type(convolution) is layers.Conv2D:
            alone = calls[id(bn)] == calls[id(convolution)] == uses[id(inputs[0])] == 1
            plain = len(convolution.weights) == 1 + convolution.use_bias  # neither LoRA's weights nor scales of int8
            linear = convolution.activation is keras.activations.linear
            channels = {"channels_last": 3, "channels_first": 1}[convolution.data_format]
            if alone and plain and linear and bn.axis % 4 == channels:
                found[id(convolution)] = bn
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
