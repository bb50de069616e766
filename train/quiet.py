"""Imports the library and TensorFlow, without the lines about its build that TensorFlow logs first.

Without TensorFlow, or with another backend, the program ends here with a message that says what to do.
"""

import os
import signal
import sys

import arguments

from keras_resnet import environment

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if backend != "tensorflow":
    sys.exit(
        f"{arguments.program} runs on TensorFlow; KERAS_BACKEND is {backend}. Unset it, or use the networks and the "
        "optimizer of keras_resnet in Keras code of your own, which run on any backend."
    )
if lacking := environment.needed("keras", "tensorflow"):
    sys.exit(f"{arguments.program} {lacking}")
_masks = hasattr(signal, "pthread_sigmask")  # not on Windows
if _masks:  # the signals would abort the import
    _signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
_stderr = os.dup(2)
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    arguments.load_library()
    import tensorflow as tf

    tf.config.list_physical_devices()
    missing = None
except ModuleNotFoundError as error:  # of what TensorFlow itself needs
    missing = error.name
finally:
    sys.stderr.flush()
    os.dup2(_stderr, 2)
    if _masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, _signals)
if missing:
    sys.exit(f"{arguments.program} needs the package {environment.install(missing)}")
