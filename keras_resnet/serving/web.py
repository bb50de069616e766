"""A self-contained HTML page that runs a network for small images in the visitor's browser.

The page contains the network's architecture and tensors; page/network.js computes its stages and blocks.
"""

import base64
import json
import pathlib
import re
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from keras_resnet import normalization
from keras_resnet.architecture import CONVOLUTIONS
from keras_resnet.graphs import LOADING_DEPTH, fold, recursion_limit
from keras_resnet.models import from_weights
from keras_resnet.serving.formats import TOLERANCE, ExportError
from keras_resnet.serving.signatures import SMALL
from keras_resnet.weights import WeightsError, readers
from keras_resnet.weights.tensors import architecture_of

NAME = "index.html"
FOLDER = pathlib.Path(__file__).with_name("page")
ROUGH = 0.1  # the most that rounded weights may change a probability


def page(
    model: keras.Model, classes: Sequence[str], crop: int, about: dict, batch_norm: bool = True
) -> tuple[str, float]:
    """The page of a network: the content of an HTML file; arguments, difference and errors as of `describe`."""
    described, difference = describe(model, classes, crop, about, batch_norm)
    return _assemble(described), difference


def describe(
    model: keras.Model, classes: Sequence[str], crop: int, about: dict, batch_norm: bool = True
) -> tuple[dict, float]:
    """The description of a network for page/network.js, including its weights.

    Args:
        model: a classifier of this package with the 3x3 stem. Input: (batch, height, width, 3), RGB in [0, 255].
            Output: probabilities (batch, classes) of a softmax.
        classes: the names of the classes.
        crop: height and width of the images that the network sees, at most 64.
        about: what the page shows about the network: its "parameters", and its "test_error" in [0, 1] or None.
        batch_norm: whether to fold batch normalisations into the convolutions.

    Returns:
        A dictionary for JSON, and the largest change of a probability by rounding the weights to float16, measured
        on noise.

    Raises:
        ExportError: page/network.js cannot express the network; the message says why.
    """
    network, architecture = _expressible(model, crop)
    with recursion_limit(LOADING_DEPTH):
        copy = fold(network, batch_norm=batch_norm)
        images = np.random.default_rng(0).uniform(0, 255, (2, crop, crop, 3)).astype("float32")
        answers = [keras.ops.convert_to_numpy(found(images, training=False)) for found in (fold(model), copy)]
        if not np.abs(answers[0] - answers[1]).max() <= TOLERANCE:
            raise ExportError(
                f"{model.name} does not compute the same as this package's network with its weights, so it "
                "cannot run in a page; does it have other layers, activations or inputs?"
            )
        tensors = _rounded(copy)
        difference = float(np.abs(keras.ops.convert_to_numpy(copy(images, training=False)) - answers[1]).max())
    if not difference <= ROUGH:  # also if it is NaN
        raise ExportError(f"with weights in float16, as in a page, {model.name} differs by {difference:.1e}")
    described = {
        "depth": architecture.depth,
        "parameters": about["parameters"],
        "test_error": about.get("test_error"),
        "classes": list(classes),
        "size": crop,
        "normalization": _normalization(network),
        "convolutions": CONVOLUTIONS[architecture.block],  # in a block
        "strided": 2 if architecture.stride_in == "3x3" else 1,  # which of them has the stride
        "shortcut": architecture.shortcut,
        "variant": architecture.shortcut_variant,
        "order": architecture.order._asdict(),
        "blocks": [(block.name, block.strides) for block in architecture.blocks()],
        "tensors": [(name, tensor.shape) for name, tensor in tensors.items()],
        "float16": base64.b64encode(b"".join(tensor.tobytes() for tensor in tensors.values())).decode(),
    }
    return described, difference


def _expressible(model, crop):
    """The network as this package builds it, and its architecture."""
    if crop > SMALL:
        raise ExportError(
            f"a page is for networks of small images, up to {SMALL}x{SMALL} pixels; {model.name} takes {crop}x{crop}. "
            "Choose another format or, for a network of any size, a smaller crop (--crop)"
        )
    try:
        with recursion_limit(LOADING_DEPTH):
            source = readers.read(model)
            architecture = architecture_of(source)
            network = from_weights(source._replace(input_size=(crop, crop)))
    except WeightsError as error:
        raise ExportError(f"{model.name} cannot run in a page: {error}") from error
    if architecture.stem != "3x3" or architecture.output_stride:
        what = "has dilated convolutions" if architecture.output_stride else f"begins with {architecture.stem}"
        raise ExportError(f"a page is for networks with the 3x3 stem and strides; {model.name} {what}")
    if source.classifier_activation != "softmax":
        raise ExportError(f"a page shows the probabilities of a softmax; {model.name} has another output")
    if source.normalization == "caffe":
        raise ExportError(f"{model.name} takes its channels in the order BGR; a page is for networks of RGB images")
    return network, architecture


def _rounded(network):
    """The tensors in float16, by the names of page/network.js. The network's weights are set to them, too.

    A batch normalisation is replaced by a scale and an offset.
    """
    tensors = {}
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = (array.astype("float64") for array in layer.get_weights())
            scale = gamma / np.sqrt(variance + layer.epsilon)
            found = {"scale": scale, "offset": beta - mean * scale}
        else:
            found = {variable.name: keras.ops.convert_to_numpy(variable) for variable in layer.weights}
        with np.errstate(over="ignore"):
            found = {kind: array.astype("<f2") for kind, array in found.items()}
        if not all(np.isfinite(array).all() for array in found.values()):
            raise ExportError(f"{layer.name} of {network.name} has weights that float16, as in a page, cannot hold")
        weights = list(found.values())
        if isinstance(layer, layers.BatchNormalization):
            weights += [np.zeros(len(mean)), np.full(len(mean), 1 - layer.epsilon)]
        layer.set_weights(weights)
        tensors |= {f"{layer.name}/{kind}": array for kind, array in found.items()}
    return tensors


def _normalization(network):
    """Factor and offset of the preprocessing layer: numbers, one per channel, or one for each value of an image."""
    scale, offset = np.ones(1), np.zeros(1)
    if normalization.NAME in (layer.name for layer in network.layers):
        scale, offset = normalization.affine(network.get_layer(normalization.NAME))
    short = lambda array: [float(f"{value:.9g}") for value in array.ravel()]  # exact in float32
    return {"scale": short(scale), "offset": short(offset)}


def _assemble(described):
    """The page in one file, because a page that is opened from a folder cannot fetch other files."""
    read = lambda name: (FOLDER / name).read_text("utf-8")
    html = read("page.html").replace("  DEMO\n", read("demo.html"))
    html = re.sub(r'<link rel="stylesheet" href="(.*)">', lambda match: f"<style>\n{read(match[1])}</style>", html)
    html = re.sub(r'<script src="(.*)">', lambda match: f"<script>\n{read(match[1])}", html)
    return html.replace("NETWORK", json.dumps(described, separators=(",", ":")).replace("<", "\\u003c"))
