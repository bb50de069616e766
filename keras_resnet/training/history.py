"""The output of a run: its progress, history.csv and curves.png."""

import csv
import io
import math
import time
import typing
from collections.abc import Sequence

import keras

from keras_resnet import environment
from keras_resnet.files import Path, write_whole

COLUMNS = (
    "epoch", "step", "learning_rate", "loss", "error", "top5_error", "val_loss", "val_error", "val_top5_error",
    "waiting", "seconds",
)  # fmt: skip


THOUSANDS_FROM = 2000  # steps; the axes of shorter runs count single ones
HEADROOM = 1.06  # above the largest error
LINE_EVERY = 600  # seconds between lines in long epochs
DRAW_EVERY = 20  # seconds from one drawing of the curves to the next, at least


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds, for example "0:01:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def iterations(last: int) -> tuple[int, str]:
    """The unit of an axis of steps that ends at `last`, 1 or 1000, and the axis's label."""
    return (1000, "iterations (thousands)") if last >= THOUSANDS_FROM else (1, "iterations")


class Progress(keras.callbacks.ProgbarLogger):
    """What `fit` prints: Keras' bar if `verbose` is 1, a line per epoch if it is 2.

    Keras' own logger would take the part of a run that one call of `fit` makes for the whole run. This one replaces it,
    and comes after the `History` that counts the batches.

    Args:
        history: the `History`.
        batches: number of batches in the whole run.
        batches_per_epoch: number of batches in an epoch.
    """

    def __init__(self, history, batches: int, batches_per_epoch: int):
        super().__init__()
        self.history = history
        self.batches = batches
        self.batches_per_epoch = batches_per_epoch
        self.lines = False

    def set_params(self, params: dict) -> None:
        self.lines = params["verbose"] == 2
        epochs = -(-self.batches // self.batches_per_epoch)
        super().set_params({**params, "epochs": epochs, "verbose": int(params["verbose"] == 1)})

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self.epoch = epoch
        self.last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.lines and time.perf_counter() - self.last > LINE_EVERY:
            self.line(logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self.lines:
            self.line(logs)

    def line(self, logs: dict) -> None:
        self.last = time.perf_counter()
        step, steps = (batches // self.history.accumulate for batches in (self.history.batches, self.batches))
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in logs.items())
        time_so_far = clock(self.history.state["seconds"])
        print(f"epoch {self.epoch + 1}/{self.epochs}, step {step}/{steps}, {time_so_far}: {metrics}", flush=True)


class History(keras.callbacks.Callback):
    """One row per epoch, and the time spent. The learning rate is that of the epoch's first step.

    `waiting`, in [0, 1], is the fraction of the steps' time in which a `TrainingModel` waited for the next batch; it is
    also in the epoch's logs. For a resumed epoch it covers only the steps after the resumption.

    Args:
        folder: the folder in which history.csv is kept up to date; curves.png is drawn at most every 20 seconds, and
            not at all without matplotlib.
        title: title of the curves.
        accumulate: batches in a step.

    `batches` is the number of batches trained on; a resumed run has to restore it.
    """

    def __init__(self, folder: Path, title: str, accumulate: int = 1):
        super().__init__()
        self.folder = folder
        self.title = title
        self.accumulate = accumulate
        self.batches = 0
        self.state: dict = {"rows": [], "learning_rate": None, "seconds": 0.0, "timed_seconds": 0.0, "timed_steps": 0}
        self.state["waited"] = 0.0  # of the timed seconds
        self.last = time.perf_counter()
        self.warm = False
        # The time on `last`'s clock.
        self.draw_from = math.inf if environment.lacks("matplotlib", "curves.png") else 0.0

    def lap(self) -> float:
        """Seconds since the last lap, which are added to the run's total."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.state["seconds"] += seconds
        return seconds

    def on_epoch_begin(self, epoch, logs=None):
        self.lap()
        self.before = self.state["waited"], self.state["timed_seconds"]

    def on_train_batch_begin(self, batch, logs=None):
        self.first_batch = batch
        self.waited = getattr(self.model, "waited", None) or 0.0
        if self.state["learning_rate"] is None:
            rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            self.state["learning_rate"] = float(f"{rate:.6g}")

    def on_train_batch_end(self, batch, logs=None):
        done = batch - self.first_batch + 1  # several in one execution, as with steps_per_execution
        self.batches += done
        seconds = self.lap()
        if self.warm:  # the first step of a process includes compilation
            self.state["timed_seconds"] += seconds
            self.state["timed_steps"] += done
            self.state["waited"] += (getattr(self.model, "waited", None) or 0.0) - self.waited
        self.warm = True

    def on_epoch_end(self, epoch, logs=None):
        self.lap()
        waited, timed = self.state["waited"] - self.before[0], self.state["timed_seconds"] - self.before[1]
        if getattr(self.model, "waited", None) is not None:
            logs["waiting"] = waited / max(timed, 1e-9)
        row = {
            "epoch": epoch + 1,
            "step": self.batches // self.accumulate,  # the optimizer does not count steps whose gradients overflow
            "learning_rate": self.state["learning_rate"],
            **{name: round(value, 5) for name, value in logs.items()},
            "seconds": round(self.state["seconds"], 1),
        }
        self.state["rows"].append(row)
        self.state["learning_rate"] = None
        self.write()

    def write(self) -> None:
        """Rewrites both files from the rows, so that a resumed run neither repeats nor misses one."""
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS)
        table.writeheader()
        table.writerows(self.state["rows"])
        write_whole(f"{self.folder}/history.csv", lambda file: file.write(text.getvalue().encode()))
        if self.state["rows"] and time.perf_counter() > self.draw_from:
            self.draw_from = time.perf_counter() + DRAW_EVERY
            write_whole(f"{self.folder}/curves.png", lambda file: draw(self.state["rows"], self.title, file))


def draw(rows: Sequence[dict], title: str, file: Path | typing.BinaryIO, test_error: float | None = None) -> None:
    """Plots error against iterations as in the paper's Fig. 6: training thin, validation bold.

    Args:
        rows: dictionaries with `step`, `error` and perhaps `val_error`, the errors in [0, 1].
        title: the figure's title.
        file: a path or binary file for the PNG.
        test_error: None, or the test error at the end of training, drawn as a point.
    """
    from keras_resnet.training.lettering import (
        lettering,  # here, so that this module can be imported without matplotlib
    )

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
