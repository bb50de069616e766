"""Runs that begin with trained weights: of another size, with other classes, of another network."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, WITHOUT_TENSORFLOW, randomize
from PIL import Image

import keras_resnet
from keras_resnet import normalization
from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.data import color
from keras_resnet.files import RunError
from keras_resnet.training import loop, tasks
from keras_resnet.training.folder import Folder
from keras_resnet.training.settings import Settings

COLOR = (100.0, 120.0, 140.0)


def mean_image(size):
    """An image that gets brighter from top to bottom, with the mean COLOR."""
    return np.linspace(-60, 60, size)[:, None, None] + np.broadcast_to(COLOR, (size, size, 3))


@pytest.fixture
def photographs(tmp_path):
    """An image folder with twelve images in three classes."""
    for name in ("a", "b", "c"):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 255, (250, 230, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "photographs" / name / f"{i}.jpg")
    return str(tmp_path / "photographs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on images of the paper's size, whose network subtracts a mean image; and the network."""
    first = (mean_image(IMAGE_SIZE), 1.0)
    network = keras_resnet.ResNet18(classes=5, normalization=first, input_shape=(224, 224, 3))
    randomize(network)
    folder = tmp_path_factory.mktemp("before")
    network.save(folder / "model.keras")
    return str(folder), network


@pytest.mark.parametrize("size", [IMAGE_SIZE, *(pytest.param(size, marks=pytest.mark.slow) for size in (96, 256))])
def test_a_network_of_photographs_at_another_size(tmp_path, photographs, trained, size, capsys):
    folder, before = trained
    settings = Settings(
        dataset=photographs, output=str(tmp_path / "runs"), init_from=folder, image_size=size, batch_size=2, steps=1,
        colors="imagenet",
    )  # fmt: skip
    folder = Folder(settings)
    with folder.own():
        network = tasks.of(folder).build()
    assert network.output.shape == (None, 3)
    same, said = size == IMAGE_SIZE, capsys.readouterr().out
    assert ("its mean colour is subtracted instead, (mean [100.0, 120.0, 140.0], std 1.0)" in said) != same
    x = np.random.default_rng(0).uniform(0, 255, (1, size, size, 3))
    bare = keras_resnet.ResNet18(include_top=False, pooling="avg")
    bare.set_weights(before.get_weights()[:-2])
    expected = bare(x - (mean_image(size) if same else np.array(COLOR)))
    found = keras.Model(network.input, network.get_layer("pool").output)(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_run_of_photographs_goes_on_at_another_size(tmp_path, photographs, trained):
    settings = Settings(
        dataset=photographs, output=str(tmp_path / "runs"), name="run", init_from=trained[0], image_size=64,
        batch_size=3, steps=2, freeze_until="conv4", strategy="none",
    )  # fmt: skip
    result = loop.train(settings, verbose=0)
    assert result["steps"] == 2 and 0 <= result["val_error"] <= 1
    saved = keras.saving.load_model(tmp_path / "runs" / "run" / "model.keras")
    assert saved.input_shape == (None, None, None, 3) and saved.output.shape == (None, 3)
    np.testing.assert_allclose(normalization.of(saved)[0], COLOR, rtol=1e-6)
    mean = color.load(tmp_path / "runs" / "run" / "colors.npz").channel_means  # measured, and not what is subtracted
    assert np.abs(mean - COLOR).max() > 5


@pytest.mark.parametrize(
    "source, network, of_run, wanted",
    [
        ("cifar10-resnet-20", {"depth": 18}, "cifar_resnet20", "resnet18"),
        ("photographs", {"dataset": "shapes", "depth": 20}, "resnet18", "cifar_resnet20"),
        ("cifar10-resnet-20", {"dataset": "shapes", "plain": True}, "cifar_resnet20", "cifar_plainnet20"),
    ],
)
def test_another_network_is_one_sentence(tmp_path, photographs, trained, source, network, of_run, wanted):
    source = source if source != "photographs" else trained[0]
    options = {"dataset": photographs, "output": str(tmp_path / "runs"), "init_from": source, "batch_size": 2}
    message = f"^--init-from .* has the network {of_run}, and this run trains {wanted}, .*--depth"
    with pytest.raises(RunError, match=message) as error:
        loop.train(Settings(**{**options, **network}), verbose=0)
    assert "\n" not in str(error.value) and not os.listdir(tmp_path / "runs")


def test_weights_of_another_shortcut_name_the_flag(tmp_path):
    keras_resnet.CifarResNet(8, shortcut="B").save(tmp_path / "b.keras")
    options = {"dataset": "shapes", "depth": 8, "steps": 1, "init_from": str(tmp_path / "b.keras")}
    with pytest.raises(RunError, match="^--init-from .*b.keras"):
        loop.train(Settings(output=str(tmp_path / "runs"), **options), verbose=0)


def fit(folder, *flags):
    """Runs fit.py as if TensorFlow were not installed."""
    path = ROOT / "train" / "fit.py"
    code = f"{WITHOUT_TENSORFLOW}\nimport runpy; sys.argv[0] = {str(path)!r}; sys.path.insert(0, {str(path.parent)!r})"
    code += f"\nrunpy.run_path({str(path)!r}, run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    command = [sys.executable, "-c", code, "--dataset", "shapes", "--depth", "8", "--output", folder, *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_on_jax(tmp_path):
    """A network for 48x48 images and seven classes is fine-tuned on the built-in data set; three stages stay."""
    pytest.importorskip("jax", reason="jax is not installed")
    before = keras_resnet.CifarResNet(
        8, classes=7, input_shape=(48, 48, 3), normalization=(mean_image(48), 50.0), weights=None
    )
    randomize(before)
    before.save(tmp_path / "before.keras")
    source = ["--init-from", str(tmp_path / "before.keras"), "--freeze-until", "conv3"]
    done = fit(tmp_path, *source, "--steps", "3", "--batch-size", "24", "--bn-batch-size", "8")
    assert done.returncode == 0, done.stderr
    assert "its mean colour is subtracted" in done.stdout
    saved = keras.saving.load_model(tmp_path / "shapes-resnet-8" / "model.keras")
    mean, std = normalization.of(saved)
    np.testing.assert_allclose(mean, COLOR, rtol=1e-5)
    np.testing.assert_allclose(std, 50, rtol=1e-5)
    for layer in before.layers:
        now, then = saved.get_layer(layer.name).get_weights(), layer.get_weights()
        if layer.name.startswith(("conv1", "conv2", "conv3")):
            assert all(np.array_equal(a, b) for a, b in zip(now, then, strict=True)), layer.name
        elif layer.name.startswith("conv4") and then:
            assert all(not np.array_equal(a, b) and np.allclose(a, b, atol=1) for a, b in zip(now, then, strict=True))
    done = fit(tmp_path, "--init-from", "nowhere.keras", "--name", "other")
    assert done.returncode == 1 and "--init-from the weights 'nowhere.keras' do not exist" in done.stderr
    assert not (tmp_path / "other").exists()
