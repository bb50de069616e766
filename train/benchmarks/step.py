"""A training step: fit.py against a bare compiled step, Keras as it is, keras.applications and PyTorch."""

import contextlib
import io
import os
import statistics
import tempfile

import keras
import tensorflow as tf
from benchmarks.common import IMAGENET, bare_step, batch, parts, trainer
from benchmarks.turns import ENDLESS, take_turns
from keras_resnet.training.step import cores

from keras_resnet.data import cifar, sources
from keras_resnet.optimizers import StepSchedule
from keras_resnet.training import distribution, run
from keras_resnet.training.checkpoint import Checkpoint, StopSignals
from keras_resnet.training.fused import graphs_as_traced
from keras_resnet.training.history import History


@graphs_as_traced()
def fit(turn, depth, batch_size, mixed_precision):
    """fit.py's loop: augmentation, callbacks, progress bar, checkpoints; photographs are one batch in memory."""
    distribution.strategy("none", parts(depth, batch_size))
    model = trainer(depth, True, batch_size, mixed_precision)
    if depth in IMAGENET:
        data = tf.data.Dataset.from_tensors(batch(batch_size, depth)).repeat()
    else:
        source = sources.load("shapes")
        mean = sources.per_pixel_mean(source.train.images)
        data = cifar.training_batches(source.train, mean, batch_size=batch_size, seed=0)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), StopSignals() as stop:
        callbacks = [StepSchedule(), History(folder, "")]
        checkpoint = Checkpoint(
            os.path.join(folder, "latest.npz"), model, every=200, steps_per_epoch=ENDLESS, steps=ENDLESS,
            callbacks=callbacks, stop=stop,
        )  # fmt: skip
        callbacks += [keras.callbacks.TensorBoard(folder, write_graph=False), checkpoint, turn]
        options = {"first_step": 0, "steps": ENDLESS, "steps_per_epoch": ENDLESS, "callbacks": callbacks}
        run.fit(model, lambda first: data, **options)


def bare(turn, depth, batch_size, kind):
    """A compiled step on one batch in memory: "ours", "Keras as it is" or "keras.applications"."""
    if kind == "ours":
        distribution.strategy("none", parts(depth, batch_size))
    with graphs_as_traced() if kind == "ours" else contextlib.nullcontext():
        if kind == "keras.applications":
            model = keras.applications.ResNet50(weights=None)
            model.compile(keras.optimizers.SGD(0.1, 0.9), "sparse_categorical_crossentropy", jit_compile=False)
        else:
            model = trainer(depth, kind == "ours", batch_size)
        step = bare_step(model, batch(batch_size, depth))
        while True:
            step()
            turn()


def pytorch(turn, depth, batch_size, bfloat16, compiled):
    import torch
    from benchmarks import torch_networks

    torch.set_num_threads(cores())
    data = [values.numpy() for values in batch(batch_size, depth)]
    step = torch_networks.training_step(depth, *data, bfloat16, compiled)
    while True:
        step()
        turn()


def rivals(depth):
    """By precision: each rival's function and arguments by name. The others are compared with the first one."""
    found = {"float32": {"fit.py": (fit, None)}, "bfloat16": {"fit.py --mixed-precision bfloat16": (fit, "bfloat16")}}
    if depth in IMAGENET:
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
    print(f"{what}, medians of {options.rounds} turns of {options.steps} steps on {distribution.devices()}\n")
    print(f"{'':<40}{'images/s':>10}{'fit.py / this':>16}{'first step':>14}")
    for names in found.values():
        ours = seconds[next(iter(names))]
        for name in names:
            ratio = statistics.median(b / a for a, b in zip(ours, seconds[name], strict=True))
            print(f"{name:<40}{images / statistics.median(seconds[name]):>10.4g}{ratio:>16.2f}{first[name]:>12.1f} s")
