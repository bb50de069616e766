"""Presets of keras_hub: they have the outputs of the original network, given the same image files."""

import os

import keras
import numpy as np
import pytest
from conftest import randomize, shared
from PIL import Image

import keras_resnet
from keras_resnet import models
from keras_resnet.architecture import Architecture
from keras_resnet.weights import WeightsError, load_weights

keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed")


def photograph(number):
    path = sorted(shared("imagenet_sample").glob("*/*.JPEG"))[number]
    return np.asarray(Image.open(path).convert("RGB"))[None]


def square(photo, size):
    """A photograph as keras_hub's converter resizes it, before normalisation."""
    layer = keras.layers.Resizing(size, size, crop_to_aspect_ratio=True, antialias=True)
    return layer(photo.astype("float32"))


def network(name, **options):
    """Random weights; every third channel of conv1 is normalised with a negative factor."""
    model = getattr(keras_resnet, name)(classes=7, classifier_activation=None, **options)
    randomize(model)
    gamma = model.get_layer("conv1_bn").gamma
    gamma.assign(gamma * np.where(np.arange(64) % 3, 1, -1))
    return model


def narrow():
    """ResNet-10 with half of the filters."""
    return models.build(Architecture("basic", (1, 1, 1, 1), width=32), classes=2)


def differ(found, expected):
    found, expected = (keras.ops.convert_to_numpy(x) for x in (found, expected))
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "name, options",
    [
        ("ResNet18", {"normalization": "torch"}),
        ("ResNet50", {"stride_in": "3x3", "normalization": "caffe"}),
        ("ResNet50V2", {"stride_in": "3x3", "normalization": ((100.0, 120.0, 140.0), 60.0)}),
        pytest.param("ResNet34", {"normalization": (120.0, 60.0)}, marks=pytest.mark.slow),
        pytest.param("ResNet101", {"stride_in": "3x3", "normalization": "torch"}, marks=pytest.mark.slow),
        pytest.param("ResNet152V2", {"stride_in": "3x3", "normalization": "torch"}, marks=pytest.mark.slow),
    ],
)
def test_classifiers(tmp_path, name, options):
    model, photos = network(name, **options), [photograph(i) for i in (0, 3)]
    keras_resnet.save_keras_hub(model, tmp_path, image_size=96)
    theirs = keras_hub.models.ImageClassifier.from_preset(str(tmp_path))
    for photo in photos:
        expected = model(square(photo, 96), training=False)
        assert differ(theirs.predict(photo, verbose=0), expected) < 1e-5
    assert theirs.preprocessor.image_size == (96, 96)


def test_probabilities_and_pixels_that_are_normalised_outside(tmp_path):
    model = keras_resnet.ResNet18(classes=7)
    randomize(model)
    keras_resnet.save_keras_hub(model, tmp_path)
    theirs = keras_hub.models.ImageClassifier.from_preset(str(tmp_path))
    assert theirs.preprocessor.image_size == (224, 224) and theirs.activation == "softmax"
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    assert differ(theirs(x, training=False), model(x, training=False)) < 1e-5


def test_a_mean_image_becomes_its_mean_color(tmp_path):
    image = np.broadcast_to((100.0, 110.0, 120.0), (64, 64, 3)) + np.linspace(-40, 40, 64)[:, None, None]
    model = network("ResNet18", input_shape=(64, 64, 3), normalization=(image, 50.0))
    keras_resnet.save_keras_hub(model, tmp_path)
    expected = keras_resnet.ResNet18(classes=7, classifier_activation=None, normalization=((100, 110, 120), 50.0))
    expected.set_weights(model.get_weights())
    theirs, photo = keras_hub.models.ImageClassifier.from_preset(str(tmp_path)), photograph(1)
    assert differ(theirs.predict(photo, verbose=0), expected(square(photo, 64), training=False)) < 1e-5


def test_a_backbone_and_the_way_back(tmp_path):
    model = network("ResNet18", include_top=False, normalization="torch", input_shape=(64, 64, 3))
    keras_resnet.save_keras_hub(model, tmp_path)
    theirs = keras_hub.models.Backbone.from_preset(str(tmp_path))
    converter = keras_hub.layers.ImageConverter.from_preset(str(tmp_path))
    photo = photograph(1).astype("float32")  # of integers, Keras rounds the resized ones
    assert differ(theirs(converter(photo), training=False), model(square(photo, 64), training=False)) < 1e-5
    back = keras_resnet.ResNet18(include_top=False, normalization="torch")
    load_weights(back, theirs)
    assert all(np.array_equal(a, b) for a, b in zip(back.get_weights(), model.get_weights(), strict=True))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: keras_resnet.CifarResNet(8), "it has 3 stages, theirs 4"),
        (lambda: keras_resnet.ResNet18(stem="3x3"), "stem='3x3', theirs '7x7'"),
        (lambda: keras_resnet.from_weights(narrow()), r"width=\d+, theirs 64"),
        (lambda: keras_resnet.PlainNet18(), "shortcut=None, theirs 'B'$"),
        (lambda: keras_resnet.ResNet18(shortcut="A"), "shortcut='A', theirs 'B'"),
        (lambda: keras_resnet.ResNet18(shortcut="C"), "shortcut='C', theirs 'B'"),
        (lambda: keras_resnet.ResNet50(), "stride_in='1x1', theirs '3x3'"),
        (lambda: keras_resnet.ResNet18(output_stride=16), "output_stride=16"),
        (lambda: keras_resnet.ResNet18V2(), "pre-activation with basic blocks"),
        (lambda: keras_resnet.CifarResNet(8, shortcut_variant="dropout"), "shortcut_variant='dropout'"),
        (lambda: keras_resnet.CifarResNet(8, activation_order="bn_after_addition"), "='bn_after_addition'"),
        (lambda: keras_resnet.ResNet18(classifier_activation=lambda x: x * 2), "has no name in Keras"),
        (lambda: keras.applications.ResNet50(weights=None), "not a network of this package"),
        (lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 1)], name="s"), "."),
    ],
)
def test_what_keras_hub_cannot_express_is_refused(tmp_path, build, message):
    with pytest.raises(WeightsError, match=message):
        keras_resnet.save_keras_hub(build(), tmp_path)
    assert not os.listdir(tmp_path)
