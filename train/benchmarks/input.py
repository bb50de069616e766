"""Batches of augmented images against training steps; batches of image files against other input pipelines."""

import multiprocessing.pool
import os
import statistics
import time

import numpy as np
import tensorflow as tf
from benchmarks.common import ghost_batches, our_step

from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.data import cifar, color, crops, folders, imagenet, shapes, sources
from keras_resnet.training.fused import graphs_as_traced
from keras_resnet.training.hardware import choose_threads

try:
    from PIL import Image
except ImportError:
    Image = None


@graphs_as_traced()
def measure(options):
    if options.data:
        image_files(options)
        return
    choose_threads(ghost_batches(options.depth, options.batch_size))  # before anything is computed
    train, *_ = our_step(options.depth, options.batch_size)
    train()
    images, labels = shapes.draw(50_000, seed=0)
    mean = sources.per_pixel_mean(images)
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
    print(f"batches per training step: {ratio:.0f}, median of {options.rounds} rounds")


def literal(path, normal):
    """P1 3.4 literally: the whole image is decoded and resized, then cropped. A function for tf.data."""
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method=crops.DCT)
    side = tf.random.uniform((), *crops.SHORTER_SIDES, "int32")
    image = tf.image.resize(image, crops.resized_shape(tf.shape(image)[:2], side))
    crop = tf.image.random_flip_left_right(tf.image.random_crop(image, (IMAGE_SIZE, IMAGE_SIZE, 3)))
    return crop + color.shifts(color.IMAGENET, normal[None])[0]


def pillow(path, rng):
    """The same in Pillow, as fast as possible: the JPEG decoder downscales, and only the crop is resized."""
    size = IMAGE_SIZE
    with Image.open(path) as image:
        side = rng.integers(*crops.SHORTER_SIDES)
        resized = [round(length * side / min(image.size)) for length in image.size]
        corner = [rng.integers(length - size + 1) for length in resized]
        image.draft("RGB", resized)  # the decoder's smallest size that is at least `resized`
        box = [(c + s) * now / new for s in (0, size) for c, now, new in zip(corner, image.size, resized, strict=True)]
        image = image if image.mode == "RGB" else image.convert("RGB")
        crop = image.resize((size, size), Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shift = np.tile(color.shifts(color.IMAGENET, rng.standard_normal(3, "float32")), size)
    return (np.asarray(crop, "float32").reshape(size, 3 * size) + shift).reshape(size, size, 3)


def settle():
    """Waits until the idle pipelines have filled their prefetch queues."""
    used = -1
    while time.process_time() - used > 0.005:
        used = time.process_time()
        time.sleep(0.05)


def image_files(options):
    files, size = folders.load(options.data).train, options.batch_size
    paths = tf.constant(files.paths)
    normal = tf.random.stateless_normal((len(files.paths), 3), (0, 0))
    examples = tf.data.Dataset.from_tensor_slices((paths, normal)).repeat()

    def stream(work):
        return iter(examples.map(work, num_parallel_calls=os.cpu_count()).batch(size).prefetch(2))

    def decode(path, _):
        return tf.shape(tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method=crops.DCT))

    ours = iter(imagenet.training_batches(files, batch_size=size, seed=0))
    rivals = {
        "only decode the whole JPEG": stream(decode),
        "decode, resize, crop, flip, noise": stream(literal),
    }
    works = {"ours": lambda: next(ours)}
    works |= {name: lambda batches=batches: next(batches) for name, batches in rivals.items()}
    if Image:
        pool, rng = multiprocessing.pool.ThreadPool(), np.random.default_rng(0)  # Pillow releases the GIL

        def pillow_batch():
            chosen = [(files.paths[i], np.random.default_rng(i)) for i in rng.integers(len(files.paths), size=size)]
            return np.stack(pool.starmap(pillow, chosen))

        works["Pillow, draft mode and boxed resize"] = pillow_batch
    seconds, cpu_seconds = {name: [] for name in works}, {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            settle()
            for _ in range(4):  # these batches were already in the queues
                work()
            begin, used = time.perf_counter(), time.process_time()
            for _ in range(options.steps):
                work()
            seconds[name].append(time.perf_counter() - begin)
            cpu_seconds[name].append(time.process_time() - used)
    print(f"{len(files.paths)} images, batches of {size}, {os.cpu_count()} cores")
    print(f"medians of {options.rounds} rounds of {options.steps} batches; ratios to ours, above 1 ours is better\n")
    print(f"{'':<38}{'images/s':>10}{'our speed-up':>14}{'CPU ms/image':>15}{'CPU ratio':>14}")
    for name, values in seconds.items():
        n = size * options.steps
        rate, work = n / statistics.median(values), 1000 * statistics.median(cpu_seconds[name]) / n
        faster, less = (
            statistics.median(other / own for own, other in zip(times["ours"], times[name], strict=True))
            for times in (seconds, cpu_seconds)
        )
        print(f"{name:<38}{rate:>10.0f}{faster:>14.2f}{work:>15.2f}{less:>14.2f}")
