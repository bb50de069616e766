"""Networks by name; a folder that a run could have left stands for those that the package brings."""

import json

import keras
import numpy as np
import pytest
from conftest import images, randomize

import keras_resnet
from keras_resnet import evaluation, normalization
from keras_resnet.weights import WeightsError, published, readers


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The network of `shipped/cifar10-resnet-20`."""
    network = keras_resnet.CifarResNet(20, normalization=(images(1, 32)[0] + 120.0, 1.0))
    randomize(network)
    folder = tmp_path / "shipped" / "cifar10-resnet-20"
    folder.mkdir(parents=True)
    network.save(folder / "model.keras")
    (folder / "classes.json").write_text(json.dumps(normalization.CIFAR10_CLASSES))
    (folder / "args.json").write_text(json.dumps({"depth": 20, "dataset": "cifar10"}))
    monkeypatch.setattr(published, "SHIPPED", folder.parent)
    there = published.PUBLISHED["cifar10"]._replace(files=published.shipped())
    monkeypatch.setitem(published.PUBLISHED, "cifar10", there)
    return network


def same(model, other):
    return all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


def test_a_network_by_name(shipped):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("float32")
    model = keras_resnet.CifarResNet(20, weights="cifar10")
    assert same(model, shipped)
    assert np.allclose(model.predict(pixels, verbose=0), shipped.predict(pixels, verbose=0), atol=1e-6)
    body = keras_resnet.CifarResNet(20, weights="cifar10", include_top=False, pooling="avg", output_stride=None)
    assert np.allclose(
        body.predict(pixels, verbose=0),
        keras.Model(shipped.input, shipped.get_layer("pool").output).predict(pixels, verbose=0),
        atol=1e-5,
    )
    other = keras_resnet.CifarResNet(20, weights="cifar10", classes=7)
    assert other.output_shape == (None, 7)
    assert np.array_equal(other.get_layer("conv4_3_2").kernel, shipped.get_layer("conv4_3_2").kernel)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: keras_resnet.CifarResNet(26, weights="cifar10"), "builders of cifar_resnet20; found cifar_resnet26"),
        (lambda: keras_resnet.CifarPlainNet(20, weights="cifar10"), "found cifar_plainnet20"),
        (lambda: keras_resnet.ResNet18(weights="cifar10"), "found resnet18"),
        (lambda: keras_resnet.CifarResNet(20, weights="cifar10", shortcut="B"), "shortcut='A' or shortcut=None; found"),
        (lambda: keras_resnet.CifarResNet(20, weights="cifar10", block="bottleneck"), "block='basic'; found 'bottlene"),
        (lambda: keras_resnet.CifarResNet(20, weights="cifar10", input_shape=(32, 32, 1)), "channels=3; found 1"),
        (
            lambda: keras_resnet.CifarResNet(20, weights="cifar10", activation_order="full_preactivation"),
            "activation_order='original'; found",
        ),
    ],
)
def test_other_networks_are_refused(shipped, build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_programs_find_a_network_by_its_name(shipped, tmp_path, monkeypatch):
    assert same(evaluation.load_model("cifar10-resnet-20"), shipped)
    assert evaluation.class_names("cifar10-resnet-20") == normalization.CIFAR10_CLASSES
    assert evaluation.run_settings("cifar10-resnet-20")["depth"] == 20
    assert same(keras_resnet.from_weights("cifar10-resnet-20"), shipped)
    for missing in ("cifar10-resnet-8", "../shipped/cifar10-resnet-20"):
        with pytest.raises(WeightsError):
            readers.read(missing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10-resnet-20").mkdir()  # one's own folder of this name comes first
    with pytest.raises(evaluation.EvaluationError, match="holds no model.keras"):
        evaluation.load_model("cifar10-resnet-20")


def test_what_the_package_brings_is_what_its_records_say():
    """Each folder is one of a finished run, and its network the builder's."""
    for name, path in published.shipped().items():
        depth = int("".join(filter(str.isdigit, name)))
        build = keras_resnet.CifarPlainNet if "plain" in name else keras_resnet.CifarResNet
        assert same(build(depth, weights="cifar10"), evaluation.load_model(path))


def test_predictions_are_decoded_by_any_names():
    rows = np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]])
    assert keras_resnet.decode_predictions(rows, top=2, classes=("a", "b", "c")) == [
        [("1", "b", 0.7), ("2", "c", 0.2)],
        [("0", "a", 0.4), ("2", "c", 0.4)],
    ]
    cat = np.eye(10)[[3]]
    assert keras_resnet.decode_predictions(cat, top=1, classes="cifar10") == [[("3", "cat", 1.0)]]
    with pytest.raises(ValueError, match=r"predictions are \(batch, 10\) for 10 classes; found \(2, 3\)"):
        keras_resnet.decode_predictions(rows, classes="cifar10")
