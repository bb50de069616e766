"""Measures speed and memory. Variants alternate within one run, so that ratios are valid on a noisy machine.

python train/benchmark.py step     fit.py in float32 and bfloat16 against a bare compiled step, Keras as it is and, if
                                   installed, PyTorch, eager and compiled; --depth 50 against keras.applications
python train/benchmark.py scaling  two logical devices and two workers against two independent processes
python train/benchmark.py input    batches of augmented images against training steps
python train/benchmark.py input --data FOLDER
                                   batches of augmented images against other input pipelines
python train/benchmark.py start    time until the end of the first step, and peak memory
python train/benchmark.py checkpoint
                                   how long a checkpoint delays training
python train/benchmark.py serve    exports of ResNet-50 against that of keras.applications
python train/benchmark.py load     images/s and latencies of a server of ResNet-50 with 1, 4 and 16 clients
"""

import argparse
import importlib
import os
import sys

import arguments

from keras_resnet import environment
from keras_resnet.architecture import cifar
from keras_resnet.training.settings import PRECISIONS

BENCHMARKS = ("step", "scaling", "input", "start", "checkpoint", "serve", "load")  # modules in benchmarks/


def positive(text):
    """A positive integer for argparse, with a message for anything else."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a positive integer is needed; found {text}")
    return int(text)


def parse(words=None):
    parser = arguments.parser(__doc__)
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("--depth", type=positive, help="6n+2, or 50 for ResNet-50 (default 20; start, checkpoint: 110)")
    parser.add_argument("--batch-size", type=positive, help="images per step (default 128; for 224x224: 16)")
    parser.add_argument("--data", help="input: an image folder")
    parser.add_argument("--rounds", type=positive, help="rounds, of which the median is printed (default 7; start: 3)")
    parser.add_argument("--steps", type=positive, help="steps per round (default 20; for 224x224: 2)")
    parser.add_argument("--seconds", type=positive, default=30, help="load: length of a round (default %(default)s)")
    parser.add_argument("--mixed-precision", choices=PRECISIONS, help="scaling: as in fit.py (default float32)")
    options = parser.parse_args(words)
    options.depth = options.depth or (110 if options.what in ("start", "checkpoint") else 20)
    options.rounds = options.rounds or (3 if options.what == "start" else 7)
    imagenet = options.depth == 50
    try:
        cifar(20 if imagenet else options.depth, "basic")
    except ValueError as error:
        parser.error(f"--{error}; 50 is ImageNet's")
    options.batch_size = options.batch_size or (16 if imagenet else 128)
    options.steps = options.steps or (2 if imagenet else 20)
    return options


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import backend

backend.choose("tensorflow", "jax")  # first, before anything that imports Keras


def main():
    options = parse()
    try:
        if options.what == "scaling" and not hasattr(os, "sched_setaffinity"):
            sys.exit("benchmark.py: scaling pins each process to a core, which only Linux supports")
        measure = importlib.import_module(f"benchmarks.{options.what}").measure
    except ModuleNotFoundError as error:
        if error.name == "resource":
            sys.exit(f"benchmark.py: {options.what} measures memory, for which it needs Linux or macOS")
        sys.exit(f"benchmark.py: {options.what} needs the package {environment.install(error.name.split('.')[0])}")
    measure(options)


if __name__ == "__main__":
    main()
