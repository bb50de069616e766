"""Measures speed and memory. Everything is measured in turn within one run, so that the ratios hold on a noisy machine.

python train/benchmark.py step     fit.py against a bare compiled step, Keras as it is, and PyTorch if installed
python train/benchmark.py input    batches of augmented images against training steps
python train/benchmark.py input --data FOLDER
                                   batches of augmented photographs against other ways to make them
python train/benchmark.py start    time until the first step is done, and peak memory
"""

import argparse
import contextlib
import io
import multiprocessing
import multiprocessing.pool
import os
import resource
import statistics
import tempfile
import time

import quiet  # noqa: F401, first, before anything that imports TensorFlow

# isort: split
import keras
import numpy as np
import tensorflow as tf

from keras_resnet import models
from keras_resnet.data import cifar, color, folders, imagenet, shapes, sources
from keras_resnet.optimizers import SGD, StepSchedule
from keras_resnet.training import run
from keras_resnet.training.checkpoint import Checkpoint, StopSignals
from keras_resnet.training.fused import fuse_batch_norm, skip_graph_optimizer
from keras_resnet.training.history import History

try:
    from PIL import Image
except ImportError:
    Image = None
try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    torch = None


def trainer(depth, as_fit=True):
    """The model that fit.py trains, or the same as a Keras user would compile it."""
    model = models.CifarResNet(depth, classifier_activation=None, normalization=(120.0, 1.0))
    if as_fit:
        fuse_batch_norm(model)
        run.compile_for_training(model)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(SGD(), loss, metrics=["accuracy"], jit_compile=False)
    return model


def batch(size):
    images, labels = shapes.draw(size, seed=0)
    return tf.constant(images, "float32"), tf.constant(labels)


def bare_step(model, data):
    """The compiled train step on one batch that is already there."""
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(data).repeat())
    return lambda: float(model.train_function(batches)["loss"])


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


def inputs(options):
    if options.data:
        photographs(options)
        return
    data = batch(options.batch_size)
    skip_graph_optimizer()
    train = bare_step(trainer(options.depth), data)
    train()
    images, labels = shapes.draw(50_000, seed=0)
    mean = cifar.per_pixel_mean(images)
    batches = iter(cifar.training_batches(sources.Split(images, labels), mean, batch_size=options.batch_size, seed=0))
    next(batches)
    rates = {"augmented batches": [], f"ResNet-{options.depth} training steps": []}
    for _ in range(options.rounds):
        for (_, list_of_rates), work, times in zip(
            rates.items(), (lambda: next(batches), train), (50 * options.steps, options.steps), strict=True
        ):
            begin = time.perf_counter()
            for _ in range(times):
                work()
            list_of_rates.append(options.batch_size * times / (time.perf_counter() - begin))
    fast, slow = rates.values()
    for name, values in rates.items():
        print(f"{name:<32}{statistics.median(values):>10.0f} images/s")
    ratio = statistics.median(a / b for a, b in zip(fast, slow, strict=True))
    print(f"ratio {ratio:.0f}, median of {options.rounds} rounds")


def literal(path, normal):
    """P1 3.4 word for word: the whole image is decoded and resized, then cropped. A function for tf.data."""
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    side = tf.random.uniform((), *imagenet.SHORTER_SIDES, "int32")
    image = tf.image.resize(image, imagenet.resized_shape(tf.shape(image)[:2], side))
    crop = tf.image.random_flip_left_right(tf.image.random_crop(image, (imagenet.IMAGE_SIZE, imagenet.IMAGE_SIZE, 3)))
    return crop + color.shifts(color.IMAGENET, normal[None])[0]


def pillow(path, rng):
    """The same in Pillow, as quickly as it can: the JPEG decoder scales, only the crop is resized."""
    size = imagenet.IMAGE_SIZE
    with Image.open(path) as image:
        side = rng.integers(*imagenet.SHORTER_SIDES)
        resized = [round(length * side / min(image.size)) for length in image.size]
        corner = [rng.integers(length - size + 1) for length in resized]
        image.draft("RGB", resized)  # the least size that the decoder has and that is no smaller
        box = [(c + s) * now / new for s in (0, size) for c, now, new in zip(corner, image.size, resized, strict=True)]
        image = image if image.mode == "RGB" else image.convert("RGB")
        crop = image.resize((size, size), Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shift = np.tile(color.shifts(color.IMAGENET, rng.standard_normal(3, "float32")), size)
    return (np.asarray(crop, "float32").reshape(size, 3 * size) + shift).reshape(size, size, 3)


def settle():
    """Waits until the streams that are not asked for batches have filled their queues."""
    used = -1
    while time.process_time() - used > 0.005:
        used = time.process_time()
        time.sleep(0.05)


def photographs(options):
    files, size = folders.load(options.data).train, options.batch_size
    paths = tf.constant(files.paths)
    normal = tf.random.stateless_normal((len(files.paths), 3), (0, 0))
    examples = tf.data.Dataset.from_tensor_slices((paths, normal)).repeat()

    def stream(work):
        return iter(examples.map(work, num_parallel_calls=os.cpu_count()).batch(size).prefetch(2))

    def decode(path, _):
        return tf.shape(tf.io.decode_jpeg(tf.io.read_file(path), channels=3))

    ours = iter(imagenet.training_batches(files, batch_size=size, seed=0))
    rivals = {
        "decode the whole JPEG, nothing else": stream(decode),
        "decode, resize, crop, flip, noise": stream(literal),
    }
    works = {"ours": lambda: next(ours)}
    works |= {name: lambda batches=batches: next(batches) for name, batches in rivals.items()}
    if Image:
        pool, rng = multiprocessing.pool.ThreadPool(), np.random.default_rng(0)  # Pillow's work leaves the lock

        def pillow_batch():
            chosen = [(files.paths[i], np.random.default_rng(i)) for i in rng.integers(len(files.paths), size=size)]
            return np.stack(pool.starmap(pillow, chosen))

        works["Pillow, draft mode and boxed resize"] = pillow_batch
    seconds, cpu_seconds = {name: [] for name in works}, {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            settle()
            for _ in range(4):  # what lies in the queues was made before
                work()
            begin, used = time.perf_counter(), time.process_time()
            for _ in range(options.steps):
                work()
            seconds[name].append(time.perf_counter() - begin)
            cpu_seconds[name].append(time.process_time() - used)
    print(f"{len(files.paths)} photographs, batches of {size}, {os.cpu_count()} cores")
    print(f"medians of {options.rounds} turns of {options.steps} batches\n")
    print(f"{'':<38}{'images/s':>10}{'ours / this':>14}{'CPU ms/image':>15}{'this / ours':>14}")
    for name, values in seconds.items():
        n = size * options.steps
        rate, work = n / statistics.median(values), 1000 * statistics.median(cpu_seconds[name]) / n
        faster, less = (
            statistics.median(other / own for own, other in zip(times["ours"], times[name], strict=True))
            for times in (seconds, cpu_seconds)
        )
        print(f"{name:<38}{rate:>10.0f}{faster:>14.2f}{work:>15.2f}{less:>14.2f}")


def start_once(as_fit, depth, batch_size, results):
    """In a process of its own: seconds to build, until the first step is done and for a later one; peak GiB."""
    data = batch(batch_size)
    begin = time.perf_counter()
    if as_fit:
        skip_graph_optimizer()
    model = trainer(depth, as_fit)
    built = time.perf_counter()
    with models.recursion_limit(20 * depth):
        one = bare_step(model, data)
        one()
    first = time.perf_counter()
    later = []
    for _ in range(5):
        before = time.perf_counter()
        one()
        later.append(time.perf_counter() - before)
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results.put((built - begin, first - built, statistics.median(later), gibibytes))


def start(options):
    print(f"ResNet-{options.depth}, batch {options.batch_size}, medians of {options.rounds} processes each\n")
    print(f"{'':<18}{'build':>8}{'first step':>12}{'later step':>12}{'peak memory':>14}")
    context = multiprocessing.get_context("spawn")
    measured = {True: [], False: []}
    for _ in range(options.rounds):
        for as_fit, values in measured.items():
            results = context.Queue()
            process = context.Process(target=start_once, args=(as_fit, options.depth, options.batch_size, results))
            process.start()
            values.append(results.get())
            process.join()
    for as_fit, values in measured.items():
        build, first, later, peak = np.median(values, axis=0)
        name = "fit.py" if as_fit else "Keras as it is"
        print(f"{name:<18}{build:>6.1f} s{first:>10.1f} s{later:>10.2f} s{peak:>10.1f} GiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "input", "start"))
    parser.add_argument("--depth", type=int, help="of the CIFAR network (default 20; start: 110)")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step (default 128)")
    parser.add_argument("--data", help="input: a folder of images")
    parser.add_argument("--rounds", type=int, help="turns to take the median of (default 7; start: 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn (default 20)")
    options = parser.parse_args()
    options.depth = options.depth or (110 if options.what == "start" else 20)
    options.rounds = options.rounds or (3 if options.what == "start" else 7)
    {"step": step, "input": inputs, "start": start}[options.what](options)


if __name__ == "__main__":
    main()
