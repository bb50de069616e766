"""Published weights: for ImageNet, those of other projects, downloaded; for CIFAR-10, this project's, in the package.

`shipped/` has a folder for each finished run, with the network, its classes, settings and result.
"""

import hashlib
import importlib
import os
import typing
from collections.abc import Callable

import keras
import numpy as np

from keras_resnet import environment, runs
from keras_resnet.architecture import Architecture, cifar, imagenet
from keras_resnet.files import WeightsError


def shipped() -> dict[str, str]:
    """The networks in the package, trained as in P1 4.2: paths such as `shipped/cifar10-resnet-20`, by network name."""
    found = {}
    for folder in runs.shipped():
        _, kind, depth = folder.name.split("-")
        found[f"cifar_{'plainnet' if kind == 'plain' else kind}{depth}"] = str(folder / runs.MODEL)
    return found


class Published(typing.NamedTuple):
    """Networks with published weights: their number of classes, and the files.

    `files` maps the network's name to a URL and a hash, or to a path. `nearest` maps an architecture to the published
    one of the same name.
    """

    classes: int
    files: dict
    nearest: Callable[[Architecture], Architecture]


CHANNELS = 3  # of the images that all of them were trained on
# For 50 layers and more the authors' own weights, converted from Caffe by keras.applications, with the hashes in its
# source. For 18 and 34, which the authors did not release, torchvision's; the first eight digits of these two hashes
# are in the URL.
APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
PUBLISHED = {
    "imagenet": Published(
        1000,
        {
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
        },
        lambda network: imagenet(network.depth),
    ),
    "cifar10": Published(10, shipped(), lambda network: cifar(network.depth, shortcut=network.shortcut and "A")),
}


def check(weights: str, network: Architecture, channels: int) -> None:
    """ValueError if the network that has these weights differs from this one in more than its last layer."""
    published = PUBLISHED[weights]
    if network.name not in published.files:
        return  # `fetch` lists those that have weights
    found = published.nearest(network).differences(network)
    found |= {"channels": (CHANNELS, channels)} if channels != CHANNELS else {}
    if found:
        theirs, ours = (", ".join(f"{field}={pair[i]!r}" for field, pair in found.items()) for i in (0, 1))
        raise ValueError(f'weights="{weights}" are for a network with {theirs}; found {ours}')


def weights_sha256(model: keras.Model) -> str:
    """The SHA-256 of a network's weights, which is in the record of the run that trained it.

    Hashed are, for each variable and for the scale and offset of each `Rescaling`, in the order of the layers:
    "LAYER/NAME(SHAPE)", then the values as little-endian float32. The hash of a `.keras` file would change each time it
    is saved, because the file contains the time, and with the version of Keras or HDF5.
    """
    digest = hashlib.sha256()
    for layer in model.layers:
        values = [(variable.name, keras.ops.convert_to_numpy(variable)) for variable in layer.weights]
        if isinstance(layer, keras.layers.Rescaling):
            values += [("scale", layer.scale), ("offset", layer.offset)]
        for name, value in values:
            array = np.asarray(value, "<f4", order="C")
            digest.update(f"{layer.name}/{name}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def fetch(weights: str, network: str | None) -> str:
    """The file of a network with published weights, which is downloaded once if it is not in the package.

    Raises:
        WeightsError: no weights of this network are published, or they could not be downloaded.
    """
    files = PUBLISHED[weights].files
    if network is None:  # from a program, which needs the name of a network
        raise WeightsError(f"{weights!r} is the networks' data set; give {runs.known(weights)}, or a file")
    if network not in files:
        known = ", ".join(files) or "no network yet"
        raise WeightsError(f'weights="{weights}" exists for {known}; found {network}')
    if isinstance(files[network], str):
        return files[network]
    url, digest = files[network]
    if url.endswith(".pth"):
        package("torch", url)
    try:
        with environment.bars_at_terminals():
            return keras.utils.get_file(origin=url, cache_subdir="models", file_hash=digest)
    except Exception as error:  # Keras raises this type itself
        name = url.rsplit("/", 1)[1]
        raise WeightsError(
            f"the published weights could not be downloaded: {error}\nOffline: download {url} elsewhere and put "
            f'it into the folder models of Keras (~/.keras/models/{name}), or give its path, weights="{name}"'
        ) from error


def package(name: str, path: str | os.PathLike) -> typing.Any:
    """Imports a package that only some formats need."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        needed = name.split(".")[0]
        raise WeightsError(f"{path} needs the package {environment.install(needed)}") from error
