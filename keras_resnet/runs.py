"""A run's folder as one object: its settings, result, classes, network and held-out images.

All code that reads the files of a run uses this module. A damaged file raises an error of one sentence.
"""

import csv
import difflib
import functools
import json
import os
import pathlib
import re
import typing
import zipfile
from collections.abc import Mapping

from keras_resnet.data import sources
from keras_resnet.files import DataError, Path, RunError, reason

if typing.TYPE_CHECKING:
    import keras

    from keras_resnet.data import folders

SETTINGS, RESULT, CLASSES, DATA = "args.json", "result.json", "classes.json", "data.json"
HISTORY, MODEL = "history.csv", "model.keras"

SHIPPED = pathlib.Path(__file__).parent / "weights" / "shipped"  # folders of finished runs of this project
SHIPPED_NAME = re.compile(r"cifar10-(plain|resnet)-\d+")

# The fields that are read from the files, and their types. Older versions of this package wrote fewer fields.
Kinds: typing.TypeAlias = Mapping[str, typing.Any]
NUMBER = int | float
SETTINGS_KINDS: Kinds = {
    **dict.fromkeys(("depth", "image_size", "seed"), int),
    **dict.fromkeys(("plain", "train_on_all"), bool),
    **{"dataset": str, "data_dir": str | None, "name": str | None},
}
SEGMENT_KINDS: Kinds = {
    **dict.fromkeys(("from", "to", "normalized_together"), int),
    **{"backend": str, "devices": [str], "commit": str | None},
}
RESULT_KINDS: Kinds = {
    "settings": SETTINGS_KINDS,
    **dict.fromkeys(("steps", "parameters", "damaged_files"), int),
    **dict.fromkeys(("train_error", "seconds"), NUMBER),
    **dict.fromkeys(
        ("val_error", "test_error", "paper_test_error", "waiting", "images_per_second", "share_of_peak"), NUMBER | None
    ),
    **dict.fromkeys(("train_top5_error", "val_top5_error", "test_top5_error"), NUMBER | None),
    "segments": [SEGMENT_KINDS],
}
RESTORE = (
    f"Restore it from a copy; or delete {RESULT} and repeat the run's command, which writes the files again from the "
    "run's checkpoint."
)


class Fields(dict):
    """A JSON object from a file. Reading a field that is missing raises a RunError that names the file."""

    def __init__(self, content: Mapping[str, typing.Any], file: Path, advice: str = RESTORE):
        super().__init__(content)
        self.file, self.advice = file, advice

    def __missing__(self, name: str) -> typing.NoReturn:
        if not os.path.exists(self.file):
            raise RunError(f"{self.file}, which states {name!r}, does not exist")
        raise RunError(f"{self.file} is damaged: it has no {name!r}. {self.advice}")


def read_json(path: Path, kinds: Kinds, advice: str = RESTORE) -> Fields:
    """Reads a JSON object.

    Args:
        path: of the file.
        kinds: the kinds of fields by name: a type; a dictionary of kinds, for an object; or a list with one kind, for
            a list that is not empty. Fields may be missing, and there may be others.
        advice: what to do if the file is damaged, a sentence.

    Raises:
        RunError: the file cannot be read, or is damaged.
    """
    content = _json(path, advice)
    _check(content, kinds, path, advice)
    return content


def _json(path, advice):
    try:
        return json.loads(pathlib.Path(path).read_bytes(), object_hook=lambda content: Fields(content, path, advice))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged: it is not text. {advice}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is not JSON, {error}. {advice}") from error


def _check(content, kinds, path, advice, what="it"):
    if not isinstance(content, dict):
        raise RunError(f'{path} is damaged: {what} is {content!r:.40} instead of {{"name": value}}. {advice}')
    for name, kind in kinds.items():
        if name not in content:
            continue
        if isinstance(kind, Mapping):
            _check(content[name], kind, path, advice, f"its {name!r}")
        elif _is(content[name], [object]) and isinstance(kind, list) and isinstance(kind[0], Mapping):
            for one in content[name]:
                _check(one, kind[0], path, advice, f"one of its {name!r}")
        elif not _is(content[name], kind):
            raise RunError(f"{path} is damaged: its {name!r} is {content[name]!r:.40}. {advice}")


def _is(value, kind):
    if isinstance(kind, list):
        return isinstance(value, list) and bool(value) and all(isinstance(item, kind[0]) for item in value)
    return isinstance(value, kind)


class Run:
    """A finished run, or a model without a run.

    Args:
        path: the folder of a run of `train/fit.py`, a `.keras` or `.h5` file, which may be in such a folder, or the
            name of a network in the package (`list_weights`). An existing folder or file comes first.

    `found` is the path of the folder or file, and `folder` that of the folder.

    Raises:
        RunError: no such folder, file or name exists.
    """

    def __init__(self, path: Path):
        self.path = os.fspath(path)
        ours = not os.path.exists(path) and self.path in [folder.name for folder in shipped()]
        self.found = str(SHIPPED / self.path) if ours else self.path
        if not os.path.exists(self.found):
            raise RunError(f"{path} does not exist; a model is a .keras file, the folder of a run, or {known(path)}")
        self.folder = self.found if os.path.isdir(self.found) else os.path.dirname(self.found)

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _object(self, name, kinds):
        path = self._path(name)
        return read_json(path, kinds) if os.path.isfile(path) else Fields({}, path)

    @functools.cached_property
    def settings(self) -> Fields:
        """The settings, a dictionary; empty if the folder does not have them. RunError if the file is damaged."""
        return self._object(SETTINGS, SETTINGS_KINDS)

    @functools.cached_property
    def result(self) -> Fields:
        """The result, a dictionary with errors in [0, 1]; otherwise as `settings`."""
        return self._object(RESULT, RESULT_KINDS)

    @functools.cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes; None if the folder does not have them. RunError if the file is damaged."""
        path = self._path(CLASSES)
        if not os.path.isfile(path):
            return None
        names = _json(path, RESTORE)
        if not _is(names, [str]):
            raise RunError(f"{path} is damaged: it holds {names!r:.40} instead of a list of names. {RESTORE}")
        return tuple(names)

    @property
    def history(self) -> dict[str, list[float]]:
        """The columns of history.csv that have numbers, by their names. RunError if the file is damaged."""
        path = self._path(HISTORY)
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            return {name: [float(row[name]) for row in rows] for name in rows[0] if rows[0][name]}
        except OSError as error:
            raise RunError(f"{path} cannot be read: {reason(error)}") from error
        except (ValueError, TypeError, IndexError, csv.Error) as error:
            raise RunError(f"{path} is damaged: it is not a table of numbers. {RESTORE}") from error

    @property
    def imagenet_style(self) -> bool:
        """Whether it was trained on an image folder or a set of TensorFlow Datasets, not small images."""
        return self.settings.get("dataset") not in (None, *sources.DATASETS)

    @property
    def crop(self) -> int | None:
        """The size in pixels of the crops that the run was trained with; None for small images."""
        return self.settings["image_size"] if self.imagenet_style else None

    def held_out(self, dataset: str, data_dir: Path | None = None) -> "folders.Splits | None":
        """The images of `dataset` that the run set aside for validation: `validation` of the result.

        Args:
            dataset: an image folder, or a data set of TensorFlow Datasets.
            data_dir: as in `data.sources.load`.

        Returns:
            The `data.folders.Splits`; None if the run was not trained on them.

        Raises:
            RunError: the data have changed since the run was trained, or its files are damaged.
            DataError: the data cannot be loaded.
        """
        if not self.imagenet_style:
            return None
        from keras_resnet.data import records  # here, because it needs TensorFlow

        path, trained_on = self._path(DATA), self.settings["dataset"]
        if not os.path.isdir(dataset):
            same = dataset == trained_on
        else:
            same = os.path.realpath(dataset) == os.path.realpath(trained_on)
        try:
            data = records.splits(dataset, data_dir, self.settings["seed"])
        except DataError:
            if same:
                raise
            return None  # it cannot be trained on, for example because it has one class
        kept = self._object(DATA, {}) if os.path.isfile(path) else None
        if kept == records.describe(data, dataset):
            return data
        if same and kept is not None:
            raise RunError(
                f"{dataset} has changed since {self.path} was trained on it, so the images that were set aside are "
                "not known. --split all tests on all images, most of which it was trained on."
            )
        return data if same else None

    @property
    def file(self) -> str:
        """The path of the network's file. RunError if the file is missing or incomplete."""
        if not os.path.isdir(self.found):
            file = self.found
        elif not os.path.isfile(file := self._path(MODEL)):
            if os.path.exists(self._path(RESULT)):
                raise RunError(f"{self.path} is damaged: the run is finished, but its {MODEL} is missing. {RESTORE}")
            inside = sorted(path.parent.name for path in pathlib.Path(self.found).glob(f"*/{MODEL}"))
            if inside:
                raise RunError(f"{self.path} holds runs: {', '.join(inside)}; give one of these folders")
            raise RunError(f"{self.path} has no {MODEL}; a run writes it when it finishes")
        if file.endswith(".keras") and not zipfile.is_zipfile(file):
            raise RunError(f"{file} is damaged: the .keras file is incomplete. Restore a copy, or create it again.")
        return file

    def load_model(self) -> "keras.Model":
        """Loads the network, not compiled. RunError if it cannot be loaded."""
        from keras_resnet import graphs  # here, so that programs can read their flags before Keras is imported

        file = self.file
        try:
            return graphs.load_model(file)
        except Exception as error:  # its type depends on the damage
            raise RunError(f"{file} is not a model that Keras can load: {reason(error)}") from error


def shipped() -> list[pathlib.Path]:
    """The folders of the networks in the package, sorted by name. Folders with other names are ignored."""
    return sorted(
        folder for folder in SHIPPED.glob("*") if SHIPPED_NAME.fullmatch(folder.name) and (folder / MODEL).is_file()
    )


def known(path: Path) -> str:
    """The names of the networks in the package, and the one most similar to `path`, for messages."""
    names, word = [folder.name for folder in shipped()], os.path.basename(os.fspath(path))
    depth = lambda name: int(re.findall(r"\d+", f"0 {name}")[-1])
    close = difflib.get_close_matches(word, names, len(names), cutoff=0.8)
    nearest = sorted(close, key=lambda name: abs(depth(name) - depth(word)))[:1]  # resnet-21 is nearer to 20 than to 32
    return f"one of {', '.join(names)}" + "".join(f"; the nearest is {name}" for name in nearest)


class Weights(typing.NamedTuple):
    """A network in the package: its name, error in [0, 1], number of parameters, and size of its file in bytes."""

    name: str
    test_error: float
    parameters: int
    size: int


def list_weights() -> list[Weights]:
    """The networks in the package, which this project trained on CIFAR-10.

        for name, error, parameters, size in keras_resnet.list_weights():
            print(f"{name:<20}{error:.2%}  {parameters:,}  {size / 1e6:.1f} MB")

    `keras_resnet.from_weights(name)` builds such a network with its weights, and the programs accept its name as a
    model. `weights="cifar10"` and `weights="imagenet"` select the weights for the network that is built.

    Returns:
        A list of named tuples, sorted by name: `name`, such as "cifar10-resnet-20"; `test_error` in [0, 1];
        `parameters`, their number without the moving averages of batch normalisation; `size` of the file in bytes.
    """
    every = [(folder.name, Run(folder)) for folder in shipped()]
    return [
        Weights(name, run.result["test_error"], run.result["parameters"], os.path.getsize(run.file))
        for name, run in every
    ]


def load_model(path: Path) -> "keras.Model":
    """Loads a classifier, not compiled; `path` and errors as in `Run`."""
    return Run(path).load_model()


def model_file(path: Path) -> str:
    """The path of the file that `load_model` reads."""
    return Run(path).file


def class_names(path: Path) -> tuple[str, ...] | None:
    """The names of the classes that a model was trained on; None if its folder does not have them."""
    return Run(path).classes


def run_settings(path: Path) -> dict:
    """The settings of the run that trained a model; empty if its folder does not have them."""
    return Run(path).settings
