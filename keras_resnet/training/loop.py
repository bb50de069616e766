"""A training run, from settings to a trained model in a folder: one loop, on any engine.

A run is a sequence of spans of steps. A span ends at the next event: the end of an epoch, a checkpoint, a profile, or
after about a second, so that signals are handled. `Loop.run` has everything that happens between two spans, in order.
"""

import contextlib
import dataclasses
import functools
import math
import zlib
from collections.abc import Collection

import keras
import numpy as np

from keras_resnet import environment, files
from keras_resnet.files import RunError, own_line
from keras_resnet.runs import MODEL
from keras_resnet.training import tasks
from keras_resnet.training.checkpoint import Checkpoint
from keras_resnet.training.engine import Devices, Engine, engine_of
from keras_resnet.training.folder import Folder
from keras_resnet.training.history import BOARD, Board, History, Progress
from keras_resnet.training.objective import schedule_of
from keras_resnet.training.result import write_result
from keras_resnet.training.settings import Settings
from keras_resnet.training.signals import Stopped, StopSignals

SPAN_SECONDS = 1.0  # of a span without events, about
SKIPPED = 10  # steps before those that are profiled; the first ones include tracing


def train(settings: Settings, verbose: int = 1, profile: int = 0) -> dict:
    """Trains, or resumes a stopped run with the same settings, and tests at the end.

    Must be called before the backend computes anything. The engine's `devices` documents how this changes the current
    process, and which changes remain. The global random numbers of Python, NumPy and Keras are seeded, and stay so.

    Args:
        settings: a `Settings`.
        verbose: 1 for a progress bar, 2 for a line per epoch and every 10 minutes, 0 for a line at the start only.
        profile: 0, or the number of steps, after the first ones, that are traced for TensorBoard's page "Profile".

    Returns:
        The result as a dictionary, which is also in result.json; errors are in [0, 1]. The run's folder contains
        args.json, history.csv, curves.png, checkpoint/, tensorboard/ and model.keras, which takes RGB pixels in
        [0, 255] and returns probabilities.

    Raises:
        RunError: settings are out of range or differ from the folder's, the folder cannot be written, another process
            trains this run, the checkpoint is damaged, training diverges, or a worker is lost.
        DataError: the data set cannot be loaded.
        Stopped: the run received SIGINT or SIGTERM and has been saved.
    """
    if profile < 0:
        raise RunError(f"--profile is a number of steps; found {profile}")
    backend = engine_of(settings)
    with environment.as_shipped(), backend.devices(settings) as devices:
        folder = Folder(settings, devices.writes)
        with folder.own():
            return _train(backend, folder, devices, verbose if folder.writes else 0, profile)


@dataclasses.dataclass
class State:
    """The progress of a run, as saved in its checkpoint.

    `sums` are the sums of the metrics over the `summed` steps of the epoch so far. `schedule` is the state of the
    schedule, `history` that of the `History`. `segments` lists where the steps were computed, `damaged` the files that
    were skipped.
    """

    step: int
    summed: int
    sums: list[float]
    schedule: dict
    history: dict
    segments: list[dict]
    damaged: list[str]


def segments_with(segments: list[dict], step: int, here: dict) -> list[dict]:
    """The segments, with a new one from `step` on unless the circumstances `here` are those of the last one."""
    if segments and {**segments[-1], "from": 0, "to": 0} == {"from": 0, "to": 0, **here}:
        return segments
    return [*segments, {"from": step, "to": step, **here}]


def check_same(devices: Devices, value: object, message: str) -> None:
    """Raises RunError with `message` unless the `str` of `value` is the same in all processes."""
    if len({*devices.exchange(zlib.crc32(str(value).encode()))[:, 0].tolist()}) > 1:
        raise RunError(message)


def of_all(devices: Devices, names: Collection[str]) -> list[str]:
    """The names that any of the processes has, sorted."""
    own = "\n".join(sorted(names)).encode(errors="surrogateescape")
    longest = devices.exchange(len(own)).max()
    rows = devices.exchange(*own.ljust(longest, b"\n")) if longest else ()
    found = b"\n".join(row.astype("uint8").tobytes() for row in rows).decode(errors="surrogateescape")
    return sorted({*found.split("\n")} - {""})


def _train(backend, folder, devices, verbose, profile):
    settings = folder.settings
    check_same(devices, settings.deciding, "the workers have different settings; start all with the same command")
    if settings.batch_in_memory % devices.count:
        turns = f" times --accumulate {settings.accumulate}" * (settings.accumulate > 1)
        raise RunError(
            f"--batch-size is a multiple of the number of devices, {devices.count}{turns}, because each takes a shard"
            f"; found {settings.batch_size}. --strategy none trains on one device"
        )
    folder.open()
    devices.exchange(0)  # until the chief has removed files
    if (result := folder.finished()) is not None:
        return result

    made = environment.circumstances(devices.names)  # now: a later commit is not the code that trains
    task = tasks.of(folder, verbose)
    network = task.build()
    folder.write_classes(task.classes)
    engine = backend.Engine(settings, task, network, devices)
    loop = Loop(folder, task, engine, devices)
    with tasks.errors_named(task), own_line(verbose), contextlib.closing(engine):
        loop.restore(profile)
        loop.state.segments = segments_with(
            loop.state.segments,
            loop.state.step,
            {"backend": keras.backend.backend(), "normalized_together": engine.together, **made},
        )
        if verbose:
            print(f"{task.examples} images of {settings.data} on {devices}{engine.note}", flush=True)
        with StopSignals() as signals:
            try:
                loop.run(signals, verbose, profile)
            finally:
                loop.tracing.close()
                loop.checkpoint.wait()

        saved = task.build()  # the network of the recipe, without the changes for training
        saved.set_weights(network.get_weights())
        if folder.writes:
            with files.whole(folder.path(MODEL)) as path:
                saved.save(path)
        evaluated = engine.evaluate(saved, "test") if "test" in task.held_out else {}
    state = loop.state
    result = write_result(
        settings, saved, evaluated, loop.history, state.schedule["warm_at_step"], state.damaged, state.segments
    )
    devices.exchange(0)  # until the chief has written
    return result


class Loop:
    """The steps of a run, and what happens between them."""

    def __init__(self, folder: Folder, task: tasks.Task, engine: Engine, devices: Devices):
        settings = folder.settings
        self.folder, self.task, self.engine, self.devices = folder, task, engine, devices
        self.schedule = schedule_of(settings, task.examples)
        self.steps, self.steps_per_epoch = settings.length(task.examples), settings.steps_per_epoch(task.examples)
        self.history = History(folder, f"{settings.network} on {settings.data}")
        self.checkpoint = Checkpoint(folder, engine.variables())
        nothing = [0.0] * len(engine.measures)
        self.state = State(0, 0, nothing, self.schedule.first_state(), self.history.state, [], [])
        self.tracing = contextlib.ExitStack()  # what is profiled

    def restore(self, profile: int) -> None:
        """Restores the saved run, if it exists, and prints the step."""
        self.state = State(**self.checkpoint.restore(dataclasses.asdict(self.state), newer=("damaged",)))
        self.history.state, step = self.state.history, self.state.step
        self.task.damaged.update(self.state.damaged)
        check_same(
            self.devices,
            step,
            f"the workers find different checkpoints, this one at step {step}; all of them must share {self.folder}",
        )
        if profile and self.steps - step <= SKIPPED:
            left = f"only {self.steps - step} steps are left"
            raise RunError(f"--profile skips the first {SKIPPED} steps, and {left}; leave it out")
        if step:
            print(f"resuming from step {step}")
            self.history.write()
        else:
            print(f"{self.folder.settings.network}, {self.steps} steps, in {self.folder}")

    def run(self, signals: StopSignals, verbose: int, profile: int) -> None:
        """Trains to the last step or the end of the schedule. After a signal, saves the run and raises Stopped."""
        state, engine, history, schedule = self.state, self.engine, self.history, self.schedule
        progress, board = Progress(self.steps, self.steps_per_epoch, verbose), Board(self.folder)
        traced = range(state.step + SKIPPED, state.step + SKIPPED + profile)
        pace, saved = 1, state.step
        while True:
            number, pace = self.agreed(signals.received or 0, pace)
            if number or state.step == self.steps or schedule.finished(state.schedule):
                break

            # A span of steps.
            count = min(pace, self.until_event(traced))
            span = range(state.step, state.step + count)
            rates = np.array([schedule.rate(step, state.schedule) for step in span], "float32")
            history.begin(rates[0])
            waited = engine.waited or 0.0
            if span.start == traced.start and traced and self.folder.writes:
                self.tracing.enter_context(engine.profile(self.folder.path(f"{BOARD}/train")))
            measured = engine.run(span.start, rates)
            if span.stop >= traced.stop:
                self.tracing.close()
            seconds = history.add(count, (engine.waited or 0.0) - waited)
            pace = self.next_pace(count, seconds)

            # The metrics of the span.
            for step, loss in zip(span, measured[:, 0], strict=True):
                if not math.isfinite(loss):
                    raise self.checkpoint.diverged(step + 1, f"the loss is {loss}")
            state.step, state.summed = span.stop, state.summed + count
            state.sums = functools.reduce(np.add, measured.astype("float64"), np.array(state.sums)).tolist()
            state.segments[-1]["to"] = state.step
            means = {name: total / state.summed for name, total in zip(engine.measures, state.sums, strict=True)}

            # The end of an epoch.
            ended, said = state.step % self.steps_per_epoch == 0 or state.step == self.steps, ""
            if ended:
                if "validation" in self.task.held_out:
                    found = engine.evaluate(engine.network, "validation")
                    means |= {f"val_{name}": value for name, value in found.items()}
                means = history.row(state.step, means, engine.waited is not None)
                board.add(history.state["rows"][-1])
                state.schedule, said = schedule.after_epoch(
                    state.step, state.schedule, means["error"], means.get("val_error")
                )
                state.summed, state.sums = 0, [0.0] * len(state.sums)
            progress.show(state.step, means, history.state["seconds"], ended, said)

            # A checkpoint.
            self.checkpoint.check()
            if state.step % self.folder.settings.checkpoint_every == 0 or state.step == self.steps:
                self.save()
                saved = state.step
        if saved < state.step:
            self.save()
        self.checkpoint.wait()
        if number:
            raise Stopped(state.step, number)

    def save(self) -> None:
        """Saves the run, without waiting until its checkpoint is written."""
        if self.folder.settings.skip_damaged:
            self.state.damaged = of_all(self.devices, self.task.damaged)
        self.checkpoint.save(dataclasses.asdict(self.state))

    def agreed(self, signal: int, pace: int) -> tuple[int, int]:
        """A signal that one of the processes received, or 0, and the number of steps until the next exchange."""
        numbers = self.devices.exchange(signal, pace)
        return int(numbers[:, 0].max()), int(numbers[:, 1].min())

    def until_event(self, traced: range) -> int:
        """The number of steps until the next event."""
        step = self.state.step
        periods = self.steps_per_epoch, self.folder.settings.checkpoint_every
        events = [self.steps, *(step + period - step % period for period in periods), traced.start, traced.stop]
        return min(event - step for event in events if event > step)

    def next_pace(self, count: int, seconds: float) -> int:
        """The number of steps that take SPAN_SECONDS at the speed of the last span, at most eight times as many."""
        if not self.history.state["timed_steps"]:
            return 1  # the time of the first step includes compilation
        return max(1, min(8 * count, int(SPAN_SECONDS * count / max(seconds, 1e-6))))
