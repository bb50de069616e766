"""How others name and lay out the tensors of a residual network: tables, which `weights` reads.

A table maps this package's layers to theirs. `conv` is every convolution of a block's residual branch, `shortcut` a
projection; `{stage}`, `{block}` and `{conv}` are counted from `first`, the numbers that they give to `conv2_1_1`.
"""

import re
import typing

from keras_resnet.blocks import BN_EPSILON

BLOCK = re.compile(r"conv(?P<stage>\d+)_(?P<block>\d+)_(?P<conv>\d+|shortcut)(?P<bn>_bn)?")  # this package's names

TORCH = {
    "kernel": ".weight",
    "bias": ".bias",
    "gamma": ".weight",
    "beta": ".bias",
    "moving_mean": ".running_mean",
    "moving_variance": ".running_var",
}
KERAS = {kind: f"/{kind}" for kind in TORCH}


class Family(typing.NamedTuple):
    """Files that share one table.

    `name` is for people; `parts` is TORCH (kernels output, input, height, width) or KERAS (as here). The others are
    what the tensors do not tell: `normalization` as in `ResNet50`, `stride_in` of bottlenecks, `epsilon` of batch
    normalisation, `biases` whether convolutions have them, and whether option A's `zeros_around` the channels.
    """

    name: str
    layers: dict
    first: tuple
    parts: dict
    normalization: str | None
    stride_in: str
    epsilon: float = BN_EPSILON
    biases: bool = False
    zeros_around: bool = False

    def tensor(self, layer, kind):
        """Their name of the variable `kind` of this package's `layer`; None where they have no such layer."""
        match = BLOCK.fullmatch(layer)
        if match:
            key = ("shortcut" if match["conv"] == "shortcut" else "conv") + (match["bn"] or "")
            conv = 0 if match["conv"] == "shortcut" else int(match["conv"])
            numbers = {"stage": int(match["stage"]) - 2, "block": int(match["block"]) - 1, "conv": conv - 1}
            numbers = {part: n + first for (part, n), first in zip(numbers.items(), self.first, strict=True)}
            theirs = self.layers.get(key, "").format(**numbers)
        else:
            theirs = self.layers.get(layer)
        return theirs and theirs + self.parts[kind]


OURS = Family(
    "this package",
    layers={
        "conv1": "conv1",
        "conv1_bn": "conv1_bn",
        "conv": "conv{stage}_{block}_{conv}",
        "conv_bn": "conv{stage}_{block}_{conv}_bn",
        "shortcut": "conv{stage}_{block}_shortcut",
        "shortcut_bn": "conv{stage}_{block}_shortcut_bn",
        "fc": "fc",
    },
    first=(2, 1, 1),
    parts=KERAS,
    normalization=None,
    stride_in="1x1",
)
TORCHVISION = Family(
    "torchvision or timm",
    layers={
        "conv1": "conv1",
        "conv1_bn": "bn1",
        "conv": "layer{stage}.{block}.conv{conv}",
        "conv_bn": "layer{stage}.{block}.bn{conv}",
        "shortcut": "layer{stage}.{block}.downsample.0",
        "shortcut_bn": "layer{stage}.{block}.downsample.1",
        "fc": "fc",
    },
    first=(1, 0, 1),
    parts=TORCH,
    normalization="torch",
    stride_in="3x3",
)
AKAMASTER = TORCHVISION._replace(
    name="akamaster's CIFAR networks",
    layers={ours: theirs for ours, theirs in TORCHVISION.layers.items() if "shortcut" not in ours} | {"fc": "linear"},
    zeros_around=True,
)
TRANSFORMERS = Family(
    "Hugging Face transformers",
    layers={
        "conv1": "embedder.embedder.convolution",
        "conv1_bn": "embedder.embedder.normalization",
        "conv": "encoder.stages.{stage}.layers.{block}.layer.{conv}.convolution",
        "conv_bn": "encoder.stages.{stage}.layers.{block}.layer.{conv}.normalization",
        "shortcut": "encoder.stages.{stage}.layers.{block}.shortcut.convolution",
        "shortcut_bn": "encoder.stages.{stage}.layers.{block}.shortcut.normalization",
        "fc": "classifier.1",
    },
    first=(0, 0, 0),
    parts=TORCH,
    normalization="torch",
    stride_in="3x3",
)
KERAS_APPLICATIONS = Family(
    "keras.applications",
    layers={
        "conv1": "conv1_conv",
        "conv1_bn": "conv1_bn",
        "conv": "conv{stage}_block{block}_{conv}_conv",
        "conv_bn": "conv{stage}_block{block}_{conv}_bn",
        "shortcut": "conv{stage}_block{block}_0_conv",
        "shortcut_bn": "conv{stage}_block{block}_0_bn",
        "fc": "predictions",
    },
    first=(2, 1, 1),
    parts=KERAS,
    normalization="caffe",
    stride_in="1x1",
    epsilon=1.001e-5,
    biases=True,
)
KERAS_HUB = Family(
    "keras_hub",
    layers={
        "conv1": "conv1_conv",
        "conv1_bn": "conv1_bn",
        "conv": "stack{stage}_block{block}_{conv}_conv",
        "conv_bn": "stack{stage}_block{block}_{conv}_bn",
        "shortcut": "stack{stage}_block{block}_0_conv",
        "shortcut_bn": "stack{stage}_block{block}_0_bn",
    },
    first=(0, 0, 1),
    parts=KERAS,
    normalization="torch",
    stride_in="3x3",
)
FAMILIES = (OURS, TORCHVISION, AKAMASTER, TRANSFORMERS, KERAS_APPLICATIONS, KERAS_HUB)


def recognize(names):
    """The family of tensors with these names, by its first and last layers; None where there is none."""
    layers = ("conv1", "conv2_1_1", "fc")
    known = lambda family: sum(family.tensor(layer, "kernel") in names for layer in layers)
    family = max(FAMILIES, key=known)
    return family if known(family) > 1 else None
