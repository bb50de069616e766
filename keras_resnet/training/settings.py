"""The settings of a run, each declared once, and checked before anything is read or written."""

import dataclasses
import json
import os
import typing
from collections.abc import Mapping

from keras_resnet.architecture import IMAGE_SIZE, ORDERS, VARIANTS, Architecture, cifar, imagenet
from keras_resnet.data import sources
from keras_resnet.files import RunError
from keras_resnet.training import recipes
from keras_resnet.training.options import (
    NOT_NEGATIVE,
    ONE_FOLDER,
    POSITIVE,
    SEED,
    check_ranges,
    flag,
    option,
    options,
    typed,
)
from keras_resnet.training.rules import check_together

PRECISIONS = ("float16", "bfloat16")
SMALL, LARGE = "small images", "ImageNet-style images"  # kinds of data
PREPARATIONS = ("scale", "crop", "flip", "color", "mean")

AS_RECIPE: typing.Any = None  # `Settings` replaces it with the recipe's value for the data set


def names(*groups: str) -> tuple[str, ...]:
    """The names of the settings in these groups."""
    return tuple(name for name, one in options(Settings).items() if one.group in groups)


def deciding(values: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """The settings in `values` that can change a result."""
    return {name: values[name] for name, one in options(Settings).items() if one.decides and name in values}


def defaults(values: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """The settings that are AS_RECIPE in the class, with the defaults that follow from the other `values`."""
    large = values["dataset"] not in sources.DATASETS
    recipe = recipes.IMAGENET if large else recipes.CIFAR
    deep = (values["depth"] or recipe["depth"]) >= recipes.WARMUP_DEPTH
    rate = recipes.FINE_TUNING_RATE if values.get("init_from") else recipes.LEARNING_RATE
    batch = values["batch_size"] or recipe["batch_size"]
    together = batch if large or values.get("sync_bn") else min(batch, recipes.BN_BATCH_SIZE)
    warmup = deep and not large and not values.get("warmup_epochs")
    length = {"steps": None if values.get("epochs") else recipe["steps"]}
    schedule = {"schedule": "steps" if values.get("boundaries") else recipe["schedule"]}
    return {**recipe, **length, **schedule, "bn_batch_size": together, "lr": rate, "warmup": warmup}


def changes(values: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """The settings in `values`, of a `Settings` or a file, that can change a result and are not the defaults for them.

    The `values` of older versions may be fewer, or None.
    """
    usual = {field.name: field.default for field in dataclasses.fields(Settings)} | defaults(values)
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in deciding(values).items()}
    return {name: value for name, value in kept.items() if value not in (None, usual[name])}


def ghost_batches(images: int, bn_batch_size: int) -> int:
    """The number of ghost batches, of at most `bn_batch_size` images each, in a batch of `images`."""
    return -(-images // bn_batch_size)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The network, data and recipe of a run. The defaults are the paper's (P1 4.2, 3.4); AS_RECIPE: see `recipes`."""

    depth: int = option(
        AS_RECIPE, "network", "6n+2, bottlenecks 9n+2; ImageNet 18, 34, 50, 101, 152, pre-activated 200"
    )
    plain: bool = option(False, "network", "without shortcuts")
    shortcut: str = option(
        AS_RECIPE, "network", "where the shape changes: A zeros, B projection; C projection everywhere",
        choices=("A", "B", "C"),
    )  # fmt: skip
    block: str = option(
        "basic", "network", "CIFAR: two 3x3 convolutions, or 1x1, 3x3, 1x1",
        choices=("basic", "bottleneck"), data=SMALL,
    )  # fmt: skip
    stride_in: str | None = option(
        None, "network", "the convolution of a bottleneck that has the stride", choices=("1x1", "3x3"), data=LARGE
    )
    activation_order: str | None = option(
        None, "network", "of P2 Fig. 4; P2's own networks: full_preactivation", choices=tuple(ORDERS)
    )
    shortcut_variant: str | None = option(
        None, "network", "CIFAR: a shortcut of P2 Table 1", choices=tuple(VARIANTS), data=SMALL,
        not_on_jax={"dropout": "all ghost batches would draw the same random numbers"},
    )  # fmt: skip
    init_from: str | None = option(
        None, "weights",
        "trained weights for all but the last layer: a run, a file, imagenet, or a name of convert.py --list",
        metavar="SOURCE",
    )  # fmt: skip
    freeze_until: str | None = option(
        None, "weights", "with --init-from: freeze the stages from conv1 to this one", metavar="STAGE"
    )
    dataset: str = option(
        "cifar10", "data", "cifar10, cifar100, shapes (no data needed), an image folder, imagenet2012 etc."
    )
    data_dir: str | None = option(
        None, "data", "data in the format of tensorflow-datasets, or cifar-10-batches-py (default: download)",
        metavar="DIR", decides=False,
    )  # fmt: skip
    train_on_all: bool = option(
        False, "data", "no validation: train on all 50k images, as for the paper's results", data=SMALL
    )
    image_size: int = option(
        IMAGE_SIZE, "data", "size of the crops; images are resized in proportion", range=POSITIVE, data=LARGE
    )
    without: tuple[str, ...] = option(
        (), "data", f"leave out some of {', '.join(PREPARATIONS)}",
        choices=PREPARATIONS, metavar="WHICH", data=LARGE,
    )  # fmt: skip
    colors: str | None = option(
        None, "data", "file of train/colors.py, or imagenet (default: measured)", metavar="FILE", data=LARGE
    )
    skip_damaged: bool = option(
        False, "data", "skip files that cannot be decoded, and list them in damaged.txt", data=LARGE
    )
    data_changed: bool = option(False, "data", "continue a run although its data have changed", decides=False)
    steps: int = option(AS_RECIPE, "recipe", "iterations; with --schedule plateau the maximum", range=POSITIVE)
    epochs: int | None = option(
        None, "recipe", "the length in epochs, instead of --steps; with --schedule plateau the maximum", range=POSITIVE
    )
    boundaries: tuple[int, ...] = option(  # (): recipes.BOUNDARIES of the length
        (), "recipe",
        "when to divide the learning rate by 10: epochs with --epochs, steps with --steps (default 1/2 and 3/4 of all)",
        metavar="WHEN",
    )  # fmt: skip
    batch_size: int = option(AS_RECIPE, "recipe", "images per step", range=POSITIVE)
    bn_batch_size: int = option(
        AS_RECIPE, "recipe",
        f"images per ghost batch, normalised together (default {recipes.BN_BATCH_SIZE}, as on the paper's two GPUs; "
        "ImageNet-style images and --sync-bn: the whole batch)",
        range=POSITIVE, metavar="IMAGES",
    )  # fmt: skip
    accumulate: int = option(
        1, "recipe", "micro-batches per batch; their gradients are accumulated", range=POSITIVE, metavar="N"
    )
    lr: float = option(
        AS_RECIPE, "recipe",
        f"initial learning rate (default {recipes.LEARNING_RATE}; with --init-from {recipes.FINE_TUNING_RATE})",
        range=POSITIVE,
    )  # fmt: skip
    schedule: str = option(
        AS_RECIPE, "recipe",
        "divide the learning rate by 10 at the --boundaries, or at plateaus of the validation error; "
        "the third plateau ends the run",
        choices=("steps", "plateau"),
    )  # fmt: skip
    patience: int = option(
        recipes.PATIENCE, "recipe",
        "a plateau is this many epochs without a lower validation error "
        f"(default {recipes.PATIENCE}, or more if these have less than {recipes.PLATEAU_STEPS} steps)",
        range=POSITIVE, metavar="EPOCHS",
    )  # fmt: skip
    weight_decay: float = option(
        recipes.WEIGHT_DECAY, "recipe", "L2 penalty, in the gradient but not in the loss shown", range=NOT_NEGATIVE
    )
    warmup: bool = option(
        AS_RECIPE, "recipe",
        "learning rate .01 until an epoch's training error is below 80 %% (default: CIFAR from depth 110 on)",
    )  # fmt: skip
    warmup_epochs: int | None = option(
        None, "recipe",
        "for larger batches: epochs to raise the learning rate from that for the paper's batch size to --lr",
        range=POSITIVE, metavar="EPOCHS",
    )  # fmt: skip
    seed: int = option(0, "recipe", "seed of weights, order and augmentation", range=SEED)
    deterministic: bool = option(
        False, "recipe", "bitwise the same weights in every run, but slower",
        not_on_jax={
            True: "JAX is deterministic on CPUs, and on GPUs with XLA_FLAGS=--xla_gpu_deterministic_ops=true"
        },
    )  # fmt: skip
    strategy: str = option(
        "auto", "devices",
        "mirrored: all GPUs; multiworker: all machines of TF_CONFIG or SLURM; none: one device; "
        "auto: multiworker, mirrored or none, as available",
        choices=("auto", "none", "mirrored", "multiworker"), decides=False,
    )  # fmt: skip
    sync_bn: bool = option(
        False, "devices", "batch normalisation over the whole batch, not each device's shard",
        not_on_jax={True: "leave it out, and give --bn-batch-size the number of images of --batch-size"},
    )  # fmt: skip
    mixed_precision: str | None = option(
        None, "devices", "precision of all layers but the last (default float32)", choices=PRECISIONS,
        not_on_jax={"float16": "it needs loss scaling; bfloat16 needs none"},
    )  # fmt: skip
    jit: bool = option(
        False, "devices", "compile the step with XLA", decides=False, not_on_jax={True: "JAX always compiles"}
    )
    name: str | None = option(None, "run", "name of the run (default DATASET-NETWORK)", range=ONE_FOLDER, decides=False)
    output: str = option("runs", "run", "folder of runs", metavar="DIR", decides=False)
    checkpoint_every: int = option(
        200, "run", "steps between checkpoints", range=POSITIVE, metavar="STEPS", decides=False
    )

    def __post_init__(self) -> None:
        """Fills in defaults that depend on the data; RunError for invalid settings, DataError for unknown data."""
        for name, value in typed(self).items():
            object.__setattr__(self, name, value)
        if self.imagenet_style and not os.path.isdir(self.dataset):
            sources.find(self.dataset, self.data_dir)
        if self.data_dir is not None and self.dataset == "shapes":
            raise RunError(f"--data-dir does not apply to shapes, which are drawn, not read; found {self.data_dir}")
        if self.epochs is not None and self.steps is not None:
            raise RunError(f"--epochs {self.epochs} and --steps {self.steps} both set the length; give only one")
        if self.boundaries and self.epochs is self.steps is None:
            raise RunError("--boundaries are in epochs with --epochs, in steps with --steps; give one of the two")
        for name, value in defaults(vars(self)).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_ranges(self)
        check_together(self)

    @property
    def changes(self) -> dict:
        """As `changes` of the values of this object."""
        return changes(vars(self))

    def as_json(self) -> dict:
        """The settings as a dictionary that a round trip through JSON does not change."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def deciding(self) -> dict:
        """The settings that can change the result, in the form of `as_json`."""
        return deciding(self.as_json())

    def check_engine(self, backend: str) -> None:
        """RunError if this backend does not support a setting."""
        for name, one in options(self).items() if backend == "jax" else ():
            value = getattr(self, name)
            if value in one.not_on_jax:
                shown = "" if value is True else f" {value}"
                raise RunError(f"{flag(name)}{shown} is not supported on JAX: {one.not_on_jax[value]}")

    @property
    def paper_error(self) -> float | None:
        """The test error of this network in P1 Table 6, in [0, 1]; None if the table does not list it."""
        others = {"dataset", *names("network", "weights")} - {"depth"}
        percent = None if others & self.changes.keys() else recipes.CIFAR10_TEST_ERROR.get(self.depth)
        return percent and percent / 100

    @property
    def architecture(self) -> Architecture:
        """The architecture of the network."""
        shortcut, order = None if self.plain else self.shortcut, self.activation_order or "original"
        if self.imagenet_style:
            return imagenet(self.depth, shortcut=shortcut, stride_in=self.stride_in, activation_order=order)
        return cifar(self.depth, self.block, shortcut, activation_order=order, shortcut_variant=self.shortcut_variant)

    @property
    def imagenet_style(self) -> bool:
        """Whether the data are an image folder or from TensorFlow Datasets, not small images."""
        return self.dataset not in sources.DATASETS

    @property
    def images(self) -> str:
        """The kind of data: "ImageNet-style images" or "small images"."""
        return LARGE if self.imagenet_style else SMALL

    @property
    def network(self) -> str:
        """For example "ResNet-20"."""
        return network_name(vars(self))

    @property
    def data(self) -> str:
        """The data set's name."""
        return os.path.basename(os.path.abspath(self.dataset))

    @property
    def folder(self) -> str:
        return os.path.join(self.output, self.name or f"{self.data}-{self.network.lower()}")

    @property
    def warmup_from(self) -> float:
        """The learning rate for the paper's batch size, which `lr` scales to `batch_size` (Goyal et al., 2.1)."""
        recipe = recipes.IMAGENET if self.imagenet_style else recipes.CIFAR
        return self.lr * recipe["batch_size"] / self.batch_size

    def steps_per_epoch(self, examples: int) -> int:
        """The number of full batches in `examples` images; RunError if a batch is larger than that."""
        if self.batch_size > examples:
            default = ", the default" * ("batch_size" not in self.changes)
            raise RunError(
                f"--batch-size is at most the number of training examples, {examples}; found {self.batch_size}{default}"
            )
        return examples // self.batch_size

    def steps_in(self, epochs: int, examples: int) -> int:
        """The number of full steps in `epochs` epochs of `examples` images, at least 1."""
        return max(1, epochs * (examples // self.batch_size))

    def length(self, examples: int) -> int:
        """The number of steps of the whole run on `examples` images."""
        return self.steps_in(self.epochs, examples) if self.epochs else self.steps

    @property
    def batch_in_memory(self) -> int:
        """The number of images in one forward pass."""
        return self.batch_size // self.accumulate


def network_name(settings: Mapping) -> str:
    """The name of a run's network, such as "ResNet-20", from its settings or those in its files."""
    variants = (
        settings[name].replace("_", "-") for name in ("activation_order", "shortcut_variant") if settings.get(name)
    )
    return "-".join([f"{'plain' if settings['plain'] else 'ResNet'}-{settings['depth']}", *variants])
