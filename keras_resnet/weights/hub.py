"""Networks of this package as presets: folders that `keras_hub` opens."""

import os

import keras
import numpy as np

from keras_resnet import normalization
from keras_resnet.architecture import IMAGE_SIZE, POST, Architecture
from keras_resnet.files import WeightsError
from keras_resnet.normalization import UNKNOWN
from keras_resnet.weights import families
from keras_resnet.weights.keras_models import variables
from keras_resnet.weights.published import package
from keras_resnet.weights.readers import read
from keras_resnet.weights.tensors import architecture_of

PREACTIVATION = "full_preactivation"


def save_keras_hub(model: keras.Model, folder: str | os.PathLike, image_size: int | None = None) -> None:
    """Writes a network as a preset of keras_hub: `keras_hub.models.ImageClassifier.from_preset(folder)` opens it.

    The network's preprocessing layer becomes the preset's image converter, which also crops an image to a square and
    resizes it. The outputs are the same within rounding; but a mean image becomes its mean colour, because the
    converter subtracts one number per channel. A network without a top becomes a backbone, whose output is the last
    feature map; `keras_hub.models.Backbone.from_preset(folder)` opens it.

    Args:
        model: a network of this package that keras_hub's `ResNetBackbone` can express: ResNet-18 to 152 with option B,
            pre-activation of bottlenecks too, the stride of bottlenecks in the 3x3.
        folder: of the preset.
        image_size: height and width of the converter's output; default the network's, or 224.

    Raises:
        WeightsError: keras_hub is not installed, or `ResNetBackbone` cannot express the network; the message says why.
    """
    keras_hub, source = package("keras_hub", folder), read(model)
    network = architecture_of(source)
    if problems := _inexpressible(source, network):
        raise WeightsError("\n  ".join([f"keras_hub's ResNetBackbone cannot express {model.name}:", *problems]))
    arrays: dict = {key: source.array(*key) for key in variables(model)}
    converter, colors = {"scale": None, "offset": None}, normalization.for_size(source.normalization, (None, None))
    if colors is not None:
        mean, std = normalization.mean_and_std(colors)
        if colors == "caffe":  # BGR, which the converter cannot produce
            mean, arrays["conv1", "kernel"] = mean[::-1], arrays["conv1", "kernel"][:, :, ::-1]
        converter = {"scale": (1 / std).tolist(), "offset": (-mean / std).tolist()}
    preactivated = network.activation_order == PREACTIVATION
    if preactivated:  # keras_hub pools before this batch normalisation: the same for positive factors
        sign = np.where(arrays["conv1_bn", "gamma"] < 0, -1, 1).astype("float32")
        for key in (("conv1", "kernel"), ("conv1_bn", "moving_mean"), ("conv1_bn", "gamma")):
            arrays[key] = arrays[key] * sign
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(network.repetitions),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=f"{network.block}_block",
        use_pre_activation=preactivated,
        image_shape=(None, None, arrays["conv1", "kernel"].shape[2]),
        dtype="float32",
    )
    size = image_size or (source.input_size or (None,))[0] or IMAGE_SIZE
    preprocessor = keras_hub.models.ResNetImageClassifierPreprocessor(
        keras_hub.layers.ResNetImageConverter(image_size=(size, size), antialias=True, **converter)
    )
    preset, top = backbone, [arrays.pop(("fc", kind), None) for kind in ("kernel", "bias")]
    if top[0] is not None:
        preset = keras_hub.models.ResNetImageClassifier(
            backbone, len(top[1]), preprocessor, activation=source.classifier_activation
        )
        preset.output_dense.set_weights(top)
    theirs = {f"{layer.name}/{variable.name}": variable for layer in backbone.layers for variable in layer.weights}
    ours = {_theirs(layer, kind, preactivated): array for (layer, kind), array in arrays.items()}
    if odd := theirs.keys() ^ ours.keys():
        raise WeightsError(
            f"keras_hub's ResNetBackbone and {model.name} have different layers: {', '.join(sorted(odd))}"
        )
    for name, variable in theirs.items():
        variable.assign(ours[name])
    preset.save_to_preset(folder)
    if preset is backbone:
        preprocessor.save_to_preset(folder)


def _theirs(layer, kind, preactivated):
    """keras_hub's name of a variable. There, batch normalisation has the name of the convolution before it."""
    layer = "conv2_1_1_bn" if preactivated and layer == "conv1_bn" else layer
    match = families.BLOCK.fullmatch(layer)
    if preactivated and match and match["bn"]:
        layer = f"conv{match['stage']}_{match['block']}_{int(match['conv']) - 1}_bn"
        return families.KERAS_HUB.tensor(layer, kind).replace("_0_bn", "_pre_activation_bn")
    return f"{layer}/{kind}" if layer == f"{POST}_bn" else families.KERAS_HUB.tensor(layer, kind)


def _inexpressible(source, network):
    """What keras_hub lacks to express a network, one sentence each."""
    if source.family is not families.OURS:
        return ["it is not a network of this package"]
    order = network.activation_order if network.activation_order == PREACTIVATION else "original"
    theirs = Architecture(network.block, network.repetitions, stride_in="3x3", activation_order=order)
    found = [f"it has {name}={ours!r}, theirs {other!r}" for name, (ours, other) in network.differences(theirs).items()]
    if len(network.repetitions) != 4:
        found.append(f"it has {len(network.repetitions)} stages, theirs 4")
    if network.output_stride:
        found.append(f"it has output_stride={network.output_stride}: theirs has no dilation")
    if network.block == "basic" and order == PREACTIVATION:
        found.append("pre-activation with basic blocks: their first shortcut starts before the nonlinearity")
    if isinstance(source.normalization, str) and source.normalization == UNKNOWN:
        found.append("its first layers do not just subtract colours or an image")
    if callable(source.classifier_activation):
        found.append("its last activation has no name in Keras")
    return found
