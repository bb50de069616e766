"""The version of the code that runs."""

import os
import subprocess


def commit() -> str | None:
    """The git commit of this package, with "-dirty" if its files were changed; None if git does not track them.

    A package installed inside another repository does not have that repository's commit.
    """
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")
        return _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments):
    command = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
