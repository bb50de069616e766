"""The environment of a process: the version of this code, missing packages, and the settings of Keras.

The programs parse their flags before they import Keras, and need this module for it; so it imports Keras in functions.
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

    A package installed inside another repository does not report that repository's commit.
    """
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")
        return _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def circumstances(devices: list[str]) -> dict[str, object]:
    """For records: the commit of this code, the versions of Python, Keras and its backend, and the devices."""
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


# Distributions whose names differ from their packages' names by more than hyphens.
DISTRIBUTIONS = {"tensorflow_serving": "tensorflow-serving-api"}


def missing(*names: str) -> list[str]:
    """The packages among `names` that are not installed."""
    return [name for name in names if not importlib.util.find_spec(name)]


def install(*names: str) -> str:
    """How to install packages, as text: "matplotlib: pip install matplotlib"."""
    distributions = [DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names]
    return f"{' and '.join(names)}: pip install {' '.join(distributions)}"


def lacks(name: str, what: str) -> bool:
    """Whether the package is missing that `what` needs. If so, prints that the program continues without `what`."""
    if absent := missing(name):
        print(f"no {what}, which needs the package {install(*absent)}", flush=True)
    return bool(absent)


def needed(*names: str) -> str | None:
    """The predicate of a message, such as "needs the package jax: pip install jax"; None if all are installed."""
    absent = missing(*names)
    return f"needs the package{'s' * (len(absent) > 1)} {install(*absent)}" if absent else None


def import_tensorflow(before: Callable[[], object] = lambda: None) -> None:
    """Imports TensorFlow with stderr silenced, which hides its log lines about its build, but also about errors.

    `before` is called first, silenced, too. Does nothing if TensorFlow is imported already. If Keras uses another
    backend, TensorFlow does not use the GPUs and their memory.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masks:  # these signals would abort the import
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        before()
        tf = importlib.import_module("tensorflow")  # not needed by `import keras_resnet`
        tf.config.list_physical_devices()  # logs, too
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


# The settings of Keras as shipped, before the user's `keras.json` and environment change them.
DEFAULTS = {
    "floatx": "float32",
    "dtype_policy": "float32",
    "epsilon": 1e-7,
    "image_data_format": "channels_last",
    "max_epochs": None,  # KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH cut every `fit` short
    "max_steps_per_epoch": None,
}


def set_values(values: dict) -> None:
    """Sets these settings of `keras.config`, by the names in DEFAULTS."""
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
    """Inside this context, the settings of Keras are DEFAULTS."""
    import keras

    before = {name: getattr(keras.config, name)() for name in DEFAULTS}
    set_values(DEFAULTS)
    try:
        yield
    finally:
        set_values(before)


def keras_home() -> str:
    """The folder into which Keras downloads."""
    return os.path.expanduser(os.environ.get("KERAS_HOME") or os.path.join("~", ".keras"))
