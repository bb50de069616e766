"""SIGINT and SIGTERM stop a run, which is saved first."""

import contextlib
import os
import signal
import threading
import types
import typing


class Stopped(Exception):
    """A signal stopped the run, which was saved at `step`."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
        self.step = step
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number  # as in shells


class StopSignals:
    """Inside this context, SIGINT and SIGTERM are only recorded in `received`; a second one ends the process as usual.

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
        text = f"\n{signal.Signals(number).name}: stopping as soon as the run is saved; repeat to stop at once\n"
        with contextlib.suppress(OSError):
            os.write(1, text.encode())  # not print: the signal may have interrupted one, which holds stdout's lock
