"""The same recipe on every Keras backend."""

import ast
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import keras_resnet
from keras_resnet.data import cifar, sources

STEPS, BATCH = 10, 32
# In double precision, because ten steps at this rate enlarge the rounding of single precision beyond any tolerance.
TEN_STEPS = """
import sys
import keras, keras_resnet, numpy as np
from keras.src.layers.normalization import batch_normalization
from keras_resnet.optimizers import SGD, StepSchedule

class Double:  # elsewhere than on TensorFlow, Keras takes float64 and float32 to float32 in this layer
    result_type = staticmethod(lambda *dtypes: "float64")
    def __getattr__(self, name):
        return getattr(keras.src.backend, name)

keras.config.set_floatx("float64")
batch_normalization.backend = Double()
folder, batch, weight_decay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
data = np.load(f"{folder}/batches.npz")
model = keras_resnet.CifarResNet(8, normalization=(data["mean"], 1.0), classifier_activation=None)
model.load_weights(f"{folder}/initial.weights.h5")
model.compile(SGD(weight_decay=weight_decay), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x = data["images"].astype("float64")
model.fit(x, data["labels"], batch_size=batch, shuffle=False, verbose=0, callbacks=[StepSchedule(0.1, (5, 8))])
backend = keras.backend.backend()
assert backend == "tensorflow" or "tensorflow" not in sys.modules
found = {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}
np.savez(f"{folder}/{backend}-{weight_decay}.npz", **found)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function from a backend to a network's weights after ten steps from the same weights with the same batches."""
    folder = tmp_path_factory.mktemp("backends")
    source = sources.load("shapes")
    mean = cifar.per_pixel_mean(source.train.images)
    batches = cifar.training_batches(source.train, mean, batch_size=BATCH, seed=0).take(STEPS)
    images, labels = (np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True))
    np.savez(folder / "batches.npz", mean=mean, images=images, labels=labels)
    keras.utils.set_random_seed(0)
    keras_resnet.CifarResNet(8, normalization=(mean, 1.0)).save_weights(folder / "initial.weights.h5")

    def train(backend, weight_decay=1e-4):
        path = folder / f"{backend}-{weight_decay}.npz"
        if not path.exists():
            environment = os.environ | {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1"}
            command = [sys.executable, "-c", TEN_STEPS, folder, str(BATCH), str(weight_decay)]
            subprocess.run(command, check=True, env=environment)
        return dict(np.load(path))

    return train


def distance(found, expected):
    """The largest difference of a variable's values, relative to the largest of that variable."""
    assert found.keys() == expected.keys()
    return max(abs(found[path] - expected[path]).max() / abs(expected[path]).max() for path in expected)


@pytest.mark.parametrize("backend, tolerance", [("jax", 1e-6), pytest.param("torch", 5e-4, marks=pytest.mark.slow)])
def test_ten_steps_end_with_the_same_weights(trained, backend, tolerance):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    assert distance(trained(backend), trained("tensorflow")) < tolerance
    assert distance(trained("tensorflow", 0.0), trained("tensorflow")) > 10 * tolerance  # the decay would be missed


def test_the_programs_are_for_tensorflow(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    fit = [sys.executable, ROOT / "train" / "fit.py", "--help"]
    found = subprocess.run(fit, capture_output=True, text=True)
    assert found.returncode == 1 and "KERAS_BACKEND" in found.stderr and "Traceback" not in found.stderr


def test_import_needs_keras_alone():
    imported = set()
    folder = pathlib.Path(keras_resnet.__file__).parent
    modules = "__init__ analysis blocks families graphs models normalization optimizers readers weights"
    for name in modules.split():
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"h5py", "keras", "keras_resnet", "numpy"}  # Keras needs h5py
