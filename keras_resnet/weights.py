"""Trained weights from anywhere, and on to elsewhere: one reader for each format, one loader for all.

A source is read into the tensors by their own names and what else decides the outputs; `families` has the names. It is
matched with the network as a whole, and only when everything fits is anything changed. PyTorch's files are read by its
weights-only loader, which executes nothing.
"""

import itertools
import json
import os
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
    those of the convolutions, by kernel, where the source is a Keras model. `family` and all behind it are None for
    a `.weights.h5`, whose tensors have no names.
    """

    name: str
    tensors: dict | None
    family: families.Family | None = None
    normalization: typing.Any = None
    stride_in: str | None = None
    residual: bool | None = None
    strides: dict = {}

    def array(self, layer, kind="kernel"):
        """A variable of this package's `layer`, in the layout of Keras; None where there is none."""
        array = self.tensors.get(self.family.tensor(layer, kind))
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
        raise WeightsError(f'weights="imagenet" is there for {", ".join(IMAGENET)}; found {network}')
    url, digest = IMAGENET[network]
    if url.endswith(".pth"):
        _package("torch", url)
    try:
        return keras.utils.get_file(origin=url, cache_subdir="models", file_hash=digest)
    except Exception as error:  # Keras raises this type itself
        name = url.rsplit("/", 1)[1]
        raise WeightsError(
            f"the published weights could not be fetched: {error}\nWithout a network: download {url} elsewhere and put "
            f'it into the folder models of Keras (~/.keras/models/{name}), or give its path, weights="{name}"'
        ) from error


def _package(name, path):
    """Imports what only some formats need."""
    try:
        return __import__(name, fromlist=["*"])
    except ImportError as error:
        extra = "torch" if name == "torch" else "weights"
        raise WeightsError(
            f"{path} needs the package {extra if extra == 'torch' else 'safetensors'}: "
            f'pip install "keras-deep-residual[{extra}]"'
        ) from error


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
    source = _recognized(name, tensors, strides=_strides(model))
    strides = {layer: source.strides.get(source.family.tensor(layer, "kernel")) for layer in STRIDED}
    if source.family is families.OURS:
        source = source._replace(normalization=normalization.of(model), residual=_is_residual(model))
    return source._replace(stride_in=_stride_in(strides))


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
                tensors["/".join(name.removesuffix(":0").split("/")[-2:])] = np.asarray(layer[name], "float32")
    source = _recognized(path, tensors)
    for name in tensors:
        if name.endswith("/moving_variance"):
            source.tensors[name] += source.family.epsilon - BN_EPSILON
    return source


def _torch(path):
    torch = _package("torch", path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    content = content.get("state_dict", content)
    return _recognized(path, {name: tensor.float().numpy() for name, tensor in content.items()}, **_configured(path))


def _safetensors(path):
    safetensors = _package("safetensors", path)
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


STRIDED = ("conv3_1_1", "conv3_1_2", "conv2_1_3")  # stage 3 has a stride in every network


def _strides(model):
    """The stride of each convolution by the name of its kernel. A padding that depends on the size is refused."""
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    for layer in convolutions:
        if layer.padding == "same" and max(layer.strides) > 1 and max(layer.kernel_size) > 1:
            raise WeightsError(f'{model.name}: {layer.name} pads as "same" with a stride, and so right and below only')
    return {f"{layer.name}/kernel": tuple(layer.strides) for layer in convolutions}


def _stride_in(strides):
    """Where bottlenecks have their stride, from the strides of the layers in STRIDED; None for basic blocks."""
    first, _, last = (strides[layer] for layer in STRIDED)
    return last and ("1x1" if first != (1, 1) else "3x3")


def _is_residual(model):
    return any(isinstance(layer, keras.layers.Add) for layer in model.layers)


def _is_dilated(model):
    return any(max(layer.dilation_rate) > 1 for layer in model.layers if isinstance(layer, keras.layers.Conv2D))


def load_weights(model, source):
    """Gives a network of this package the weights of any source: all of them, or none and an error.

    Args:
        model: the network. One without a top also takes a classifier's weights, without its last layer.
        source: as in `read`. What a `.weights.h5` has is checked by number and shape alone: it names no layers.

    Raises:
        WeightsError: the source cannot be read; or tensors are missing, left over or misshapen; or the network's first
            layer, its strides or its shortcuts would give other outputs than the source. All are listed, and nothing
            has been changed.
    """
    source = read(source, model.name)
    if source.family is None:
        return _load_unnamed(model, source.name)
    problems = [*_differences(model, source), *_misfits(model, source)]
    if problems:
        raise WeightsError("\n  ".join([f"{source} does not fit {model.name}; nothing was changed:", *problems]))
    arrays = {key: source.array(*key) for key in _variables(model, source.family.biases)}
    if source.family.zeros_around:
        arrays = _zeros_at_the_end(arrays)
    for layer, kind in list(arrays):
        if kind == "bias" and (f"{layer}_bn", "moving_mean") in arrays:  # the convolution's, which ours has not
            mean = arrays[f"{layer}_bn", "moving_mean"]
            arrays[f"{layer}_bn", "moving_mean"] = mean - arrays.pop((layer, kind))
    for layer, kind in arrays:
        getattr(model.get_layer(layer), kind).assign(arrays[layer, kind])


def _variables(model, biases):
    """The shapes of the network's variables by (layer, kind); with `biases`, also of those that are folded away."""
    shapes = {(layer.name, v.name): tuple(v.shape) for layer in model.layers for v in layer.weights}
    if biases:
        shapes |= {(n, "bias"): s[-1:] for (n, kind), s in shapes.items() if kind == "kernel" and n != "fc"}
    return shapes


def _misfits(model, source):
    """What is wrong with the tensors, one line for each kind."""
    shapes = _variables(model, source.family.biases)
    names = {key: source.family.tensor(*key) or "/".join(key) for key in shapes}
    optional = {source.family.tensor("fc", kind) for kind in ("kernel", "bias") if ("fc", kind) not in shapes}
    lists = {
        "missing": [name for name in names.values() if name not in source.tensors],
        "left over": [name for name in source.tensors if name not in {*names.values(), *optional}],
        "misshapen": [
            f"{name} {source.tensors[name].shape}, not {_theirs(shapes[key], source.family)}"
            for key, name in names.items()
            if name in source.tensors and source.array(*key).shape != shapes[key]
        ],
    }
    return [f"{len(found)} {what}: {', '.join(found)}" for what, found in lists.items() if found]


def _theirs(shape, family):
    return shape if family.parts is families.KERAS else tuple(shape[i] for i in axes(len(shape), back=True))


def _differences(model, source):
    """What would change the outputs without showing in the tensors, a sentence each."""
    first = normalization.of(model)
    if None not in (first, source.normalization) and not normalization.same(first, source.normalization):
        yield (
            f"the network's first layer normalises by {normalization.words(first)}, the weights were trained with "
            f"{normalization.words(source.normalization)}; build the network with that, or without a first layer"
        )
    strides = _strides(model)
    stride_in = _stride_in({layer: strides.get(f"{layer}/kernel") for layer in STRIDED})
    if None not in (stride_in, source.stride_in) and stride_in != source.stride_in:
        yield f"the network has stride_in={stride_in!r}, the weights were trained with {source.stride_in!r}"
    elif not _is_dilated(model):
        for name, stride in strides.items():
            theirs = source.strides.get(source.family.tensor(*name.split("/")), stride)
            if theirs != stride:
                yield f"{name.split('/')[0]} has the stride {stride}, the weights were trained with {theirs}"
    if source.residual is not None and source.residual != _is_residual(model):
        yield (
            "the network has no shortcuts, the weights need them"
            if source.residual
            else ("the network has shortcuts, the weights were trained without")
        )


def _zeros_at_the_end(arrays):
    """From option A with zero channels on both sides to zeros behind all others: a permutation of each stage.

    Of twice as many channels the shortcut fills the middle half. `order[stage]` are their channels in our order.
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
        file["layers"].visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    if len(found) != len(model.weights):
        raise WeightsError(
            f"{path} has {len(found)} tensors and {model.name} {len(model.weights)}: the weights of another network; "
            "nothing was changed"
        )
    before = model.get_weights()
    try:
        model.load_weights(path)
    except Exception as error:
        model.set_weights(before)
        raise WeightsError(f"{path} does not fit {model.name}; nothing was changed: {error}") from error


def save_torchvision(model, path):
    """Writes a network's weights by torchvision's names, for PyTorch and for `load_weights`, which reads them exactly.

    torchvision has the stride of bottlenecks in the 3x3, option B and pixels normalised outside. What this network has
    instead, torchvision does not see; it is written beside the tensors and found by this package.

    Args:
        model: a network of this package.
        path: a `.safetensors` file.

    Raises:
        WeightsError: `model` is another network, or the file cannot be written.
    """
    safetensors = _package("safetensors.numpy", path)
    source = read(model)
    if source.family is not families.OURS or _misfits(model, source):
        raise WeightsError(f"{model.name} is no network of this package, whose layers have torchvision's names")
    family = families.TORCHVISION
    tensors = {}
    for layer, kind in _variables(model, biases=False):
        array = source.array(layer, kind)
        tensors[family.tensor(layer, kind)] = np.ascontiguousarray(np.transpose(array, axes(array.ndim, back=True)))
    known = {name: getattr(source, name) for name in ("normalization", "stride_in", "residual")}
    metadata = {"format": "pt", METADATA: json.dumps(known, default=np.ndarray.tolist)}
    try:
        safetensors.save_file(tensors, path, metadata)
    except Exception as error:  # OSError, or the library's own
        raise WeightsError(f"{path} could not be written: {error}") from error
