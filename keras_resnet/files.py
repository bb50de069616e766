"""Atomic writes, the lock of a run, and the errors for users."""

import contextlib
import errno
import os
import platform
import re
import tempfile
import typing
import zipfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from keras_resnet import environment

Path: typing.TypeAlias = str | os.PathLike


class ResNetError(Exception):
    """An error that the user can fix. The message says what was wrong, what was found and what to do.

    All errors of this package for users derive from it, so a program can catch them together.
    """


class RunError(ResNetError):
    """A run cannot start or continue, or its files cannot be read."""


class DataError(ResNetError):
    """The data set cannot be loaded."""


class WeightsError(ResNetError, ValueError):
    """The weights cannot be read, or do not fit the network. Nothing is changed."""


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names as lines of a message, sorted: the first ones, and how many more there are."""
    names = sorted(names)
    more = [f"and {len(names) - most} more"] * (len(names) > most)
    return "\n".join(f"  {line}" for line in [*names[:most], *more])


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file, which replaces `path` when the context ends without an error.

    It is in a temporary folder beside `path` and has the same name, so that several processes may write the same file.
    If `path` is a device such as /dev/stdout, it is yielded itself.

    Raises:
        RunError: the file cannot be written, for example on a full disk. The old file at `path` is unchanged.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            yield path
            return
        with _replacing(os.path.realpath(path)) as temporary:
            yield temporary
    except OSError as error:
        raise RunError(f"{path} could not be written: {reason(error)}") from error


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[str]:
    """Yields a temporary folder, which becomes `path` when the context ends without an error. `path` is new or empty.

    Raises:
        RunError: there are files in `path`, or it could not be written.
    """
    target = os.path.realpath(path)
    try:
        if os.path.exists(target) and os.listdir(target):
            raise RunError(f"{path} is not empty; choose a new folder")
        with _replacing(target) as temporary:
            os.mkdir(temporary)
            yield temporary
            if os.path.isdir(target):
                os.rmdir(target)  # it is empty; not every system can replace it
    except OSError as error:
        raise RunError(f"{path} could not be written: {reason(error)}") from error


@contextlib.contextmanager
def _replacing(target):
    parent, name = os.path.split(target)
    with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=parent, ignore_cleanup_errors=True) as folder:
        temporary = os.path.join(folder, name)
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        _flush(parent)  # so that the new name survives a power cut, too


def sync(path: Path) -> None:
    """Flushes a file, or a folder and everything in it, to the disk, so that it survives a power cut."""
    for folder, _, names in os.walk(os.fspath(path)):
        for name in names:
            _flush(os.path.join(folder, name))
        _flush(folder)
    if os.path.isfile(path):
        _flush(path)


def _flush(path):
    windows = os.name == "nt"  # flushes only files opened for writing, and cannot open folders
    if windows and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: BaseException | str) -> str:
    """The first line of an error's message, without the path and TensorFlow's internal markers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\{\{.*?\}\} *|^\w+Error: | *\[Op:\w+\].*", "", lines[0])


def make_folder(path: Path) -> None:
    """Creates a folder, and those that it is in, unless it exists; RunError if that is not possible."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder {path} cannot be created: {reason(error)}") from error


def is_name(text: str) -> bool:
    """Whether a text is the name of a file or folder: neither empty nor a path."""
    return text not in ("", os.curdir, os.pardir) and os.path.basename(text) == text


def write_whole(path: Path, write: Callable[[typing.BinaryIO], object]) -> None:
    """Calls `write` with a binary file that replaces `path` once it is complete; RunError as in `whole`."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        write(file)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, by their names. Other objects, which could execute code, are never read.

    Raises:
        OSError, MemoryError: the file cannot be read.
        ValueError: it is damaged or not a .npz file; the message is for users.
    """
    with open(path, "rb") as opened:
        if not zipfile.is_zipfile(opened):
            raise ValueError("it is not a .npz file, or is truncated")
        try:
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, MemoryError):
            raise
        except Exception as error:  # its type depends on the damage
            raise ValueError("one of its arrays cannot be read") from error


def lock(path: Path) -> typing.ContextManager:
    """The operating system's lock on a file, which is released when the process ends, even if it is killed.

    Raises, on entering the context:
        TimeoutError: another process holds it.
        OSError: the file cannot be written, or the file system has no locks.
    """
    import filelock  # here, because the networks do not need it

    return filelock.FileLock(path, blocking=False, fallback_to_soft=False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Locks the file `path`, so that only one process at a time trains a run. A leftover file has no effect.

    The operating system releases the lock when the process ends, even if it is killed. The lock works on local disks
    and across machines that share a file system, NFS included. A file beside it, with ".owner" at the end, names the
    process. If the file system has no locks, or the package filelock is missing, a warning is printed.

    Raises:
        RunError: another process has locked it, or it cannot be written.
    """
    if environment.lacks("filelock", "lock of the run"):  # then two processes can train it at the same time
        yield
        return
    owner = f"{os.fspath(path)}.owner"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(path))
            with open(owner, "w") as file:
                file.write(f"PID {os.getpid()} on {platform.node()}")
        except TimeoutError as error:
            found = ""
            if os.path.exists(owner):  # not yet, if it has just started
                with open(owner) as file:
                    found = f"{file.read()}, "
            raise RunError(
                f"another process is training this run, {found}in {os.path.dirname(path)}. Wait for it, stop it, or "
                "choose another folder (--output, --name)."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise RunError(f"{path} cannot be written: {reason(error)}") from error
            print(f"{path} cannot be locked ({error.strerror}): make sure that no other process trains this run")
        yield


@contextlib.contextmanager
def own_line(verbose: int) -> Iterator[None]:
    """Inside this context, an error ends the line of a progress bar, so that its message starts on a new line."""
    try:
        yield
    except BaseException:
        if verbose == 1:
            print(flush=True)
        raise
