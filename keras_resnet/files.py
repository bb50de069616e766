"""Files that are written whole or not at all, by the one process that writes, and one run's lock."""

import contextlib
import errno
import fcntl
import os
import platform
import typing
from collections.abc import Callable, Iterator

Path: typing.TypeAlias = str | os.PathLike

writes = True  # whether this process does: of several workers only one; `written_if` changes it


@contextlib.contextmanager
def written_if(chief: bool) -> Iterator[None]:
    """Within it, this process writes only if it is the chief of those that work together."""
    global writes
    before, writes = writes, chief
    try:
        yield
    finally:
        writes = before


class RunError(Exception):
    """A run cannot start or go on. The message says what was wrong, what was found and what to do."""


class DataError(Exception):
    """The data set cannot be had. The message says what was looked for, what was found and what to do."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives the path of a temporary file, which takes the place of `path` when it is complete, or not at all.

    It lies in the same folder and ends in the same suffix. Where `path` is a device such as /dev/stdout, it is `path`.

    Raises:
        RunError: the disk is full, the folder has vanished or the like. What was at `path` is still there.
    """
    target = os.path.realpath(path)
    stem, suffix = os.path.splitext(target)
    temporary = f"{stem}.tmp{suffix}"
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            yield path
            return
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
            _sync(os.path.dirname(target))  # so that the new name, too, survives a power cut
        finally:
            with contextlib.suppress(OSError):
                os.remove(temporary)  # it is still there only if something failed
    except OSError as error:
        raise RunError(f"{path} could not be written: {error}") from error


def is_name(text: str) -> bool:
    """Whether a text names one file or folder within another: neither empty nor a path."""
    return text not in ("", os.curdir, os.pardir) and os.path.basename(text) == text


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[typing.BinaryIO], object]) -> None:
    """Calls `write` with a binary file that takes the place of `path` when it is complete, or not at all.

    Where this process is not the one that `writes`, nothing happens.

    Raises:
        RunError: as `whole`.
    """
    if writes:
        with whole(path) as temporary, open(temporary, "wb") as file:
            write(file)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps the file `path` locked, so that one process at a time trains a run. The file stays; it means nothing.

    The lock is the operating system's, which releases it when the process ends, however it ends. It holds on local
    disks and between the machines of a shared file system, NFS among them. On one that knows no locks a line says so.

    Raises:
        RunError: another process has locked it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "a+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            print(f"PID {os.getpid()} on {platform.node()}", end="", file=file, flush=True)
        except BlockingIOError as error:
            file.seek(0)
            raise RunError(
                f"another process trains this run, {file.read()}, in {os.path.dirname(path)}. Wait for it, stop it, or "
                "choose another folder (--output, --name)."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise RunError(f"{path} cannot be written: {error}") from error
            print(f"{path} cannot be locked ({error.strerror}): no other process may train this run at the same time")
        yield
