"""Measures speed and memory. Everything is measured in turn within one run, so that the ratios hold on a noisy machine.

python train/benchmark.py step     fit.py against a bare compiled step, Keras as it is, and PyTorch if installed
python train/benchmark.py input    batches of augmented images against training steps
python train/benchmark.py input --data FOLDER
                                   batches of augmented photographs against other ways to make them
python train/benchmark.py start    time until the first step is done, and peak memory
python train/benchmark.py checkpoint
                                   a checkpoint against the steps from one to the next
python train/benchmark.py serve    exports of ResNet-50 against that of keras.applications
"""

import argparse

import quiet  # noqa: F401, first, before anything that imports TensorFlow

# isort: split
from benchmarks.checkpoint import checkpoint
from benchmarks.input import inputs
from benchmarks.serve import serve
from benchmarks.start import start
from benchmarks.step import step

BENCHMARKS = {"step": step, "input": inputs, "start": start, "checkpoint": checkpoint, "serve": serve}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("--depth", type=int, help="of the CIFAR network (default 20; start, checkpoint: 110)")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step (default 128)")
    parser.add_argument("--data", help="input: a folder of images")
    parser.add_argument("--rounds", type=int, help="turns to take the median of (default 7; start: 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn (default 20)")
    options = parser.parse_args()
    options.depth = options.depth or (110 if options.what in ("start", "checkpoint") else 20)
    options.rounds = options.rounds or (3 if options.what == "start" else 7)
    BENCHMARKS[options.what](options)


if __name__ == "__main__":
    main()
