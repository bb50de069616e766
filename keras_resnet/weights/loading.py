"""Loads weights from any source of `readers` into a network, and saves a network's weights for other libraries.

A source is compared with the whole network first, and weights change only if everything fits.
"""

import dataclasses
import json
import os

import h5py
import keras
import numpy as np

from keras_resnet import normalization
from keras_resnet.files import RunError, WeightsError, write_whole
from keras_resnet.weights import families
from keras_resnet.weights.keras_models import variables
from keras_resnet.weights.published import PUBLISHED, package
from keras_resnet.weights.readers import METADATA, Readable, read
from keras_resnet.weights.tensors import architecture_of, axes


def load_weights(model: keras.Model, source: Readable) -> None:
    """Loads weights from any source into a network of this package: all of them, or none with an error.

    Args:
        model: the network. One without a top also takes a classifier's weights, without its last layer.
        source: as in `read`. A `.weights.h5` is checked by the number and shapes of its tensors only, because it does
            not name its layers.

    Raises:
        WeightsError: the source cannot be read; or tensors are missing, unexpected or of the wrong shape; or the
            network's preprocessing layer, strides or shortcuts would give other outputs than the source. All problems
            are listed, and nothing is changed.
    """
    if not isinstance(model, keras.Model):
        raise WeightsError(f"weights are loaded into a Keras model; found {model!r}")
    network = read(model) if isinstance(source, str) and source in PUBLISHED else None
    source = read(source, architecture_of(network).name if network else None)
    if source.family is None:
        return _load_unnamed(model, source.name)
    problems = [*_differences(network or read(model), source), *_misfits(model, source)]
    if problems:
        raise WeightsError("\n  ".join([f"{source} does not fit {model.name}; nothing was changed:", *problems]))
    arrays: dict = {key: source.array(*key) for key in _variables(model, source.family.biases)}
    if source.family.zeros_around:
        arrays = _zeros_at_the_end(arrays)
    for layer, kind in list(arrays):
        if kind == "bias" and (f"{layer}_bn", "moving_mean") in arrays:  # of a convolution, which has none here
            mean = arrays[f"{layer}_bn", "moving_mean"]
            arrays[f"{layer}_bn", "moving_mean"] = mean - arrays.pop((layer, kind))
    for layer, kind in arrays:
        getattr(model.get_layer(layer), kind).assign(arrays[layer, kind])


def _variables(model, biases):
    """The shapes of the network's variables by (layer, kind); with `biases`, also of convolution biases to fold."""
    shapes = {key: tuple(variable.shape) for key, variable in variables(model).items()}
    if biases:
        shapes |= {(n, "bias"): s[-1:] for (n, kind), s in shapes.items() if kind == "kernel" and n != "fc"}
    return shapes


def _misfits(model, source):
    """The problems with the tensors, one line for each kind."""
    shapes = _variables(model, source.family.biases)
    names = {key: source.tensor(*key) for key in shapes}
    optional = {source.family.tensor("fc", kind) for kind in ("kernel", "bias") if ("fc", kind) not in shapes}
    lists = {
        "missing": [name for name in names.values() if name not in source.tensors],
        "unexpected": [name for name in source.tensors if name not in {*names.values(), *optional}],
        "of the wrong shape": [
            f"{name} {source.tensors[name].shape}, not {_theirs(shapes[key], source.family)}"
            for key, name in names.items()
            if name in source.tensors and source.array(*key).shape != shapes[key]
        ],
    }
    return [f"{len(found)} {what}: {', '.join(found)}" for what, found in lists.items() if found]


def _theirs(shape, family):
    return shape if family.parts is families.KERAS else tuple(shape[i] for i in axes(len(shape), back=True))


def _differences(network, source):
    """The differences of two sources that change the outputs, one sentence each."""
    first, needed = network.normalization, source.normalization
    stated = [isinstance(n, (tuple, list)) or n in normalization.NAMED for n in (first, needed)]
    colors = normalization.for_size(needed, (None, None))
    if all(stated) and not any(normalization.same(first, n) for n in (needed, colors)):
        has, needs = normalization.described(first), normalization.described(needed)
        yield (
            f"the network's preprocessing layer normalises by {has}, but the weights were trained with "
            f"{'others' if has == needs else needs}; build the network with those, or with normalization=None"
        )
    ours, theirs = network.architecture, source.architecture
    if ours and theirs:
        for field, (has, needs) in ours.differences(theirs).items():
            yield f"the network has {field}={has!r}, but the weights were trained with {needs!r}"
        if source.family.zeros_around and (len(theirs.repetitions), theirs.block, theirs.shortcut) != (3, "basic", "A"):
            yield f"{source.family.name} have three stages of basic blocks and option A"


def _zeros_at_the_end(arrays):
    """Converts option A with zero channels on both sides to zero channels at the end, by permutations of the channels.

    Their shortcut fills the middle half of twice as many channels. `order[stage]` lists their channels in our order.
    """
    order = {2: np.arange(arrays["conv1", "kernel"].shape[-1])}
    for stage in (3, 4):
        before = order[stage - 1]
        quarter = len(before) // 2
        new = np.r_[:quarter, 3 * quarter : 4 * quarter]
        order[stage] = np.concatenate([quarter + before, new])
    permuted = dict(arrays)
    for (layer, kind), array in arrays.items():
        if match := families.BLOCK.fullmatch(layer):
            stage, block = int(match["stage"]), int(match["block"])
            if match["conv"] == "2":
                permuted[layer, kind] = array[..., order[stage]]
            elif kind == "kernel":
                permuted[layer, kind] = array[:, :, order[stage if block > 1 else max(stage - 1, 2)]]
    if ("fc", "kernel") in arrays:
        permuted["fc", "kernel"] = arrays["fc", "kernel"][order[4]]
    return permuted


def _load_unnamed(model, path):
    found = []
    with h5py.File(path) as file:
        if "layers" not in file:
            raise WeightsError(f'{path} is not a .weights.h5 of Keras: it has no group "layers"; nothing was changed')
        file["layers"].visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    if len(found) != len(model.weights):
        raise WeightsError(
            f"{path} has {len(found)} tensors, but {model.name} has {len(model.weights)}: weights of another network; "
            "nothing was changed"
        )
    before = model.get_weights()
    try:
        model.load_weights(path)
    except Exception as error:
        model.set_weights(before)
        raise WeightsError(f"{path} does not fit {model.name}; nothing was changed: {error}") from error


# The fields of `Source` that torchvision's names do not determine, in addition to its architecture.
STATED = ("normalization", "classifier_activation", "pooling", "input_size")


def save_torchvision(model: keras.Model, path: str | os.PathLike) -> None:
    """Writes a network's weights under torchvision's names, for PyTorch and for `load_weights`.

    torchvision's networks have the stride of bottlenecks in the 3x3 and option B, and take normalised images. What
    differs in this network is written to the file's metadata, which this package reads but torchvision does not. Layers
    for which torchvision has no names, such as the last normalisation of pre-activation networks, are rejected.

    Args:
        model: a network of this package.
        path: a `.safetensors` file.

    Raises:
        WeightsError: `model` is not a network of this package, or the file cannot be written.
    """
    safetensors = package("safetensors.numpy", path)
    if os.path.splitext(path)[1] != ".safetensors":
        raise WeightsError(f"a file with torchvision's names ends in .safetensors; found {os.fspath(path)!r}")
    source = read(model)
    if source.family is not families.OURS or _misfits(model, source):
        raise WeightsError(f"{model.name} is not a network of this package; torchvision has no names for its layers")
    family = families.TORCHVISION
    layers = dict.fromkeys(layer for layer, _ in _variables(model, biases=False))
    if unknown := [layer for layer in layers if family.tensor(layer, "kernel") is None]:
        raise WeightsError(f"torchvision has no names for {', '.join(unknown)}; save {model.name} as .keras")
    if biased := [layer for layer, kind in _variables(model, biases=False) if kind == "bias" and layer != "fc"]:
        raise WeightsError(
            f"torchvision's convolutions have no bias, but {biased[0]} of {model.name} has one, as after "
            "keras_resnet.fold; save the network before folding"
        )
    tensors = {}
    for layer, kind in _variables(model, biases=False):
        array = source.tensors[source.tensor(layer, kind)]
        tensors[family.tensor(layer, kind)] = np.ascontiguousarray(np.transpose(array, axes(array.ndim, back=True)))
    stated = {name: getattr(source, name) for name in STATED} | {"stated": dataclasses.asdict(architecture_of(source))}
    if callable(source.classifier_activation):
        raise WeightsError(f"the last activation of {model.name} has no name in Keras; save it as .keras")
    metadata = {"format": "pt", METADATA: json.dumps(stated, default=np.ndarray.tolist)}
    try:
        write_whole(path, lambda file: file.write(safetensors.save(tensors, metadata)))
    except RunError as error:
        raise WeightsError(str(error)) from error
