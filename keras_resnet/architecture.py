"""The architecture of a network as one immutable value, and the papers' networks as rows of tables.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep
Residual Networks" (arXiv 1603.05027).
"""

import dataclasses
import operator
import typing
from collections.abc import Collection, Iterator

IMAGE_SIZE = 224  # of the crops of ImageNet (P1 3.4)
POST = "post"  # the name of the layers after the last block (P2, appendix)
CONVOLUTIONS = {"basic": 2, "bottleneck": 3}  # in a block
STEMS = {"7x7": 4, "3x3": 1}  # the stem's convolution, and the stride of the whole stem
SHORTCUTS = ("A", "B", "C", None)  # P1 4.1; None: plain

# Blocks in each of the four stages (P1 Table 1).
IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),  # P2 Table 5
}


class Order(typing.NamedTuple):
    """The positions of batch normalisation and nonlinearity in a network, each a tuple of "BN" and "ReLU".

    In a block: `before` each convolution, `behind` each but the last, after the `last`, and after the addition
    (`added`). In the network: after conv1 (`stem`) and after the last block (`post`). A layer has the name of the
    convolution that it follows; a layer in `before` has the name of the next one.
    """

    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    stem: tuple[str, ...] = ("BN", "ReLU")
    post: tuple[str, ...] = ()

    def layers(self, convolutions: int) -> set[str]:
        """Names of the layers in conv1 and conv2_1, a block of 2 or 3 `convolutions`, and after the last block.

        Every order has other names, so they identify the order of a saved network.
        """
        found = {"conv1": self.stem, f"conv2_1_{convolutions}": self.last, POST: self.post}
        names = {f"{name}_{step.lower()}" for name, steps in found.items() for step in steps}
        for i in range(1, convolutions + 1):
            steps = (self.before if i > 1 or not self.stem else ()) + (self.behind if i < convolutions else ())
            names |= {f"conv2_1_{i}_{step.lower()}" for step in steps}
        return names | {f"conv2_1_{step.lower()}" for step in self.added if step == "BN"}


# P2 Fig. 4 (a) to (e): W is a convolution, + the addition of the shortcut. Bottlenecks have a third convolution in the
# same pattern.
ORDERS = {
    # W BN ReLU W BN + ReLU
    "original": Order(behind=("BN", "ReLU"), last=("BN",), added=("ReLU",)),
    # W BN ReLU W + BN ReLU
    "bn_after_addition": Order(behind=("BN", "ReLU"), added=("BN", "ReLU")),
    # W BN ReLU W BN ReLU +
    "relu_before_addition": Order(behind=("BN", "ReLU"), last=("BN", "ReLU")),
    # ReLU W BN ReLU W BN +
    "relu_only_preactivation": Order(before=("ReLU",), behind=("BN",), last=("BN",), post=("ReLU",)),
    # BN ReLU W BN ReLU W +
    "full_preactivation": Order(before=("BN", "ReLU"), post=("BN", "ReLU")),
}
# Not in P2: full_preactivation without layers after conv1, so the first block starts from the output of conv1; and
# also without layers after the last block.
OTHER_ORDERS = {
    "bare_stem_preactivation": ORDERS["full_preactivation"]._replace(stem=()),
    "bare_ends_preactivation": ORDERS["full_preactivation"]._replace(stem=(), post=()),
}
# The variants of P2 Table 1, which change shortcut and residual before the addition, each with the suffix of a layer
# name that identifies it; both gates have a "closed" layer. P2 Fig. 2 e, a convolution, is shortcut C.
VARIANTS = {
    "constant_scaling": "half",
    "exclusive_gate": "gated",
    "shortcut_gate": "closed",
    "dropout": "halved_shortcut",
}


class Block(typing.NamedTuple):
    """One block of a network: its name, such as "conv3_1", and what differs from block to block.

    `rates` are the dilation rates of its convolutions, first up to the one with the stride, then after it. They differ
    if the stride is replaced by dilation.
    """

    name: str
    filters: int
    strides: int
    rates: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything that determines the graph of a network, and thus the outputs that its weights give.

    Args:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1), P1 Fig. 5.
        repetitions: blocks in each stage; the first stage is conv2_x.
        width: filters of the first stage; each further stage has twice as many.
        stem: "7x7" (stride 2, then 3x3 max pooling) or "3x3" (stride 1, no pooling).
        shortcut: "A", "B" or "C" (P1 4.1), or None for a plain network.
        stride_in: which convolution of a bottleneck has the stride, "1x1" (the paper) or "3x3"; None: not stated. In
            basic blocks it is the first 3x3, and this is None.
        activation_order: one of ORDERS or OTHER_ORDERS.
        shortcut_variant: None or one of VARIANTS.
        output_stride: None, or 8 or 16: the last strides are replaced by dilation. The weights stay the same.

    Raises:
        ValueError: no such network exists; the message lists the choices.
    """

    block: str
    repetitions: tuple[int, ...]
    width: int = 64
    stem: str = "7x7"
    shortcut: str | None = "B"
    stride_in: str | None = None
    activation_order: str = "original"
    shortcut_variant: str | None = None
    output_stride: int | None = None

    def __post_init__(self) -> None:
        choose("block", self.block, CONVOLUTIONS)
        choose("shortcut", self.shortcut, SHORTCUTS)
        choose("stride_in", self.stride_in, (None, "1x1", "3x3"))
        choose("stem", self.stem, STEMS)
        choose("activation_order", self.activation_order, ORDERS | OTHER_ORDERS)
        choose("shortcut_variant", self.shortcut_variant, (None, *VARIANTS))
        if self.shortcut is None and (self.activation_order != "original" or self.shortcut_variant):
            raise ValueError(
                "a plain network has no shortcut, so activation_order and shortcut_variant cannot be changed"
            )
        if not self.order.stem and self.stem != "3x3":  # max pooling with zero padding needs positive values
            raise ValueError(f'activation_order={self.activation_order!r} needs stem="3x3"')
        whole = STEMS[self.stem] * 2 ** (len(self.repetitions) - 1)
        if self.output_stride and whole < 8:
            raise ValueError(
                f"output_stride={self.output_stride} needs a network with a larger stride; this one has {whole}"
            )
        choose("output_stride", self.output_stride, (None, *(n for n in (8, 16) if n <= whole)))
        object.__setattr__(self, "repetitions", tuple(self.repetitions))
        if self.block == "basic":
            object.__setattr__(self, "stride_in", None)
        if self.output_stride == whole:  # nothing is left to dilate
            object.__setattr__(self, "output_stride", None)

    @property
    def order(self) -> Order:
        return (ORDERS | OTHER_ORDERS)[self.activation_order]

    @property
    def depth(self) -> int:
        """The number of layers with weights, as the papers count them: without projections."""
        return sum(self.repetitions) * CONVOLUTIONS[self.block] + 2

    @property
    def name(self) -> str:
        """The default name of its model, such as "resnet50" or "cifar_plainnet20"."""
        small = len(self.repetitions) == 3
        v2 = self.activation_order == "full_preactivation" and not small
        return f"{'cifar_' * small}{'resnet' if self.shortcut else 'plainnet'}{self.depth}{'v2' * v2}"

    def blocks(self) -> Iterator[Block]:
        """All blocks, from conv2_1 on."""
        stride, dilation = STEMS[self.stem], 1
        for stage, repetitions in enumerate(self.repetitions, 2):
            for i in range(1, repetitions + 1):
                strides = 2 if i == 1 and stage > 2 else 1  # conv3_1, conv4_1 and conv5_1 (P1 Table 1)
                before = dilation
                if self.output_stride and stride * strides > self.output_stride:
                    strides, dilation = 1, dilation * strides
                stride *= strides
                yield Block(f"conv{stage}_{i}", self.width * 2 ** (stage - 2), strides, (before, dilation))

    def differences(self, other: "Architecture") -> dict[str, tuple]:
        """The fields whose values make the weights of the two networks incompatible, each with the two values.

        `output_stride` is ignored, because it does not affect the weights, and so is a `stride_in` of None.
        """
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)}
        del pairs["output_stride"]
        if None in pairs["stride_in"]:
            del pairs["stride_in"]
        return {name: values for name, values in pairs.items() if values[0] != values[1]}


def imagenet(depth: int, **options: typing.Any) -> Architecture:
    """The network for images of any size (P1 Table 1); `options` are fields of `Architecture`."""
    choose("depth", depth, IMAGENET)
    return Architecture(*IMAGENET[depth], **options)


def cifar(depth: int, block: str = "basic", shortcut: str | None = "A", **options: typing.Any) -> Architecture:
    """The network for small images, three stages of n blocks (P1 4.2, P2); `options` are fields of `Architecture`.

    Raises:
        ValueError: no network has this depth; the message names the nearest ones.
    """
    choose("block", block, CONVOLUTIONS)
    try:
        depth = operator.index(depth)
    except TypeError as error:
        raise ValueError(f"depth is an integer; found {depth!r}") from error
    per_n = 3 * CONVOLUTIONS[block]
    n, rest = divmod(depth - 2, per_n)
    if rest or n < 1:
        nearest = sorted({per_n * max(k, 1) + 2 for k in (n, n + 1)})
        raise ValueError(
            f"depth is {per_n}n+2 with {block} blocks; found {depth}, nearest {' and '.join(map(str, nearest))}"
        )
    return Architecture(block, (n, n, n), width=16, stem="3x3", shortcut=shortcut, **options)


def choose(argument: str, value: typing.Any, choices: Collection) -> None:
    """ValueError unless the value of the argument is one of the choices."""
    if value not in choices:
        raise ValueError(f"{argument} is one of {', '.join(map(repr, choices))}; found {value!r}")
