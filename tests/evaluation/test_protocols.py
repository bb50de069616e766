"""The protocols against an independent version: Pillow resizes, NumPy crops, the network sees one crop at a time."""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SHARED
from matplotlib.figure import Figure
from PIL import Image

import keras_resnet
from keras_resnet import evaluation
from keras_resnet.data import folders, imagenet, records, sources
from keras_resnet.data.crops import decode
from keras_resnet.evaluation import pictures, protocols, views
from keras_resnet.evaluation.examples import check_classes
from keras_resnet.training import history

CLASSES = ("a", "b", "c", "d", "e", "f", "g")
CROP = 56  # a quarter of the paper's, and so are all other sizes
PIXEL_TOLERANCE = 0.02  # of 255: Pillow too resizes in floating point here
TOLERANCE = 2e-4  # of a probability
EVALUATE = [sys.executable, str(ROOT / "train" / "evaluate.py")]


def drawn(height, width, seed):
    """An artificial photograph: colour gradients, noise, and sharp edges."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 7, 3), "uint8")).resize((width, height), Image.Resampling.BICUBIC)
    image = np.array(smooth) + rng.normal(0, 12, (height, width, 3))
    image[height // 3 : height // 2, width // 4 :: 9] = rng.integers(0, 256, 3)
    return np.clip(image, 0, 255).astype("uint8")


@pytest.fixture(scope="module", params=["drawn", "real"])
def files(request, tmp_path_factory):
    """Photographs of several shapes in files; the evaluation gets only the paths."""
    if request.param == "drawn":
        folder, shapes = tmp_path_factory.mktemp("drawn"), ((375, 500), (500, 333), (224, 300), (299, 224), (120, 90))
        paths = [folder / f"{seed}.jpg" for seed in range(len(shapes))]
        for seed, shape in enumerate(shapes):
            Image.fromarray(drawn(*shape, seed)).save(paths[seed], quality=90)
    else:
        found = [sorted((SHARED / name).glob("*/*.JPEG"))[::50] for name in ("imagenet_sample", "imagenette/val")]
        if not all(found):
            pytest.skip(f"photographs are not in {SHARED}/imagenet_sample and {SHARED}/imagenette")
        paths = found[0] + found[1][:2]
    return folders.Files([str(path) for path in paths], np.arange(len(paths)) % len(CLASSES))


@pytest.fixture(scope="module")
def photographs(files):
    """The same decoded by Pillow."""
    images = [np.array(Image.open(path).convert("RGB")) for path in files.paths]
    assert len({image.shape for image in images}) > 3
    assert {height < width for height, width, _ in (image.shape for image in images)} == {True, False}
    return images


@pytest.fixture(scope="module")
def network(photographs):
    """Random weights; each output has mean 0 and standard deviation 1 over the photographs."""
    keras.utils.set_random_seed(0)
    network = keras_resnet.ResNet18(classes=len(CLASSES), normalization=(118.0, 60.0))
    logits, last = keras_resnet.analysis.logits(network), network.get_layer("fc")
    outputs = np.concatenate([logits(crops(image, "center")) for image in photographs])
    kernel, bias = last.get_weights()
    last.set_weights([kernel / outputs.std(axis=0), bias - outputs.mean(axis=0) / outputs.std(axis=0)])
    return network


def examples(images, labels=None):
    labels = np.arange(len(images)) % len(CLASSES) if labels is None else labels
    signature = tf.TensorSpec((None, None, 3), images[0].dtype), tf.TensorSpec((), "int64")
    dataset = tf.data.Dataset.from_generator(lambda: zip(images, labels, strict=True), output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(images)))


def evaluate(classifiers, images, protocol, **options):
    data = images if isinstance(images, tf.data.Dataset) else examples(images)
    return evaluation.evaluate(classifiers, data, CLASSES, protocol, **{"crop": CROP, "verbose": 0, **options})


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


# The independent version.


def resize(image, shorter):
    height, width = image.shape[:2]
    size = tuple(round(length * shorter / min(height, width)) for length in (width, height))
    planes = [
        Image.fromarray(image[..., i].astype("float32")).resize(size, Image.Resampling.BILINEAR) for i in range(3)
    ]
    return np.stack([np.array(plane) for plane in planes], axis=-1)


def crops(image, protocol):
    image = resize(image, 64)  # 56 / 224 * 256
    height, width = image.shape[:2]
    top, left = (height - CROP) // 2, (width - CROP) // 2
    center = image[top : top + CROP, left : left + CROP]
    if protocol == "center":
        return np.stack([center])
    five = [image[:CROP, :CROP], image[:CROP, -CROP:], image[-CROP:, :CROP], image[-CROP:, -CROP:], center]
    return np.stack(five + [crop[:, ::-1] for crop in five])


def dense_scores(network, image):
    """The fully connected layer at every position of the last feature map, averaged, for the image and its mirror."""
    features = keras.Model(network.input, network.get_layer("pool").input)
    kernel, bias = network.get_layer("fc").get_weights()
    maps = np.asarray(features(np.stack([image, image[:, ::-1]])), "float64")
    return (maps @ kernel + bias).mean(axis=(1, 2))


# The protocols.


@pytest.mark.parametrize("protocol, count", [("center", 1), ("10-crop", 10)])
def test_crops(files, photographs, network, protocol, count):
    (view,) = views.protocol(protocol, CROP).passes
    expected = []
    for path, image in zip(files.paths, photographs, strict=True):
        by_hand = crops(image, protocol)
        found = view(decode(tf.io.read_file(path))).numpy()
        assert found.shape == (count, CROP, CROP, 3)
        assert np.abs(found - by_hand).max() < PIXEL_TOLERANCE
        expected.append(np.asarray(network(by_hand)).mean(axis=0))
    assert np.std(expected, axis=0).max() > 100 * TOLERANCE  # so that the comparison says something
    result = evaluate(network, imagenet.examples(files), protocol)
    assert np.abs(result.probabilities - expected).max() < TOLERANCE
    assert str(count) in result.protocol["views"] and "64" in result.protocol["resize"]


def test_multi_scale(files, photographs, network):
    expected = [
        np.mean([softmax(dense_scores(network, resize(image, side))) for side in (56, 64, 96, 120, 160)], axis=(0, 1))
        for image in photographs
    ]
    assert np.std(expected, axis=0).max() > 100 * TOLERANCE
    result = evaluate(network, imagenet.examples(files), "multi-scale")
    assert np.abs(result.probabilities - expected).max() < TOLERANCE


def test_an_image_of_224_gives_the_dense_average(photographs, network, monkeypatch):
    """Without resizing: one scale, the paper's smallest, on images with this shorter side."""
    monkeypatch.setattr(views, "SCALES", (224,))
    images = [image for image in photographs if min(image.shape[:2]) == 224][:1]
    assert images
    result = evaluate(network, images, "multi-scale", crop=224)
    expected = [softmax(dense_scores(network, image.astype("float32"))).mean(axis=0) for image in images]
    assert np.abs(result.probabilities - expected).max() < 1e-6


def test_the_papers_sizes():
    words = {name: views.protocol(name).description for name in views.PROTOCOLS}
    assert words["center"]["resize"] == words["10-crop"]["resize"] == "shorter side to 256"
    assert words["center"]["crop"] == "224x224, centre"
    assert words["multi-scale"]["resize"] == "shorter side to 224, 256, 384, 480 and 640"
    assert words["single"]["resize"] == "none"
    with pytest.raises(ValueError, match="one of center, 10-crop, multi-scale, single; found '5-crop'"):
        views.protocol("5-crop")


# Counting.


def tiny(size=None, seed=1, activation="softmax"):
    """A network that compiles quickly, for images of one size or, by default, of any."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((size, size, 3)),
        keras.layers.Rescaling(1 / 20, -127 / 20),
        keras.layers.Conv2D(16, 3, 2, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(len(CLASSES), kernel_initializer="he_normal", activation=activation),
    ]
    return keras.Sequential(layers, name="tiny")


@pytest.fixture(scope="module")
def small():
    """A small network, and 23 noisy images of five shapes."""
    rng = np.random.default_rng(0)
    shapes = [(20, 20), (20, 31), (33, 20), (20, 24), (64, 48)]
    means = rng.integers(30, 226, (23, 3))
    images = [np.clip(rng.normal(means[i], 40, (*shapes[i * i % 5], 3)), 0, 255).astype("uint8") for i in range(23)]
    return tiny(), images


@pytest.mark.parametrize("protocol", views.PROTOCOLS)
def test_every_example_counts_once_whatever_the_batch_size(small, protocol):
    network, images = small
    results = [evaluate(network, images, protocol, crop=16, batch_size=size) for size in (1, 7, 64)]
    for result in results:
        assert np.array_equal(result.labels, np.arange(23) % len(CLASSES))
        assert np.array_equal(result.confusion(), results[0].confusion()) and result.confusion().sum() == 23
        assert (result.error(1), result.error(5)) == (results[0].error(1), results[0].error(5))
        assert np.abs(result.probabilities - results[0].probabilities).max() < 1e-5
    alone = evaluate(network, images[2:3], protocol, crop=16).probabilities[0]
    assert np.abs(results[1].probabilities[2] - alone).max() < 1e-5


def test_few_images_wait(small):
    """Memory: few images wait at a time, even if each has another shape."""
    handed_out = 0

    def stream():
        for i in range(400):
            assert i - handed_out < 30 + 3 * os.cpu_count()  # 4 batches of 4 wait, the others are in preparation
            yield np.zeros((8 + i, 8, 3), "uint8"), 0

    signature = tf.TensorSpec((None, None, 3), "uint8"), tf.TensorSpec((), "int64")
    for numbers, _, _ in views.batches(
        tf.data.Dataset.from_generator(stream, output_signature=signature), views.single, 4
    ):
        handed_out += len(numbers)
    assert handed_out == 400


def test_sizes_do_not_retrace_the_network(small):
    compiled = protocols._compiled(small[0], views.protocol("multi-scale"))
    for height in range(20, 40, 2):
        compiled.predict_on_batch(np.zeros((height % 3 + 1, height, 24, 3), "float32"))
    assert compiled.predict_function.experimental_get_tracing_count() <= 3


def test_xla_is_not_asked_to_compile_for_each_size():
    """XLA cannot compile a Python function, so a network that calls one shows whether XLA runs it."""

    class Through(keras.layers.Layer):
        def call(self, x):
            return tf.ensure_shape(tf.numpy_function(lambda x: x, [x], x.dtype), x.shape)

    inputs = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(Through()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(len(CLASSES), "softmax")(x))
    images = np.full((2, 8, 8, 3), 3.0, "float32")
    expected = model(images)
    np.testing.assert_allclose(
        protocols._compiled(model, views.protocol("single")).predict_on_batch(images), expected, 1e-5
    )
    with pytest.raises(tf.errors.OpError):
        model.compile(jit_compile=True)
        model.predict_on_batch(images)


def test_result_by_hand():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [0.9, 0.1, 0.0]], "float32")
    result = evaluation.Result({}, ("x", "y", "z"), np.array([0, 1, 1, 2]), probabilities)
    assert [result.error(k) for k in (1, 2, 3)] == [0.75, 0.5, 0.0]  # equal ones rank in the order of the classes
    assert result.confusion().tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert result.worst_mistakes(2).tolist() == [3, 1] and result.worst_mistakes(9).tolist() == [3, 1, 2]


def test_a_constant_network_is_at_chance():
    """If ties counted as hits, the error would be zero."""
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    constant = keras.Model(inputs, keras.layers.Dense(7, kernel_initializer="zeros")(pooled))
    result = evaluate(constant, [np.zeros((8, 8, 3), "uint8")] * 14, "single")
    assert result.error(1) == pytest.approx(6 / 7) and result.error(5) == pytest.approx(2 / 7)
    assert np.allclose(result.probabilities, 1 / 7)


def test_pick(small):
    for image, number in zip(views.pick(examples(small[1]), [9, 2, 22]), (9, 2, 22), strict=True):
        assert np.array_equal(image, small[1][number])


# Networks.


def test_ensemble_is_the_mean_and_logits_are_recognised(small):
    network, images = small
    logits, other = tiny(activation=None), tiny(16, seed=2)
    one, same, two = (evaluate(model, images, "10-crop", crop=16).probabilities for model in (network, logits, other))
    assert np.abs(one - two).max() > 0.1
    assert np.abs(one - same).max() < 1e-6
    both = evaluate([logits, other], images, "10-crop", crop=16)
    assert np.abs(both.probabilities - (one + two) / 2).max() < 1e-6
    assert both.protocol["averaging"] == "mean of the probabilities over views and 2 models"


def test_a_fixed_size_is_opened_for_many_sizes(small):
    images = small[1][:6]
    fixed = keras_resnet.CifarResNet(8, shortcut="A", classes=7, input_shape=(16, 16, 3), normalization="caffe")
    network = keras_resnet.CifarResNet(8, shortcut="A", classes=7, input_shape=(None, None, 3), normalization="caffe")
    network.set_weights(fixed.get_weights())
    found, expected = (evaluate(model, images, "multi-scale", crop=16).probabilities for model in (fixed, network))
    assert np.abs(found - expected).max() < 1e-6
    assert fixed.input_shape == (None, 16, 16, 3)


def test_a_mean_image_becomes_its_mean_color_where_sizes_differ(small):
    images, mean = small[1][:6], np.random.default_rng(0).uniform(0, 255, (16, 16, 3))
    options = {"shortcut": "A", "classes": 7}
    fixed = keras_resnet.CifarResNet(8, input_shape=(16, 16, 3), normalization=(mean, 2.0), **options)
    color = mean.mean((0, 1)).tolist()
    network = keras_resnet.CifarResNet(8, input_shape=(None, None, 3), normalization=(color, 2.0), **options)
    network.set_weights(fixed.get_weights())
    found, expected = (evaluate(model, images, "multi-scale", crop=16).probabilities for model in (fixed, network))
    assert np.abs(found - expected).max() < 1e-6
    centers = [evaluate(model, images, "center", crop=16).probabilities for model in (fixed, network)]
    assert np.abs(centers[0] - centers[1]).max() > 1e-3  # there the image is what is subtracted


def test_keras_applications_with_their_preprocessing(small):
    keras.utils.set_random_seed(3)
    mobile = keras.applications.MobileNet((32, 32, 3), 0.25, weights=None, classes=len(CLASSES))
    images, preprocess = small[1][:6], keras.applications.mobilenet.preprocess_input
    assert evaluate(mobile, images, "multi-scale", crop=32, preprocess=preprocess).probabilities.shape == (6, 7)
    own = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 127.5, -1.0), mobile])
    together = evaluate([mobile, own], images, "center", crop=32, preprocess=[preprocess, None])
    alone = evaluate(own, images, "center", crop=32)
    assert np.abs(together.probabilities - alone.probabilities).max() < 1e-6


def flattening(size):
    layers = [keras.Input((size, size, 3)), keras.layers.Flatten(), keras.layers.Dense(len(CLASSES))]
    return keras.Sequential(layers, name="flat")


def test_what_does_not_fit_is_said(small):
    network, images = small
    nan = flattening(16)
    nan.set_weights([np.full_like(w, np.nan) for w in nan.get_weights()])
    features = keras_resnet.CifarResNet(8, include_top=False, input_shape=(None, None, 3))
    shuffled = examples(images).shuffle(23, seed=1)
    for classifier, data, protocol, message in (
        (flattening(32), images, "center", "flat takes images of 32x32, and this protocol gives it 16x16; .* crop 32"),
        (flattening(20), images[:2], "single", "flat takes images of 20x20, and this protocol gives it 20x31"),
        (flattening(32), images, "multi-scale", "flat does not take images of any size.*\n.*global average pooling"),
        (
            keras_resnet.CifarResNet(8, input_shape=(16, 16, 3)),
            images,
            "center",
            "cifar_resnet8 has 10 classes and the data 7",
        ),
        (features, images, "center", "is not a classifier"),
        (nan, images, "center", "not finite"),
        (network, examples(images, np.arange(23)), "center", r"a label is in \[0, 7\); found 0 to 22"),
        (network, examples(images).take(0), "center", "there are no examples"),
        (
            network,
            tf.data.Dataset.from_tensors((np.zeros((20, 20, 1)), 0)),
            "center",
            r"images are \(height, width, 3\), RGB; found 1 ch",
        ),
        (network, shuffled, "multi-scale", "in another order"),
    ):
        with pytest.raises(evaluation.EvaluationError, match=message):
            evaluate(classifier, data, protocol, crop=16)
    with pytest.raises(ValueError, match="crop is a positive number of pixels; found 0"):
        evaluate(network, images, "center", crop=0)


# The program.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of 12 drawn images in two classes, of two shapes, and two saved networks for them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("day", "night"):
        (folder / "images" / "val" / name).mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(0, 100, (30, 36 + i % 2 * 8, 3), "uint8") + (150 if name == "day" else 0)
            Image.fromarray(noise.astype("uint8")).save(folder / "images" / "val" / name / f"{i}.jpg")
    for i in (0, 1):
        keras.utils.set_random_seed(i)
        options = {"input_shape": (28, 28, 3), "normalization": (127.0, 60.0)}
        keras_resnet.CifarResNet(8, classes=2, **options).save(folder / f"{i}.keras")
    return folder


def test_program_on_shapes(tmp_path):
    network = keras_resnet.CifarResNet(8, normalization=(120.0, 60.0))
    (tmp_path / "run").mkdir()
    network.save(tmp_path / "run" / "model.keras")
    arguments = [tmp_path / "run", "--data", "shapes", "--json", tmp_path / "r.json", "--output", tmp_path / "out"]
    run = subprocess.run([*EVALUATE, *arguments], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    test = sources.load("shapes").test
    outputs = np.concatenate([network(batch.astype("float32")) for batch in np.split(test.images, 4)])
    ranks = (outputs > outputs[np.arange(2000), test.labels][:, None]).sum(axis=1)
    assert result["top1_error"] == pytest.approx((ranks > 0).mean(), abs=0.001)
    assert result["top5_error"] == pytest.approx((ranks > 4).mean(), abs=0.001)
    assert result["examples"] == 2000 and result["protocol"]["name"] == "single"
    assert f"top-1 error       {result['top1_error']:.2%}" in run.stdout and "the image as it is" in run.stdout
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 500


def test_program_on_a_folder(folder, tmp_path):
    arguments = [folder / "0.keras", folder / "1.keras", "--data", folder / "images", "--protocol", "multi-scale"]
    arguments += ["--crop", "28", "--batch-size", "5", "--json", tmp_path / "r.json"]
    run = subprocess.run([*EVALUATE, *arguments], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["examples"], result["classes"]) == (24, 2)
    assert "28, 32, 48, 60 and 80" in run.stdout and "views and 2 models" in run.stdout
    assert result["models"] == [str(path) for path in arguments[:2]]


def main(monkeypatch, *arguments):
    """The program, in this process."""
    monkeypatch.syspath_prepend(ROOT / "train")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    importlib.import_module("evaluate").main()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["nowhere.keras", "--data", "shapes"],
            "nowhere.keras does not exist; a model is a .keras file, the folder",
        ),
        (["images", "--data", "shapes"], "images has no model.keras; a run writes it when it finishes"),
        (["images/val/day/0.jpg", "--data", "shapes"], "0.jpg is not a model that Keras can load"),
        (
            ["0.keras", "--data", "cifar11"],
            "a set of TensorFlow Datasets; found 'cifar11', and no folder of this name. Did you mean cifar10?",
        ),
        (["0.keras", "--data", "cifar10", "--protocol", "10-crop"], "cifar10 is tested with --protocol single"),
        (["0.keras", "--data", "images", "--protocol", "single", "--crop", "9"], "--crop has no meaning"),
        (["0.keras", "--data", "images", "--batch-size", "0"], "--batch-size is positive; found 0"),
        (["0.keras", "--data", "images", "--preprocess", "lenet"], "--preprocess is one of"),
        (["0.keras", "--data", "images", "--json", "no/r.json"], "--json no/r.json cannot be written"),
        (["0.keras", "--data", "images", "--crop", "224"], "takes images of 28x28, and this protocol gives it 224x224"),
        (["0.keras", "--data", "images", "--crop", "0"], "--crop is positive; found 0"),
        (["0.keras"], "0.keras does not belong to a run that states its data; give --data"),
        (["0.keras", "--data", "images", "--split", "test"], "images has no test images"),
        (["0.keras", "--data", "shapes", "--split", "all"], "shapes has splits"),
        (["0.keras", "--data", "images/val/day"], "it holds no folder"),
        (
            ["0.keras", "--data", "images", "--crop", "28", "--output", "0.keras"],
            "the folder 0.keras cannot be created: File exists",
        ),
        (["0.keras", "--data", "damaged", "--crop", "28"], "two.jpg is damaged"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    for name, content in (("one", (folder / "images/val/day/0.jpg").read_bytes()), ("two", b"nonsense")):
        (folder / "damaged" / name).mkdir(parents=True, exist_ok=True)
        (folder / "damaged" / name / f"{name}.jpg").write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        main(monkeypatch, *arguments)
    assert str(exit.value).startswith("evaluate.py: ") and message in str(exit.value)


# Pictures.

NAMES = ("$x_1^{2$ & {a}", "50% $ and $", "Ελλάς", "кот", "日本", "\\frac{", "caf\\xe9")


@pytest.mark.parametrize("repeated", [1, 7], ids=["cells", "dots"])
def test_classes_of_any_name_can_be_drawn(tmp_path, repeated):
    names = [f"{name} {i}" for i in range(repeated) for name in NAMES]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")  # an empty box
        pictures.draw_confusion(np.ones((len(names), len(names)), "int64"), names, NAMES[0], tmp_path / "c.png")
        images, labels = [np.zeros((8, 9, 3), "uint8")] * len(NAMES), np.arange(len(NAMES))
        pictures.draw_mistakes(images, labels, labels, labels / 9, names, NAMES[4], tmp_path / "m.png")
        history.draw([{"step": 1, "error": 0.5}], NAMES[0], tmp_path / "h.png")
    for name in "cmh":
        assert Image.open(tmp_path / f"{name}.png").width > 500


def test_wordnet_ids_are_drawn_as_words_where_their_table_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", "~")
    classes = ["n02102040", "n00000000", "a_cat"]
    assert pictures.in_words(classes) == classes
    (tmp_path / "models").mkdir()
    table = {"0": ["n01440764", "tench"], "217": ["n02102040", "English_springer"]}  # as keras.applications has it
    (tmp_path / "models" / "imagenet_class_index.json").write_text(json.dumps(table))
    assert pictures.in_words(classes) == ["English springer", *classes[1:]]


def test_texts_are_drawn_as_they_are():
    with pictures.lettering(*NAMES, "\U0001f9ff\udcff\n") as drawn:
        assert [drawn(name) for name in NAMES[:4]] == list(NAMES[:4])
        assert drawn("\udcff\n") == r"\udcff" + "\n"
        figure = Figure()
        with io.BytesIO() as one, io.BytesIO() as other:
            text = figure.text(0, 0.5, "$x$")
            figure.savefig(one)
            text.set_parse_math(True)
            figure.savefig(other)
            assert one.getvalue() != other.getvalue()  # the dollars are there


# What a run was.


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """An image folder without val/, and a run on it at 16 pixels, made without training."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), "uint8")).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    make_run("run")
    return tmp_path


def make_run(name, classes=CLASSES, seed=1, **settings):
    os.mkdir(name)
    data = records.splits("photos", seed=seed)
    settings = {"dataset": "photos", "data_dir": None, "image_size": 16, "seed": seed, **settings}
    for file, content in (
        ("args.json", settings), ("classes.json", classes), ("data.json", records.describe(data, "photos"))
    ):  # fmt: skip
        with open(os.path.join(name, file), "w") as opened:
            json.dump(content, opened)
    tiny().save(os.path.join(name, "model.keras"))


def the_program(monkeypatch, *arguments):
    """The program's output, and the class index of each example in the order of evaluation."""
    seen = []
    whole = evaluation.evaluate

    def spy(*arguments, **options):
        seen.append(whole(*arguments, **options))
        return seen[0]

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", spy)
        main(monkeypatch, *arguments, "--json", "r.json")
    with open("r.json") as file:
        return json.load(file), seen[0]


def test_a_run_is_tested_as_it_was_trained(trained, monkeypatch, capsys):
    found, result = the_program(monkeypatch, "run")
    assert "\nimages            validation images, set aside in training by seed 1\n" in capsys.readouterr().out
    data = folders.load("photos", 1)
    n = len(data.validation)
    assert found["split"] == "validation images, set aside in training by seed 1" and found["examples"] == n
    assert found["protocol"]["crop"] == "16x16, centre" and found["protocol"]["resize"] == "shorter side to 18"
    assert np.array_equal(result.labels, data.validation.labels)
    crops = [views.center(np.array(Image.open(path)), 18, 16)[0] for path in data.validation.paths]
    assert np.abs(result.probabilities - tiny()(np.stack(crops))).max() < 1e-6

    os.rename("photos", "elsewhere")  # known by their names
    assert the_program(monkeypatch, "run", "--data", "elsewhere")[0]["examples"] == n
    assert the_program(monkeypatch, os.path.join("run", "model.keras"), "--data", "elsewhere")[0]["examples"] == n
    found, _ = the_program(monkeypatch, "run", "--data", "elsewhere", "--split", "all", "--crop", "8")
    assert found["examples"] == 70 and found["split"] == "all images" and "8x8" in found["protocol"]["crop"]


def test_photographs_that_are_not_a_runs_are_tested_whole(trained, monkeypatch):
    os.rename("photos/a/0.png", "photos/a/10.png")
    os.rename("photos", "others")
    assert the_program(monkeypatch, "run", "--data", "others")[0]["split"] == "all images"


def test_a_class_alone_can_be_tested(trained, monkeypatch):
    os.mkdir("alone")
    shutil.copytree("photos/a", "alone/a")
    assert the_program(monkeypatch, "run", "--data", "alone")[0]["split"] == "all images"


def test_data_that_are_elsewhere(trained, monkeypatch):
    os.rename("photos", "elsewhere")
    with pytest.raises(SystemExit, match="run was trained on photos; if that is elsewhere, give --data"):
        main(monkeypatch, "run")


def test_data_that_changed_since_the_training(trained, monkeypatch):
    os.rename("photos/a/0.png", "photos/a/10.png")
    os.symlink("photos", "link")
    for name in ("photos", "link"):
        with pytest.raises(SystemExit, match=f"{name} has changed since run was trained on it.*--split all"):
            main(monkeypatch, "run", "--data", name)
    assert the_program(monkeypatch, "run", "--split", "all")[0]["examples"] == 70


def test_a_run_that_kept_no_description_of_its_data(trained, monkeypatch):
    """A run of an earlier version: only its seed is known."""
    os.remove("run/data.json")
    assert the_program(monkeypatch, "run")[0]["split"] == "validation images, set aside in training by seed 1"
    os.rename("photos", "others")
    assert the_program(monkeypatch, "run", "--data", "others")[0]["split"] == "all images"


def test_a_changed_set_of_tensorflow_datasets(trained, monkeypatch):
    """The data set is identified by its name."""
    with open("run/args.json", "w") as file:
        json.dump({"dataset": "tiny", "data_dir": "somewhere", "image_size": 16, "seed": 1}, file)
    whole, asked = folders.load("photos"), []

    def load_split(dataset, split, data_dir):
        asked.append(data_dir)
        return (whole.classes, whole.train) if split == "all" else None

    monkeypatch.setattr(records, "load_split", load_split)
    monkeypatch.setattr(records, "splits", lambda dataset, data_dir, seed: whole)
    monkeypatch.setattr(folders, "is_divided", lambda folder: True)
    with pytest.raises(SystemExit, match="tiny has changed since run was trained on it"):
        main(monkeypatch, "run")
    assert set(asked) == {"somewhere"}
    assert the_program(monkeypatch, "run", "--data", "other")[0]["split"] == "all images"


def test_classes_of_the_same_name(trained):
    """ImageNet has two cranes. They are distinguished only if the data have the run's own order."""
    twice = ("crane", "dog", "crane")
    make_run("cranes", twice)
    names, numbers = check_classes("cranes", twice)
    assert names == twice and list(numbers) == [0, 1, 2]
    with pytest.raises(evaluation.EvaluationError, match="its classes.json lacks crane, or has it twice"):
        check_classes("cranes", ("crane", "dog"))


def test_the_crop_is_the_one_that_the_network_takes(folder):
    paths = [str(folder / "0.keras")]
    models = [evaluation.load_model(paths[0])]
    assert evaluation.default_crop(paths, models) == 28
    assert evaluation.default_crop(paths, [tiny()]) == 224


def test_the_crop_of_a_run_on_small_images_is_not_its_setting_for_photographs(trained):
    with open("run/args.json", "w") as file:
        json.dump({"dataset": "shapes", "image_size": 224}, file)
    assert evaluation.default_crop(["run"], [tiny(16)]) == 16


def test_data_for_models_of_no_file(trained):
    classes, examples, words = evaluation.load_data("photos")
    assert classes == CLASSES and words == "all images" and examples.cardinality() == 70


def test_labels_are_those_of_the_run(trained, monkeypatch):
    """The data have some of the run's classes, in another order."""
    make_run("backwards", CLASSES[::-1])
    os.rename("photos", "others")
    for name in "aceg":
        shutil.rmtree(os.path.join("others", name))
    _, result = the_program(monkeypatch, "backwards", "--data", "others", "--split", "all")
    assert result.classes == CLASSES[::-1]
    assert np.array_equal(result.labels, np.repeat([5, 3, 1], 10))
    with pytest.raises(SystemExit, match="run and backwards were trained on different classes"):
        main(monkeypatch, "run", "backwards", "--data", "others")
    os.rename("others/b", "others/new")
    with pytest.raises(SystemExit, match="run was trained on other classes: 7 there, 3 in .*; its .* lacks new"):
        main(monkeypatch, "run", "--data", "others")


def test_combinations_of_runs_that_contradict_each_other(trained, monkeypatch):
    make_run("seed", seed=2)
    make_run("larger", image_size=20)
    for arguments, message in (
        (["run", "seed"], "different images of photos were set aside, by different seeds: run, seed"),
        (["run", "larger"], "crops of different sizes: run 16, larger 20. Give --crop"),
        (["run", "--preprocess", "vgg16"], "run takes pixels, as in training"),
        (["run", "--data", "shapes", "--split", "all"], "shapes has splits"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(monkeypatch, *arguments)
    found, _ = the_program(monkeypatch, "run", "larger", "--crop", "18")
    assert found["examples"] == len(folders.load("photos", 1).validation)


def test_a_folder_with_the_name_of_a_built_in_set(trained, monkeypatch):
    """The data are not those of the training."""
    with open("run/args.json", "w") as file:
        json.dump({"dataset": "shapes", "data_dir": None, "image_size": 224, "seed": 1}, file)
    os.rename("photos", "shapes")
    assert the_program(monkeypatch, "run", "--data", "./shapes", "--crop", "16")[0]["split"] == "all images"


def test_validation_images_that_were_trained_on(trained, monkeypatch):
    with open("run/args.json", "w") as file:
        json.dump({"dataset": "shapes", "train_on_all": True, "data_dir": None, "image_size": 224}, file)
    with pytest.raises(SystemExit, match="run was trained on the validation images too"):
        main(monkeypatch, "run", "--split", "validation")


def test_damaged_photographs_are_skipped_and_listed(trained, monkeypatch, capsys):
    validation = folders.load("photos", 1).validation
    name = validation.paths[3]
    with open(name, "wb") as file:
        file.write(b"nonsense")
    with pytest.raises(SystemExit, match=r"(?s)png is damaged.*--skip-damaged"):
        main(monkeypatch, "run")
    found, _ = the_program(monkeypatch, "run", "--skip-damaged", "--output", "out")
    printed = capsys.readouterr().out
    assert found["examples"] == len(validation) - 1 and "damaged, skipped  1\n" in printed
    assert found["damaged"] == [name] and f"skipped:\n  {name}\n" in printed


def test_help_teaches(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(monkeypatch, "--help")
    text = capsys.readouterr().out
    for word in ("multi-scale", "640", "an ensemble", "or 224)", "the run's", "confusion.png", "P1 3.4"):
        assert word in text
