"""What a process runs on: the version of this code, packages that are missing, and Keras' own values.

Flags are read before Keras is imported, and need this module; so it imports Keras in its functions.
"""

import contextlib
import importlib
import importlib.util
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

__version__ = "1.0.0"


def commit() -> str | None:
    """The git commit of this package, with "-dirty" if its files were changed; None if git does not track them.

    A package installed inside another repository does not have that repository's commit.
    """
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")
        return _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def circumstances(devices: list[str]) -> dict[str, object]:
    """With what something is made: this code's commit, the versions of Python, Keras and its backend, the devices."""
    import keras

    backend = keras.backend.backend()
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        backend: importlib.import_module(backend).__version__,
        "devices": devices,
    }


def _git(*arguments):
    command = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# Distributions whose names are not those of their packages, with hyphens.
DISTRIBUTIONS = {"tensorflow_serving": "tensorflow-serving-api"}


def missing(*names: str) -> list[str]:
    """Those of these packages that are not installed."""
    return [name for name in names if not importlib.util.find_spec(name)]


def install(*names: str) -> str:
    """The words for how to get packages: "matplotlib: pip install matplotlib"."""
    distributions = [DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names]
    return f"{' and '.join(names)}: pip install {' '.join(distributions)}"


def lacks(name: str, what: str) -> bool:
    """Whether a package is missing that `what` needs, with a line that says so and that the rest goes on without."""
    if absent := missing(name):
        print(f"no {what}, which needs the package {install(*absent)}", flush=True)
    return bool(absent)


def needed(*names: str) -> str | None:
    """The predicate of a message, such as "needs the package jax: pip install jax"; None if all are installed."""
    absent = missing(*names)
    return f"needs the package{'s' * (len(absent) > 1)} {install(*absent)}" if absent else None


def import_tensorflow(before: Callable[[], object] = lambda: None) -> None:
    """Imports TensorFlow without the lines about its build that it logs then; what it says of errors is lost, too.

    `before` is called first, and is as quiet. Nothing happens if TensorFlow has been imported. Where Keras has another
    backend, TensorFlow leaves the GPUs and their memory to that one.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masks:  # the signals would abort the import
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        before()
        tf = importlib.import_module("tensorflow")  # which `import keras_resnet` does without
        tf.config.list_physical_devices()  # which logs, too
        import keras

        if keras.backend.backend() != "tensorflow":
            tf.config.set_visible_devices([], "GPU")
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)


# Keras' values of the process as Keras ships them, whatever `keras.json` and the environment of the user say.
DEFAULTS = {
    "floatx": "float32",
    "dtype_policy": "float32",
    "epsilon": 1e-7,
    "image_data_format": "channels_last",
    "max_epochs": None,  # KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH cut every `fit` short
    "max_steps_per_epoch": None,
}


def set_values(values: dict) -> None:
    """Sets these values of `keras.config`, by the names in DEFAULTS."""
    import keras

    for name, value in values.items():
        getattr(keras.config, f"set_{name}")(value)


@contextlib.contextmanager
def bars_at_terminals() -> Iterator[None]:
    """Inside this context, Keras draws progress bars, such as those of downloads, at a terminal but not into a file."""
    import keras

    before = keras.config.is_interactive_logging_enabled()
    if not sys.stdout.isatty():
        keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if before:
            keras.config.enable_interactive_logging()


@contextlib.contextmanager
def as_shipped() -> Iterator[None]:
    """Inside this context, Keras' values are DEFAULTS."""
    import keras

    before = {name: getattr(keras.config, name)() for name in DEFAULTS}
    set_values(DEFAULTS)
    try:
        yield
    finally:
        set_values(before)
