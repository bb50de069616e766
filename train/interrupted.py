"""Ends the program in one line where it is interrupted (Ctrl-C, SIGTERM) and does not say itself what that means.

Either signal raises an exception, on whose way out what is half made is removed.
"""

import os
import signal
import sys
import threading


class Terminated(BaseException):
    """SIGTERM came."""


received = None  # the last signal


def interrupt(number, frame=None):
    global received
    received = number
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def insist():
    """Raises the exception again: libraries in C++ may have made an error of their own of it."""
    if received:
        interrupt(received)


def unraisable(ignored):
    """Raises the exception again, a little later, where Python ignores it: in callbacks of the garbage collector."""
    if issubclass(ignored.exc_type, (KeyboardInterrupt, Terminated)):
        threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, received)).start()
    else:
        sys.__unraisablehook__(ignored)


def explain(kind, error, traceback):
    if not (received or issubclass(kind, KeyboardInterrupt)):
        sys.__excepthook__(kind, error, traceback)
        return
    what = "terminated" if received == signal.SIGTERM else "interrupted"
    print(f"\n{os.path.basename(sys.argv[0])}: {what}", file=sys.stderr)
    if not issubclass(kind, KeyboardInterrupt):  # of which Python dies as shells expect
        sys.exit(128 + received)


sys.excepthook, sys.unraisablehook = explain, unraisable
for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # not ignored, as with nohup
        signal.signal(number, interrupt)
