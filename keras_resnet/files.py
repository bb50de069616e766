"""Atomic writes, the lock of a run, and the errors that are for people."""

import contextlib
import errno
import os
import platform
import re
import tempfile
import typing
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from keras_resnet import environment

Path: typing.TypeAlias = str | os.PathLike


class ResNetError(Exception):
    """Something that a person can mend. The message says what was wrong, what was found and what to do.

    All errors of this package that are for people come from this one, so that a program can catch them together.
    """


class RunError(ResNetError):
    """A run cannot start or continue, or what it left cannot be read."""


class DataError(ResNetError):
    """The data set cannot be loaded."""


class WeightsError(ResNetError, ValueError):
    """The weights cannot be read, or do not fit the network. Nothing has been changed."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file, which replaces `path` when the context ends without an error.

    It is in a temporary folder beside `path` and has the same name, so that several processes may write the same file.
    If `path` is a device such as /dev/stdout, it is yielded itself.

    Raises:
        RunError: the disk is full, the folder has vanished or the like. The old file at `path` is still there.
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
                os.rmdir(target)  # which is empty; not every system replaces it
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
    """Flushes a file, or a folder and all that is in it, to the disk, so that it survives a power cut."""
    for folder, _, names in os.walk(os.fspath(path)):
        for name in names:
            _flush(os.path.join(folder, name))
        _flush(folder)
    if os.path.isfile(path):
        _flush(path)


def _flush(path):
    windows = os.name == "nt"  # it flushes only what is open for writing, and opens no folders
    if windows and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: BaseException | str) -> str:
    """The first line of an error's message, without the path or the marks that TensorFlow adds for its programmers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\{\{.*?\}\} *|^\w+Error: | *\[Op:\w+\].*", "", lines[0])


def is_name(text: str) -> bool:
    """Whether a text names one file or folder within another: neither empty nor a path."""
    return text not in ("", os.curdir, os.pardir) and os.path.basename(text) == text


def write_whole(path: Path, write: Callable[[typing.BinaryIO], object]) -> None:
    """Calls `write` with a binary file that replaces `path` once it is complete; RunError as in `whole`."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        write(file)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, by their names. Other objects, which could execute code, are never read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or of another kind; the message is for people.
    """
    with open(path, "rb") as opened:
        if not zipfile.is_zipfile(opened):
            raise ValueError("it is no .npz file, or only the beginning of one")
        try:
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # each kind of damage raises another one
            raise ValueError("one of its arrays cannot be read") from error


def lock(path: Path) -> typing.ContextManager:
    """The operating system's lock of a file, which is released when the process ends, however it ends.

    Raises, on entering the context:
        TimeoutError: another process has it.
        OSError: the file cannot be written, or the file system has no locks.
    """
    import filelock  # here, because the networks do without it

    return filelock.FileLock(path, blocking=False, fallback_to_soft=False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps the file `path` locked, so that only one process at a time trains a run. A leftover file means nothing.

    The lock is the operating system's, which releases it when the process ends, however it ends. It works on local
    disks and between machines that share a file system, NFS included. The file beside it, with ".owner" at the end,
    says which process it is. If the file system has no locks, or the package filelock is missing, a line says so.

    Raises:
        RunError: another process has locked it, or it cannot be written.
    """
    if environment.lacks("filelock", "lock of the run"):  # so two processes can train it at the same time
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
            if os.path.exists(owner):  # not yet, if it has just begun
                with open(owner) as file:
                    found = f"{file.read()}, "
            raise RunError(
                f"another process trains this run, {found}in {os.path.dirname(path)}. Wait for it, stop it, or "
                "choose another folder (--output, --name)."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise RunError(f"{path} cannot be written: {reason(error)}") from error
            print(f"{path} cannot be locked ({error.strerror}): no other process may train this run at the same time")
        yield


@contextlib.contextmanager
def own_line(verbose: int) -> Iterator[None]:
    """Inside this context, an error ends the line of a progress bar, so that its message has a line of its own."""
    try:
        yield
    except BaseException:
        if verbose == 1:
            print(flush=True)
        raise
