"""Where a result comes from: the version of the code, and the command."""

import importlib
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping

__version__ = "0.1.0"

# Settings that do not change the result, such as paths.
WITHOUT_EFFECT = ("data_dir", "output", "name", "checkpoint_every", "strategy", "jit", "data_changed")


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
    import keras  # here, because the flags of settings, which need this module, are read before Keras is imported

    backend = keras.backend.backend()
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        backend: importlib.import_module(backend).__version__,
        "devices": devices,
    }


def program(made: Mapping[str, object] | None) -> str:
    """Which program of train/ trains like this; `made` is as `circumstances`, or None if that is not known."""
    return "fit_jax.py" if "jax" in (made or {}) else "fit.py"


def _git(*arguments):
    command = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def flags(values: Mapping[str, object]) -> str:
    """Settings as a command line: {"depth": 56, "plain": True} is "--depth 56 --plain"."""
    arguments = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(arguments)
