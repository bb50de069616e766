"""Several runs at a time, each in its own process, with a time limit: for small networks on a large GPU."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence

from keras_resnet.runs import RESULT
from keras_resnet.training.settings import Settings

LOG = "log.txt"  # in the folder of a run: its output
GRACE = 60  # seconds that a run has to save itself after SIGTERM


def train(
    runs: Sequence[Settings], at_a_time: int, seconds: float | None = None
) -> tuple[list[Settings], list[Settings]]:
    """Trains runs, or continues them, several at a time; each writes its output to log.txt in its folder.

    Args:
        runs: their settings, in the order in which they are started.
        at_a_time: the largest number of processes. On JAX they share the memory of a GPU equally, on TensorFlow each
            takes what it needs.
        seconds: None, or the time after which the remaining runs are saved and stopped. The next call continues them.

    Returns:
        The runs that are not finished, and those of them that failed.
    """
    begun, context = time.monotonic(), multiprocessing.get_context("spawn")
    left = [settings for settings in runs if not _finished(settings)]
    waiting, failed = list(left), []
    running: dict = {}  # settings by process
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / at_a_time:.3f}", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    before = {name for name in share if name in os.environ}
    os.environ.update({name: value for name, value in share.items() if name not in before})
    try:
        while waiting or running:
            for process in [process for process in running if not process.is_alive()]:
                settings = running.pop(process)
                how = "finished"
                if not _finished(settings):
                    how = f"ended with status {process.exitcode}; see {LOG}"
                    failed.append(settings)
                print(f"{settings.folder}: {how} after {time.monotonic() - begun:.0f} s", flush=True)
            if seconds is not None and time.monotonic() - begun > seconds:
                _stop(running)
                break
            while waiting and len(running) < at_a_time:
                settings = waiting.pop(0)
                process = context.Process(target=_work, args=(settings,))
                process.start()
                running[process] = settings
            time.sleep(0.2)
    except BaseException:
        _stop(running)
        raise
    finally:
        for name in share:
            if name not in before:
                del os.environ[name]
        signal.signal(signal.SIGTERM, usual)
    return [settings for settings in left if not _finished(settings)], failed


def _finished(settings):
    return os.path.exists(os.path.join(settings.folder, RESULT))


def _stop(running):
    """Stops processes and waits until they have saved their runs."""
    for process in running:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in running:
        process.join(max(0, until - time.monotonic()))
        process.kill()


def _work(settings):
    """Trains a run in its own process; its output goes to its folder."""
    from keras_resnet.training.command_line import errors_told
    from keras_resnet.training.loop import train

    os.makedirs(settings.folder, exist_ok=True)
    log = os.open(os.path.join(settings.folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops all
    with errors_told("run"):
        train(settings, verbose=2)
