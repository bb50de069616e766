"""The runs of the papers' experiments, and one result file, a record, for each.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), P2 "Identity Mappings in Deep Residual
Networks" (arXiv 1603.05027).

A run does not belong to an experiment: its name and its file depend on its settings alone, so plain-20 is trained once
for all tables and figures that show it.
"""

import json
import os

from keras_resnet.data import sources
from keras_resnet.experiments.tables import Experiment, Row
from keras_resnet.files import Path, RunError, make_folder, write_whole
from keras_resnet.runs import NUMBER, RESULT_KINDS, SEGMENT_KINDS, SETTINGS_KINDS, Run, read_json
from keras_resnet.training import recipes
from keras_resnet.training.options import command
from keras_resnet.training.settings import Settings, names

RESULTS = "docs/results"
RESPONSE_IMAGES = 2_000  # training images; P1 Fig. 7 does not state which

# The fields of every record, and the kinds of those that are read.
RECORD = ("conditions", "error", "history", "measured_on", "result", "segments", "settings")
CURVES = ("step", "error", "val_error")
RECORD_KINDS = {
    **{
        "settings": SETTINGS_KINDS,
        "conditions": dict,
        "segments": [SEGMENT_KINDS],
        "result": RESULT_KINDS,
        "response_std": dict,
    },
    **{"error": NUMBER, "measured_on": str, "command": str, "data": str, "history": dict.fromkeys(CURVES, [NUMBER])},
}


def describe(settings: Settings, backend: str | None = None) -> dict:
    """The part of a record that is known before the run on this backend.

    `conditions` are the settings that differ from the paper's run of the same network, except the seed.
    """
    changes, not_conditions = settings.changes, (*names("network"), "dataset", "seed")
    return {
        "command": command({**changes, "dataset": settings.data}, backend),
        "settings": {**settings.deciding, "dataset": settings.data},
        "conditions": {name: value for name, value in changes.items() if name not in not_conditions},
    }


def run(settings: Settings, folder: Path = RESULTS, verbose: int = 1) -> dict:
    """Trains and evaluates a network, unless its record exists already.

    Args:
        settings: a `Settings` of `Experiment.settings`.
        folder: the folder of the results.
        verbose: as in `loop.train`.

    Returns:
        The record in FOLDER/NAME.json: what was trained, its `error` in [0, 1] (CIFAR-10: on the test images;
        ImageNet: on ten crops of the validation images), history, `weights_sha256` and, for small images,
        responses.

    Raises:
        RunError, DataError, Stopped: as in `loop.train`. RunError also if the record belongs to another data folder
            of the same name.
    """
    from keras_resnet.training import engine, loop
    from keras_resnet.weights.published import weights_sha256

    path = _path(settings, folder)
    if recorded(settings, folder):
        record = _read(path)
        if "data" in record and os.path.isdir(settings.dataset):
            found = _size(_imagenet_style(settings))
            if found != record["data"]:
                raise RunError(
                    f"{path} belongs to another folder of that name, with {record['data']}; {settings.dataset} has "
                    f"{found}. Rename the folder, or give another --results and --output"
                )
        return record
    writes = engine.writes(settings)
    if writes:
        make_folder(folder)
    result = loop.train(settings, verbose)
    trained = Run(settings.folder)
    model = trained.load_model()
    left_out, segments = ("settings", "paper_test_error", "segments"), result["segments"]
    record = {
        **describe(settings, segments[0]["backend"]),
        **(_ten_crops(settings, model, verbose) if settings.imagenet_style else _test(settings, model, result)),
        "weights_sha256": weights_sha256(model),
        "result": {name: value for name, value in result.items() if name not in left_out},
        "history": trained.history,
        "segments": segments,
    }
    if not writes:
        return record
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    write_whole(path, lambda file: file.write(f"{{\n{lines}\n}}\n".encode()))
    return record


def recorded(settings: Settings, folder: Path = RESULTS) -> bool:
    """Whether a run has its record in a folder."""
    return os.path.exists(_path(settings, folder))


def _path(settings, folder):
    return os.path.join(folder, f"{settings.name}.json")


def _test(settings, model, result):
    from keras_resnet import analysis

    images = sources.load(settings.dataset, settings.data_dir).train.images[:RESPONSE_IMAGES]
    found = analysis.response_std(model, images.astype("float32"))
    return {
        "error": result["test_error"],
        "measured_on": "test images, single view",
        "response_std": {name: round(value, 5) for name, value in found.items()},
    }


def _imagenet_style(settings):
    from keras_resnet.data import records

    return records.splits(settings.dataset, settings.data_dir, settings.seed)


def _size(data):
    return f"{len(data.classes)} classes, {len(data.train)} images to train on, {len(data.validation)} for validation"


def _ten_crops(settings, model, verbose):
    from keras_resnet import evaluation
    from keras_resnet.data import imagenet

    data = _imagenet_style(settings)
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
        RunError: the folder does not exist, or a file in it is damaged or not a record.
    """
    if not os.path.isdir(folder):
        raise RunError(f"{folder}, the folder of the results, does not exist. `python train/reproduce.py` creates it.")
    return [_read(os.path.join(folder, name)) for name in sorted(os.listdir(folder)) if name.endswith(".json")]


def _read(path):
    record = read_json(path, RECORD_KINDS, "Delete it and run the experiment again.")
    if missing := [name for name in RECORD if name not in record]:
        kind = "of an older version" if "made" in record else "not a result of train/reproduce.py"
        raise RunError(f"{path} is {kind}: it has no {', '.join(missing)}")
    return record


def matches(experiment: Experiment, row: Row, record: dict) -> bool:
    """Whether a record is a run of this row, under any conditions."""
    settings = record["settings"]
    if experiment.dataset is None:
        recipe, same_data = recipes.IMAGENET, settings["dataset"] not in sources.DATASETS
    else:
        recipe, same_data = recipes.CIFAR, settings["dataset"] == experiment.dataset
    expected = {name: row.network.get(name, recipe.get(name, getattr(Settings, name))) for name in names("network")}
    return same_data and all(settings[name] == value for name, value in expected.items())
