"""A training step: fit.py against a bare compiled step, Keras as it is, keras.applications and PyTorch."""

import contextlib
import importlib
import io
import statistics
import tempfile

import keras
from benchmarks.common import RESNET50, as_fit_runs, as_keras_is, batch, ghost_batches, keras_step, network, our_step
from benchmarks.turns import ENDLESS, take_turns

from keras_resnet import analysis
from keras_resnet.training import Settings, engine, hardware, loop, tasks, train


def fit(turn, depth, batch_size, mixed_precision):
    """fit.py's loop: augmentation, history, progress bar, checkpoints; for ImageNet, one batch in memory."""
    ours = importlib.import_module(engine.ENGINES[keras.backend.backend()]).Engine
    run = ours.run

    def in_turn(self, first, rates):
        means = run(self, first, rates)
        turn(len(rates))
        return means

    ours.run, loop.Loop.next_pace = in_turn, lambda self, count, seconds: turn.steps
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = {"depth": depth, "batch_size": batch_size, "mixed_precision": mixed_precision, "strategy": "none"}
        options |= {"steps": ENDLESS, "output": folder, "schedule": "steps"}
        if depth == RESNET50:
            tasks.of = lambda folder, verbose: _one_batch(folder.settings)
            train(Settings(dataset=folder, **options))
        else:
            train(Settings(dataset="shapes", train_on_all=True, **options))


def _one_batch(settings):
    """The task of a run whose batches are all the same."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensors(batch(settings.batch_size, settings.depth)).repeat()
    classes = tuple(map(str, range(1000)))
    return tasks.Task(classes, ENDLESS, lambda: network(settings.depth), lambda step, shards: data, {}, None, set())


def bare(turn, depth, batch_size, kind):
    """A compiled step on one batch in memory: "ours", "Keras as it is" or "keras.applications"."""
    if kind == "ours" and keras.backend.backend() == "tensorflow":
        hardware.choose_threads(ghost_batches(depth, batch_size))
    with as_fit_runs() if kind == "ours" else contextlib.nullcontext():
        if kind == "ours":
            step, *_ = our_step(depth, batch_size)
        elif kind == "keras.applications":
            model = keras.applications.ResNet50(weights=None)
            jit = keras.backend.backend() == "jax"
            model.compile(keras.optimizers.SGD(0.1, 0.9), "sparse_categorical_crossentropy", jit_compile=jit)
            step = keras_step(model, batch_size, depth)
        else:
            step = keras_step(as_keras_is(depth), batch_size, depth)
        while True:
            step()
            turn()


def pytorch(turn, depth, batch_size, bfloat16, compiled):
    import torch
    from benchmarks import torch_networks

    torch.set_num_threads(hardware.cores())
    step = torch_networks.training_step(depth, *batch(batch_size, depth), bfloat16, compiled)
    while True:
        step()
        turn()


def rivals(depth):
    """By precision: each rival's function and arguments by name. The first is the baseline."""
    found = {"float32": {"fit.py": (fit, None)}, "bfloat16": {"fit.py --mixed-precision bfloat16": (fit, "bfloat16")}}
    if depth == RESNET50:
        found["float32"]["keras.applications"] = (bare, "keras.applications")
    else:
        found["float32"] |= {"bare compiled step": (bare, "ours"), "Keras as it is": (bare, "Keras as it is")}
    try:
        import torch
    except ImportError:
        return found
    for arithmetic, names in found.items():
        for way, compiled in (("eager", False), ("torch.compile", True)):
            names[f"PyTorch {torch.__version__}, {way}, {arithmetic}"] = (pytorch, arithmetic == "bfloat16", compiled)
    return found


def measure(options):
    found = rivals(options.depth)
    processes = {
        name: [(work, options.depth, options.batch_size, *arguments)]
        for names in found.values()
        for name, (work, *arguments) in names.items()
    }
    seconds, first = take_turns(processes, options.steps, options.rounds)
    images, what = options.batch_size * options.steps, f"ResNet-{options.depth}, batch {options.batch_size}"
    devices, peaks = described()
    operations = 6 * analysis.count_macs(network(options.depth))  # per image: 1 pass forward, 2 back
    print(f"{what}, medians of {options.rounds} rounds of {options.steps} steps on {devices}")
    print("speed-up: images/s of fit.py divided by this row's, above 1 fit.py is faster\n")
    print(f"{'':<40}{'images/s':>10}{'speed-up':>16}{'first step':>14}{'of the peak':>14}")
    for arithmetic, names in found.items():
        ours = seconds[next(iter(names))]
        for name in names:
            ratio = statistics.median(b / a for a, b in zip(ours, seconds[name], strict=True))
            rate, peak = images / statistics.median(seconds[name]), peaks[arithmetic]
            share = f"{rate * operations / peak:>14.1%}" if peak else ""
            print(f"{name:<40}{rate:>10.4g}{ratio:>16.2f}{first[name]:>12.1f} s{share}")


def described():
    """The device, for printing, and its peak operations/s by precision, or None."""
    with importlib.import_module(engine.ENGINES[keras.backend.backend()]).devices(Settings(strategy="none")) as devices:
        return devices, {name: hardware.peak(devices.names[0], name) for name in ("float32", "bfloat16")}
