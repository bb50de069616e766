import keras
import numpy as np
import pytest
from keras import layers

import keras_resnet
from keras_resnet import graphs
from keras_resnet.graphs import fold, recursion_limit


def trained(model, gain=1):
    """The network with batch normalisation statistics of real data, and outputs that differ between inputs.

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
    """After an addition, after a nonlinearity, and where a second layer uses the convolution's output."""
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


def test_input_and_output_are_exact():
    """In bfloat16 200.5 becomes 200, 201.5 becomes 202, and probabilities have three digits."""
    x = np.array([[200.5, 201.5, 199.25], [203.5, 100.25, 0.3]], "float32")
    normalization = layers.Normalization(mean=[200, 200, 200], variance=[1, 1, 1])
    for first, expected in ((layers.Rescaling(1.0, -200), x - 200), (normalization, x - 200)):
        model = keras.Sequential([keras.Input((3,)), first])
        np.testing.assert_array_equal(fold(model, "bfloat16")(x), expected.astype("float32"))
    probabilities = np.exp(x - x.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    for last in (layers.Softmax(), layers.Activation("softmax")):
        model = keras.Sequential([keras.Input((3,)), last])
        np.testing.assert_allclose(fold(model, "bfloat16")(x), probabilities, rtol=1e-5, atol=1e-9)
    rounded = fold(keras.Sequential([keras.Input((3,)), layers.Activation("relu")]), "bfloat16")(x)
    assert rounded[0, 0] == 200


def test_a_network_of_16_bits_becomes_one_of_32():
    model = keras.Sequential([keras.Input((3,)), layers.Rescaling(1.0, -200, dtype="bfloat16")])
    assert fold(model)(np.array([[200.5, 201.5, 199.25]], "float32")).numpy().tolist() == [[0.5, 1.5, -0.75]]


def test_deep_networks_are_loaded_and_copied(tmp_path):
    """A chain of more layers than Python's recursion limit, 1000."""
    with recursion_limit(20_000):
        x = inputs = keras.Input((1,))
        for i in range(1200):
            x = layers.Activation("linear", name=f"layer{i}")(x)
        model = keras.Model(inputs, x)
        model.save(tmp_path / "m.keras")
    for deep in (graphs.load_model(tmp_path / "m.keras"), graphs.copy(model)):
        assert len(deep.layers) == 1201


def normalized(x, axis=-1):
    return layers.BatchNormalization(axis, gamma_initializer="ones")(x)


def used_twice(inputs):
    """One convolution, two batch normalisations."""
    convolution = layers.Conv2D(3, 3, padding="same")
    return normalized(convolution(normalized(convolution(inputs))))


def normalized_twice(inputs):
    """Two convolutions, one batch normalisation."""
    bn = layers.BatchNormalization()
    return layers.Add()([bn(layers.Conv2D(4, 1)(inputs)), bn(layers.Conv2D(4, 3, padding="same")(inputs))])


def itself_an_output(inputs):
    convolved = layers.Conv2D(4, 3)(inputs)
    return {"before": convolved, "after": normalized(convolved)}


def over_rows(inputs):
    return normalized(layers.Conv2D(8, 3, padding="same")(inputs), axis=1)


def adapted(inputs):
    """With LoRA, the kernel is only a part of the weights."""
    convolution = layers.Conv2D(4, 3)
    outputs = normalized(convolution(inputs))
    convolution.enable_lora(2)
    return outputs


def over_negative_axis(inputs):
    return [layers.ReLU()(normalized(layers.Conv2D(8, 3)(inputs), axis=-1))]


def over_last_axis(inputs):
    return layers.ReLU()(normalized(layers.Conv2D(8, 3)(inputs), axis=3))


def twice_a_network(inputs):
    part = layers.Input(inputs.shape[1:])
    network = keras.Model(part, normalized(layers.Conv2D(3, 3, padding="same")(part)), name="part")
    return network(network(inputs))


@pytest.mark.parametrize(
    "build, left",
    [
        (used_twice, 2),
        (normalized_twice, 1),
        (itself_an_output, 1),
        (over_rows, 1),
        (adapted, 1),
        (over_negative_axis, 0),
        (over_last_axis, 0),
        (twice_a_network, 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_graph_is_right_or_left_alone(build, left):
    inputs = layers.Input((8, 8, 3))
    model = keras.Model(inputs, build(inputs))
    rng = np.random.default_rng(3)
    for variable in model.variables:
        variable.assign(rng.uniform(0.2, 1, variable.shape))
    folded = fold(model)
    parts = [layer for layer in folded.layers if isinstance(layer, keras.Model)]
    assert sum(map(normalizations, [folded, *parts])) == left
    x = images(2, 8, 8) / 255
    keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), folded(x), model(x))


def test_other_models_of_the_same_layers_change_nothing():
    """Only the model's own graph matters, not other uses of its layers."""
    model = trained(keras_resnet.CifarResNet(8, normalization=(120.0, 60.0)))
    expected = np.array(model(images(2, 32, 32)))
    other = layers.Input((16, 16, 16))
    again = model.get_layer("conv2_1_1")(model.get_layer("conv2_1_2")(other))
    keras.Model(other, layers.BatchNormalization()(again))
    model.get_layer("conv2_1_2_bn")(other)
    folded = fold(model)
    assert normalizations(folded) == 0
    np.testing.assert_allclose(folded(images(2, 32, 32)), expected, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_every_output_of_a_network_stays(dtype, tolerance):
    model = trained(keras_resnet.CifarResNet(8, normalization=(120.0, 60.0)))
    features = keras_resnet.features(model)
    folded = fold(features, dtype)
    assert normalizations(folded) == 0
    x = images(2, 32, 32)
    expected, found = features(x), folded(x)
    assert list(found) == ["conv2", "conv3", "conv4"]
    for name, maps in expected.items():
        assert found[name].dtype == "float32"
        np.testing.assert_allclose(found[name], maps, atol=tolerance * np.abs(maps).max())


def test_quantized_layers_are_refused():
    model = keras_resnet.CifarResNet(8)
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"fc was changed by quantize\(\); call fold before"):
        fold(model)
