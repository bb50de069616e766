"""The cost of checkpoints: how long one delays training."""

import os
import statistics
import tempfile
import time

from benchmarks.common import ghost_batches, our_step

from keras_resnet.training import Settings
from keras_resnet.training.checkpoint import Checkpoint, variables_of
from keras_resnet.training.folder import CHECKPOINT, Folder
from keras_resnet.training.fused import graphs_as_traced
from keras_resnet.training.hardware import choose_threads


@graphs_as_traced()
def measure(options):
    choose_threads(ghost_batches(options.depth, options.batch_size))
    step, model, optimizer = our_step(options.depth, options.batch_size)
    every = Settings.checkpoint_every
    step()
    seconds = {"a step": [], "copying the variables": [], "until the file is written": [], "delay of training": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the disk that holds the runs
        run = Folder(Settings(dataset="shapes", output=folder, name="run"))
        path = run.path(CHECKPOINT)
        os.makedirs(os.path.dirname(path))
        saver = Checkpoint(run, variables_of(model, optimizer))
        for _ in range(options.rounds):
            begin = time.perf_counter()
            for _ in range(options.steps):
                step()
            undisturbed = (time.perf_counter() - begin) / options.steps
            begin = time.perf_counter()
            saver.save({"step": 1})
            copied, steps = time.perf_counter(), 0
            written = []
            saver.writing.add_done_callback(lambda _, times=written: times.append(time.perf_counter()))
            while not written or steps < options.steps:  # while the thread writes
                step()
                steps += 1
            later = time.perf_counter() - begin - steps * undisturbed
            saver.wait()
            times = undisturbed, copied - begin, written[0] - begin, later
            for values, value in zip(seconds.values(), times, strict=True):
                values.append(value)
        size = os.path.getsize(path) / 1e6
    print(f"ResNet-{options.depth}, batch {options.batch_size}, medians of {options.rounds} rounds")
    print(f"a checkpoint of {size:.1f} MB\n")
    for name, values in seconds.items():
        print(f"{name:<28}{statistics.median(values):>8.3f} s")
    one_step, _, _, later = map(statistics.median, seconds.values())
    print(f"one every {every} steps, the default, costs {later / every / one_step:.3%} of a step on average")
