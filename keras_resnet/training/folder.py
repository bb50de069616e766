"""The folder of a run, on any Keras backend."""

import contextlib
import dataclasses
import glob
import json
import math
import os
import pathlib
import shutil
import typing
from collections.abc import Iterator, Mapping, Sequence

import keras

from keras_resnet import analysis, files
from keras_resnet.files import RunError, write_whole
from keras_resnet.optimizers import PlateauSchedule, StepSchedule
from keras_resnet.runs import CLASSES, DATA, HISTORY, RESULT, SETTINGS, SETTINGS_KINDS, Run, read_json
from keras_resnet.training import recipes
from keras_resnet.training.history import History, clock, draw
from keras_resnet.training.objective import errors
from keras_resnet.training.settings import WITHOUT_EFFECT, Settings

CHECKPOINT, LOCK, COLORS = "checkpoint/latest.npz", "checkpoint/lock", "colors.npz"
TOP5 = {"training": "train_top5_error", "validation": "val_top5_error", "test": "test_top5_error"}
LISTED = 8  # the largest number of differences in a message


@contextlib.contextmanager
def own_folder(settings: Settings) -> Iterator[None]:
    """Makes the run's folder and locks it against other processes. The folder of a refused run is removed.

    Raises:
        RunError: the folder cannot be written, or another process trains this run.
    """
    folder, result = settings.folder, os.path.join(settings.folder, RESULT)
    if not files.writes or os.path.exists(result):
        yield
        return
    new = not os.path.exists(folder)
    try:
        os.makedirs(os.path.join(folder, "checkpoint"), exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder of the run, {folder}, cannot be written: {files.reason(error)}") from error
    with files.locked(os.path.join(folder, LOCK)):
        try:
            yield
        except BaseException:
            checkpoints = glob.glob(os.path.join(glob.escape(folder), f"{CHECKPOINT}*"))  # one may still be written
            if new and not (checkpoints or os.path.exists(os.path.join(folder, HISTORY))):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def open_folder(settings: Settings) -> None:
    """Checks that the run's folder belongs to this run. The folder of a run that never saved anything is taken over.

    Raises:
        RunError: the folder cannot be written, or holds a run with other settings.
    """
    folder, path = settings.folder, os.path.join(settings.folder, SETTINGS)
    new = settings.as_json()
    try:
        saved = [os.path.join(folder, name) for name in (CHECKPOINT, RESULT)]
        if not os.path.exists(path) or not any(map(os.path.exists, saved)):
            write_whole(path, lambda file: file.write(json.dumps(new, indent=2).encode()))
            for name in (DATA, COLORS) if files.writes else ():  # they may describe other data
                pathlib.Path(folder, name).unlink(missing_ok=True)
            return
        old: dict = read_json(path, SETTINGS_KINDS, "Delete the folder or choose another --name.")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    old = {**json.loads(json.dumps(defaults)), **old}  # older versions have fewer settings
    old["bn_batch_size"] = old["bn_batch_size"] or old["batch_size"]  # the value before it was a setting
    different = [name for name in new if name not in WITHOUT_EFFECT and old[name] != new[name]]
    if "dataset" in different and os.path.abspath(old["dataset"]) == os.path.abspath(new["dataset"]):
        different.remove("dataset")
    if different:
        rows = [f"  --{n.replace('_', '-'):<16} {old[n]!s:>10} there, {new[n]!s:>10} now" for n in different]
        raise RunError(
            f"{folder} holds a run with other settings:\n" + "\n".join(rows) + "\n"
            "Choose another --name or --output, or repeat that run's settings to resume it."
        )


def finished(settings: Settings) -> dict | None:
    """The result of a run that is finished, with a line that says so; None otherwise. RunError if it is damaged."""
    if not os.path.exists(os.path.join(settings.folder, RESULT)):
        return None
    run = Run(settings.folder)
    result, _ = run.result, run.file  # RunError if one of them is damaged
    print(f"{settings.folder} is finished; this is its result")
    return result


def write_classes(settings: Settings, classes: Sequence[str]) -> None:
    """Writes the names of the classes, classes.json."""
    path = os.path.join(settings.folder, CLASSES)
    write_whole(path, lambda file: file.write(json.dumps(classes).encode()))


def check_data(settings: Settings, found: Mapping[str, str]) -> None:
    """Writes the digests of a run's data, `found`; RunError if a resumed run has other data.

    With other data the indices of classes could change, and validation images could be among those trained on before.
    """
    path = os.path.join(settings.folder, DATA)
    if os.path.exists(path) and not settings.data_changed:
        kept = read_json(path, {}, "Delete it to go on with the data as they are.")
        different = [name for name in {**kept, **found} if kept.get(name) != found.get(name)]
        if different:
            rows = [f"  {name}: {kept.get(name, 'none')} then; {found.get(name, 'none')} now" for name in different]
            rows[LISTED:] = [f"  and {len(rows) - LISTED} more"] * (len(rows) > LISTED)
            raise RunError(
                f"{settings.dataset} has changed since this run was begun (number of examples, digest):\n"
                + "\n".join(rows)
                + "\nA class could now have another's number, and validation images be such that were trained on. Put "
                "the data back, choose another --name, or give --data-changed to go on nevertheless."
            )
    write_whole(path, lambda file: file.write(json.dumps(found, indent=0).encode()))


def write_result(
    settings: Settings, saved: keras.Model, evaluated: Mapping[str, float], schedule: StepSchedule | PlateauSchedule,
    history: History, *, together: int, damaged: int = 0, made: Mapping[str, object],
) -> dict:  # fmt: skip
    """Writes result.json and the final curves of a run that is finished.

    Args:
        settings: a `Settings`.
        saved: the trained network.
        evaluated: the loss and errors on the test images by their names, as "error"; {} for none.
        schedule, history: the run's callbacks.
        together: the number of images that batch normalisation saw together.
        damaged: the number of files that were skipped.
        made: with which code, versions and devices, as `environment.circumstances`.

    Returns:
        The dictionary in result.json. Errors are in [0, 1].
    """
    rows, state = history.state["rows"], history.state
    last = {**{f"train_{column}": value for column, value in rows[-1].items()}, **rows[-1]}
    last |= {f"test_{name}": round(value, 5) for name, value in evaluated.items()}
    classes = saved.output.shape[-1]
    names = [f"{part}_{one.__name__}" for one in errors(classes) for part in ("train", "val", "test")]
    images = settings.batch_in_memory * state["timed_steps"]
    result = {
        "settings": settings.as_json(),
        "steps": rows[-1]["step"],
        "parameters": analysis.count_parameters(saved),
        **{name: last.get(name) for name in names},
        "paper_test_error": recipes.paper_error(settings.depth, settings.changes),
        "warm_at_step": schedule.state["warm_at_step"],
        "normalized_together": together,
        "damaged_files": damaged,
        "waiting": round(state["waited"] / max(state["timed_seconds"], 1e-9), 3) if "waiting" in rows[-1] else None,
        "images_per_second": round(images / state["timed_seconds"], 1) if images else None,  # none beside the first
        "seconds": round(state["seconds"], 1),
        "made": made,
    }
    curves = os.path.join(settings.folder, "curves.png")
    if history.draw_from < math.inf:
        write_whole(curves, lambda file: draw(rows, history.title, file, result["test_error"]))
    result_path = os.path.join(settings.folder, RESULT)
    write_whole(result_path, lambda file: file.write(json.dumps(result, indent=2).encode()))
    return result


def summary(settings: Settings, result: Mapping[str, typing.Any]) -> str:
    """The result, as `write_result` returns it, as a table for people."""
    percent = lambda value: "-" if value is None else f"{value:.2%}"
    paper, damaged = result["paper_test_error"], result["damaged_files"]
    speed = result["images_per_second"]  # None if no step was timed
    rows = [
        ("training error, last epoch", percent(result["train_error"])),
        ("validation error", percent(result["val_error"])),
        ("test error", percent(result["test_error"])),
        *((f"{part} error, top 5", percent(result[key])) for part, key in TOP5.items() if result.get(key) is not None),
        ("images/s while training", "-" if speed is None else f"{speed:.0f}"),
        ("waiting for data, of the time of the steps", percent(result.get("waiting"))),
        ("wall time", clock(result["seconds"])),
    ]
    if paper:
        rows.insert(3, ("the paper's test error, 64k steps on all 50k", percent(paper)))
    if damaged:
        rows.append(("damaged files that were skipped", str(damaged)))
    steps = result.get("steps", settings.steps)  # which results of older versions do not have
    title = f"{settings.network} on {settings.data}, {steps} steps, {result['parameters']:,} parameters"
    lines = [title, "-" * len(title), *(f"{name:<46}{value:>10}" for name, value in rows)]
    return "\n".join([*lines, f"in {settings.folder}: " + ", ".join(sorted(os.listdir(settings.folder)))])
