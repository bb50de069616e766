"""Ends a program with a one-line message when it is interrupted (Ctrl-C, SIGTERM), unless it handles that itself.

Both signals raise an exception, so that incomplete files are removed.
"""

import _thread
import functools
import os
import signal
import sys
import threading

ADVICE = "a smaller --batch-size, or --accumulate, needs less memory; other programs may be using the rest"


class Terminated(BaseException):
    """The process received SIGTERM."""


received = None  # the last signal


def interrupt(number, frame=None):
    global received
    received = number
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def insist():
    """Raises the exception again: C++ libraries may have replaced it with an error of their own."""
    if received:
        interrupt(received)


def unraisable(ignored):
    """Raises the exception again, a little later, if Python ignored it, as in callbacks of the garbage collector."""
    if issubclass(ignored.exc_type, (KeyboardInterrupt, Terminated)):
        if hasattr(signal, "pthread_kill"):
            again = functools.partial(signal.pthread_kill, threading.main_thread().ident)
        else:
            again = _thread.interrupt_main
        threading.Timer(0.01, again, (received,)).start()
    else:
        sys.__unraisablehook__(ignored)


def explain(kind, error, traceback):
    exhausted = str(error).startswith("RESOURCE_EXHAUSTED")  # JAX
    if issubclass(kind, MemoryError) or kind.__name__ == "ResourceExhaustedError" or exhausted:  # TensorFlow
        print(f"{os.path.basename(sys.argv[0])}: out of memory; {ADVICE}", file=sys.stderr)
        return
    if not (received or issubclass(kind, KeyboardInterrupt)):
        sys.__excepthook__(kind, error, traceback)
        return
    what = "terminated" if received == signal.SIGTERM else "interrupted"
    print(f"\n{os.path.basename(sys.argv[0])}: {what}", file=sys.stderr)
    if not issubclass(kind, KeyboardInterrupt):  # after which Python exits as shells expect
        sys.exit(128 + received)


sys.excepthook, sys.unraisablehook = explain, unraisable
for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # not ignored, as with nohup
        signal.signal(number, interrupt)
