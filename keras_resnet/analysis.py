"""What there is to measure on a network."""

import math

import keras


def count_macs(model, input_shape=None):
    """Multiply-adds of all convolutions and fully connected layers for one image, as P1 Table 1 counts its FLOPs.

    Args:
        model: a functional Keras model with one image input.
        input_shape: (height, width, channels), needed where the model takes any size.

    Returns:
        An int.

    Raises:
        ValueError: the model takes any size and no `input_shape` was given.
    """
    shape = input_shape or tuple(model.input_shape[1:])
    if None in shape:
        raise ValueError(f"{model.name} takes any size, {shape}; say which: input_shape=(height, width, channels)")
    shapes = {id(model.input): (1, *shape)}
    total = 0
    for layer in model.layers[1:]:
        inputs = [shapes[id(tensor)] for tensor in _tensors(layer.input)]
        output = layer.compute_output_shape(inputs[0] if len(inputs) == 1 else inputs)
        shapes[id(layer.output)] = output
        if isinstance(layer, keras.layers.Conv2D):
            total += math.prod(layer.kernel.shape) * math.prod(output[1:3])
        elif isinstance(layer, keras.layers.Dense):
            total += math.prod(layer.kernel.shape)
    return total


def _tensors(tensors):
    return tensors if isinstance(tensors, list) else [tensors]
