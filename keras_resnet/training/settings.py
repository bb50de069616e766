"""The settings of a run, checked before anything is read or written."""

import dataclasses
import json
import math
import os
import shlex
import typing
from collections.abc import Mapping

from keras_resnet.architecture import IMAGE_SIZE, IMAGENET, Architecture, cifar, imagenet
from keras_resnet.data import sources
from keras_resnet.files import RunError, is_name
from keras_resnet.training import recipes

# Settings that do not change the result, such as paths.
WITHOUT_EFFECT = ("data_dir", "output", "name", "checkpoint_every", "strategy", "jit", "data_changed")
SEEDS = 2**31  # the number of seeds that the random numbers of the input pipeline allow
POSITIVE = (
    "steps", "epochs", "batch_size", "bn_batch_size", "accumulate", "image_size", "lr", "patience", "warmup_epochs",
    "checkpoint_every",
)  # fmt: skip
STRATEGIES = ("auto", "none", "mirrored", "multiworker")
PRECISIONS = ("float16", "bfloat16")
OF_PHOTOGRAPHS = ("image_size", "colors", "without", "skip_damaged", "stride_in")
# Settings that are not for runs on JAX. Those of photographs are refused with the data set.
NOT_ON_JAX = (
    "accumulate", "schedule", "patience", "deterministic", "strategy", "sync_bn", "jit",
)  # fmt: skip
PREPARATIONS = ("scale", "crop", "flip", "color", "mean")

AS_RECIPE: typing.Any = None  # `Settings` replaces it with the value in `recipes` for the data


def parts_of(images: int, bn_batch_size: int) -> int:
    """The number of parts of a batch of `images` so that no part has more than `bn_batch_size`."""
    return -(-images // bn_batch_size)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained and how. The defaults are the paper's (P1 4.2, 3.4); AS_RECIPE: the one in `recipes`."""

    depth: int = AS_RECIPE
    plain: bool = False
    block: str = "basic"
    shortcut: str = AS_RECIPE
    stride_in: str | None = None
    activation_order: str | None = None
    shortcut_variant: str | None = None
    init_from: str | None = None
    freeze_until: str | None = None
    dataset: str = "cifar10"
    data_dir: str | None = None
    train_on_all: bool = False
    image_size: int = IMAGE_SIZE
    colors: str | None = None
    without: tuple[str, ...] = ()
    skip_damaged: bool = False
    data_changed: bool = False
    steps: int = AS_RECIPE
    epochs: int | None = None
    boundaries: tuple = ()  # in steps, or in epochs if `epochs` is given; (): recipes.BOUNDARIES of the length
    batch_size: int = AS_RECIPE
    bn_batch_size: int = AS_RECIPE  # None: recipes.BN_BATCH_SIZE, for photographs the whole batch
    accumulate: int = 1
    lr: float = AS_RECIPE
    schedule: str = AS_RECIPE
    patience: int = recipes.PATIENCE
    weight_decay: float = recipes.WEIGHT_DECAY
    warmup: bool = AS_RECIPE  # None: from depth 110 on
    warmup_epochs: int | None = None
    seed: int = 0
    deterministic: bool = False
    name: str | None = None
    output: str = "runs"
    checkpoint_every: int = 200
    strategy: str = "auto"
    sync_bn: bool = False
    mixed_precision: str | None = None
    jit: bool = False

    def __post_init__(self) -> None:
        """Fills in defaults that depend on the data; RunError if a setting is out of range, DataError without data."""
        if self.photographs and not os.path.isdir(self.dataset):
            sources.find(self.dataset, self.data_dir)
        if self.data_dir is not None and self.dataset == "shapes":
            raise RunError(f"--data-dir is for data that are read, and shapes are drawn; found {self.data_dir}")
        if self.epochs is not None and self.steps is not None:
            raise RunError(f"--epochs {self.epochs} and --steps {self.steps} are two lengths; give one of them")
        if self.boundaries and self.epochs is self.steps is None:
            raise RunError("--boundaries are epochs with --epochs, and steps with --steps; give one of them as well")
        for name, value in self._defaults().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("without", "boundaries"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in POSITIVE:
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise RunError(f"--{name.replace('_', '-')} is positive; found {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise RunError(f"--weight-decay is 0 or positive; found {self.weight_decay}")
        if not 0 <= self.seed < SEEDS:
            raise RunError(f"--seed is 0 to {SEEDS - 1}; found {self.seed}")
        if self.name and not is_name(self.name):
            raise RunError(f"--name is that of one folder, in --output; found {self.name!r}")
        if self.batch_size % self.accumulate:
            raise RunError(f"--batch-size is a multiple of --accumulate; found {self.batch_size} and {self.accumulate}")
        self._check_schedule()
        if self.sync_bn and self.bn_batch_size != self.batch_size:
            raise RunError(
                "--sync-bn normalises the whole batch together, on all devices; leave out --bn-batch-size "
                f"{self.bn_batch_size}, or give --batch-size's {self.batch_size}"
            )
        if self.plain and (self.activation_order or self.shortcut_variant):
            raise RunError(
                "--plain is without shortcuts, which --activation-order and --shortcut-variant of P2 are about"
            )
        if self.plain and self.shortcut != self._defaults()["shortcut"]:
            raise RunError(
                f"--plain is without shortcuts; found --shortcut {self.shortcut} as well; give one of the two"
            )
        if self.freeze_until and not self.init_from:
            raise RunError("--freeze-until keeps layers as they were trained; it needs --init-from")
        if self.photographs:
            v2 = self.activation_order == "full_preactivation"  # P2 has 200 layers; plain blocks are basic
            rows = [(n, block) for n, (block, _) in IMAGENET.items() if n < 200 or v2]
            depths = [n for n, block in rows if block == "basic" or not self.plain]
            if self.depth not in depths:
                raise RunError(f"--depth is one of {', '.join(map(str, depths))} here; found {self.depth}")
            if self.activation_order not in (None, "original", "full_preactivation"):
                raise RunError("--activation-order of networks for photographs is original or full_preactivation")
            for name in ("block", "train_on_all", "shortcut_variant"):
                if getattr(self, name) != getattr(Settings, name):
                    raise RunError(f"--{name.replace('_', '-')} is for small images, not for photographs")
            return
        for name in OF_PHOTOGRAPHS:
            if getattr(self, name) != getattr(Settings, name):
                raise RunError(f"--{name.replace('_', '-')} is for photographs, not for {self.dataset}")
        try:
            cifar(self.depth, self.block)
        except ValueError as error:
            raise RunError(f"--{error}") from error

    def _check_schedule(self):
        length, unit = (self.epochs, "epochs") if self.epochs else (self.steps, "steps")
        inside = [0, *self.boundaries, length]
        if sorted(set(inside)) != inside:
            found = " ".join(map(str, self.boundaries))
            raise RunError(f"--boundaries ascend and lie within --{unit} {length}; found {found}")
        if self.schedule == "plateau" and self.boundaries:
            raise RunError("--boundaries are for --schedule steps; found --schedule plateau, which finds them itself")
        if self.schedule == "plateau" and self.train_on_all and not self.photographs:
            raise RunError("--schedule plateau needs the validation error, and --train-on-all leaves none")
        if self.schedule != "plateau" and self.patience != recipes.PATIENCE:
            raise RunError(f"--patience {self.patience} is for --schedule plateau")
        if not self.warmup_epochs:
            return
        if self.warmup:
            raise RunError("--warmup and --warmup-epochs are two ways to begin; give one of them")
        if self.warmup_epochs >= (self.epochs or math.inf):
            raise RunError(f"--warmup-epochs is less than --epochs {self.epochs}; found {self.warmup_epochs}")
        if self.warmup_from >= self.lr:
            raise RunError(
                "--warmup-epochs starts from the rate for the paper's batch and is for larger ones; found --batch-size "
                f"{self.batch_size}, whose --lr {self.lr} is {self.warmup_from} there"
            )

    def _defaults(self):
        """The values of the settings that are None in the class."""
        recipe = recipes.PHOTOGRAPHS if self.photographs else recipes.SMALL_IMAGES
        deep = (self.depth or recipe["depth"]) >= recipes.WARMUP_DEPTH
        rate = recipes.FINE_TUNING_RATE if self.init_from else recipes.LEARNING_RATE
        batch = self.batch_size or recipe["batch_size"]
        together = batch if self.photographs or self.sync_bn else min(batch, recipes.BN_BATCH_SIZE)
        warmup = deep and not self.photographs and not self.warmup_epochs
        length = {"steps": None if self.epochs else recipe["steps"]}
        schedule = {"schedule": "steps" if self.boundaries else recipe["schedule"]}
        return {**recipe, **length, **schedule, "bn_batch_size": together, "lr": rate, "warmup": warmup}

    @property
    def changes(self) -> dict:
        """A dictionary of the settings that affect the result and differ from the defaults for these data."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | self._defaults()
        found = {name: getattr(self, name) for name in defaults if name not in WITHOUT_EFFECT}
        return {name: value for name, value in found.items() if value != defaults[name]}

    def as_json(self) -> dict:
        """A dictionary that does not change when it is written as JSON and read again."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def deciding(self) -> dict:
        """TEMPORARY"""
        return {name: value for name, value in self.as_json().items() if name not in WITHOUT_EFFECT}

    def check_engine(self, backend: str) -> None:
        """TEMPORARY"""

    @property
    def architecture(self) -> Architecture:
        """Which network is trained."""
        shortcut, order = None if self.plain else self.shortcut, self.activation_order or "original"
        if self.photographs:
            return imagenet(self.depth, shortcut=shortcut, stride_in=self.stride_in, activation_order=order)
        return cifar(self.depth, self.block, shortcut, activation_order=order, shortcut_variant=self.shortcut_variant)

    @property
    def photographs(self) -> bool:
        """Whether the data set has photographs: a folder, or one of TensorFlow Datasets."""
        return self.dataset not in sources.DATASETS

    @property
    def network(self) -> str:
        """For example "ResNet-20"."""
        name = f"{'plain' if self.plain else 'ResNet'}-{self.depth}"
        variants = filter(None, (self.activation_order, self.shortcut_variant))
        return "-".join([name, *(variant.replace("_", "-") for variant in variants)])

    @property
    def data(self) -> str:
        """The data set's name."""
        return os.path.basename(os.path.abspath(self.dataset))

    @property
    def folder(self) -> str:
        return os.path.join(self.output, self.name or f"{self.data}-{self.network.lower()}")

    @property
    def warmup_from(self) -> float:
        """The rate for the paper's batch size, which `lr` scales to `batch_size` (Goyal et al., 2.1)."""
        recipe = recipes.PHOTOGRAPHS if self.photographs else recipes.SMALL_IMAGES
        return self.lr * recipe["batch_size"] / self.batch_size

    def steps_per_epoch(self, examples: int) -> int:
        """The number of full batches in `examples` images; RunError if there is none."""
        if self.batch_size > examples:
            raise RunError(
                f"--batch-size is at most the number of training examples, {examples}; found {self.batch_size}"
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


def program(made: Mapping[str, object] | None) -> str:
    """Which program of train/ trains so; `made` is as of `environment.circumstances`, or None if it is not known."""
    return "fit_jax.py" if "jax" in (made or {}) else "fit.py"


def flags(values: Mapping[str, object]) -> str:
    """Settings as a command line: {"depth": 56, "plain": True} is "--depth 56 --plain"."""
    arguments = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(arguments)
