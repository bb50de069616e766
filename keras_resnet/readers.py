"""Reads trained weights wherever they are: one reader for each format.

What is read has its own names, of which `families` has the tables, and comes with what else decides the outputs.
PyTorch's files are read by its weights-only loader, which executes nothing.
"""

import importlib
import itertools
import json
import os
import pickle
import re
import typing

import h5py
import keras
import numpy as np

from keras_resnet import families, normalization
from keras_resnet.blocks import BN_EPSILON
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit

# Published weights: with 50 layers and more the authors' own, converted from Caffe by keras.applications, with the
# hashes in its source; with 18 and 34, which the authors did not release, torchvision's. The first eight digits of
# these two hashes are in the address.
APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
IMAGENET = {
    "resnet18": (
        "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    ),
    "resnet34": (
        "https://download.pytorch.org/models/resnet34-b627a593.pth",
        "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    ),
    "resnet50": (
        APPLICATIONS + "resnet50_weights_tf_dim_ordering_tf_kernels.h5",
        "2cb95161c43110f7111970584f804107",
    ),
    "resnet101": (
        APPLICATIONS + "resnet101_weights_tf_dim_ordering_tf_kernels.h5",
        "f1aeb4b969a6efcfb50fad2f0c20cfc5",
    ),
    "resnet152": (
        APPLICATIONS + "resnet152_weights_tf_dim_ordering_tf_kernels.h5",
        "100835be76be38e30d865e96f2aaae62",
    ),
}
PREFIXES = re.compile(r"^(module\.)?(resnet\.)?")  # of DataParallel, and of a classifier of transformers
IGNORED = ".num_batches_tracked"  # a counter of PyTorch that no output depends on


class WeightsError(ValueError):
    """These weights cannot be read, or are not the network's. The message says why; nothing has been changed."""


class Source(typing.NamedTuple):
    """Trained weights as they were found.

    `tensors` are arrays by their own names, except that epsilon of batch normalisation is this package's. `strides` are
    those of the convolutions, by kernel, where the source is an undilated Keras model. `family` is None for a
    `.weights.h5`, whose tensors have no names; then nothing behind it is known.
    """

    name: str
    tensors: dict | None
    family: families.Family | None = None
    normalization: typing.Any = None
    stride_in: str | None = None
    residual: bool | None = None
    activation_order: str = "original"
    shortcut_variant: str | None = None
    strides: dict = {}

    def tensor(self, layer, kind):
        """What a variable of this package's `layer` is called: as here, where the family has no such layer."""
        return self.family.tensor(layer, kind) or f"{layer}/{kind}"

    def array(self, layer, kind="kernel"):
        """A variable of this package's `layer`, in the layout of Keras; None where there is none."""
        array = self.tensors.get(self.tensor(layer, kind))
        return array if array is None or self.family.parts is families.KERAS else np.transpose(array, axes(array.ndim))

    def repetitions(self):
        """The number of blocks in each stage."""
        stages = []
        for stage in itertools.count(2):
            has = lambda block, stage=stage: self.array(f"conv{stage}_{block}_1") is not None
            stages.append(sum(1 for _ in itertools.takewhile(has, itertools.count(1))))
            if not stages[-1]:
                return tuple(stages[:-1])

    def __str__(self):
        if self.family is None:
            return self.name
        kind = "basic" if self.array("conv2_1_3") is None else "bottleneck"
        blocks = ", ".join(map(str, self.repetitions()))
        return f"{self.name} ({self.family.name}; {blocks} {kind} blocks)"


def axes(ndim, back=False):
    """From PyTorch's order of axes (output, input, height, width) to that of Keras, or `back`."""
    order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}.get(ndim, range(ndim))
    return np.argsort(order) if back else order


def read(source, network=None):
    """Reads weights from wherever they are; `docs/weights.md` has the table of all sources.

    Args:
        source: a path (`.safetensors`, `.pth`, `.pt`, `.th`, `.bin`, `.h5`, `.keras`), a `keras.Model`, or "imagenet".
        network: the name of the network that "imagenet" is asked for, such as "resnet50".

    Returns:
        A `Source`.

    Raises:
        WeightsError: it cannot be read, or its names are of none of the known families.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, keras.Model):
        return _of_model(source, source.name)
    path = _published(network) if source == "imagenet" else os.fspath(source)
    extension = os.path.splitext(path)[1]
    if extension not in READERS:
        raise WeightsError(
            f'weights is None, a Keras model, the path of a {", ".join(READERS)} file, or "imagenet"; found {path!r}'
        )
    if not os.path.isfile(path):
        raise WeightsError(f"the weights {path!r} do not exist")
    try:
        return READERS[extension](path)
    except WeightsError:
        raise
    except Exception as error:  # each format has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} cannot be read: {reason}") from error


def _published(network):
    if network not in IMAGENET:
        raise WeightsError(f'weights="imagenet" is for the builders of {", ".join(IMAGENET)}; found {network}')
    url, digest = IMAGENET[network]
    if url.endswith(".pth"):
        package("torch", url)
    try:
        return keras.utils.get_file(origin=url, cache_subdir="models", file_hash=digest)
    except Exception as error:  # Keras raises this type itself
        name = url.rsplit("/", 1)[1]
        raise WeightsError(
            f"the published weights could not be fetched: {error}\nWithout a network: download {url} elsewhere and put "
            f'it into the folder models of Keras (~/.keras/models/{name}), or give its path, weights="{name}"'
        ) from error


def package(name, path):
    """Imports what only some formats need."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        needed = name.split(".")[0]
        extra = {"torch": "torch", "safetensors": "weights"}[needed]
        raise WeightsError(f'{path} needs the package {needed}: pip install "keras-deep-residual[{extra}]"') from error


def _recognized(name, tensors, **known):
    """The source of these tensors, what is not `known` as it is usual in the family."""
    tensors = {PREFIXES.sub("", key): array for key, array in tensors.items() if not key.endswith(IGNORED)}
    family = families.recognize(tensors)
    if family is None:
        some = ", ".join(list(tensors)[:5]) or "none"
        raise WeightsError(
            f"{name} holds no residual network with names of {', '.join(f.name for f in families.FAMILIES)}; "
            f"its first tensors are: {some}"
        )
    bottleneck = family.tensor("conv2_1_3", "kernel") in tensors
    usual = {"normalization": family.normalization, "stride_in": family.stride_in if bottleneck else None}
    return Source(name, tensors, family, **({"residual": True} | usual | known))


def _of_model(model, name):
    tensors = {}
    for layer in model.layers:
        arrays = {f"{layer.name}/{w.name}": keras.ops.convert_to_numpy(w).astype("float32") for w in layer.weights}
        if isinstance(layer, keras.layers.BatchNormalization):
            arrays[f"{layer.name}/moving_variance"] += layer.epsilon - BN_EPSILON
        tensors |= arrays
    source, found = _recognized(name, tensors), strides(model)
    if source.family is families.OURS:
        source = source._replace(
            normalization=normalization.of(model), residual=is_residual(model), **identity_mappings(model)
        )
    return source._replace(stride_in=stride_in(found, source.family), strides={} if is_dilated(model) else found)


def _keras(path):
    with recursion_limit(LOADING_DEPTH):
        return _of_model(keras.saving.load_model(path, compile=False), path)


def _h5(path):
    with h5py.File(path) as file:
        if "model_weights" in file:
            return _keras(path)
        if "layer_names" not in file.attrs:
            return Source(path, None)  # Keras 3's own .weights.h5
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
    """ "probs/kernel:0" is "predictions/kernel": the published files are older than the last layer's name."""
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
    content = content.get("state_dict", content)
    tensors = {name: tensor.float().numpy() for name, tensor in content.items() if torch.is_tensor(tensor)}
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
METADATA = "keras_resnet"  # the key of what torchvision's names leave open


def _configured(path):
    """What the `config.json` beside a file of transformers or timm says; {} where there is none."""
    path = os.path.join(os.path.dirname(path), "config.json")
    if not os.path.isfile(path):
        return {}
    with open(path) as file:
        config = json.load(file)
    if config.get("downsample_in_first_stage") or config.get("hidden_act", "relu") != "relu":
        raise WeightsError(f"{path}: not a network of the paper: a stride in the first stage, or another nonlinearity")
    if "downsample_in_bottleneck" in config:
        return {"stride_in": "1x1" if config["downsample_in_bottleneck"] else "3x3"}
    if not re.fullmatch(r"(tv_)?resnet\d+", config.get("architecture", "resnet50")):
        raise WeightsError(f"{path}: {config['architecture']} is not a network of the paper")
    timm = config.get("pretrained_cfg", {})
    if "mean" in timm and "std" in timm:
        return {"normalization": ([255 * value for value in timm["mean"]], [255 * value for value in timm["std"]])}
    return {}


def strides(model):
    """The stride of each convolution by the name of its kernel. A padding that depends on the size is refused."""
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    for layer in convolutions:
        if layer.padding == "same" and max(layer.strides) > 1 and max(layer.kernel_size) > 1:
            raise WeightsError(f'{model.name}: {layer.name} pads as "same" with a stride, and so right and below only')
    return {f"{layer.name}/kernel": tuple(layer.strides) for layer in convolutions}


def stride_in(strides, family):
    """Where bottlenecks have their stride, for `ResNet50`; None for basic blocks."""
    if family.tensor("conv2_1_3", "kernel") not in strides:
        return None
    first = strides.get(family.tensor("conv3_1_1", "kernel"))  # stage 3 has a stride in every network
    return "3x3" if first == (1, 1) else "1x1"


def is_residual(model):
    """Whether anything is added; with option A a plain network has the same variables."""
    return any(isinstance(layer, keras.layers.Add) for layer in model.layers)


def identity_mappings(model):
    """`activation_order` and `shortcut_variant`, as in `ResNet50`, by layers that no other order and variant has.

    Some of them have the same variables.
    """
    names = {layer.name for layer in model.layers}
    last = 3 if "conv2_1_3" in names else 2
    orders = {
        "post_bn": "full_preactivation",
        "post_relu": "relu_only_preactivation",
        "conv2_1_bn": "bn_after_addition",
        f"conv2_1_{last}_relu": "relu_before_addition",
    }
    variants = {
        "conv2_1_half": "constant_scaling",
        "conv2_1_gated": "exclusive_gate",
        "conv2_1_closed": "shortcut_gate",
        "conv2_1_dropout": "dropout",
    }
    first = lambda marks, default: next((value for mark, value in marks.items() if mark in names), default)
    return {"activation_order": first(orders, "original"), "shortcut_variant": first(variants, None)}


def is_dilated(model):
    """Whether dilation has taken the place of strides."""
    return any(max(layer.dilation_rate) > 1 for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
