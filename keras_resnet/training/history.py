"""The output of a run: its progress, history.csv and curves.png."""

import csv
import io
import math
import time
import typing
from collections.abc import Mapping, Sequence

import keras

from keras_resnet import environment
from keras_resnet.files import Path
from keras_resnet.runs import HISTORY
from keras_resnet.training.folder import CURVES, Folder

COLUMNS = (
    "epoch", "step", "learning_rate", "loss", "error", "top5_error", "val_loss", "val_error", "val_top5_error",
    "waiting", "seconds",
)  # fmt: skip


THOUSANDS_FROM = 2000  # steps; shorter runs have axes in single steps
HEADROOM = 1.06  # above the largest error
LINE_EVERY = 600  # seconds between lines in long epochs
DRAW_EVERY = 20  # seconds between drawings of the curves, at least
BOARD = "tensorboard"  # in the run's folder


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds, for example "0:01:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def iterations(last: int) -> tuple[int, str]:
    """The unit of an axis of steps that ends at `last`, 1 or 1000, and the axis's label."""
    return (1000, "iterations (thousands)") if last >= THOUSANDS_FROM else (1, "iterations")


class History:
    """One row per epoch, and the time spent. The learning rate is that of the epoch's first step.

    `waiting`, in [0, 1], is the fraction of the steps' time in which the engine waited for the next batch. In a resumed
    epoch it covers only the steps after the resume.

    Args:
        folder: the run's folder, where history.csv is kept up to date and curves.png is drawn, at most every 20 seconds
            and only with matplotlib.
        title: title of the curves.

    `state` is what a resumed run must restore.
    """

    def __init__(self, folder: Folder, title: str):
        self.folder = folder
        self.title = title
        self.state: dict = {"rows": [], "learning_rate": None, "seconds": 0.0, "timed_seconds": 0.0, "timed_steps": 0}
        self.state["waited"] = 0.0  # of the timed seconds
        self.epoch_began: tuple[float, float] | None = None  # seconds waited and timed
        self.last = time.perf_counter()
        self.warm = False
        drawn = folder.writes and not environment.lacks("matplotlib", "curves.png")
        self.draw_from = 0.0 if drawn else math.inf  # on `last`'s clock

    def lap(self) -> float:
        """Seconds since the last lap, which are added to the run's total."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.state["seconds"] += seconds
        return seconds

    def begin(self, rate: float) -> None:
        """Begins a span of steps, whose first step has the learning rate `rate`."""
        self.lap()
        if self.state["learning_rate"] is None:
            self.state["learning_rate"] = float(f"{rate:.6g}")
        self.epoch_began = self.epoch_began or (self.state["waited"], self.state["timed_seconds"])

    def add(self, steps: int, waited: float) -> float:
        """Ends a span of steps, which spent `waited` seconds waiting for batches. Returns its length in seconds."""
        seconds = self.lap()
        if self.warm:  # the first step of a process includes compilation
            self.state["timed_seconds"] += seconds
            self.state["timed_steps"] += steps
            self.state["waited"] += waited
        self.warm = True
        return seconds

    def row(self, step: int, means: Mapping[str, float], waits: bool) -> dict:
        """Writes the row of an epoch that ends at `step`, with `waiting` if the engine waits for data.

        Returns:
            The means, with `waiting`.
        """
        self.lap()
        waited, timed = self.epoch_began or (0.0, 0.0)
        share = (self.state["waited"] - waited) / max(self.state["timed_seconds"] - timed, 1e-9)
        shown = {**means, **({"waiting": share} if waits else {})}
        row = {
            "epoch": len(self.state["rows"]) + 1,
            "step": step,
            "learning_rate": self.state["learning_rate"],
            **{name: round(value, 5) for name, value in shown.items()},
            "seconds": round(self.state["seconds"], 1),
        }
        self.state["rows"].append(row)
        self.state["learning_rate"] = self.epoch_began = None
        self.write()
        return shown

    def write(self) -> None:
        """Rewrites both files from the rows, so that a resumed run neither repeats nor misses one."""
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS)
        table.writeheader()
        table.writerows(self.state["rows"])
        self.folder.write(HISTORY, lambda file: file.write(text.getvalue().encode()))
        if self.state["rows"] and time.perf_counter() > self.draw_from:
            self.draw_from = time.perf_counter() + DRAW_EVERY
            self.draw()

    def draw(self, test_error: float | None = None) -> None:
        """Draws curves.png, if matplotlib is installed."""
        if self.draw_from < math.inf:
            self.folder.write(CURVES, lambda file: draw(self.state["rows"], self.title, file, test_error))


class Progress:
    """What a run prints: a bar if `verbose` is 1, a line per epoch and every 10 minutes if it is 2.

    Args:
        steps, steps_per_epoch: steps in the whole run, and in an epoch.
        verbose: 0, 1 or 2.
    """

    def __init__(self, steps: int, steps_per_epoch: int, verbose: int):
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch
        self.verbose = verbose
        self.last = time.perf_counter()
        self.bar: keras.utils.Progbar | None = None  # of an epoch

    def show(self, done: int, means: Mapping[str, float], seconds: float, ended: bool, said: str) -> None:
        """Shows the means over the epoch up to step `done`, and the message `said`.

        `seconds` is the run's time so far.
        """
        epoch, epochs = (done - 1) // self.steps_per_epoch, -(-self.steps // self.steps_per_epoch)
        if self.verbose == 1:
            begun = epoch * self.steps_per_epoch
            if self.bar is None:
                print(f"Epoch {epoch + 1}/{epochs}")
                self.bar = keras.utils.Progbar(min(self.steps_per_epoch, self.steps - begun))
            self.bar.stateful_metrics |= means.keys()  # the values are already means
            self.bar.update(done - begun, [*means.items()], finalize=ended)
            self.bar = None if ended else self.bar
        elif self.verbose == 2 and (ended or time.perf_counter() - self.last > LINE_EVERY):
            self.last = time.perf_counter()
            words = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            print(f"epoch {epoch + 1}/{epochs}, step {done}/{self.steps}, {clock(seconds)}: {words}", flush=True)
        if said and self.verbose:
            print(said, flush=True)


class Board:
    """The curves of a run for TensorBoard, in tensorboard/train and tensorboard/validation; none if it is missing."""

    def __init__(self, folder: Folder):
        self.writers: dict = {}
        if folder.writes and not environment.lacks("tensorboard", "tensorboard/"):
            from tensorboard.summary import Writer  # which needs neither TensorFlow nor JAX

            self.writers = {name: Writer(folder.path(f"{BOARD}/{name}")) for name in ("train", "validation")}

    def add(self, row: Mapping[str, float]) -> None:
        """Adds a row of the `History`."""
        for name in [name for name in row if name not in ("epoch", "step", "seconds")] if self.writers else ():
            writer = self.writers["validation" if name.startswith("val_") else "train"]
            writer.add_scalar(f"epoch_{name.removeprefix('val_')}", row[name], row["epoch"] - 1)
        for writer in self.writers.values():
            writer.flush()


def draw(rows: Sequence[dict], title: str, file: Path | typing.BinaryIO, test_error: float | None = None) -> None:
    """Plots error against iterations as in the paper's Fig. 6: training thin, validation bold.

    Args:
        rows: dictionaries with `step`, `error` and perhaps `val_error`, the errors in [0, 1].
        title: the figure's title.
        file: a path or binary file for the PNG.
        test_error: None, or the test error at the end of training, drawn as a point.
    """
    from keras_resnet.lettering import lettering  # here, so that this module can be imported without matplotlib

    with lettering(title) as drawn:
        figure = _draw_curves(rows, drawn(title), test_error)
        figure.savefig(file, format="png", dpi=120)


def _draw_curves(rows, title, test_error):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    unit, label_of_steps = iterations(rows[-1]["step"])
    steps = [row["step"] / unit for row in rows]
    for column, label, style in (("error", "training", "--"), ("val_error", "validation", "-")):
        if column in rows[0]:
            percent = [100 * row[column] for row in rows]
            width, marker = 1 if style == "--" else 2.5, "." if len(rows) < 10 else ""
            axes.plot(steps, percent, style, color="C0", linewidth=width, marker=marker, label=label, clip_on=False)
    if test_error is not None:
        axes.plot(steps[-1], 100 * test_error, "o", color="C3", clip_on=False, label="test, at the end")
    axes.set(title=title, xlabel=label_of_steps, ylabel="error (%)", xlim=(0, None))
    axes.set_ylim(0, HEADROOM * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
