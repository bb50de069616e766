"""Imports TensorFlow, which the programs need, without the lines about its build that it logs first.

Without TensorFlow, or with another backend, the program ends here with a message that says what to do.
"""

import os
import signal
import sys

import interrupted  # noqa: F401

program = os.path.basename(sys.argv[0])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if backend != "tensorflow":
    sys.exit(
        f"{program} runs on TensorFlow; KERAS_BACKEND is {backend}. Unset it, or use the networks and the optimizer of "
        "keras_resnet in Keras code of your own, which run on any backend."
    )
_signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # they would abort the import
_stderr = os.dup(2)
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import tensorflow as tf

    tf.config.list_physical_devices()
    missing = None
except ModuleNotFoundError as error:
    missing = error.name
finally:
    sys.stderr.flush()
    os.dup2(_stderr, 2)
    signal.pthread_sigmask(signal.SIG_SETMASK, _signals)
if missing:
    sys.exit(f'{program} needs the package {missing}: pip install ".[train]"')
