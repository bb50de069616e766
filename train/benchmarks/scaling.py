"""One network on two devices and on two workers, against two independent processes."""

import json
import os
import socket
import statistics

import numpy as np
import tensorflow as tf
from benchmarks.common import batch, network
from benchmarks.turns import take_turns

from keras_resnet.training import Settings, hardware, tasks, tensorflow


def _cluster():
    """The cluster in TF_CONFIG: two workers on loopback."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return {"worker": [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other)]}


def train(turn, depth, images, mixed_precision, core=None, devices=1, cluster=None):
    """fit.py's loop on one batch of `images` images in memory, ghost batches of 64, on one of two cores or on both."""
    two = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, two if core is None else {two[core]})
    tf.config.set_visible_devices([], "GPU")
    if cluster:
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": core}})
    if devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    strategy = "multiworker" if cluster else "mirrored" if devices > 1 else "none"
    settings = Settings(depth=depth, batch_size=images, mixed_precision=mixed_precision, strategy=strategy)
    with tensorflow.devices(settings) as found:
        share = tf.data.Dataset.from_tensors(batch(images // found.count)).repeat()
        task = tasks.Task((), images, None, lambda step, shards: share, {}, None, set())
        engine, step = tensorflow.Engine(settings, task, network(depth), found), 0
        while True:
            found.exchange(0, 0)  # as the loop does before each span
            engine.run(step, np.array([0.1], "float32"))
            step += 1
            turn()


def measure(options):
    cluster, run = _cluster(), (train, options.depth)
    whole, part, precision = options.batch_size, options.batch_size // 2, options.mixed_precision
    rivals = {
        "two independent processes": [(*run, part, precision, core) for core in range(2)],
        "one device": [(*run, whole, precision)],
        "two logical devices": [(*run, whole, precision, None, 2)],
        "two workers": [(*run, whole, precision, core, 1, cluster) for core in range(2)],
    }
    seconds, _ = take_turns(rivals, options.steps, options.rounds)
    first = seconds[next(iter(seconds))]
    what = f"ResNet-{options.depth}, {precision or 'float32'}, {part} images on each of two cores"
    print(f"{what}, medians of {options.rounds} rounds of {options.steps} steps on {hardware.cores_in_words()}")
    print("relative: throughput relative to the first row, higher is better\n")
    print(f"{'':<32}{'images/s':>10}{'relative':>20}")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        print(f"{name:<32}{whole * options.steps / statistics.median(values):>10.4g}{ratio:>20.2f}")
