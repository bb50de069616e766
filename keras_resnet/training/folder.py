"""The folder of a run, on any Keras backend."""

import contextlib
import dataclasses
import glob
import json
import os
import pathlib
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

from keras_resnet import files
from keras_resnet.files import RunError, write_whole
from keras_resnet.runs import CLASSES, DATA, HISTORY, MODEL, RESULT, SETTINGS, SETTINGS_KINDS, Run, read_json
from keras_resnet.training.options import flag
from keras_resnet.training.settings import Settings, deciding

CHECKPOINT, LOCK, COLORS, CURVES = "checkpoint/latest.npz", "checkpoint/lock", "colors.npz", "curves.png"
PATHS = "dataset", "init_from", "colors"  # settings that may be paths


class Folder:
    """The folder of a run, to which one of the processes that train it writes.

    Args:
        settings: of the run.
        writes: whether this process writes; otherwise `write` does nothing.
    """

    def __init__(self, settings: Settings, writes: bool = True):
        self.settings = settings
        self.writes = writes

    def __str__(self) -> str:
        return self.settings.folder

    def path(self, name: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.settings.folder, name)

    def write(self, name: str, write: Callable[[typing.BinaryIO], object]) -> None:
        """Calls `write` with a binary file that replaces the file `name`; errors as in `files.whole`."""
        if self.writes:
            write_whole(self.path(name), write)

    def write_json(self, name: str, content: object, indent: int | None = None) -> None:
        """Writes an object as JSON."""
        self.write(name, lambda file: file.write(json.dumps(content, indent=indent).encode()))

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Creates the folder and locks it. Removes it if it is new and the run fails before it has saved anything.

        Raises:
            RunError: the folder cannot be written, or another process trains this run.
        """
        if not self.writes or os.path.exists(self.path(RESULT)):
            yield
            return
        new = not os.path.exists(str(self))
        try:
            os.makedirs(self.path("checkpoint"), exist_ok=True)
        except OSError as error:
            raise RunError(f"the folder of the run, {self}, cannot be written: {files.reason(error)}") from error
        with files.locked(self.path(LOCK)):
            for name in (CHECKPOINT, MODEL, HISTORY, CURVES):  # what writes that were killed have left
                for leftover in glob.glob(f"{glob.escape(self.path(name))}.*/"):
                    shutil.rmtree(leftover, ignore_errors=True)
            try:
                yield
            except BaseException:
                checkpoints = glob.glob(f"{glob.escape(self.path(CHECKPOINT))}*")  # one may still be written
                if new and not (checkpoints or os.path.exists(self.path(HISTORY))):
                    shutil.rmtree(str(self), ignore_errors=True)
                raise

    def open(self) -> None:
        """Checks that the folder belongs to this run. If that run has saved nothing, the folder is reused.

        Raises:
            RunError: the folder cannot be written, or holds a run with other settings.
        """
        path, new = self.path(SETTINGS), self.settings.as_json()
        if not any(os.path.exists(self.path(name)) for name in (CHECKPOINT, RESULT)):
            self.write_json(SETTINGS, new, indent=2)
            for name in (DATA, COLORS) if self.writes else ():  # they may describe other data
                try:
                    pathlib.Path(self.path(name)).unlink(missing_ok=True)
                except OSError as error:
                    raise RunError(f"{self.path(name)} cannot be deleted: {files.reason(error)}") from error
            return
        if not os.path.exists(path):
            raise RunError(
                f"{path} is missing, and {self} holds a run, whose settings are therefore not known. Restore the file, "
                "delete the folder, or choose another --name."
            )
        old: dict = read_json(path, SETTINGS_KINDS, "Delete the folder or choose another --name.")
        defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
        old = {**json.loads(json.dumps(defaults)), **old}  # older versions have fewer settings
        old["bn_batch_size"] = old["bn_batch_size"] or old["batch_size"]  # the value before it was a setting
        different = [name for name in deciding(new) if old[name] != new[name]]
        for name in {*PATHS}.intersection(different):
            if old[name] and new[name] and os.path.abspath(old[name]) == os.path.abspath(new[name]):
                different.remove(name)
        if not os.path.exists(self.path(RESULT)):
            if "skip_damaged" in different and new["skip_damaged"]:
                different.remove("skip_damaged")  # so far there was nothing to skip, or the run would have ended
            if "dataset" in different and os.path.isdir(new["dataset"]) and os.path.exists(self.path(DATA)):
                different.remove("dataset")  # perhaps the folder has moved: check_data compares what is in it
        if different:
            rows = [f"  {flag(n):<18} {old[n]!s:>10} there, {new[n]!s:>10} now" for n in different]
            raise RunError(
                f"{self} holds a run with other settings:\n" + "\n".join(rows) + "\n"
                "Choose another --name or --output, or repeat that run's settings to resume it."
            )

    def finished(self) -> dict | None:
        """The result of a finished run, after printing that it is finished; None otherwise. RunError if damaged."""
        if not os.path.exists(self.path(RESULT)):
            return None
        run = Run(str(self))
        result, _ = run.result, run.file  # RunError if one of them is damaged
        print(f"{self} is finished; this is its result")
        return result

    def write_classes(self, classes: Sequence[str]) -> None:
        """Writes the names of the classes, classes.json."""
        self.write_json(CLASSES, classes)

    def check_data(self, found: Mapping[str, str]) -> None:
        """Writes the digests of a run's data, `found`; RunError if the data of a resumed run have changed.

        With other data, class indices could change, and validation images could be among those already trained on.
        """
        path = self.path(DATA)
        if os.path.exists(path) and not self.settings.data_changed:
            kept = read_json(path, {}, "Delete it to continue with the data as they are.")
            different = [name for name in {**kept, **found} if kept.get(name) != found.get(name)]
            if different:
                rows = [f"{name}: {kept.get(name, 'none')} then; {found.get(name, 'none')} now" for name in different]
                raise RunError(
                    f"{self.settings.dataset} has changed since this run began (number of examples, digest):\n"
                    f"{files.listed(rows)}\n"
                    "Class indices may have changed, and validation images may have been trained on. Restore the "
                    "data, choose another --name, or give --data-changed to continue anyway."
                )
        self.write_json(DATA, found, indent=0)
