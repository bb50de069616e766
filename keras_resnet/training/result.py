"""The result of a finished run: result.json, and a table to print."""

import os
import typing
from collections.abc import Mapping, Sequence

import keras

from keras_resnet import analysis
from keras_resnet.runs import RESULT
from keras_resnet.training import hardware
from keras_resnet.training.history import History, clock
from keras_resnet.training.objective import errors
from keras_resnet.training.settings import Settings

DAMAGED = "damaged.txt"  # in the folder of a run
TOP5 = {"training": "train_top5_error", "validation": "val_top5_error", "test": "test_top5_error"}


def write_result(
    settings: Settings, saved: keras.Model, evaluated: Mapping[str, float], history: History,
    warm_at_step: int | None, damaged: Sequence[str], segments: list[dict],
) -> dict:  # fmt: skip
    """Writes result.json, the final curves and, if files were skipped, damaged.txt of a finished run.

    Args:
        settings: a `Settings`.
        saved: the trained network.
        evaluated: the loss and errors on the test images by name, such as "error"; {} without test images.
        history: the `History` of the run.
        warm_at_step: the step at which the warm-up ended.
        damaged: the names of the files that were skipped.
        segments: where the run was trained, as `loop.segments_with` lists it; segments without steps are left out.

    Returns:
        The dictionary in result.json. Errors are in [0, 1].
    """
    rows, state = history.state["rows"], history.state
    segments = [segment for segment in segments if segment["from"] < segment["to"]]
    last = {**{f"train_{column}": value for column, value in rows[-1].items()}, **rows[-1]}
    last |= {f"test_{name}": round(value, 5) for name, value in evaluated.items()}
    names = [f"{part}_{name}" for name in errors(saved.output.shape[-1]) for part in ("train", "val", "test")]
    images = settings.batch_size * state["timed_steps"]
    speed = round(images / state["timed_seconds"], 1) if images else None  # None if only the first step was made
    result = {
        "settings": settings.as_json(),
        "steps": rows[-1]["step"],
        "parameters": analysis.count_parameters(saved),
        **{name: last.get(name) for name in names},
        "paper_test_error": settings.paper_error,
        "warm_at_step": warm_at_step,
        "damaged_files": len(damaged),
        "waiting": round(state["waited"] / max(state["timed_seconds"], 1e-9), 3) if "waiting" in rows[-1] else None,
        "images_per_second": speed,
        "share_of_peak": speed and _share_of_peak(settings, saved, speed, segments),
        "seconds": round(state["seconds"], 1),
        "segments": segments,
    }
    history.draw(result["test_error"])
    if damaged:
        history.folder.write(
            DAMAGED, lambda file: file.write("\n".join([*damaged, ""]).encode(errors="surrogateescape"))
        )
    history.folder.write_json(RESULT, result, indent=2)
    return result


def _share_of_peak(settings, saved, speed, segments):
    """The fraction of the devices' peak operations/s that training used; None if unknown, or if devices changed."""
    devices = segments[0]["devices"]
    if any(segment["devices"] != devices for segment in segments):
        return None
    peak = hardware.peak(devices[0], settings.mixed_precision or "float32")
    if not peak:
        return None
    shape = (settings.image_size, settings.image_size, 3) if settings.imagenet_style else None
    operations = 6 * analysis.count_macs(saved, shape)  # per image: a forward pass, and a backward pass that costs two
    return round(speed * operations / (peak * len(devices)), 4)


def summary(settings: Settings, result: Mapping[str, typing.Any]) -> str:
    """A table, to print, of the result that `write_result` returned."""
    percent = lambda value: "-" if value is None else f"{value:.2%}"
    paper, damaged = result["paper_test_error"], result["damaged_files"]
    speed = result["images_per_second"]  # None if no step was timed
    rows = [
        ("training error, last epoch", percent(result["train_error"])),
        ("validation error", percent(result["val_error"])),
        ("test error", percent(result["test_error"])),
        *((f"{part} error, top 5", percent(result[key])) for part, key in TOP5.items() if result.get(key) is not None),
        ("images/s while training", "-" if speed is None else f"{speed:.0f}"),
        *((("of the devices' peak operations/s", percent(share)),) if (share := result.get("share_of_peak")) else ()),
        ("share of the time that steps wait for data", percent(result.get("waiting"))),
        ("wall time", clock(result["seconds"])),
    ]
    if paper:
        rows.insert(3, ("the paper's test error, 64k steps on all 50k", percent(paper)))
    if damaged:
        rows.append((f"damaged files, skipped: see {DAMAGED}", str(damaged)))
    steps = result.get("steps", settings.steps)  # results of older versions lack it
    title = f"{settings.network} on {settings.data}, {steps} steps, {result['parameters']:,} parameters"
    lines = [title, "-" * len(title), *(f"{name:<46}{value:>10}" for name, value in rows)]
    return "\n".join([*lines, f"in {settings.folder}: " + ", ".join(sorted(os.listdir(settings.folder)))])
