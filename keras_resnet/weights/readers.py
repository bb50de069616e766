"""Reads trained weights from many sources: one reader for each format.

The tensors keep their own names, which `families` maps to this package's, and come with everything else that determines
the outputs. PyTorch's files are read by its weights-only loader, which executes no code.
"""

import json
import os
import pathlib
import re
import typing
from collections.abc import Mapping

import h5py
import keras
import numpy as np

from keras_resnet import runs
from keras_resnet.blocks import BN_EPSILON
from keras_resnet.files import RunError, WeightsError, reason
from keras_resnet.graphs import load_model
from keras_resnet.normalization import UNKNOWN
from keras_resnet.weights import published
from keras_resnet.weights.keras_models import of_model
from keras_resnet.weights.published import package
from keras_resnet.weights.tensors import Source, recognized

# The keys under which training scripts for PyTorch store the state dict in their checkpoints.
CHECKPOINTS = ("state_dict", "model_state_dict", "model_state", "model", "net")

Readable: typing.TypeAlias = str | os.PathLike | keras.Model | Source


def read(source: Readable, network: str | None = None) -> Source:
    """Reads weights from any source; `docs/weights.md` has the table of sources.

    Args:
        source: a path (`.safetensors`, `.pth`, `.pt`, `.th`, `.bin`, `.h5`, `.keras`), the folder of a finished run or
            the name of a network in the package, a `keras.Model`, or one of PUBLISHED.
        network: the name of the network, such as "resnet50", if `source` is one of PUBLISHED.

    Returns:
        A `Source`.

    Raises:
        WeightsError: the source cannot be read, or its names belong to no known family.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, keras.Model):
        return of_model(source, source.name)
    if not isinstance(source, (str, os.PathLike)):
        raise WeightsError(f'weights are a Keras model, a path, "imagenet" or "cifar10"; found {source!r}')
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
    if not os.path.isfile(file):
        raise WeightsError(
            f"the weights {path!r} do not exist; weights are a file, the folder of a run, imagenet, cifar10, or "
            f"{runs.known(path)}"
        )
    if os.path.splitext(file)[1] not in READERS:
        raise WeightsError(f"{path} is not a file of weights: these end in {', '.join(READERS)}")
    return file


def _keras(path):
    return of_model(load_model(path), path)


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
    source = recognized(path, tensors)
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
    except Exception as error:  # its type depends on the damage
        raise WeightsError(
            f"{path} is damaged or holds objects other than tensors, which are never executed; in PyTorch, save "
            "only the state_dict()"
        ) from error
    for key in CHECKPOINTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; in PyTorch, save the model's state_dict()")
    tensors = {name: tensor.detach().float().numpy() for name, tensor in content.items() if torch.is_tensor(tensor)}
    return recognized(path, tensors, **_configured(path))


def _safetensors(path):
    safetensors = package("safetensors", path)
    with safetensors.safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name).astype("float32") for name in file.keys()}  # noqa: SIM118, not a dict
        written = (file.metadata() or {}).get(METADATA)
    return recognized(path, tensors, **(json.loads(written) if written else _configured(path)))


READERS = {
    ".keras": _keras,
    ".h5": _h5,
    ".safetensors": _safetensors,
    ".pth": _torch,
    ".pt": _torch,
    ".th": _torch,
    ".bin": _torch,
}
METADATA = "keras_resnet"  # the file's metadata under this key state what torchvision's names do not


def _configured(path):
    """What the `config.json` beside a file of transformers or timm states, as arguments of `recognized`."""
    path = os.path.join(os.path.dirname(path), "config.json")
    if not os.path.isfile(path):
        return {}
    config = json.loads(pathlib.Path(path).read_bytes())  # UTF-8 on every system
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
