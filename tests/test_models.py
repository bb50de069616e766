import inspect
import math
import pydoc
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from conftest import by_hand, images, randomize

import keras_resnet
from keras_resnet import analysis, architecture
from keras_resnet.graphs import recursion_limit

FORWARD_TOLERANCE = 2e-5


def trainable(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


@pytest.mark.parametrize("depth, parameters", CIFAR.items())
def test_cifar_parameters(depth, parameters):
    assert trainable(keras_resnet.CifarResNet(depth)) == parameters
    assert trainable(keras_resnet.CifarPlainNet(depth)) == parameters
    assert trainable(keras_resnet.CifarResNet(depth, shortcut="B")) == parameters + 2_752


def test_cifar_bottleneck_depth():
    model = keras_resnet.CifarResNet(164, block="bottleneck")
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) + 1 == 164
    assert model.get_layer("conv4_18").output.shape == (None, 8, 8, 256)


@pytest.mark.parametrize(
    "depth, parameters", [(302, 4_838_874), pytest.param(1202, 19_421_274, marks=pytest.mark.slow)]
)
def test_very_deep_networks_leave_the_recursion_limit(depth, parameters):
    before = sys.getrecursionlimit()
    model = keras_resnet.CifarResNet(depth)
    assert trainable(model) == parameters
    assert sys.getrecursionlimit() == before
    assert analysis.logits(model).output.shape == (None, 10)


def test_threads_share_the_recursion_limit():
    """Python has one limit per process: the first thread to leave must not lower the limit that another still needs."""
    before, wanted = sys.getrecursionlimit(), 6_000
    inside, outside = threading.Event(), threading.Event()

    def recurse(depth):
        return depth and recurse(depth - 1)

    def shallow():
        with recursion_limit(5_000):
            inside.set()
            outside.wait(10)

    thread = threading.Thread(target=shallow)
    thread.start()
    inside.wait(10)
    with recursion_limit(wanted):
        outside.set()
        thread.join()
        assert sys.getrecursionlimit() == wanted
        recurse(wanted - 500)
        with recursion_limit(100):
            assert sys.getrecursionlimit() == wanted
    assert sys.getrecursionlimit() == before
    with pytest.raises(ZeroDivisionError), recursion_limit(wanted):
        raise ZeroDivisionError
    assert sys.getrecursionlimit() == before


def test_names_are_the_papers():
    model = keras_resnet.ResNet50(input_shape=(224, 224, 3))
    for name, size, channels in (
        ("conv1", 112, 64),
        ("pool1", 56, 64),
        ("conv2_3", 56, 256),
        ("conv3_4", 28, 512),
        ("conv4_6", 14, 1024),
        ("conv5_3", 7, 2048),
    ):
        assert model.get_layer(name).output.shape == (None, size, size, channels)
    assert model.get_layer("conv4_1_2").kernel.shape == (3, 3, 256, 256)
    assert model.get_layer("fc").output.shape == (None, 1000)


def test_signature_is_that_of_keras_applications():
    ours = inspect.signature(keras_resnet.ResNet50).parameters
    theirs = [name for name in inspect.signature(keras.applications.ResNet50).parameters if name != "name"]
    assert [name for name in ours if name in theirs] == theirs
    assert {n for n, p in ours.items() if p.kind is p.KEYWORD_ONLY} == {
        "shortcut", "stride_in", "stem", "shortcut_initializer", "normalization", "output_stride",
    }  # fmt: skip
    assert "shortcut" not in inspect.signature(keras_resnet.PlainNet18).parameters
    assert [build.__name__ for build in (keras_resnet.ResNet50V2, keras_resnet.PlainNet34)] == [
        "ResNet50V2",
        "PlainNet34",
    ]
    assert "Call it to build it" in pydoc.render_doc(keras_resnet.ResNet50)


@pytest.mark.parametrize("size", [32, 33, 47, 224])
def test_fully_convolutional_sizes(size):
    for network in (keras_resnet.ResNet18(include_top=False), keras_resnet.ResNet18(include_top=False, shortcut="A")):
        features = network(images(1, size))
        assert features.shape == (1, math.ceil(size / 32), math.ceil(size / 32), 512)


def test_pooling_and_input_tensor():
    tensor = keras.Input((64, 64, 3))
    model = keras_resnet.ResNet18(
        include_top=False, pooling="max", input_tensor=keras.layers.Rescaling(1 / 255)(tensor)
    )
    assert model.input is tensor and model.output.shape == (None, 512)
    assert keras_resnet.ResNet18(include_top=False, pooling="avg").output.shape == (None, 512)


def test_several_inputs_behind_the_input_tensor():
    """As in keras.applications, the model's inputs are those from which the tensor was computed."""
    left, right = keras.Input((32, 32, 1), name="left"), keras.Input((32, 32, 2), name="right")
    both = keras.layers.Concatenate()([left, right])
    model = keras_resnet.CifarResNet(8, input_tensor=both, normalization="torch")
    assert [tensor.name for tensor in model.inputs] == ["left", "right"]
    alone = keras_resnet.CifarResNet(8, normalization="torch")
    alone.set_weights(model.get_weights())
    x = images(2, 32) * 100
    assert np.allclose(model([x[..., :1], x[..., 1:]]), alone(x), atol=1e-6)


def test_every_convolution_has_its_own_he_initialisation():
    keras.utils.set_random_seed(0)
    model = keras_resnet.CifarResNet(56)
    kernels = [layer.kernel.numpy() for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    for kernel in kernels:
        he = math.sqrt(2 / math.prod(kernel.shape[:3]))
        assert kernel.std() == pytest.approx(he, rel=0.12)
    same_shape = [kernel for kernel in kernels if kernel.shape == (3, 3, 64, 64)]
    assert len({float(kernel[0, 0, 0, 0]) for kernel in same_shape}) == len(same_shape) == 17
    tails = np.concatenate([np.abs(kernel).ravel() / kernel.std() for kernel in same_shape])
    assert 0.035 < (tails > 2).mean() < 0.056  # a Gaussian has 4.6 % there, a truncated one 2.8 %


def test_batch_normalisation_and_biases():
    for layer in keras_resnet.ResNet50().layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias


def test_shortcut_initializer():
    model = keras_resnet.ResNet18(shortcut_initializer="average")
    assert np.allclose(model.get_layer("conv3_1_shortcut").kernel, 1 / 64)
    assert np.std(model.get_layer("conv3_1_1").kernel) > 0.01
    zeros = keras_resnet.ResNet18(shortcut_initializer="zeros")
    assert not np.any(zeros.get_layer("conv3_1_shortcut").kernel)


@pytest.mark.parametrize(
    "initializer, distinct",
    [
        (keras.initializers.HeNormal(), True),
        (keras.initializers.HeNormal, True),
        ("he_normal", True),
        (keras.initializers.HeNormal(seed=keras.random.SeedGenerator(1)), True),
        (keras.initializers.HeNormal(seed=1), False),  # as Keras documents it
    ],
)
def test_each_projection_has_a_kernel_of_its_own(initializer, distinct):
    model = keras_resnet.CifarResNet(20, shortcut="C", shortcut_initializer=initializer)
    kernels = [np.array(model.get_layer(f"conv4_{block}_shortcut").kernel) for block in (2, 3)]
    assert np.array_equal(*kernels) != distinct


def test_option_a_against_numpy():
    model = keras_resnet.CifarResNet(20)
    part = keras.Model(model.get_layer("conv2_3").output, model.get_layer("conv3_1_shortcut_zeros").output)
    for size in (32, 7):
        x = np.random.default_rng(0).normal(size=(2, size, size, 16)).astype("float32")
        if size == 7:
            part = keras.models.clone_model(part, input_tensors=keras.Input((7, 7, 16)))
        expected = np.concatenate([x[:, ::2, ::2], np.zeros((2, -(-size // 2), -(-size // 2), 16))], axis=-1)
        assert np.array_equal(part(x), expected)


def test_residual_is_added_to_the_shortcut():
    """With the last scale of every block at zero, a residual network consists of its shortcuts alone."""
    model = keras_resnet.CifarResNet(20)
    for layer in model.layers:
        if layer.name.endswith("_2_bn") and layer.name.startswith("conv"):
            layer.gamma.assign(np.zeros(layer.gamma.shape, "float32"))
    values = keras.Model(model.input, [model.get_layer("conv1_relu").output, model.get_layer("conv4_3").output])
    stem, last = map(np.array, values(images(2, 32)))
    assert np.array_equal(last[..., :16], stem[:, ::4, ::4]) and not last[..., 16:].any()


@pytest.mark.parametrize("shortcut", ["A", "B", "C", None])
def test_cifar_network_against_numpy(shortcut):
    """The whole network, implemented a second time from the paper."""
    model = keras_resnet.CifarResNet(20, shortcut=shortcut)
    randomize(model)

    def conv_bn(x, name, strides=1):
        conv, bn = model.get_layer(name), model.get_layer(f"{name}_bn")
        gamma, beta, mean, variance = bn.get_weights()
        return (by_hand(x, conv.kernel.numpy(), strides) - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    relu = lambda x: np.maximum(x, 0)
    inputs = images(2, 32)
    x = relu(conv_bn(inputs, "conv1"))
    for stage in (2, 3, 4):
        for block in (1, 2, 3):
            name, strides = f"conv{stage}_{block}", 2 if stage > 2 and block == 1 else 1
            y = conv_bn(relu(conv_bn(x, f"{name}_1", strides)), f"{name}_2")
            if shortcut == "C" or (shortcut == "B" and strides == 2):
                y += conv_bn(x, f"{name}_shortcut", strides)
            elif shortcut:
                x = x[:, ::strides, ::strides]
                y[..., : x.shape[-1]] += x
            x = relu(y)
    fc = model.get_layer("fc")
    expected = x.mean((1, 2)) @ fc.kernel.numpy() + fc.bias.numpy()
    assert np.allclose(analysis.logits(model)(inputs), expected, rtol=1e-4, atol=1e-4)
    probabilities = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    assert np.allclose(model(inputs), probabilities, atol=FORWARD_TOLERANCE)


def bn_relu(model, x, letters, name):
    """Batch normalisation and nonlinearity in NumPy, with the variables of the model's layer."""
    for letter in letters:
        if letter == "B":
            gamma, beta, mean, variance = model.get_layer(f"{name}_bn").get_weights()
            x = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
        else:
            x = np.maximum(x, 0)
    return x


def branch_by_hand(model, x, order, name, strides, activated):
    """The residual branch of P2 Fig. 4 (a) to (e): the input of the addition, and the start of the shortcut."""
    conv = lambda x, part, strides=1: by_hand(x, model.get_layer(f"{name}_{part}").kernel.numpy(), strides)
    act = lambda x, letters, part: bn_relu(model, x, letters, f"{name}_{part}")
    if order == "original":
        return act(conv(act(conv(x, 1, strides), "BR", 1), 2), "B", 2), x
    if order == "bn_after_addition":
        return conv(act(conv(x, 1, strides), "BR", 1), 2), x
    if order == "relu_before_addition":
        return act(conv(act(conv(x, 1, strides), "BR", 1), 2), "BR", 2), x
    before = "R" if order == "relu_only_preactivation" else "BR"
    raw, x = x, x if activated else act(x, before, 1)
    start = x if strides > 1 else raw
    if order == "relu_only_preactivation":
        return act(conv(np.maximum(act(conv(x, 1, strides), "B", 1), 0), 2), "B", 2), start
    return conv(act(conv(x, 1, strides), "BR", 2), 2), start


JOINED = {"original": "R", "bn_after_addition": "BR"}
AT_THE_END = {"relu_only_preactivation": "R", "full_preactivation": "BR"}


@pytest.mark.parametrize(
    "order, variant",
    [*((order, None) for order in architecture.ORDERS), *(("original", variant) for variant in architecture.VARIANTS)],
)
def test_identity_mappings_against_numpy(order, variant):
    """P2's networks, implemented a second time."""
    model = keras_resnet.CifarResNet(14, activation_order=order, shortcut_variant=variant)
    randomize(model)
    inputs = images(2, 32)
    x = bn_relu(model, by_hand(inputs, model.get_layer("conv1").kernel.numpy(), 1), "BR", "conv1")
    for stage in (2, 3, 4):
        for block in (1, 2):
            name, strides = f"conv{stage}_{block}", 2 if stage > 2 and block == 1 else 1
            y, x = branch_by_hand(model, x, order, name, strides, activated=(stage, block) == (2, 1))
            zeros = y.shape[-1] - x.shape[-1]
            x = np.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (0, zeros)))
            if variant == "constant_scaling":
                x, y = 0.5 * x, 0.5 * y
            elif variant == "dropout":
                x = 0.5 * x
            elif variant in ("exclusive_gate", "shortcut_gate"):
                kernel, bias = model.get_layer(f"{name}_gate").get_weights()
                gate = 1 / (1 + np.exp(-(x @ kernel[0, 0] + bias)))
                x, y = (1 - gate) * x, gate * y if variant == "exclusive_gate" else y
            x = bn_relu(model, x + y, JOINED.get(order, ""), name)
    x = bn_relu(model, x, AT_THE_END.get(order, ""), "post")
    fc = model.get_layer("fc")
    expected = x.mean((1, 2)) @ fc.kernel.numpy() + fc.bias.numpy()
    assert np.allclose(analysis.logits(model)(inputs), expected, rtol=1e-3, atol=1e-3)


def test_gates_start_closed_and_the_dropout_drops():
    model = keras_resnet.CifarResNet(8, shortcut_variant="exclusive_gate")
    assert np.array_equal(model.get_layer("conv2_1_gate").bias, np.full(16, -6.0))
    x, model = images(4, 32), keras_resnet.CifarResNet(8, shortcut_variant="dropout")
    part = keras.Model(
        model.input, [model.get_layer(name).output for name in ("conv1_relu", "conv2_1_halved_shortcut")]
    )
    stem, dropped = map(np.array, part(x, training=True))
    assert 0.45 < (dropped[stem > 0] == 0).mean() < 0.55
    assert np.allclose(dropped[dropped > 0], stem[dropped > 0], rtol=1e-3)
    stem, halved = map(np.array, part(x, training=False))
    assert np.array_equal(halved, stem / 2)


@pytest.mark.parametrize("depth", [18, 50])
def test_preactivation_normalizes_the_inputs_of_convolutions(depth):
    """The convolutions stay; all but conv1 and the shortcuts' have a batch normalisation on their input."""
    before, after = (getattr(keras_resnet, f"ResNet{depth}{version}")() for version in ("", "V2"))
    convolutions = [layer for layer in after.layers if isinstance(layer, keras.layers.Conv2D)]
    originals = [layer for layer in before.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.name: layer.kernel.shape for layer in convolutions} == {
        layer.name: layer.kernel.shape for layer in originals
    }
    found = [layer.gamma.shape[0] for layer in after.layers if isinstance(layer, keras.layers.BatchNormalization)]
    inner = [layer.kernel.shape[2] for layer in convolutions if not layer.name.endswith(("conv1", "shortcut"))]
    last = after.get_layer("fc").kernel.shape[0]  # and one at the end; conv1's is that of the first block
    assert sorted(found) == sorted([*inner, last])


@pytest.mark.parametrize("depth, millions", [(164, "1.7"), pytest.param(1001, "10.2", marks=pytest.mark.slow)])
def test_parameters_of_identity_mappings(depth, millions):
    """P2 Table 4 and its text, which count only the kernels. With option A ResNet-1001 would have 10.1."""
    model = keras_resnet.CifarResNet(depth, block="bottleneck", shortcut="B", activation_order="full_preactivation")
    kernels = [math.prod(v.shape) for v in model.weights if v.name == "kernel"]
    assert f"{sum(kernels) / 1e6:.1f}" == millions


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation_order": "none"}, "activation_order is one of 'original'"),
        ({"shortcut_variant": "none"}, "shortcut_variant is one of None, 'constant_scaling'"),
        ({"shortcut": None, "activation_order": "full_preactivation"}, "a plain network has no shortcut"),
    ],
)
def test_orders_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        keras_resnet.CifarResNet(8, **options)


def test_normalizations_are_those_of_keras_applications():
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    for mode in ("caffe", "torch"):
        model = keras_resnet.ResNet18(normalization=mode, input_shape=(32, 32, 3))
        first = keras.Model(model.input, model.get_layer("normalization").output)
        expected = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=mode)
        assert np.allclose(first(pixels), expected, atol=1e-4)


def test_normalization_by_numbers():
    mean = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype("float32")
    four = np.arange(4.0).tolist(), [4, 5, 6, 7]
    for normalization in ((mean, 1.0), (120.0, 60.0), ((1, 2, 3), (4, 5, 6)), ([7.0], [2.0]), four, (four[0], 2)):
        values = np.array(normalization[0])
        channels = values.shape[-1] if values.ndim else 3
        model = keras_resnet.CifarResNet(8, input_shape=(32, 32, channels), normalization=normalization)
        first = keras.Model(model.input, model.get_layer("normalization").output)
        x = np.random.default_rng(0).normal(0, 100, (2, 32, 32, channels)).astype("float32")
        assert np.allclose(first(x), (x - values) / np.array(normalization[1]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shortcut": "D"}, "shortcut is one of 'A', 'B', 'C', None; found 'D'"),
        ({"stride_in": "5x5"}, "stride_in is one of"),
        ({"stem": "9x9"}, "stem is one of"),
        ({"pooling": "min", "include_top": False}, "pooling is one of"),
        ({"normalization": "pytorch"}, "normalization is None"),
        ({"normalization": (np.zeros((8, 8, 3)), 1)}, r"found shape \(8, 8, 3\)"),
        ({"weights": "weights.keras"}, "do not exist"),
        ({"weights": __file__}, "is not a file of weights: these end in .keras, .h5"),
        ({"classes": 0}, "classes is the number of classes, a positive integer; found 0"),
        ({"normalization": ([1, 2, 3], [1, 0, 1])}, "its std positive; found"),
        ({"normalization": (float("nan"), 1)}, "mean of a normalization is finite"),
        ({"normalization": ([1, 2], [3, 4])}, r"found shape \(2,\)"),
        (
            {"normalization": "torch", "input_shape": (32, 32, 1)},
            "'torch' is for three channels, the network's .* has 1",
        ),
        (
            {"normalization": "caffe", "input_shape": (32, 32, 4)},
            "'caffe' is for three channels, the network's .* has 4",
        ),
        ({"input_shape": (32, 32)}, r"input_shape is \(height, width, channels\); found \(32, 32\)"),
        ({"input_shape": (32, 32, None)}, r"found \(32, 32, None\)"),
        ({"input_shape": (3, 224, 224)}, r"found \(3, 224, 224\), which looks like \(channels, height, width\)"),
        ({"input_shape": (3, 224, 320)}, "which looks like"),
        ({"input_shape": (1, 28, 28)}, "which looks like"),
        ({"classes": "10"}, "classes is the number of classes, a positive integer; found '10'"),
        ({"output_stride": 4}, "output_stride is one of None, 8, 16; found 4"),
        ({"output_stride": 16, "stem": "3x3"}, "output_stride is one of None, 8; found 16"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        keras_resnet.ResNet18(**{"input_shape": (32, 32, 3), **options})


@pytest.mark.parametrize("shape", [(1, 300, 12), (3, 300, 3), (None, None, 12), (64, 64, 200), (4, 4, 4)])
def test_unusual_shapes_that_are_right(shape):
    model = keras_resnet.CifarResNet(8, input_shape=shape)
    assert model.input_shape == (None, *shape)


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda **options: keras_resnet.ResNet50(**options), "ResNet"),
        (lambda **options: keras_resnet.PlainNet18(**options), "PlainNet"),
        (lambda **options: keras_resnet.CifarResNet(20, **options), "CifarResNet"),
        (lambda **options: keras_resnet.CifarPlainNet(20, **options), "CifarPlainNet"),
    ],
)
@pytest.mark.parametrize("option", ["poolng", "width", "_build"])
def test_an_unknown_keyword_names_the_function_that_was_called(build, name, option):
    with pytest.raises(TypeError, match=rf"{name}\S*\(\) got an unexpected keyword argument '{option}'"):
        build(**{option: "avg"})


def test_a_plain_network_takes_no_shortcut():
    with pytest.raises(TypeError, match="PlainNet.* got an unexpected keyword argument 'shortcut'"):
        keras_resnet.PlainNet18(shortcut="A")
    with pytest.raises(TypeError, match="shortcut"):
        keras_resnet.CifarPlainNet(20, shortcut="A")


def test_a_depth_is_an_integer():
    for depth in ("20", 20.0, None):
        with pytest.raises(ValueError, match=f"depth is an integer; found {depth!r}"):
            keras_resnet.CifarResNet(depth)
    for depth in (np.int64(8), np.uint8(8)):
        model = keras_resnet.CifarResNet(depth, classes=np.int64(3))
        assert model.name == "cifar_resnet8" and model.output_shape == (None, 3)


@pytest.mark.parametrize(
    "depth, block, nearest", [(21, "basic", "20 and 26"), (5, "basic", "8"), (112, "bottleneck", "110 and 119")]
)
def test_bad_depth_names_the_nearest(depth, block, nearest):
    with pytest.raises(ValueError, match=f"found {depth}, nearest {nearest}$"):
        keras_resnet.CifarResNet(depth, block=block)


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="channels_last"):
            keras_resnet.CifarResNet(20)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("extension", [".keras", ".weights.h5"])
def test_weights_from_a_file(tmp_path, extension):
    model = keras_resnet.CifarResNet(20)
    randomize(model)
    path = tmp_path / f"m{extension}"
    model.save(path) if extension == ".keras" else model.save_weights(path)
    x = images(2, 32)
    stated = {} if extension == ".keras" else {"normalization": None}
    assert np.array_equal(keras_resnet.CifarResNet(20, weights=path, **stated)(x), model(x))
    with pytest.raises(ValueError):
        keras_resnet.CifarResNet(32, weights=path, **stated)


@pytest.mark.parametrize(
    "build, sizes",
    [
        (lambda: keras_resnet.ResNet18(input_shape=(96, 96, 3)), (24, 12, 6, 3)),
        (lambda: keras_resnet.ResNet50(input_shape=(96, 96, 3), include_top=False), (24, 12, 6, 3)),
        (lambda: keras_resnet.ResNet50(input_shape=(96, 96, 3), output_stride=16), (24, 12, 6, 6)),
        (lambda: keras_resnet.ResNet50(input_shape=(96, 96, 3), output_stride=8), (24, 12, 12, 12)),
        (lambda: keras_resnet.CifarResNet(20), (32, 16, 8)),
        (lambda: keras_resnet.CifarResNet(20, block="bottleneck"), (32, 16, 8)),
    ],
)
def test_features_are_the_stages_ends(build, sizes):
    model = build()
    features = keras_resnet.features(model)
    assert {name: output.shape[1] for name, output in features.output.items()} == {
        f"conv{stage}": size for stage, size in enumerate(sizes, 2)
    }
    last = list(features.output)[-1]
    assert features.output[last] is [layer for layer in model.layers if layer.name.startswith(last)][-1].output
    assert features.get_layer(last + "_1_1").kernel is model.get_layer(last + "_1_1").kernel


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_the_classifier_sees_its_features(shortcut):
    model = keras_resnet.ResNet18(shortcut=shortcut, classifier_activation=None)
    randomize(model)
    x, fc = images(2, 65), model.get_layer("fc")
    values = keras_resnet.features(model)(x)
    expected = np.array(values["conv5"]).mean((1, 2)) @ fc.kernel.numpy() + fc.bias.numpy()
    assert np.allclose(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "name, options",
    [
        ("ResNet18", {"shortcut": "A"}),
        ("ResNet18", {"shortcut": "C"}),
        ("PlainNet18", {}),
        ("ResNet50", {"stride_in": "1x1"}),
        ("ResNet50", {"stride_in": "3x3"}),
    ],
)
def test_a_dilated_network_has_the_undilated_ones_values(name, options, output_stride):
    """At each of its positions, borders included; there are new positions between them."""
    build = getattr(keras_resnet, name)
    coarse, fine = (build(include_top=False, output_stride=n, **options) for n in (None, output_stride))
    assert {v.path.split("/", 1)[-1]: v.shape for v in coarse.weights} == {
        v.path.split("/", 1)[-1]: v.shape for v in fine.weights
    }
    randomize(coarse)
    keras_resnet.load_weights(fine, coarse)
    x = images(1, 97)  # 97, 49, 25, 13, 7, 4: an odd size, so the last row of a map is sometimes cut off
    expected, found = keras_resnet.features(coarse)(x), keras_resnet.features(fine)(x)
    for stage, stride in {"conv2": 4, "conv3": 8, "conv4": 16, "conv5": 32}.items():
        step = max(stride // output_stride, 1)
        assert found[stage].shape[1] == math.ceil(97 / min(stride, output_stride))
        assert np.allclose(found[stage][:, ::step, ::step], expected[stage], rtol=1e-4, atol=1e-4)


STRANGER = """
import sys, numpy as np, keras
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
data = np.load(sys.argv[2])
assert "keras_resnet" not in sys.modules
assert np.allclose(model.predict(data["x"], verbose=0), data["y"], atol=1e-6)
"""


@pytest.mark.parametrize(
    "build",
    [
        lambda: keras_resnet.CifarResNet(20, normalization=(np.full((32, 32, 3), 120.5), 1.0)),
        lambda: keras_resnet.CifarPlainNet(20, normalization="caffe"),
        lambda: keras_resnet.ResNet50(shortcut="A", normalization="torch", classes=10),
    ],
)
def test_opens_in_plain_keras(tmp_path, build):
    """In a process that never imports this package."""
    model = build()
    randomize(model)
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "data.npz", x=x, y=model(x))
    subprocess.run(
        [sys.executable, "-c", STRANGER, tmp_path / "m.keras", tmp_path / "data.npz"], check=True, cwd=tmp_path
    )
