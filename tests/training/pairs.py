"""Runs that together have every pair of values of the settings; `test_pairs.py` starts it.

    python tests/training/pairs.py FOLDER stop    trains each run whole, and again until it is stopped after two steps
    python tests/training/pairs.py FOLDER resume  goes on with the stopped ones in another order; evaluates, exports

The first writes FOLDER/weights.npz, the weights that each whole run ended with; the second compares.
"""

import itertools
import json
import os
import signal
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from distributed import small_shapes

from keras_resnet import evaluation, files, serving
from keras_resnet.data import sources
from keras_resnet.training import checkpoint, distribution, run
from keras_resnet.training.settings import Settings

DEVICES = 2  # logical ones, of which "none" uses one
BASE = {"dataset": "shapes", "steps": 4, "batch_size": 16, "lr": 0.01, "checkpoint_every": 3}
VALUES = {
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


def settings(values, **others):
    """The `Settings` of one value of each; RunError where they exclude each other."""
    values = {**BASE, **values, **others}
    found = Settings(**values.pop("network"), **values)
    run._check_replicas(found, DEVICES if found.strategy == "mirrored" else 1)
    return found


def possible(values):
    try:
        settings(values)
    except files.RunError:
        return False
    return True


def pairs(row):
    return set(itertools.combinations(enumerate(row), 2))


def covering_array():
    """Rows of indices into VALUES: every pair of two settings' values that can be is in one of them."""
    names, rng = list(VALUES), np.random.default_rng(0)
    sizes = [len(values) for values in VALUES.values()]
    drawn = {tuple(row) for row in rng.integers(sizes, size=(3000, len(sizes))).tolist()}
    rows = sorted(row for row in drawn if possible(values_of(dict(zip(names, row, strict=True)))))
    left, chosen = set().union(*map(pairs, rows)), []
    while left:
        chosen.append(max(rows, key=lambda row: len(pairs(row) & left)))
        left -= pairs(chosen[-1])
    return [values_of(dict(zip(names, row, strict=True))) for row in chosen]


def values_of(indices):
    return {name: VALUES[name][index] for name, index in indices.items()}


class StopsAfterTwo(run.Checkpoint):
    def on_train_batch_end(self, batch, logs=None):
        if self.step == 1:
            signal.raise_signal(signal.SIGTERM)
        super().on_train_batch_end(batch, logs)


def model_of(folder):
    return keras.saving.load_model(os.path.join(folder, "model.keras"))


def stop(folder, rows):
    weights = {}
    for number, values in enumerate(rows):
        whole = settings(values, output=folder, name=f"whole-{number}")
        run.train(whole, verbose=0)
        for i, array in enumerate(model_of(whole.folder).get_weights()):
            weights[f"{number}/{i}"] = array
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "Checkpoint", StopsAfterTwo)
            with pytest.raises(checkpoint.Stopped, match="at step 2"):
                run.train(settings(values, output=folder, name=f"stopped-{number}"), verbose=0)
    np.savez(os.path.join(folder, "weights.npz"), **weights)


def resume(folder, rows):
    saved, test = np.load(os.path.join(folder, "weights.npz")), sources.load("shapes").test
    failures = []
    for number, values in reversed(list(enumerate(rows))):
        stopped = settings(values, output=folder, name=f"stopped-{number}")
        try:
            result = run.train(stopped, verbose=0)
            model = model_of(stopped.folder)
            for i, array in enumerate(model.get_weights()):
                np.testing.assert_allclose(array, saved[f"{number}/{i}"], rtol=1e-4, atol=1e-5)
            probabilities = model.predict(test.images, verbose=0)
            error = (probabilities.argmax(-1) != test.labels).mean()
            assert abs(result["test_error"] - error) < 1e-4, (result["test_error"], error)
            examples = tf.data.Dataset.from_tensor_slices((test.images, test.labels))
            assert abs(evaluation.evaluate(model, examples, sources.shapes.CLASSES, "single").error(1) - error) < 1e-6
            path = serving.export_run(stopped.folder, os.path.join(folder, "served", stopped.name))
            served = tf.saved_model.load(path).signatures["serving_default"]
            (pixels,) = served.structured_input_signature[1]
            answer = served(**{pixels: tf.constant(test.images, "float32")})["probabilities"]
            np.testing.assert_allclose(answer, probabilities, atol=1e-4)
        except Exception as failure:  # all of them are to be told
            failures.append(f"{values}: {type(failure).__name__}: {failure}")
    return failures


def main(folder, what):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    small_shapes(pytest.MonkeyPatch())
    distribution.strategy("mirrored")
    rows = covering_array()
    failures = {"stop": stop, "resume": resume}[what](folder, rows)
    print(json.dumps({"runs": len(rows)}))
    sys.exit("\n".join(failures) if failures else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
