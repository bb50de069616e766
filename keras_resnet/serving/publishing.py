"""The folder of a model as a server sees it: NAME/1, NAME/2 and so on, each complete or absent."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

import tensorflow as tf

from keras_resnet import environment
from keras_resnet.files import Path, lock, reason, sync
from keras_resnet.serving.formats import ExportError

UNFINISHED, REMOVED = ".unfinished-", ".removed-"  # prefixes of folders that servers ignore
LOCK = "lock"  # in an unfinished folder
NEW = 60  # seconds within which a new unfinished folder is locked
LAST_VERSION = 2**63 - 1  # servers use int64


def versions(folder: Path) -> list[int]:
    """The numbers of the versions in a folder, in ascending order."""
    return [int(name) for name in _names(folder)]


def _names(folder):
    """The names of the versions' folders: to a server, 007 is version 7, too."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted((name for name in names if name.isascii() and name.isdecimal()), key=int)


def check(folder: Path, version: int | None, keep: int | None) -> None:
    """Raises an ExportError if this version cannot be published, or if `keep` would remove it."""
    if version is None:
        return
    there = versions(folder)
    if not 1 <= version <= LAST_VERSION:
        raise ExportError(f"a version is a number from 1 to {LAST_VERSION}; found {version}")
    if version in there:
        raise ExportError(f"{os.path.join(folder, str(version))} exists; a version is never overwritten")
    if keep and sum(number > version for number in there) >= keep:
        raise ExportError(f"keep={keep} would remove version {version} at once, because {folder} has {there[-1]}")


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[str]:
    """A folder for a version, inside a hidden folder, which servers ignore because its name is not a number.

    The hidden folder is locked, so that other exports do not remove it as a leftover, and removed at the end.

    Raises:
        ExportError: the folder cannot be written, or the disk or memory does not suffice within this context.
    """
    new = [path for path in (folder, *pathlib.Path(folder).parents) if not os.path.exists(path)]
    try:
        os.makedirs(folder, exist_ok=True)
        _remove_left_over(folder)
        hidden = tempfile.mkdtemp(prefix=UNFINISHED, dir=folder)
        temporary = os.path.join(hidden, "version")
        os.mkdir(temporary)
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {reason(error)}") from error
    held = contextlib.ExitStack()
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            if not environment.lacks("filelock", "lock of the export"):
                held.enter_context(lock(os.path.join(hidden, LOCK)))
        yield temporary
    except (OSError, MemoryError, tf.errors.OpError) as error:
        if isinstance(error, MemoryError) or "OOM" in str(error):
            raise ExportError("not enough memory for this export; end other programs, or add memory") from error
        free = shutil.disk_usage(folder).free / 1e6
        why = reason(error).rpartition("; ")[2]  # TensorFlow's messages begin with a path
        raise ExportError(f"{folder} could not be written, {free:.1f} MB are free there: {why}") from error
    finally:
        held.close()
        shutil.rmtree(hidden, ignore_errors=True)
        for path in new:
            with contextlib.suppress(OSError):
                os.rmdir(path)  # fails if a version was published


def _remove_left_over(folder):
    """Removes leftovers of killed exports and removals; not what is locked, or about to be."""
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # locked, or there are no locks
            if entry.name.startswith(UNFINISHED) and time.time() - entry.stat().st_mtime > NEW:
                if not environment.missing("filelock"):
                    with lock(os.path.join(entry, LOCK)):
                        pass
                    shutil.rmtree(entry)
            elif entry.name.startswith(REMOVED):
                shutil.rmtree(entry)


def publish(temporary: Path, folder: Path, version: int | None) -> str:
    """Renames an unfinished folder to its version, the next one if that is None, and returns its path."""
    sync(temporary)  # so that the version is complete after a power cut, too
    while True:
        number = version or max(versions(folder), default=0) + 1
        if number > LAST_VERSION:
            raise ExportError(f"{folder} holds the last version, {LAST_VERSION}; give a free version")
        path = os.path.join(folder, str(number))
        try:
            os.rename(temporary, path)
            return path
        except OSError:
            if version or not os.path.exists(path):
                raise
            # Another export has just taken this number.


def keep(folder: Path, count: int) -> None:
    """Removes all versions but the last `count`. A server never sees half a version."""
    for name in _names(folder)[:-count]:
        hidden = tempfile.mkdtemp(prefix=REMOVED, dir=folder)
        os.rename(os.path.join(folder, name), os.path.join(hidden, name))
        shutil.rmtree(hidden, ignore_errors=True)
