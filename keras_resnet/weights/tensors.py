"""Trained weights as read: tensors under their own names, and everything else that determines the outputs."""

import itertools
import re
import typing
from collections.abc import Callable, Mapping

import numpy as np

from keras_resnet.architecture import Architecture
from keras_resnet.files import WeightsError
from keras_resnet.normalization import UNKNOWN, Normalization
from keras_resnet.weights import families

# Of torch.compile, DataParallel, Lightning and a classifier of transformers.
PREFIXES = re.compile(r"^(_orig_mod\.|module\.|model\.|resnet\.)*")
IGNORED = ".num_batches_tracked"  # a counter of PyTorch that no output depends on


class Source(typing.NamedTuple):
    """Trained weights as read.

    `tensors` are arrays by their own names; only the epsilon of batch normalisation is converted to this package's.
    `family` is None for a `.weights.h5`, whose tensors have no names; then `tensors` is empty and the fields after
    `normalization` are unknown. `architecture` is None if there is no first convolution or no first block.
    `normalization` is UNKNOWN if a normalisation is needed and the source does not state it; only Keras models state
    the last three fields.
    """

    name: str
    tensors: dict[str, np.ndarray]
    family: families.Family | None = None
    normalization: Normalization = None
    architecture: Architecture | None = None
    classifier_activation: str | Callable | None = "softmax"
    pooling: str | None = None
    input_size: tuple[int | None, ...] | None = None

    def tensor(self, layer: str, kind: str) -> str:
        """The source's name of a variable of this package's `layer`; our own name if the family has no such layer."""
        theirs = self.family and self.family.tensor(layer, kind)
        return theirs or f"{layer}/{kind}"

    def array(self, layer: str, kind: str = "kernel") -> np.ndarray | None:
        """A variable of this package's `layer`, in the layout of Keras; None if it is missing."""
        array = self.tensors.get(self.tensor(layer, kind))
        if array is None or self.family is None or self.family.parts is families.KERAS:
            return array
        return np.transpose(array, axes(array.ndim))

    @property
    def channels(self) -> int | None:
        """The number of channels of the images; None without a first convolution."""
        return None if (kernel := self.array("conv1")) is None else kernel.shape[2]

    def __str__(self) -> str:
        if self.family is None or self.architecture is None:
            return self.name
        repetitions = ", ".join(map(str, self.architecture.repetitions))
        return f"{self.name} ({self.family.name}; {repetitions} {self.architecture.block} blocks)"


def architecture_of(source: Source) -> Architecture:
    """The network that a source describes; WeightsError if its layers have no names, or the first are missing."""
    if source.family is None:
        raise WeightsError(f"{source} does not name its layers; build its network and call load_weights(model, path)")
    if source.architecture is None:
        raise WeightsError(f"{source} has no first convolution or no first block")
    return source.architecture


def axes(ndim: int, back: bool = False) -> tuple[int, ...]:
    """The permutation from PyTorch's order of axes (output, input, height, width) to that of Keras, or `back`."""
    order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}.get(ndim, range(ndim))
    return tuple(np.argsort(order) if back else order)


def recognized(
    name: str, tensors: Mapping[str, np.ndarray], stated: Mapping | None = None, **known: typing.Any
) -> Source:
    """The `Source` of these tensors.

    Args:
        name: of the file, for messages.
        tensors: arrays by their names in the file.
        stated: known fields of its architecture; the others are the family's defaults.
        known: known fields of the `Source`.

    Raises:
        WeightsError: the names belong to no known family or to several networks, or no network of the papers fits.
    """
    own = {key: array for key, array in tensors.items() if not key.endswith(IGNORED)}
    tensors = {PREFIXES.sub("", key): array for key, array in own.items()}
    if len(tensors) < len(own):
        raise WeightsError(f"{name} holds several networks, whose tensors differ only in a prefix: {', '.join(own)}")
    family = families.recognize(tensors)
    if family is None:
        some = ", ".join(list(tensors)[:5]) or "none"
        for prefix in dict.fromkeys(key[: key.index(".") + 1] for key in tensors if "." in key):
            inner = families.recognize({key.removeprefix(prefix) for key in tensors if key.startswith(prefix)})
            if inner:
                raise WeightsError(
                    f"{name} has the names of {inner.name} after the prefix {prefix!r}; save these tensors without it"
                )
        raise WeightsError(
            f"{name} holds no residual network with names of {', '.join(f.name for f in families.FAMILIES)}; "
            f"its first tensors are: {some}"
        )
    if family is families.KERAS_HUB and families.PREACTIVATION_OF_KERAS_HUB in tensors:
        raise WeightsError(
            f"{name} is a pre-activation network of keras_hub, which pools before the first batch normalisation; the "
            "networks of this package pool after it and would give other outputs"
        )
    source = Source(name, tensors, family)
    source = source._replace(architecture=_architecture(source, stated or {}))
    return source._replace(**{"normalization": _usual_normalization(source), **known})


def _architecture(source, stated):
    """The network inferred from the tensors. `stated` are known fields that cannot be inferred."""
    stem, first = source.array("conv1"), source.array("conv2_1_1")
    if stem is None or first is None:
        return None
    has = lambda stage, block, part=1: source.array(f"conv{stage}_{block}_{part}") is not None
    count = lambda has: sum(1 for _ in itertools.takewhile(has, itertools.count(1)))
    stages = count(lambda stage: has(stage + 1, 1))
    repetitions = tuple(count(lambda block, stage=stage: has(stage, block)) for stage in range(2, stages + 2))
    block = "bottleneck" if has(2, 1, 3) else "basic"
    # C has projections where the shape does not change, too.
    stays = [(2, 1)] * (block == "basic") + [(stage, 2) for stage in range(2, stages + 2)]
    projections = any(has(*place, "shortcut") for place in stays), has(3, 1, "shortcut")
    known = {
        "block": block,
        "repetitions": repetitions,
        "width": first.shape[-1],
        "stem": "7x7" if stem.shape[0] == 7 else "3x3",
        "shortcut": "C" if projections[0] else "B" if projections[1] else "A",
        "stride_in": source.family.stride_in,
        "activation_order": source.family.activation_order,
        **stated,
    }
    return architecture(source.name, **known)


def architecture(name: str, **fields: typing.Any) -> Architecture:
    """An `Architecture`; WeightsError if none has these fields. `name` is the name of the weights."""
    try:
        return Architecture(**fields)
    except ValueError as error:
        raise WeightsError(f"{name} is not a network of the papers: {error}") from error


def _usual_normalization(source):
    """The usual normalisation of the family. Networks for small images or other channels have their own."""
    network, top = source.architecture, source.array("fc")
    if network is None:
        return source.family.normalization
    usual = UNKNOWN if source.family.normalization else None
    if len(network.repetitions) == 3 or network.stem == "3x3":
        classes = 0 if top is None else top.shape[-1]
        return source.family.small.get((len(network.repetitions), classes), usual)
    return source.family.normalization if source.channels == 3 else usual
