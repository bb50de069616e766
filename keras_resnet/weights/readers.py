"""Reads trained weights from many sources: one reader for each format.

The tensors keep their own names, for which `families` has the tables, and come with everything else that determines the
outputs. PyTorch's files are read by its weights-only loader, which executes no code.
"""

import dataclasses
import itertools
import json
import math
import os
import pickle
import re
import typing
from collections.abc import Callable, Mapping

import h5py
import keras
import numpy as np

from keras_resnet import normalization, runs
from keras_resnet.architecture import CONVOLUTIONS, ORDERS, OTHER_ORDERS, POST, STEMS, VARIANTS, Architecture
from keras_resnet.blocks import BN_EPSILON
from keras_resnet.files import RunError, reason
from keras_resnet.graphs import load_model
from keras_resnet.normalization import UNKNOWN, Normalization
from keras_resnet.weights import families, published
from keras_resnet.weights.published import WeightsError, package

# Of torch.compile, DataParallel, Lightning and a classifier of transformers.
PREFIXES = re.compile(r"^(_orig_mod\.|module\.|model\.|resnet\.)*")
# Where the training scripts of PyTorch put the state dict into their checkpoints.
CHECKPOINTS = ("state_dict", "model_state_dict", "model_state", "model", "net")
IGNORED = ".num_batches_tracked"  # a counter of PyTorch that no output depends on


class Source(typing.NamedTuple):
    """Trained weights as they were found.

    `tensors` are arrays by their own names; only the epsilon of batch normalisation is converted to this package's.
    `family` is None for a `.weights.h5`, whose tensors have no names; then `tensors` is empty and the fields after
    `normalization` are not known. `architecture` is None if there is no first convolution or no first block.
    `normalization` is UNKNOWN if a normalisation is needed and the source does not state it; only Keras models state
    the last three fields.
    """

    name: str
    tensors: dict[str, np.ndarray]
    family: families.Family | None = None
    normalization: Normalization = None
    architecture: Architecture | None = None
    classifier_activation: str | Callable | None = "softmax"
    pooling: str | None = None
    input_size: tuple[int | None, ...] | None = None

    def tensor(self, layer: str, kind: str) -> str:
        """The source's name of a variable of this package's `layer`; our own name if the family has no such layer."""
        theirs = self.family and self.family.tensor(layer, kind)
        return theirs or f"{layer}/{kind}"

    def array(self, layer: str, kind: str = "kernel") -> np.ndarray | None:
        """A variable of this package's `layer`, in the layout of Keras; None if there is none."""
        array = self.tensors.get(self.tensor(layer, kind))
        if array is None or self.family is None or self.family.parts is families.KERAS:
            return array
        return np.transpose(array, axes(array.ndim))

    @property
    def channels(self) -> int | None:
        """Of the images; None without a first convolution."""
        return None if (kernel := self.array("conv1")) is None else kernel.shape[2]

    def __str__(self) -> str:
        if self.family is None or self.architecture is None:
            return self.name
        repetitions = ", ".join(map(str, self.architecture.repetitions))
        return f"{self.name} ({self.family.name}; {repetitions} {self.architecture.block} blocks)"


def architecture_of(source: Source) -> Architecture:
    """The network that a source describes; WeightsError if its layers have no names, or the first ones are missing."""
    if source.family is None:
        raise WeightsError(f"{source} names no layers; build its network and call load_weights(model, path)")
    if source.architecture is None:
        raise WeightsError(f"{source} has no first convolution or no first block")
    return source.architecture


Readable: typing.TypeAlias = str | os.PathLike | keras.Model | Source


def axes(ndim: int, back: bool = False) -> tuple[int, ...]:
    """The permutation from PyTorch's order of axes (output, input, height, width) to that of Keras, or `back`."""
    order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}.get(ndim, range(ndim))
    return tuple(np.argsort(order) if back else order)


def read(source: Readable, network: str | None = None) -> Source:
    """Reads weights from any source; `docs/weights.md` has the table of sources.

    Args:
        source: a path (`.safetensors`, `.pth`, `.pt`, `.th`, `.bin`, `.h5`, `.keras`), the folder of a finished run or
            the name of a network in the package, a `keras.Model`, or one of PUBLISHED.
        network: the name of the network, such as "resnet50", if `source` is one of PUBLISHED.

    Returns:
        A `Source`.

    Raises:
        WeightsError: the source cannot be read, or its names belong to none of the known families.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, keras.Model):
        return _of_model(source, source.name)
    if not isinstance(source, (str, os.PathLike)):
        raise WeightsError(f'weights is None, a Keras model, a path, "imagenet" or "cifar10"; found {source!r}')
    path = published.fetch(source, network) if source in published.PUBLISHED else _file(os.fspath(source))
    try:
        return READERS[os.path.splitext(path)[1]](path)
    except WeightsError:
        raise
    except Exception as error:  # each format has its own errors
        raise WeightsError(f"{path} cannot be read: {reason(error)}") from error


def _file(path):
    """The file of a path, which may be the folder of a run or the name of a network in the package."""
    try:
        file = runs.Run(path).file
    except RunError as error:
        if os.path.exists(path):
            raise WeightsError(str(error)) from error
        file = path
    if os.path.splitext(file)[1] not in READERS:
        raise WeightsError(
            f'weights is None, a Keras model, the path of a {", ".join(READERS)} file, "imagenet", "cifar10", the '
            f"folder of a run, or {runs.known(path)}; found {path!r}"
        )
    if not os.path.isfile(file):
        raise WeightsError(f"the weights {path!r} do not exist")
    return file


def _recognized(name, tensors, stated=None, **known):
    """The source of these tensors. `stated` are fields of its architecture; the others are as usual in the family."""
    own = {key: array for key, array in tensors.items() if not key.endswith(IGNORED)}
    tensors = {PREFIXES.sub("", key): array for key, array in own.items()}
    if len(tensors) < len(own):
        raise WeightsError(f"{name} holds several networks, whose tensors differ in a prefix only: {', '.join(own)}")
    family = families.recognize(tensors)
    if family is None:
        some = ", ".join(list(tensors)[:5]) or "none"
        for prefix in dict.fromkeys(key[: key.index(".") + 1] for key in tensors if "." in key):
            inner = families.recognize({key.removeprefix(prefix) for key in tensors if key.startswith(prefix)})
            if inner:
                raise WeightsError(
                    f"{name} has the names of {inner.name} behind the prefix {prefix!r}: save these tensors without it"
                )
        raise WeightsError(
            f"{name} holds no residual network with names of {', '.join(f.name for f in families.FAMILIES)}; "
            f"its first tensors are: {some}"
        )
    if family is families.KERAS_HUB and families.PREACTIVATION_OF_KERAS_HUB in tensors:
        raise WeightsError(
            f"{name} is a pre-activation network of keras_hub, which pools before the first batch normalisation; the "
            "networks of this package pool after it and would give other outputs"
        )
    source = Source(name, tensors, family)
    source = source._replace(architecture=_architecture(source, stated or {}))
    return source._replace(**{"normalization": _usual_normalization(source), **known})


def _architecture(source, stated):
    """The network that the tensors show. `stated` are the fields that they do not show, where they are known."""
    stem, first = source.array("conv1"), source.array("conv2_1_1")
    if stem is None or first is None:
        return None
    has = lambda stage, block, part=1: source.array(f"conv{stage}_{block}_{part}") is not None
    count = lambda has: sum(1 for _ in itertools.takewhile(has, itertools.count(1)))
    stages = count(lambda stage: has(stage + 1, 1))
    repetitions = tuple(count(lambda block, stage=stage: has(stage, block)) for stage in range(2, stages + 2))
    block = "bottleneck" if has(2, 1, 3) else "basic"
    # C has projections where the shape does not change, too.
    stays = [(2, 1)] * (block == "basic") + [(stage, 2) for stage in range(2, stages + 2)]
    projections = any(has(*place, "shortcut") for place in stays), has(3, 1, "shortcut")
    known = {
        "block": block,
        "repetitions": repetitions,
        "width": first.shape[-1],
        "stem": "7x7" if stem.shape[0] == 7 else "3x3",
        "shortcut": "C" if projections[0] else "B" if projections[1] else "A",
        "stride_in": source.family.stride_in,
        "activation_order": source.family.activation_order,
        **stated,
    }
    try:
        return Architecture(**known)
    except ValueError as error:
        raise WeightsError(f"{source.name} is no network of the papers: {error}") from error


def _usual_normalization(source):
    """The normalisation that is usual in the family. Networks for small images and other channels have their own."""
    network, top = source.architecture, source.array("fc")
    if network is None:
        return source.family.normalization
    usual = UNKNOWN if source.family.normalization else None
    if len(network.repetitions) == 3 or network.stem == "3x3":
        classes = 0 if top is None else top.shape[-1]
        return source.family.small.get((len(network.repetitions), classes), usual)
    return source.family.normalization if source.channels == 3 else usual


def _of_model(model, name):
    tensors = {
        f"{layer}/{kind}": keras.ops.convert_to_numpy(variable).astype("float32")
        for (layer, kind), variable in variables(model).items()
    }
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            tensors[f"{layer.name}/moving_variance"] += layer.epsilon - BN_EPSILON
    source, first = _recognized(name, tensors), normalization.of(model)
    if source.architecture:
        source = source._replace(architecture=_seen(model, source))
    if first is not None or source.family is families.OURS:
        source = source._replace(normalization=first)
    size = tuple(model.inputs[0].shape[1:3]) if getattr(model, "inputs", None) else None
    return source._replace(input_size=size, **_head(model))


def _seen(model, source):
    """The architecture of a Keras model: what its tensors do not show is seen in its layers."""
    convolutions = {layer.name: layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    for layer in convolutions.values():
        if layer.padding == "same" and max(layer.strides) > 1 and max(layer.kernel_size) > 1:
            raise WeightsError(f'{model.name}: {layer.name} pads as "same" with a stride, and so right and below only')
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
    network = dataclasses.replace(network, **found)
    for name, stride in _strides(network).items():
        if found_by(name) and strides(name) != stride:
            raise WeightsError(f"{model.name}: {name} has the stride {strides(name)}, in the papers it is {stride}")
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
    """`activation_order` and `shortcut_variant` of a model, recognised by layers that only they have.

    The variables do not suffice: some orders and variants have the same ones.
    """
    names, last = {layer.name for layer in model.layers}, CONVOLUTIONS[block]
    of_order = {name for name in names if re.fullmatch(rf"(conv1|conv2_1(_[123])?|{POST})_(bn|relu)", name)}
    order = next((n for n, order in (ORDERS | OTHER_ORDERS).items() if order.layers(last) == of_order), "original")
    variant = next((variant for variant, mark in VARIANTS.items() if f"conv2_1_{mark}" in names), None)
    return {"activation_order": order, "shortcut_variant": variant}


def own_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model; WeightsError if it contains models that have weights."""
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
                f"the layer {layer.name} of {model.name} has other variables, {names}, since enable_lora() or "
                "quantize(); load and convert weights before that"
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


def _keras(path):
    return _of_model(load_model(path), path)


def _h5(path):
    with h5py.File(path) as file:
        if "model_weights" in file:
            return _keras(path)
        if "layer_names" not in file.attrs:
            return Source(path, {}, normalization=UNKNOWN)  # Keras 3's own .weights.h5
        tensors = {}
        for layer in file.values():
            for name in layer.attrs["weight_names"]:
                name = name.decode() if isinstance(name, bytes) else name
                tensors[_legacy_name(name)] = np.asarray(layer[name], "float32")
    source = _recognized(path, tensors)
    for name in tensors:
        if name.endswith("/moving_variance"):
            source.tensors[name] += source.family.epsilon - BN_EPSILON
    return source


def _legacy_name(name):
    """Renames "probs/kernel:0" to "predictions/kernel": the published files have the last layer's former name."""
    layer, kind = name.removesuffix(":0").split("/")[-2:]
    return f"{'predictions' if layer == 'probs' else layer}/{kind}"


def _torch(path):
    torch = package("torch", path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds other objects than tensors, which are never executed; in PyTorch, save the "
            "state_dict() alone"
        ) from error
    for key in CHECKPOINTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; in PyTorch, save the model's state_dict()")
    tensors = {name: tensor.detach().float().numpy() for name, tensor in content.items() if torch.is_tensor(tensor)}
    return _recognized(path, tensors, **_configured(path))


def _safetensors(path):
    safetensors = package("safetensors", path)
    with safetensors.safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name).astype("float32") for name in file.keys()}  # noqa: SIM118, not a dict
        written = (file.metadata() or {}).get(METADATA)
    return _recognized(path, tensors, **(json.loads(written) if written else _configured(path)))


READERS = {
    ".keras": _keras,
    ".h5": _h5,
    ".safetensors": _safetensors,
    ".pth": _torch,
    ".pt": _torch,
    ".th": _torch,
    ".bin": _torch,
}
METADATA = "keras_resnet"  # the key under which the file states what torchvision's names do not


def _configured(path):
    """What the `config.json` beside a file of transformers or timm states, as `_recognized` takes it."""
    path = os.path.join(os.path.dirname(path), "config.json")
    if not os.path.isfile(path):
        return {}
    with open(path) as file:
        config = json.load(file)
    if config.get("downsample_in_first_stage") or config.get("hidden_act", "relu") != "relu":
        raise WeightsError(f"{path}: not a network of the paper: a stride in the first stage, or another nonlinearity")
    if "downsample_in_bottleneck" in config:
        return {"stated": {"stride_in": "1x1" if config["downsample_in_bottleneck"] else "3x3"}}
    if not re.fullmatch(
        r"(tv_)?resnet\d+(_(simclr|supcon))?(_(cifar100?|svhn))?", config.get("architecture", "resnet50")
    ):
        raise WeightsError(f"{path}: {config['architecture']} is not a network of the paper")
    timm = config.get("pretrained_cfg", config)  # older versions have one level
    if "mean" in timm and "std" in timm:
        return {"normalization": ([255 * value for value in timm["mean"]], [255 * value for value in timm["std"]])}
    return {}
