"""The common part of the programs' command lines, which are parsed before Keras and TensorFlow are imported.

The import takes seconds, too long for --help, --version or a wrong flag. So a program's flags come from modules of
keras_resnet that need neither, and it calls `parse` before it imports the rest. `import keras_resnet` itself imports
Keras; so this module only finds the package, and `load_library` runs its `__init__` later.
"""

import argparse
import importlib.util
import io
import os
import sys
import warnings

import interrupted  # noqa: F401

program = os.path.basename(sys.argv[0])
for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed, as in some daemons
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115
    _stream = getattr(sys, _name)
    if isinstance(_stream, io.TextIOWrapper):  # its encoding may lack characters of file names
        _stream.reconfigure(errors="backslashreplace")
warnings.formatwarning = lambda message, *where, **line: f"{message}\n"  # for users, not for programmers
_spec = importlib.util.find_spec("keras_resnet")
if _spec is None:
    sys.exit(f"{program} needs keras_resnet: pip install . in the folder of the project")
_waiting = "keras_resnet" not in sys.modules  # False in tests, which call several programs in one process
if _waiting:
    sys.modules["keras_resnet"] = importlib.util.module_from_spec(_spec)


def load_library():
    """Imports Keras and keras_resnet, with Keras' default settings, whatever keras.json and the environment say."""
    global _waiting
    if not _waiting:
        return
    _waiting = False
    os.environ["KERAS_NNX_ENABLED"] = "false"
    try:
        import keras  # noqa: F401
    except ValueError as error:
        sys.exit(f"{program}: Keras does not accept keras.json in ~/.keras or $KERAS_HOME, or KERAS_...: {error}")
    _spec.loader.exec_module(sys.modules["keras_resnet"])
    from keras_resnet import environment

    environment.set_values(environment.DEFAULTS)


def parser(description, **options):
    """An `ArgumentParser` with --version whose help prints the description without reformatting it."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    found.add_argument("--version", action="version", version=version(found))
    return found


def version(parser):
    """What --version prints."""
    from keras_resnet.environment import __version__

    return f"{parser.prog} of keras_resnet {__version__}"
