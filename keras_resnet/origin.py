"""Which code this is."""

import os
import subprocess


def commit():
    """The git commit of this package's files, with "-dirty" where they are changed; None where git does not keep them.

    A package that is merely installed inside of somebody's repository is not of that repository's commit.
    """
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        for command in ("ls-files --error-unmatch __init__.py", "describe --always --dirty --exclude=*"):
            found = subprocess.run([*git, *command.split()], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
