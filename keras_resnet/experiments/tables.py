"""The experiments of the papers, a row for each network, with the paper's results.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep Residual
Networks" (arXiv 1603.05027).
"""

import dataclasses
import os
import typing
from collections.abc import Iterable

from keras_resnet.files import RunError
from keras_resnet.training import recipes
from keras_resnet.training.options import flags
from keras_resnet.training.settings import Settings


class Row(typing.NamedTuple):
    """One network of an experiment: its name there, its settings, and the paper's error in %, as printed."""

    name: str
    network: dict
    paper: str | None = None


class Experiment(typing.NamedTuple):
    """A table or a figure of a paper.

    `dataset` is None for ImageNet, which the user provides. `panels` are the panels of a figure, each a title
    and the names of rows; `responses`: whether it shows responses (P1 Fig. 7) instead of training curves.
    """

    title: str
    source: str
    dataset: str | None
    rows: tuple[Row, ...]
    panels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    responses: bool = False

    def row(self, name: str) -> Row:
        """The row of this name; RunError if it does not exist."""
        for row in self.rows:
            if row.name == name:
                return row
        raise RunError(f"--only takes {', '.join(row.name for row in self.rows)}; found {name}")

    def settings(
        self, only: Iterable[str] | None = None, seeds: int = 1, dataset: str | None = None, **conditions: typing.Any,
    ) -> list[tuple[str, Settings]]:  # fmt: skip
        """The settings of all runs.

        Args:
            only: names of rows; None for all.
            seeds: number of runs of each network, with seeds from 0 on.
            dataset: the data set, if the experiment is on ImageNet.
            conditions: other settings.

        Returns:
            A list of pairs, a row's name and a `Settings`.

        Raises:
            RunError, DataError: a row does not exist, or a setting is out of range.
        """
        if seeds < 1:
            raise RunError(f"--seeds is positive; found {seeds}")
        if (dataset is None) == (self.dataset is None):
            needs = "is on CIFAR-10; leave --data out" if self.dataset else "is on ImageNet; it needs --data"
            raise RunError(f"{self.source} {needs}")
        conditions["dataset"] = self.dataset or dataset
        rows = [self.row(name) for name in dict.fromkeys(only)] if only else self.rows
        runs = [(row.name, Settings(**row.network, **conditions, seed=seed)) for row in rows for seed in range(seeds)]
        return [(name, dataclasses.replace(settings, name=identity(settings))) for name, settings in runs]


class Claim(typing.NamedTuple):
    """A claim of a paper: in each of the `pairs` of an experiment's networks, the first has the lower error."""

    text: str
    experiment: str
    pairs: tuple[tuple[str, str], ...]


def _row(depth, paper=None, suffix="", **network):
    name = f"{'plain' if network.get('plain') else 'ResNet'}-{depth}{suffix}"
    return Row(name, {"depth": depth, **network}, paper)


def _names(rows):
    return tuple(row.name for row in rows)


# Top-1 error on ImageNet's validation images, ten crops.
_IMAGENET_PLAIN = _row(18, "27.94", plain=True), _row(34, "28.54", plain=True)
_IMAGENET_RESIDUAL = _row(18, "27.88", "-A", shortcut="A"), _row(34, "25.03", "-A", shortcut="A")
_IMAGENET_SHORTCUTS = (
    _IMAGENET_RESIDUAL[1],
    _row(34, "24.52", "-B", shortcut="B"),
    _row(34, "24.19", "-C", shortcut="C"),
)
_IMAGENET_DEEPER = _row(50, "22.85"), _row(101, "21.75"), _row(152, "21.43")

# Test error on CIFAR-10.
_CIFAR = {depth: _row(depth, f"{error:.2f}") for depth, error in recipes.CIFAR10_TEST_ERROR.items()}
_CIFAR[110] = _CIFAR[110]._replace(paper=f"{_CIFAR[110].paper} (6.61 ± 0.16)")
_CIFAR_PLAIN = {depth: _row(depth, plain=True) for depth in (20, 32, 44, 56)}
_CIFAR_PLAIN[110] = _row(110, "> 60 (training)", plain=True)
_CIFAR_SHORTCUTS = (
    _row(20, _CIFAR[20].paper, "-A"),
    _row(20, None, "-B", shortcut="B"),
    _row(20, None, "-C", shortcut="C"),
)
_IDENTITY_SHORTCUTS = (
    _row(110, "6.61", "-original"),
    _row(110, "12.35", "-constant-scaling", shortcut_variant="constant_scaling"),
    _row(110, "8.70", "-exclusive-gate", shortcut_variant="exclusive_gate"),
    _row(110, "6.91", "-shortcut-gate", shortcut_variant="shortcut_gate"),
    _row(110, "12.22", "-1x1-convolution", shortcut="C"),
    _row(110, "fails", "-dropout", shortcut_variant="dropout"),
)
_IDENTITY_ERRORS = {
    "original": ("6.61", "5.93"),
    "bn_after_addition": ("8.17", "6.50"),
    "relu_before_addition": ("7.84", "6.14"),
    "relu_only_preactivation": ("6.71", "5.91"),
    "full_preactivation": ("6.37", "5.46"),
}


def _orders(column, depth, **network):
    orders = {order: {} if order == "original" else {"activation_order": order} for order in _IDENTITY_ERRORS}
    return tuple(
        _row(depth, _IDENTITY_ERRORS[order][column], f"-{order.replace('_', '-')}", **network, **setting)
        for order, setting in orders.items()
    )


_IDENTITY_110 = _orders(0, 110)
_IDENTITY_164 = _orders(1, 164, block="bottleneck", shortcut="B")  # as in the code that P2's authors published

EXPERIMENTS = {
    "table2": Experiment(
        "Plain and residual networks on ImageNet", "P1 Table 2", None, (*_IMAGENET_PLAIN, *_IMAGENET_RESIDUAL)
    ),
    "table3": Experiment(
        "Shortcuts and depth on ImageNet",
        "P1 Table 3",
        None,
        (_IMAGENET_PLAIN[1], *_IMAGENET_SHORTCUTS, *_IMAGENET_DEEPER),
        (("Shortcuts A, B, C", _names(_IMAGENET_SHORTCUTS)), ("Bottlenecks", _names(_IMAGENET_DEEPER))),
    ),
    "table6": Experiment("Depth on CIFAR-10", "P1 Table 6", "cifar10", tuple(_CIFAR.values())),
    "fig4": Experiment(
        "Training on ImageNet",
        "P1 Fig. 4",
        None,
        (*_IMAGENET_PLAIN, *_IMAGENET_RESIDUAL),
        (("Plain networks", _names(_IMAGENET_PLAIN)), ("Residual networks", _names(_IMAGENET_RESIDUAL))),
    ),
    "fig6": Experiment(
        "Training on CIFAR-10",
        "P1 Fig. 6",
        "cifar10",
        (*_CIFAR_PLAIN.values(), *_CIFAR.values()),
        (
            ("Plain networks", tuple(f"plain-{depth}" for depth in (20, 32, 44, 56))),
            ("Residual networks", tuple(f"ResNet-{depth}" for depth in (20, 32, 44, 56, 110))),
            ("Very deep residual networks", ("ResNet-110", "ResNet-1202")),
        ),
    ),
    "fig7": Experiment(
        "Layer responses on CIFAR-10",
        "P1 Fig. 7",
        "cifar10",
        (_CIFAR_PLAIN[20], _CIFAR_PLAIN[56], _CIFAR[20], _CIFAR[56], _CIFAR[110]),
        responses=True,
    ),
    "shortcuts": Experiment(
        "Shortcuts A, B and C on CIFAR-10",
        "P1 4.1, there on ImageNet",
        "cifar10",
        _CIFAR_SHORTCUTS,
        (("ResNet-20", _names(_CIFAR_SHORTCUTS)),),
    ),
    "identity-shortcuts": Experiment(
        "Types of shortcuts",
        "P2 Table 1",
        "cifar10",
        _IDENTITY_SHORTCUTS,
        (("ResNet-110", _names(_IDENTITY_SHORTCUTS)),),
    ),
    "identity-activations": Experiment(
        "Positions of the activations",
        "P2 Table 2",
        "cifar10",
        (*_IDENTITY_110, *_IDENTITY_164),
        (("ResNet-110", _names(_IDENTITY_110)), ("ResNet-164", _names(_IDENTITY_164))),
    ),
}


CLAIMS = (
    Claim(
        "Plain networks get worse with depth",
        "fig6",
        (
            ("plain-20", "plain-32"),
            ("plain-32", "plain-44"),
            ("plain-44", "plain-56"),
            ("plain-32", "plain-56"),
            ("plain-20", "plain-56"),
        ),
    ),
    Claim(
        "Residual networks get better with depth",
        "fig6",
        (
            ("ResNet-32", "ResNet-20"),
            ("ResNet-44", "ResNet-32"),
            ("ResNet-56", "ResNet-44"),
            ("ResNet-110", "ResNet-56"),
            ("ResNet-56", "ResNet-32"),
            ("ResNet-56", "ResNet-20"),
        ),
    ),
    Claim(
        "Residual networks are better than plain ones",
        "fig6",
        tuple((f"ResNet-{depth}", f"plain-{depth}") for depth in (20, 32, 44, 56)),
    ),
    Claim(
        "Shortcuts B and C in ResNet-20 (in the paper's ResNet-34, B is slightly better than A, C than B)",
        "shortcuts",
        (("ResNet-20-B", "ResNet-20-A"), ("ResNet-20-C", "ResNet-20-B")),
    ),
)


def identity(settings: Settings) -> str:
    """A name with all settings that affect a run's result: "cifar10-resnet-20-steps-16000-seed-0"."""
    elsewhere = ("dataset", "depth", "plain", "activation_order", "shortcut_variant", "steps", "seed")
    rest = {name: value for name, value in settings.changes.items() if name not in elsewhere}
    if "colors" in rest:
        rest["colors"] = os.path.basename(rest["colors"])  # a path cannot be the name of a folder
    rest |= {"seed": settings.seed} if settings.epochs else {"steps": settings.steps, "seed": settings.seed}
    words = flags(rest).replace("--", "").replace(" ", "-").replace("_", "-")
    return f"{settings.data}-{settings.network.lower()}-{words}"
