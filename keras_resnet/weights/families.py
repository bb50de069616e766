"""Tables of how other implementations name and lay out the tensors of a residual network.

A table maps this package's layers to theirs. `conv` is every convolution of a block's residual branch, `shortcut` a
projection; `{stage}`, `{block}` and `{conv}` are counted from `first`, their numbers for `conv2_1_1`.
"""

import re
import typing
from collections.abc import Container

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

    `name` is for messages; `parts` is TORCH (kernels output, input, height, width) or KERAS (as here). The other fields
    cannot be inferred from the tensors: `normalization` is as in `ResNet50`; `small` is the normalization of the
    published networks for small images, by (stages, classes); `stride_in` that of bottlenecks; `epsilon` that of batch
    normalisation; `biases` whether convolutions have biases; `zeros_around` whether option A adds zero channels on both
    sides; `activation_order` as in `CifarResNet`.
    """

    name: str
    layers: dict[str, str]
    first: tuple[int, int, int]
    parts: dict[str, str]
    normalization: str | None
    stride_in: str
    epsilon: float = BN_EPSILON
    biases: bool = False
    zeros_around: bool = False
    activation_order: str = "original"
    small: dict[tuple[int, int], str] = {}

    def tensor(self, layer: str, kind: str) -> str | None:
        """The family's name for the variable `kind` of this package's `layer`; None if it has no such layer."""
        match = BLOCK.fullmatch(layer)
        if match:
            key = ("shortcut" if match["conv"] == "shortcut" else "conv") + (match["bn"] or "")
            conv = 0 if match["conv"] == "shortcut" else int(match["conv"])
            numbers = {"stage": int(match["stage"]) - 2, "block": int(match["block"]) - 1, "conv": conv - 1}
            numbers = {part: n + first for (part, n), first in zip(numbers.items(), self.first, strict=True)}
            theirs = self.layers.get(key, "").format(**numbers)
        else:
            theirs = self.layers.get(layer, "")
        return theirs + self.parts.get(kind, f"/{kind}") if theirs else None


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
    small={(3, 10): "torch"},
)
KUANGLIU = TORCHVISION._replace(
    name="kuangliu's CIFAR networks",
    layers=TORCHVISION.layers
    | {
        "shortcut": "layer{stage}.{block}.shortcut.0",
        "shortcut_bn": "layer{stage}.{block}.shortcut.1",
        "fc": "linear",
    },
    small={(4, 10): "cifar10"},
)
KUANGLIU_V2 = KUANGLIU._replace(
    name="kuangliu's pre-activation networks",
    layers={ours: theirs for ours, theirs in KUANGLIU.layers.items() if ours not in ("conv1_bn", "shortcut_bn")},
    activation_order="bare_ends_preactivation",
)
PYTORCHCV = Family(
    "pytorchcv",
    layers={
        "conv1": "features.init_block.conv",
        "conv1_bn": "features.init_block.bn",
        "conv": "features.stage{stage}.unit{block}.body.conv{conv}.conv",
        "conv_bn": "features.stage{stage}.unit{block}.body.conv{conv}.bn",
        "shortcut": "features.stage{stage}.unit{block}.identity_conv.conv",
        "shortcut_bn": "features.stage{stage}.unit{block}.identity_conv.bn",
        "fc": "output",
    },
    first=(1, 1, 1),
    parts=TORCH,
    normalization="torch",
    stride_in="3x3",
    small={(3, 10): "cifar10", (3, 100): "cifar10"},  # for CIFAR-10, CIFAR-100 and SVHN alike
)
PYTORCHCV_V2 = PYTORCHCV._replace(
    name="pytorchcv's pre-activation networks",
    layers={ours: theirs for ours, theirs in PYTORCHCV.layers.items() if ours not in ("conv1_bn", "shortcut_bn")}
    | {
        "conv1": "features.init_block",
        "shortcut": "features.stage{stage}.unit{block}.identity_conv",
        "post_bn": "features.post_activ.bn",
    },
    activation_order="bare_stem_preactivation",
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
PREACTIVATION_OF_KERAS_HUB = "stack0_block0_pre_activation_bn/gamma"  # a name that only these networks have
FAMILIES = (
    OURS,
    TORCHVISION,
    AKAMASTER,
    KUANGLIU_V2,  # before KUANGLIU, which has all its layers and one more of those in `recognize`
    KUANGLIU,
    PYTORCHCV,
    PYTORCHCV_V2,
    TRANSFORMERS,
    KERAS_APPLICATIONS,
    KERAS_HUB,
)


def recognize(names: Container[str]) -> Family | None:
    """The family of tensors with these names, recognised by some of its layers; None if no family matches."""
    layers = {layer: "kernel" for layer in ("conv1", "conv2_1_1", "conv3_1_shortcut", "fc")}
    layers["conv3_1_shortcut_bn"] = "gamma"
    known = lambda family: sum(family.tensor(layer, kind) in names for layer, kind in layers.items())
    family = max(FAMILIES, key=known)
    return family if known(family) > 1 else None
