"""The experiments of the papers: their networks, their results, and one result file for each of our runs.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep Residual
Networks" (arXiv 1603.05027).

A run does not belong to an experiment: its name and its file follow from its settings, so plain-20 is trained once for
all tables and figures that show it.
"""

import dataclasses
import json
import os
import typing
from collections.abc import Iterable

from keras_resnet import files
from keras_resnet.data import sources
from keras_resnet.files import Path, RunError, write_whole
from keras_resnet.runs import NUMBER, RESULT_KINDS, SETTINGS_KINDS, Run, read_json
from keras_resnet.training import recipes
from keras_resnet.training.settings import WITHOUT_EFFECT, Settings, flags, program

RESULTS = "docs/results"
RESPONSE_IMAGES = 2_000  # training images; P1 Fig. 7 does not state which
# Settings that an experiment determines; all others are conditions under which it is run.
NETWORK = ("depth", "plain", "block", "shortcut", "stride_in", "activation_order", "shortcut_variant")
# Settings that are no flags of reproduce.py, or have another flag there.
DECIDED = (*NETWORK, "dataset", "seed", "name", "init_from", "freeze_until")

# What every record has, and what is read of it.
RECORD = ("conditions", "error", "history", "measured_on", "result", "settings")
CURVES = ("step", "error", "val_error")
RECORD_KINDS = {
    **{"settings": SETTINGS_KINDS, "conditions": dict, "result": RESULT_KINDS, "response_std": dict},
    **{"error": NUMBER, "measured_on": str, "command": str, "data": str, "history": dict.fromkeys(CURVES, [NUMBER])},
}


class Row(typing.NamedTuple):
    """One network of an experiment: its name there, its settings, and the paper's error in %, as it is printed."""

    name: str
    network: dict
    paper: str | None = None


class Experiment(typing.NamedTuple):
    """A table or a figure of a paper.

    `dataset` is None for photographs, which the user has to provide. `panels` are the panels of a figure, each a title
    and the names of rows; `responses`: whether it shows responses (P1 Fig. 7) instead of training curves.
    """

    title: str
    source: str
    dataset: str | None
    rows: tuple[Row, ...]
    panels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    responses: bool = False

    def row(self, name: str) -> Row:
        """RunError unless there is a row of this name."""
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
            dataset: the data set, if the experiment is on photographs.
            conditions: other settings.

        Returns:
            A list of pairs, a row's name and a `Settings`.

        Raises:
            RunError, DataError: there is no such row, or a setting is out of range.
        """
        if seeds < 1:
            raise RunError(f"--seeds is positive; found {seeds}")
        if (dataset is None) == (self.dataset is None):
            needs = "is on CIFAR-10; leave --data out" if self.dataset else "is on photographs; it needs --data"
            raise RunError(f"{self.source} {needs}")
        conditions["dataset"] = self.dataset or dataset
        rows = [self.row(name) for name in dict.fromkeys(only)] if only else self.rows
        runs = [(row.name, Settings(**row.network, **conditions, seed=seed)) for row in rows for seed in range(seeds)]
        return [(name, dataclasses.replace(settings, name=identity(settings))) for name, settings in runs]


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


def identity(settings: Settings) -> str:
    """A name with all settings that affect a run's result: "cifar10-resnet-20-steps-16000-seed-0"."""
    elsewhere = ("dataset", "depth", "plain", "activation_order", "shortcut_variant", "steps", "seed")
    rest = {name: value for name, value in settings.changes.items() if name not in elsewhere}
    rest |= {"seed": settings.seed} if settings.epochs else {"steps": settings.steps, "seed": settings.seed}
    words = flags(rest).replace("--", "").replace(" ", "-").replace("_", "-")
    return f"{settings.data}-{settings.network.lower()}-{words}"


def describe(settings: Settings, program: str = "fit.py") -> dict:
    """The part of a record that is known before the run by `program`.

    `conditions` are the settings that differ from the paper's run of the same network, except the seed.
    """
    changes, not_conditions = settings.changes, (*NETWORK, "dataset", "seed")
    kept = {name: value for name, value in settings.as_json().items() if name not in WITHOUT_EFFECT}
    return {
        "command": f"python train/{program} {flags({**changes, 'dataset': settings.data})}",
        "settings": {**kept, "dataset": settings.data},
        "conditions": {name: value for name, value in changes.items() if name not in not_conditions},
    }


def run(settings: Settings, folder: Path = RESULTS, verbose: int = 1) -> dict:
    """Trains and evaluates a network, unless its result already exists.

    Args:
        settings: a `Settings` of `Experiment.settings`.
        folder: the folder of the results.
        verbose: as in `run.train`.

    Returns:
        The record in FOLDER/NAME.json: what was trained, its `error` in [0, 1] (CIFAR-10: on the test images;
        photographs: on ten crops of the validation images), history, `weights_sha256` and, for small images,
        responses.

    Raises:
        RunError, DataError, Stopped: as in `run.train`. RunError also if the result is of another data folder of the
            same name.
    """
    from keras_resnet.training.run import train
    from keras_resnet.weights.published import weights_sha256

    path = os.path.join(folder, f"{settings.name}.json")
    if os.path.exists(path):
        record = _read(path)
        if "data" in record and os.path.isdir(settings.dataset):
            found = _size(_photographs(settings))
            if found != record["data"]:
                raise RunError(
                    f"{path} is of another folder of that name, with {record['data']}; {settings.dataset} has {found}. "
                    "Rename it, or give another --results and --output"
                )
        return record
    try:
        if files.writes:
            os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder of the results, {folder}, cannot be made: {error}") from error
    result = train(settings, verbose)
    trained = Run(settings.folder)
    model = trained.load_model()
    left_out, made = ("settings", "paper_test_error", "made"), result.get("made")  # None in runs of older versions
    record = {
        **describe(settings, program(made)),
        **(_ten_crops(settings, model, verbose) if settings.photographs else _test(settings, model, result)),
        "weights_sha256": weights_sha256(model),
        "result": {name: value for name, value in result.items() if name not in left_out},
        "history": trained.history,
        "made": made,
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    write_whole(path, lambda file: file.write(f"{{\n{lines}\n}}\n".encode()))
    return record


def _test(settings, model, result):
    from keras_resnet import analysis

    images = sources.load(settings.dataset, settings.data_dir).train.images[:RESPONSE_IMAGES]
    found = analysis.response_std(model, images.astype("float32"))
    return {
        "error": result["test_error"],
        "measured_on": "test images, single view",
        "response_std": {name: round(value, 5) for name, value in found.items()},
    }


def _photographs(settings):
    from keras_resnet.data import records

    return records.photographs(settings.dataset, settings.data_dir, settings.seed)


def _size(data):
    return f"{len(data.classes)} classes, {len(data.train)} images to train on, {len(data.validation)} for validation"


def _ten_crops(settings, model, verbose):
    from keras_resnet import evaluation
    from keras_resnet.data import imagenet

    data = _photographs(settings)
    examples = imagenet.examples(data.validation)
    with imagenet.errors_named():
        found = evaluation.evaluate(
            model, examples, data.classes, "10-crop", crop=settings.image_size, verbose=int(verbose == 1)
        )
    return {
        "error": round(found.error(1), 5),
        "top5_error": round(found.error(5), 5),
        "measured_on": "validation images, ten crops",
        "data": _size(data),
    }


def load(folder: Path = RESULTS) -> list[dict]:
    """All records in a folder, sorted by file name.

    Raises:
        RunError: the folder does not exist, or a file in it is damaged or no record.
    """
    if not os.path.isdir(folder):
        raise RunError(f"there are no results in {folder}: no such folder. `python train/reproduce.py` makes them.")
    return [_read(os.path.join(folder, name)) for name in sorted(os.listdir(folder)) if name.endswith(".json")]


def _read(path):
    record = read_json(path, RECORD_KINDS, "Delete it to make it anew.")
    if missing := [name for name in RECORD if name not in record]:
        raise RunError(f"{path} is no result of train/reproduce.py: it has no {', '.join(missing)}")
    return record


def matches(experiment: Experiment, row: Row, record: dict) -> bool:
    """Whether a record is of a run of this row, under any conditions."""
    settings = record["settings"]
    if experiment.dataset is None:
        recipe, same_data = recipes.PHOTOGRAPHS, settings["dataset"] not in sources.DATASETS
    else:
        recipe, same_data = recipes.SMALL_IMAGES, settings["dataset"] == experiment.dataset
    expected = {name: row.network.get(name, recipe.get(name, getattr(Settings, name))) for name in NETWORK}
    return same_data and all(settings[name] == value for name, value in expected.items())
