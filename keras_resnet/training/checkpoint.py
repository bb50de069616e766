"""Saves a run so that it can resume where it was, whatever stopped it."""

import json
import os
import signal
import threading
import types
import typing
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np

from keras_resnet.files import Path, RunError, read_arrays, write_whole
from keras_resnet.optimizers import sync_variables

LATER = ("waited",)  # fields of states that checkpoints of older versions do not have


class Stopped(Exception):
    """A signal stopped the run, which was saved at `step`."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
        self.step = step
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number  # as in shells


class Stop(typing.Protocol):
    """An object that says which signal asks the run to stop; None for none."""

    @property
    def received(self) -> int | None: ...


class StopSignals:
    """Inside this context, SIGINT and SIGTERM are only noted in `received`; a second one ends the process as usual.

    A signal that is ignored stays ignored, as SIGINT in processes that a shell script starts in the background.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.handlers: dict = {}

    def __enter__(self) -> typing.Self:
        if threading.current_thread() is threading.main_thread():  # Python allows no handlers in other threads
            heeded = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
            self.handlers = {number: signal.signal(number, self.note) for number in heeded}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: types.FrameType | None) -> None:
        self.received = number
        self.__exit__()
        print(
            f"\n{signal.Signals(number).name}: stopping as soon as the run is saved; once more to stop at once",
            flush=True,
        )


class Checkpoint(keras.callbacks.Callback):
    """Saves the complete state of a run, every few steps and after a signal.

    One `.npz` file holds the variables of model, optimizer and metrics and, as JSON, the step and the `state` of other
    callbacks. This has to be the last callback, so that their state is up to date. Training continues while a thread
    writes the file. If another exception ends `fit`, the caller has to `wait` for the file.

    Args:
        path: the file.
        model: a model compiled by `compile_for_training`.
        every: steps from one checkpoint to the next.
        steps_per_epoch: steps in an epoch.
        steps: steps of the whole run; the last one is always saved.
        callbacks: callbacks with a `state`, a dictionary that can be written as JSON.
        stop: where stop signals come from, for example `StopSignals`.
    """

    def __init__(
        self, path: Path, model: keras.Model, *, every: int, steps_per_epoch: int, steps: int,
        callbacks: Iterable[keras.callbacks.Callback], stop: Stop,
    ) -> None:  # fmt: skip
        super().__init__()
        self.path = path
        self.every = every
        self.steps_per_epoch = steps_per_epoch
        self.steps = steps
        self.due = False
        self.stateful = {type(callback).__name__: callback for callback in callbacks}
        self.stop = stop
        self.signal: int | None = None  # the signal received; workers agree on it together, so it is not asked again
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future | None = None
        self.set_model(model)
        self.step = 0
        self.saved_metrics: list[np.ndarray] | None = None

    def variables(self) -> dict[str, keras.Variable]:
        """All variables except those of metrics, by a name that is unique and the same in every process."""
        # Paths of variables are not the same: Keras numbers the random seed generators of a process.
        layers = {f"model/{layer.name}/{v.name}": v for layer in self.model.layers for v in layer.variables}
        if len(layers) < sum(len(layer.variables) for layer in self.model.layers):
            raise ValueError(f"{self.model.name} contains models or layers whose variables have the same names")
        return layers | {f"optimizer/{variable.path}": variable for variable in self.model.optimizer.variables}

    def save(self) -> None:
        """Copies the current state of the run, and lets a thread write it, one checkpoint at a time.

        Raises:
            RunError: a weight is not finite (the last checkpoint is kept), or the last checkpoint could not be written.
        """
        self.wait()
        sync_variables(self.model)
        arrays = {name: variable.numpy() for name, variable in self.variables().items()}
        bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise RunError(diverged(self.step, f"{bad[0]} is not finite", self.path))
        metrics = self.model.metrics_variables
        arrays |= {f"metrics/{i}": variable.numpy() for i, variable in enumerate(metrics)}
        callbacks = {name: callback.state for name, callback in self.stateful.items()}
        state = {"step": self.step, "backend": keras.backend.backend(), "metrics": len(metrics), "callbacks": callbacks}
        arrays["state"] = np.frombuffer(json.dumps(state).encode(), "uint8")
        self.writing = self.writer.submit(write_whole, self.path, lambda file: np.savez(file, **arrays))

    def wait(self) -> None:
        """Waits until the checkpoint is written.

        Raises:
            RunError: it could not be written.
        """
        if self.writing:
            error = self.writing.exception()  # after a KeyboardInterrupt here, the next call still waits
            self.writing = None
            if error:
                raise error

    def restore(self) -> int:
        """Restores the saved run, if there is one.

        Returns:
            The number of steps done; 0 if there is no checkpoint.

        Raises:
            RunError: the file is damaged or of another network; nothing has been changed.
        """
        if not os.path.exists(self.path):
            return 0
        advice = "Delete it to start from the beginning."
        try:
            arrays = read_arrays(self.path)
            state = json.loads(arrays.pop("state").tobytes())
            metrics = [arrays.pop(f"metrics/{i}") for i in range(state["metrics"])]
            step, states = state["step"], {name: dict(state["callbacks"][name]) for name in self.stateful}
            lacking = [
                f"{name}.{key}"
                for name, callback in self.stateful.items()
                for key in callback.state
                if key not in states[name] and key not in LATER
            ]
            if lacking or not isinstance(step, int):
                raise ValueError(f"its state lacks {', '.join(lacking) or 'a whole number of steps'}")
        except KeyError as error:
            raise RunError(f"the checkpoint {self.path} is damaged: it lacks {error}. {advice}") from error
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"the checkpoint {self.path} is damaged: {error}. {advice}") from error
        if (begun := state.get("backend", "tensorflow")) != (backend := keras.backend.backend()):
            raise RunError(
                f"the run of {self.path} was begun on {begun}, and this is {backend}, with other random numbers. "
                f"Go on with {'fit_jax.py' if begun == 'jax' else 'fit.py'}, or choose another --name."
            )
        variables = self.variables()
        found = {name: array.shape for name, array in arrays.items()}
        expected = {name: tuple(variable.shape) for name, variable in variables.items()}
        if found != expected:
            names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            raise RunError(f"the checkpoint {self.path} is of another network; for example {names[0]}.\n{advice}")
        for name, variable in variables.items():
            variable.assign(arrays[name])
        for name, callback in self.stateful.items():
            callback.state.update(states[name])
        self.step = step
        self.saved_metrics = metrics
        return self.step

    def on_epoch_begin(self, epoch, logs=None):
        if self.saved_metrics and self.step % self.steps_per_epoch:  # the means over the epoch so far
            # A checkpoint of an older version has fewer.
            for variable, array in zip(self.model.metrics_variables, self.saved_metrics, strict=False):
                variable.assign(array)
        self.saved_metrics = None

    def on_train_batch_begin(self, batch, logs=None):
        self.first_batch = batch

    def on_train_batch_end(self, batch, logs=None):
        before = self.step
        self.step += batch - self.first_batch + 1
        if self.writing and self.writing.done():
            self.wait()  # if it failed, raises now and not at the next checkpoint
        if not np.isfinite(logs["loss"]):
            self.wait()  # because the message says whether there is a checkpoint
            raise RunError(diverged(before + 1, f"the loss is {logs['loss']}", self.path, self.step))
        ends_epoch = self.step % self.steps_per_epoch == 0 or self.step == self.steps
        self.due = self.due or before // self.every < self.step // self.every or self.step == self.steps
        self.signal = self.signal or self.stop.received
        if (self.due or self.signal) and not ends_epoch:
            self.save_and_stop()

    def on_epoch_end(self, epoch, logs=None):
        self.signal = self.signal or self.stop.received
        if self.due or self.signal or self.model.stop_training:  # only now the history has the row of this epoch
            self.save_and_stop()

    def on_train_end(self, logs=None):
        self.wait()

    def save_and_stop(self) -> None:
        self.save()
        self.due = False
        if self.signal:
            self.wait()
            raise Stopped(self.step, self.signal)


def diverged(step: int, what: str, path: Path, last: int | None = None) -> str:
    """What to say of a run that diverged at this step; with `last`, at one of the steps up to it."""
    at = f"at step {step}" if last in (None, step) else f"in steps {step} to {last}"
    kept = f"The checkpoint {path} is the last good one." if os.path.exists(path) else "No checkpoint was written yet."
    return f"training diverged {at}: {what}. {kept}\nA lower --lr or --warmup may help, under another --name."
