"""What a checkpoint costs, beside the steps from one to the next."""

import os
import statistics
import tempfile
import time

from benchmarks.common import bare_step, batch, trainer

from keras_resnet.training.checkpoint import Checkpoint, StopSignals
from keras_resnet.training.fused import skip_graph_optimizer
from keras_resnet.training.settings import Settings


def checkpoint(options):
    skip_graph_optimizer()
    model = trainer(options.depth)
    step = bare_step(model, batch(options.batch_size))
    step()
    every, seconds = Settings.checkpoint_every, {"step": [], "checkpoint": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the disk where runs are
        path = os.path.join(folder, "latest.npz")
        saver = Checkpoint(
            path, model, every=every, steps_per_epoch=every, steps=every, callbacks=[], stop=StopSignals()
        )
        for _ in range(options.rounds):
            for name, work in (("step", step), ("checkpoint", saver.save)):
                begin = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - begin)
        size = os.path.getsize(path) / 1e6
    one_step, one_checkpoint = map(statistics.median, seconds.values())
    print(f"ResNet-{options.depth}, batch {options.batch_size}, medians of {options.rounds}")
    print(f"a step {one_step:.3f} s, a checkpoint of {size:.1f} MB {one_checkpoint:.3f} s")
    print(f"one each {every} steps, the default, costs {one_checkpoint / (every * one_step):.3%} of the run")
