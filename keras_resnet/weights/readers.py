"""Reads trained weights from many sources: one reader for each format.

The tensors keep their own names, for which `families` has the tables, and come with everything else that determines the
outputs. PyTorch's files are read by its weights-only loader, which executes no code.
"""

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

from keras_resnet import blocks, normalization, runs
from keras_resnet.blocks import BN_EPSILON
from keras_resnet.files import RunError, first_line
from keras_resnet.graphs import load_model
from keras_resnet.normalization import Normalization
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
    `strides` are those of the convolutions, by kernel, if the source is an undilated Keras model. `family` is None for
    a `.weights.h5`, whose tensors have no names; then `tensors` is empty and the fields after `family` are not known.
    `normalization` is UNKNOWN if a normalisation is needed and the source does not state it; only Keras models state
    the last four fields.
    """

    name: str
    tensors: dict[str, np.ndarray]
    family: families.Family | None = None
    normalization: Normalization = None
    stride_in: str | None = None
    residual: bool | None = None
    activation_order: str = "original"
    shortcut_variant: str | None = None
    strides: dict[str, tuple[int, ...]] = {}
    classifier_activation: str | Callable | None = "softmax"
    pooling: str | None = None
    output_stride: int | None = None
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

    def repetitions(self) -> tuple[int, ...]:
        """The number of blocks in each stage."""

        def blocks_of(stage):
            has = lambda block: self.array(f"conv{stage}_{block}_1") is not None
            return sum(1 for _ in itertools.takewhile(has, itertools.count(1)))

        return tuple(itertools.takewhile(bool, map(blocks_of, itertools.count(2))))

    @property
    def stages(self) -> int:
        return len(self.repetitions())

    @property
    def convolutions(self) -> int:
        """The number in each block: 2, basic, or 3, bottleneck."""
        return 2 if self.array("conv2_1_3") is None else 3

    @property
    def shortcut(self) -> str | None:
        """The option, as in `ResNet50`: C also has projections where the shape does not change."""
        has = lambda stage, block: self.array(f"conv{stage}_{block}_shortcut") is not None
        if not self.residual:
            return None
        stays = [(2, 1)] * (self.convolutions == 2) + [(stage, 2) for stage in range(2, self.stages + 2)]
        return "C" if any(has(*block) for block in stays) else "B" if has(3, 1) else "A"

    @property
    def network(self) -> str:
        """The name that this package's builder gives the network, such as "resnet50"."""
        depth, small = sum(self.repetitions()) * self.convolutions + 2, self.stages == 3
        v2 = self.activation_order == "full_preactivation" and not small
        return f"{'cifar_' * small}{'resnet' if self.residual else 'plainnet'}{depth}{'v2' * v2}"

    def __str__(self) -> str:
        if self.family is None:
            return self.name
        kind = "basic" if self.convolutions == 2 else "bottleneck"
        repetitions = ", ".join(map(str, self.repetitions()))
        return f"{self.name} ({self.family.name}; {repetitions} {kind} blocks)"


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
        raise WeightsError(f"{path} cannot be read: {first_line(error)}") from error


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


def _recognized(name, tensors, **known):
    """The source of these tensors; fields that are not `known` are as usual in the family."""
    own = {key: array for key, array in tensors.items() if not key.endswith(IGNORED)}
    tensors = {PREFIXES.sub("", key): array for key, array in own.items()}
    if len(tensors) < len(own):
        raise WeightsError(f"{name} holds several networks, whose tensors differ in a prefix only: {', '.join(own)}")
    family = families.recognize(tensors)
    if family is None:
        some = ", ".join(list(tensors)[:5]) or "none"
        raise WeightsError(
            f"{name} holds no residual network with names of {', '.join(f.name for f in families.FAMILIES)}; "
            f"its first tensors are: {some}"
        )
    source = Source(name, tensors, family)
    usual = {
        "residual": True,
        "normalization": _usual_normalization(source),
        "stride_in": family.stride_in if source.convolutions == 3 else None,
        "activation_order": family.activation_order,
    }
    return source._replace(**(usual | known))


def _usual_normalization(source):
    """The normalisation that is usual in the family. Networks for small images have their own."""
    stem, top = source.array("conv1"), source.array("fc")
    if source.stages == 3 or (stem is not None and stem.shape[0] == 3):
        usual = normalization.UNKNOWN if source.family.normalization else None
        return source.family.small.get((source.stages, 0 if top is None else top.shape[-1]), usual)
    return source.family.normalization


def _of_model(model, name):
    tensors = {
        f"{layer}/{kind}": keras.ops.convert_to_numpy(variable).astype("float32")
        for (layer, kind), variable in variables(model).items()
    }
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            tensors[f"{layer.name}/moving_variance"] += layer.epsilon - BN_EPSILON
    source, found, first = _recognized(name, tensors), strides(model), normalization.of(model)
    if source.family is families.OURS:
        source = source._replace(residual=is_residual(model), **identity_mappings(model))
    if first is not None or source.family is families.OURS:
        source = source._replace(normalization=first)
    dilated = is_dilated(model)
    return source._replace(
        stride_in=find_stride_in(found, source.family),
        strides={} if dilated else found,
        output_stride=_output_stride(found, source) if dilated else None,
        input_size=tuple(model.inputs[0].shape[1:3]) if getattr(model, "inputs", None) else None,
        **_head(model),
    )


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
            return Source(path, {})  # Keras 3's own .weights.h5
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
    """The fields of `Source` in the `config.json` beside a file of transformers or timm; {} if there is none."""
    path = os.path.join(os.path.dirname(path), "config.json")
    if not os.path.isfile(path):
        return {}
    with open(path) as file:
        config = json.load(file)
    if config.get("downsample_in_first_stage") or config.get("hidden_act", "relu") != "relu":
        raise WeightsError(f"{path}: not a network of the paper: a stride in the first stage, or another nonlinearity")
    if "downsample_in_bottleneck" in config:
        return {"stride_in": "1x1" if config["downsample_in_bottleneck"] else "3x3"}
    if not re.fullmatch(
        r"(tv_)?resnet\d+(_(simclr|supcon))?(_(cifar100?|svhn))?", config.get("architecture", "resnet50")
    ):
        raise WeightsError(f"{path}: {config['architecture']} is not a network of the paper")
    timm = config.get("pretrained_cfg", config)  # older versions have one level
    if "mean" in timm and "std" in timm:
        return {"normalization": ([255 * value for value in timm["mean"]], [255 * value for value in timm["std"]])}
    return {}


def strides(model: keras.Model) -> dict[str, tuple[int, ...]]:
    """The stride of each convolution by the name of its kernel. Padding that depends on the image size is refused."""
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    for layer in convolutions:
        if layer.padding == "same" and max(layer.strides) > 1 and max(layer.kernel_size) > 1:
            raise WeightsError(f'{model.name}: {layer.name} pads as "same" with a stride, and so right and below only')
    return {f"{layer.name}/kernel": tuple(layer.strides) for layer in convolutions}


def find_stride_in(strides: Mapping[str, tuple[int, ...]], family: families.Family) -> str | None:
    """`stride_in` of bottlenecks as in `ResNet50`; None for basic blocks."""
    if family.tensor("conv2_1_3", "kernel") not in strides:
        return None
    first = family.tensor("conv3_1_1", "kernel")  # stage 3 has a stride in every network
    return "3x3" if first and strides.get(first) == (1, 1) else "1x1"


def is_residual(model: keras.Model) -> bool:
    """Whether the model has additions. A plain network has the same variables as one with option A."""
    return any(isinstance(layer, keras.layers.Add) for layer in model.layers)


def identity_mappings(model: keras.Model) -> dict[str, str | None]:
    """`activation_order` and `shortcut_variant`, as in `CifarResNet`, recognised by layers that only they have.

    The variables do not suffice: some orders and variants have the same ones.
    """
    names = {layer.name for layer in model.layers}
    last = "3" if "conv2_1_3" in names else "2"
    order = next((order for mark, order in blocks.ORDER_MARKS.items() if mark.replace("N", last) in names), "original")
    if "conv1_relu" not in names:
        order = {"full_preactivation": blocks.BARE_STEM, "relu_before_addition": blocks.BARE_ENDS}.get(order, order)
    variants = [variant for variant, mark in blocks.VARIANT_MARKS.items() if f"conv2_1{mark}" in names]
    return {"activation_order": order, "shortcut_variant": variants[0] if variants else None}


def is_dilated(model: keras.Model) -> bool:
    """Whether the model has dilated convolutions."""
    return any(max(layer.dilation_rate) > 1 for layer in model.layers if isinstance(layer, keras.layers.Conv2D))


def _output_stride(strides, source):
    """The ratio of the network's input size to that of its last feature map."""
    layer = lambda name: max(strides.get(source.tensor(name, "kernel"), (1, 1)))
    stages = [max(layer(f"conv{stage}_1_{part}") for part in (1, 2, 3)) for stage in range(2, source.stages + 2)]
    return math.prod(stages) * (4 if layer("conv1") == 2 else 1)
