"""Saves a run, so that it can resume after any interruption."""

import json
import os
import typing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np

from keras_resnet.files import RunError, read_arrays, reason
from keras_resnet.training.folder import CHECKPOINT, Folder

ADVICE = "Delete it to start from the beginning."


def variables_of(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
    """All variables by a name that is unique and the same in every process."""
    # Variables' paths differ between processes: Keras numbers the seed generators of a process.
    layers = {f"model/{layer.name}/{v.name}": v for layer in model.layers for v in layer.variables}
    if len(layers) < sum(len(layer.variables) for layer in model.layers):
        raise ValueError(f"{model.name} contains models or layers whose variables have the same names")
    return layers | {f"optimizer/{variable.path}": variable for variable in optimizer.variables}


class Checkpoint:
    """The complete state of a run in one `.npz` file: variables and, as JSON, everything else.

    Training continues while a thread writes the file, one at a time; call `wait` before the process ends.

    Args:
        folder: the `Folder` of the run.
        variables: what `variables_of` returns.
    """

    def __init__(self, folder: Folder, variables: Mapping[str, keras.Variable]):
        self.folder = folder
        self.path = folder.path(CHECKPOINT)
        self.variables = variables
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future | None = None

    def save(self, state: Mapping[str, typing.Any]) -> None:
        """Copies the variables and `state`, with the number of steps done as "step"; a thread then writes them.

        Raises:
            RunError: a weight is not finite (the last checkpoint is kept), or the last checkpoint could not be written.
        """
        self.wait()
        arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in self.variables.items()}
        bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise self.diverged(state["step"], f"{bad[0]} is not finite")
        text = json.dumps({**state, "backend": keras.backend.backend()})
        arrays["state"] = np.frombuffer(text.encode(), "uint8")
        self.writing = self.writer.submit(self.folder.write, CHECKPOINT, lambda file: np.savez(file, **arrays))

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

    def check(self) -> None:
        """RunError if the last checkpoint could not be written. Does not wait if it is still being written."""
        if self.writing and self.writing.done():
            self.wait()

    def restore(self, state: Mapping[str, typing.Any], newer: Sequence[str] = ()) -> dict[str, typing.Any]:
        """Restores the variables of the saved run, if it exists.

        Args:
            state: the state of a new run; the saved state must have the same fields, nested ones included.
            newer: those of its fields that older versions did not save; they are then as in `state`.

        Returns:
            The saved state; `state` if there is no checkpoint.

        Raises:
            RunError: the file is damaged, or from another network, backend or older version; no variable has changed.
        """
        if not os.path.exists(self.path):
            return dict(state)
        try:
            arrays = read_arrays(self.path)
            found = json.loads(arrays.pop("state").tobytes())
            if isinstance(found, dict) and "callbacks" in found:
                raise RunError(
                    f"the checkpoint {self.path} was written by an older version, in another format. {ADVICE}"
                )
            if isinstance(found, dict):
                found = {name: state[name] for name in newer} | found
            _check(found, {**state, "backend": ""})
        except KeyError as error:
            raise RunError(f"the checkpoint {self.path} is damaged: it lacks {error}. {ADVICE}") from error
        except (OSError, MemoryError) as error:
            raise RunError(
                f"the checkpoint {self.path} cannot be read: {reason(error)}. Run the same command again; if "
                f"the file is damaged, restore a copy. {ADVICE}"
            ) from error
        except (ValueError, TypeError) as error:
            raise RunError(f"the checkpoint {self.path} is damaged: {error}. {ADVICE}") from error
        if (begun := found.pop("backend")) != (backend := keras.backend.backend()):
            raise RunError(
                f"the run of {self.path} was begun on {begun}, and this is {backend}, with other random numbers. "
                f"Resume with KERAS_BACKEND={begun}, or choose another --name."
            )
        shapes = {name: array.shape for name, array in arrays.items()}
        expected = {name: tuple(variable.shape) for name, variable in self.variables.items()}
        if shapes != expected:
            names = sorted(n for n in {*shapes, *expected} if shapes.get(n) != expected.get(n))
            there, here = (found.get(names[0], "missing") for found in (shapes, expected))
            raise RunError(
                f"the checkpoint {self.path} is of another network; for example {names[0]} is {there} there and {here} "
                f"here.\n{ADVICE}"
            )
        for name, variable in self.variables.items():
            variable.assign(arrays[name])
        return found

    def diverged(self, step: int, what: str) -> RunError:
        """The error to raise for a run that diverged at this step."""
        self.wait()  # because the message says whether there is a checkpoint
        kept = f"The checkpoint {self.path} is the last good one."
        if not os.path.exists(self.path):
            kept = "No checkpoint has been written yet."
        advice = "A lower --lr or --warmup may help, under another --name."
        return RunError(f"training diverged at step {step}: {what}. {kept}\n{advice}")


def _check(found, expected, where="its state"):
    """ValueError unless `found` has the fields of `expected`, nested ones too, and integers where it has integers."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {found!r:.40}")
    for name, value in expected.items():
        if name not in found:
            raise ValueError(f"{where} lacks {name!r}")
        if isinstance(value, dict):
            _check(found[name], value, f"its {name}")
        elif isinstance(value, int) and not isinstance(found[name], int):
            raise ValueError(f"{where} has {found[name]!r:.40} for {name!r}")
