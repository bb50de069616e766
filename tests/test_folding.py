import keras
import numpy as np
import pytest
from keras import layers

import keras_resnet
from keras_resnet.folding import fold


def trained(model, gain=1):
    """The network with batch normalisations that have seen something, and answers that differ.

    `gain` scales each branch, so that hundreds of them do not add up to infinity.
    """
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.moving_mean.shape
            gamma = [gain * rng.uniform(0.5, 1, shape)] if layer.scale else []
            beta, mean = rng.normal(0, 0.1, (2, *shape))
            layer.set_weights([*gamma, beta, mean, rng.uniform(0.5, 2, shape)])
        if isinstance(layer, layers.Dense):
            layer.kernel.assign(rng.normal(0, 0.3, layer.kernel.shape))
    return model


def images(*shape):
    return np.random.default_rng(1).uniform(0, 255, (*shape, 3)).astype("float32")


def normalizations(model):
    return sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


NETWORKS = {
    "cifar": lambda: keras_resnet.CifarResNet(8, normalization=(120.0, 60.0)),
    "cifar plain": lambda: keras_resnet.CifarPlainNet(8, normalization=(120.0, 60.0)),
    "18 C": lambda: keras_resnet.ResNet18(classes=10, shortcut="C", normalization="torch"),
    "50": lambda: keras_resnet.ResNet50(classes=10, normalization="caffe"),
    "biases": lambda: keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_is_the_same(name):
    model = trained(NETWORKS[name]())
    folded = fold(model)
    x = images(3, *(length or 64 for length in model.input_shape[1:3]))
    expected = np.array(model(x))
    assert expected.std() > 1e-2  # not all classes alike, or nothing would be shown
    np.testing.assert_allclose(folded(x), expected, atol=1e-5)
    assert normalizations(folded) == 0 and normalizations(model) > 0
    assert {type(layer).__module__.split(".")[0] for layer in folded.layers} == {"keras"}  # stock layers


def test_what_cannot_be_folded_stays():
    """Behind an addition, behind a nonlinearity, and where a second layer sees the convolution's output."""
    inputs = layers.Input((8, 8, 3))
    shared = layers.Conv2D(4, 3, name="shared")(inputs)
    x = layers.Add()([layers.BatchNormalization()(shared), shared])
    x = layers.BatchNormalization()(x)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))
    x = layers.BatchNormalization(scale=False, center=False, name="alone")(layers.Conv2D(4, 1, use_bias=False)(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([np.random.default_rng(2).uniform(0.5, 2, w.shape) for w in layer.get_weights()])
    folded = fold(model)
    assert normalizations(folded) == 3 and "alone" not in {layer.name for layer in folded.layers}
    x = images(2, 8, 8)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5)


def test_a_network_within_a_network_is_folded():
    backbone = trained(keras_resnet.ResNet18(include_top=False, pooling="avg", input_shape=(64, 64, 3)))
    model = keras.Sequential([keras.Input((64, 64, 3)), backbone, layers.Dense(3)])
    folded = fold(model)
    assert normalizations(folded.get_layer(backbone.name)) == 0
    x = images(2, 64, 64)
    expected = np.array(model(x))
    np.testing.assert_allclose(folded(x), expected, atol=1e-4 * abs(expected).max())


def test_bfloat16_is_inside_only():
    model = trained(keras_resnet.CifarResNet(8, normalization=(120.0, 60.0)))
    half = fold(model, "bfloat16")
    assert half.get_layer("conv2_1_1").kernel.dtype == "bfloat16" and half.get_layer("normalization").dtype == "float32"
    assert half.input.dtype == half.output.dtype == "float32"
    x = images(8, 32, 32)
    expected, found = model.predict(x, verbose=0), half.predict(x, verbose=0)
    assert 0 < abs(found - expected).max() < 0.05
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
