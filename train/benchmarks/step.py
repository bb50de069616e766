"""A training step: fit.py against a bare compiled step, Keras as it is, and PyTorch if installed."""

import contextlib
import io
import os
import statistics
import tempfile
import time

import keras
import tensorflow as tf
from benchmarks.common import bare_step, batch, trainer

from keras_resnet.data import cifar, sources
from keras_resnet.optimizers import StepSchedule
from keras_resnet.training import run
from keras_resnet.training.checkpoint import Checkpoint, StopSignals
from keras_resnet.training.fused import skip_graph_optimizer
from keras_resnet.training.history import History

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    torch = None


def torch_step(depth, data):
    """The same step in PyTorch: channels last, the same optimizer."""

    class Block(nn.Module):
        def __init__(self, channels_in, channels, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
            self.stride, self.zeros = stride, channels - channels_in

        def forward(self, x):
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)), inplace=True)))
            if self.zeros:
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.zeros))
            return functional.relu(x + y, inplace=True)

    n = (depth - 2) // 6
    widths = [16] + [16] * n + [32] * n + [64] * n
    stages = [Block(a, b, 2 if b > a else 1) for a, b in zip(widths, widths[1:], strict=False)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    network = nn.Sequential(*stem, *stages, *head).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.from_numpy(data[0].numpy()).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(data[1].numpy())

    def step():
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images - 120.0), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


class Turns(keras.callbacks.Callback):
    """In the middle of `fit`: times some of its steps, then as many of each rival, and so on."""

    def __init__(self, rivals, steps):
        super().__init__()
        self.rivals, self.steps = rivals, steps
        self.seconds = {name: [] for name in ("fit.py", *rivals)}

    def on_train_batch_end(self, batch, logs=None):
        if batch and (batch + 1) % self.steps == 0:
            now = time.perf_counter()
            if batch + 1 > self.steps:  # the first turn is to warm up
                self.seconds["fit.py"].append(now - self.started)
            for name, step in self.rivals.items():
                step()
                begin = time.perf_counter()
                for _ in range(self.steps):
                    step()
                if batch + 1 > self.steps:
                    self.seconds[name].append(time.perf_counter() - begin)
            self.started = time.perf_counter()


def step(options):
    data = batch(options.batch_size)
    skip_graph_optimizer()
    rivals = {"bare step": bare_step(trainer(options.depth), data)}
    if torch:
        torch.set_num_threads(os.cpu_count())
        rivals[f"PyTorch {torch.__version__}, channels last"] = torch_step(options.depth, data)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    rivals["Keras as it is"] = bare_step(trainer(options.depth, as_fit=False), data)
    for rival in rivals.values():
        rival()
    skip_graph_optimizer()
    source = sources.load("shapes")
    mean = cifar.per_pixel_mean(source.train.images)
    model, steps = trainer(options.depth), options.steps * (options.rounds + 1)
    turns = Turns(rivals, options.steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), StopSignals() as stop:
        callbacks = [StepSchedule(steps=steps), History(folder, "")]
        checkpoint = Checkpoint(
            os.path.join(folder, "latest.npz"), model, every=options.steps, steps_per_epoch=steps, steps=steps,
            callbacks=callbacks, stop=stop,
        )  # fmt: skip
        run.fit(
            model,
            lambda first: cifar.training_batches(source.train, mean, batch_size=options.batch_size, seed=0),
            first_step=0,
            steps=steps,
            steps_per_epoch=steps,
            callbacks=[*callbacks, keras.callbacks.TensorBoard(folder, write_graph=False), checkpoint, turns],
        )
    turn = f"{options.rounds} turns of {options.steps} steps"
    print(f"ResNet-{options.depth}, batch {options.batch_size}, medians of {turn}")
    print(f"fit.py: augmentation, callbacks, progress bar and a checkpoint every {options.steps} steps\n")
    print(f"{'':<32}{'images/s':>10}{'fit.py / this':>16}")
    for name, seconds in turns.seconds.items():
        rate = options.batch_size * options.steps / statistics.median(seconds)
        ratio = statistics.median(b / a for a, b in zip(turns.seconds["fit.py"], seconds, strict=True))
        print(f"{name:<32}{rate:>10.0f}{ratio:>16.2f}")
