"""Time until the end of the first step, and peak memory."""

import contextlib
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from benchmarks.common import as_fit_runs, as_keras_is, ghost_batches, keras_step, our_step

from keras_resnet import models
from keras_resnet.training.hardware import choose_threads


def start_once(as_fit, depth, batch_size):
    """In its own process: seconds to build the model, for the first step and for a later one; peak GiB."""
    if as_fit:
        choose_threads(ghost_batches(depth, batch_size))
    begin = time.perf_counter()
    with as_fit_runs() if as_fit else contextlib.nullcontext(), models.recursion_limit(20 * depth):
        one = our_step(depth, batch_size)[0] if as_fit else keras_step(as_keras_is(depth), batch_size, depth)
        built = time.perf_counter()
        one()
        first = time.perf_counter()
        later = []
        for _ in range(5):
            before = time.perf_counter()
            one()
            later.append(time.perf_counter() - before)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, elsewhere KiB
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return built - begin, first - built, statistics.median(later), gibibytes


def measure(options):
    print(f"ResNet-{options.depth}, batch {options.batch_size}, medians of {options.rounds} processes each\n")
    print(f"{'':<18}{'build':>8}{'first step':>12}{'later step':>12}{'peak memory':>14}")
    context = multiprocessing.get_context("spawn")
    measured = {True: [], False: []}
    for _ in range(options.rounds):
        for as_fit, values in measured.items():
            with ProcessPoolExecutor(1, context) as process:
                values.append(process.submit(start_once, as_fit, options.depth, options.batch_size).result())
    for as_fit, values in measured.items():
        build, first, later, peak = np.median(values, axis=0)
        name = "fit.py" if as_fit else "Keras as it is"
        print(f"{name:<18}{build:>6.1f} s{first:>10.1f} s{later:>10.2f} s{peak:>10.1f} GiB")
