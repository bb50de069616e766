"""The same recipe on every Keras backend."""

import ast
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, WITHOUT_TENSORFLOW, blocks, write_cifar10

import keras_resnet
from keras_resnet.data import cifar, shapes, sources

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
    mean = sources.per_pixel_mean(source.train.images)
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

    train.folder = folder
    return train


def by_hand(initial, batches, mean):
    """The same ten steps in plain JAX, in double precision: ResNet-8, cross-entropy and the paper's SGD as formulas."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    def convolve(x, kernel, strides):
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        return lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(w, images, labels):
        moments = {}

        def convolve_and_normalize(x, name, strides=1):
            x = convolve(x, w[f"{name}/kernel"], strides)
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            moments[f"{name}_bn/moving_mean"], moments[f"{name}_bn/moving_variance"] = mean, variance
            x = (x - mean) / jnp.sqrt(variance + 1e-5)
            return x * w[f"{name}_bn/gamma"] + w[f"{name}_bn/beta"]

        x = jnp.maximum(convolve_and_normalize(images - mean, "conv1"), 0)
        for name, strides in (("conv2_1", 1), ("conv3_1", 2), ("conv4_1", 2)):
            y = jnp.maximum(convolve_and_normalize(x, f"{name}_1", strides), 0)
            y = convolve_and_normalize(y, f"{name}_2")
            zeros = jnp.zeros((*y.shape[:3], y.shape[3] - x.shape[3]))
            x = jnp.maximum(jnp.concatenate([x[:, ::strides, ::strides], zeros], 3) + y, 0)
        scores = jax.nn.log_softmax(x.mean((1, 2)) @ w["fc/kernel"] + w["fc/bias"])
        return -scores[jnp.arange(len(labels)), labels].mean(), moments

    with jax.enable_x64(True):
        moving = {name: value.astype("float64") for name, value in initial.items() if "/moving_" in name}
        w = {name: value.astype("float64") for name, value in initial.items() if name not in moving}
        momentum = dict.fromkeys(w, 0.0)
        step = jax.jit(jax.grad(loss, has_aux=True))
        for i, (images, labels) in enumerate(batches):
            gradient, moments = step(w, images.astype("float64"), labels)
            lr = 0.1 if i < 5 else 0.01 if i < 8 else 0.001
            momentum = {name: 0.9 * momentum[name] - lr * (gradient[name] + 1e-4 * w[name]) for name in w}
            w = {name: w[name] + momentum[name] for name in w}
            moving = {name: 0.9 * moving[name] + 0.1 * moments[name] for name in moving}
        return {name: np.asarray(value) for name, value in {**w, **moving}.items()}


def distance(found, expected):
    """The largest difference of a variable's values, relative to its largest value."""
    assert found.keys() == expected.keys()
    return max(abs(found[path] - expected[path]).max() / abs(expected[path]).max() for path in expected)


@pytest.mark.parametrize(
    "backend, tolerance",
    [pytest.param("jax", 1e-6, marks=pytest.mark.slow), pytest.param("torch", 5e-4, marks=pytest.mark.slow)],
)
def test_ten_steps_end_with_the_same_weights(trained, backend, tolerance):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    assert distance(trained(backend), trained("tensorflow")) < tolerance
    assert distance(trained("tensorflow", 0.0), trained("tensorflow")) > 10 * tolerance  # the decay would be missed


def test_ten_steps_are_the_formulas(trained):
    pytest.importorskip("jax", reason="jax is not installed")
    expected = trained("tensorflow")
    data = np.load(trained.folder / "batches.npz")
    network = keras_resnet.CifarResNet(8, normalization=(data["mean"], 1.0))
    network.load_weights(trained.folder / "initial.weights.h5")
    initial = {variable.path: keras.ops.convert_to_numpy(variable) for variable in network.weights}
    batches = zip(np.split(data["images"], STEPS), np.split(data["labels"], STEPS), strict=True)
    names = {name for name in expected if not name.startswith("normalization")}
    found = by_hand({name: initial[name] for name in names}, batches, data["mean"].astype("float64"))
    assert distance(found, {name: expected[name] for name in names}) < 1e-6


@pytest.mark.parametrize("program, others", [("fit.py", "tensorflow or jax"), ("evaluate.py x", "tensorflow")])
def test_the_programs_say_on_which_backends_they_run(monkeypatch, program, others):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    name, *words = program.split()
    done = subprocess.run([sys.executable, ROOT / "train" / name, *words], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"{name} runs on TensorFlow")
    assert done.stderr.endswith(f"KERAS_BACKEND is torch. Unset it, or choose {others}.\n")


def test_import_needs_keras_alone():
    imported = set()
    folder = pathlib.Path(keras_resnet.__file__).parent
    for path in (*folder.glob("*.py"), *(folder / "weights").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    alone = {"h5py", "keras", "keras_resnet", "numpy"}  # Keras needs h5py
    later = {"filelock", "matplotlib"}  # when a run is locked, and lettering.py by what draws
    assert imported - set(sys.stdlib_module_names) == {*alone, *later}


SMALLER = {
    "CifarResNet(20": "CifarResNet(8",
    "epochs=164": "epochs=1",
    'ResNet50(weights="imagenet", ': "CifarResNet(8, ",
    "(224, 224)": "(32, 32)",
    "conv5": "conv4",
    "epochs=5": "epochs=1",
}


@pytest.mark.parametrize("backend", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_the_examples_of_the_readme_need_no_tensorflow(tmp_path, backend):
    from PIL import Image

    pytest.importorskip(backend, reason=f"{backend} is not installed")
    examples = blocks(ROOT / "README.md")["python"]
    code = WITHOUT_TENSORFLOW + "\n".join(example for example in examples if "model.fit(" in example)
    for words, fewer in SMALLER.items():
        assert code.count(words) == 1, words
        code = code.replace(words, fewer)
    images, labels = shapes.draw(20, seed=0)
    write_cifar10(tmp_path / "datasets" / "cifar-10-batches-py", (images, labels), (images, labels), shapes.CLASSES)
    for number, (image, label) in enumerate(zip(images, labels % 3, strict=True)):
        (tmp_path / "FLOWERS" / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "FLOWERS" / f"class{label}" / f"{number}.jpg")
    code += (
        "\nassert model.predict(images[:2], verbose=0).shape == (2, len(classes)) == (2, 3)"
        f"\nassert keras.backend.backend() == {backend!r}"
    )
    environment = os.environ | {"KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
