"""Ends the program in one line where it is interrupted (Ctrl-C) and does not say itself what that means."""

import os
import sys


def explain(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = explain
