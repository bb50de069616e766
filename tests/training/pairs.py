"""Runs that together cover every pair of values of the settings; `test_pairs.py` starts it.

    python tests/training/pairs.py FOLDER stop SPACE    trains each run to the end, and again, stopped after 2 steps
    python tests/training/pairs.py FOLDER resume SPACE  resumes the stopped runs in another order; evaluates, exports

SPACE is small_images or imagenet_style, whose images are drawn; a number after it limits the number of runs. The
first command writes FOLDER/weights.npz, the final weights of each run; the second command compares with them.
"""

import itertools
import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from distributed import small_shapes
from PIL import Image

import keras_resnet
from keras_resnet import evaluation, files, serving
from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.data import imagenet, records, shapes, sources
from keras_resnet.training import distribution, loop, signals
from keras_resnet.training.settings import Settings

DEVICES = 2  # logical ones, of which "none" uses one
DATA, TRAINED = "photographs", "trained.keras"  # in FOLDER, where the runs are made
CIFAR = {
    "base": ({"dataset": "shapes", "steps": 4, "batch_size": 16, "lr": 0.01, "checkpoint_every": 3},),
    "network": (
        {"depth": 8},
        {"depth": 8, "plain": True},
        {"depth": 11, "block": "bottleneck"},
        {"depth": 8, "activation_order": "full_preactivation"},
        {"depth": 8, "shortcut_variant": "dropout"},
    ),
    "shortcut": ("A", "B", "C"),
    "mixed_precision": (None, "float16", "bfloat16"),
    "strategy": ("none", "mirrored"),
    "sync_bn": (False, True),
    "bn_batch_size": (None, 4),
    "accumulate": (1, 2),
    "schedule": ("steps", "plateau"),
    "warmup": (False, True),
    "train_on_all": (False, True),
}
IMAGENET = {
    "base": ({"dataset": DATA, "steps": 4, "batch_size": 8, "lr": 0.001, "checkpoint_every": 3},),
    "network": (
        {"depth": 18, "activation_order": "full_preactivation"},
        {"depth": 18, "plain": True},
        {"depth": 18, "init_from": TRAINED, "freeze_until": "conv3"},
        {"depth": 50},
    ),
    "shortcut": (None, "A"),
    "image_size": (40, IMAGE_SIZE // 4),
    "without": ((), ("scale", "color"), ("crop", "flip"), ("mean",)),
    "colors": (None, "imagenet"),
    "skip_damaged": (False, True),
    "mixed_precision": (None, "float16", "bfloat16"),
    "strategy": ("none", "mirrored"),
    "bn_batch_size": (None, 2),
    "accumulate": (1, 2),
    "schedule": ("steps", "plateau"),
}
SPACES = {"small_images": CIFAR, "imagenet_style": IMAGENET}


def settings(values, **others):
    """The `Settings` with these values; RunError if they exclude each other."""
    values = {**values, **others}
    found = Settings(**values.pop("base"), **values.pop("network"), **values)
    if found.init_from and found.shortcut == "A":
        raise files.RunError("what is trained has option B")
    if found.strategy == "mirrored" and found.sync_bn and found.accumulate > 1:
        raise files.RunError("which replicas cannot do")
    return found


def possible(values):
    try:
        settings(values)
    except files.RunError:
        return False
    return True


def pairs(row):
    return set(itertools.combinations(enumerate(row), 2))


def covering_array(space):
    """Combinations of values that contain every possible pair of values of two settings."""
    rng, sizes = np.random.default_rng(0), [len(values) for values in space.values()]
    drawn = {tuple(row) for row in rng.integers(sizes, size=(3000, len(sizes))).tolist()}
    rows = sorted(row for row in drawn if possible(values_of(row, space)))
    left, chosen = set().union(*map(pairs, rows)), []
    while left:
        chosen.append(max(rows, key=lambda row: len(pairs(row) & left)))
        left -= pairs(chosen[-1])
    return [values_of(row, space) for row in chosen]


def values_of(indices, space):
    return {name: values[index] for (name, values), index in zip(space.items(), indices, strict=True)}


def draw():
    """An image folder with four classes and two sizes of images, and a trained network."""
    images, labels = shapes.draw(120, seed=0, size=72)
    for label in range(4):
        for i, image in enumerate(images[labels == label][:12]):
            folder = pathlib.Path(DATA, "val" if i < 3 else "train", f"class{label}")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[: 72 - 8 * (i % 2)]).save(folder / f"{i}.jpg")
    keras_resnet.ResNet18(classes=7, normalization="torch").save(TRAINED)


def stops_after_two(running, count, seconds):
    if running.state.step + count == 2:
        signal.raise_signal(signal.SIGTERM)
    return 1


def model_of(folder):
    return keras.saving.load_model(os.path.join(folder, "model.keras"))


def tested(settings):
    """The evaluation of a run: pixels, labels, the same as a data set, class names, protocol and crop."""
    if settings.imagenet_style:
        data = records.splits(settings.dataset)
        crops = imagenet.center_batches(data.validation, image_size=settings.image_size)
        pixels, labels = (np.concatenate(parts) for parts in zip(*crops.as_numpy_iterator(), strict=True))
        return pixels, labels, imagenet.examples(data.validation), data.classes, "center", settings.image_size
    pixels, labels = sources.load("shapes").test
    examples = tf.data.Dataset.from_tensor_slices((pixels, labels))
    return pixels, labels, examples, sources.shapes.CLASSES, "single", 32


def stop(rows):
    weights = {}
    for number, values in enumerate(rows):
        whole = settings(values, name=f"whole-{number}")
        loop.train(whole, verbose=0)
        for i, array in enumerate(model_of(whole.folder).get_weights()):
            weights[f"{number}/{i}"] = array
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Loop, "next_pace", stops_after_two)
            with pytest.raises(signals.Stopped, match="at step 2"):
                loop.train(settings(values, name=f"stopped-{number}"), verbose=0)
    np.savez("weights.npz", **weights)


def resume(rows):
    saved, failures = np.load("weights.npz"), []
    for number, values in reversed(list(enumerate(rows))):
        stopped = settings(values, name=f"stopped-{number}")
        try:
            result = loop.train(stopped, verbose=0)
            model = model_of(stopped.folder)
            for i, array in enumerate(model.get_weights()):
                np.testing.assert_allclose(array, saved[f"{number}/{i}"], rtol=1e-4, atol=1e-5)
            images, labels, examples, classes, protocol, crop = tested(stopped)
            probabilities = model.predict(images, verbose=0)
            error = (probabilities.argmax(-1) != labels).mean()
            if not (stopped.imagenet_style and stopped.mixed_precision):  # validated as it was trained
                found = result["val_error" if stopped.imagenet_style else "test_error"]
                assert abs(found - error) < 1e-4, (found, error)
            again = evaluation.evaluate(model, examples, classes, protocol, crop=crop, verbose=0)
            np.testing.assert_allclose(again.probabilities, probabilities, rtol=1e-4, atol=1e-5)
            path = serving.export_run(stopped.folder, os.path.join("served", stopped.name))
            served = tf.saved_model.load(path).signatures["serving_default"]
            (pixels,) = served.structured_input_signature[1]
            answer = served(**{pixels: tf.constant(images, "float32")})["probabilities"]
            np.testing.assert_allclose(answer, probabilities, atol=1e-4)
        except Exception as failure:  # all of them are to be told
            failures.append(f"{values}: {type(failure).__name__}: {failure}")
    return failures


def main(folder, what, space, count=None):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    small_shapes(pytest.MonkeyPatch())
    distribution.strategy("mirrored")
    os.chdir(folder)
    if space != "small_images" and not os.path.exists(DATA):
        draw()
    rows = covering_array(SPACES[space])[: count and int(count)]
    failures = {"stop": stop, "resume": resume}[what](rows)
    print(json.dumps({"runs": len(rows)}))
    sys.exit("\n".join(failures) if failures else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
