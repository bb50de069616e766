import json
import os
import pathlib
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, randomize, rounded
from keras import layers

import keras_resnet
from keras_resnet import analysis, evaluation, graphs, models, serving
from keras_resnet.architecture import Architecture
from keras_resnet.data import crops
from keras_resnet.runs import Run
from keras_resnet.serving import web

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def in_node(program, folder, **arrays):
    """The `answer` of a script that uses the page's functions; `arrays` are Float32Arrays by name."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    lines = ["const floats = (file) => new Float32Array(new Uint8Array(read(file)).buffer);"]
    for name, array in arrays.items():
        (folder / name).write_bytes(array.astype("<f4").tobytes())
        lines.append(f"const {name} = floats({json.dumps(str(folder / name))});")
    script = folder / "program.js"
    script.write_text("\n".join([*lines, program, "console.log(JSON.stringify(answer));"]))
    run = "const fs = require('fs'), vm = require('vm'); globalThis.read = fs.readFileSync;"
    run += "for (const file of process.argv.slice(1)) vm.runInThisContext(read(file, 'utf8'), file);"
    scripts = [web.FOLDER / "network.js", web.FOLDER / "picture.js", script]
    done = subprocess.run([node, "-e", run, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def described(html):
    return re.search(r'<script type="application/json" id="network">(.*)</script>', html)[1]


def page(model, size=32, **options):
    classes = CLASSES[: model.output_shape[-1]]
    return web.page(model, classes, size, {"parameters": 1, "test_error": 0.08}, **options)[0]


def answers(html, images, folder):
    """The page's probabilities and class activation maps, (n, classes) and (n, classes, rows, columns)."""
    (folder / "network.json").write_text(described(html))
    program = f"""
    const network = decode(JSON.parse(read({json.dumps(str(folder / "network.json"))}, "utf8")));
    const length = 3 * network.size ** 2, answer = [];
    for (let at = 0; at < images.length; at += length) {{
      const found = forward(network, images.subarray(at, at + length));
      const maps = network.classes.map((_, k) => Array.from(evidence(network, found.features, k)));
      answer.push([found.probabilities, maps]);
    }}
    """
    probabilities, maps = zip(*in_node(program, folder, images=images), strict=True)
    side = round(np.sqrt(len(maps[0][0])))
    return np.array(probabilities), np.array(maps).reshape(len(images), -1, side, side)


def pictures(n, size, seed=0):
    """Noise of all scales, in [0, 255], as sharp as photographs."""
    rng = np.random.default_rng(seed)
    noise = [tf.image.resize(rng.uniform(0, 255, (n, k, k, 3)), (size, size)).numpy() for k in (2, 4, 8, size)]
    return np.mean(noise, 0).astype("float32")


def check(model, images, folder, itself, maps=1e-4, **options):
    found, evidence = answers(page(model, images.shape[1], **options), images, folder)
    half = rounded(model, **options)
    predict = lambda network: keras.ops.convert_to_numpy(network(images, training=False))
    expected = predict(model)
    assert np.ptp(expected, axis=0).max() > 0.05  # that the answers tell the images apart
    assert np.abs(found - predict(half)).max() < 1e-5
    assert np.abs(found - expected).max() < itself
    for k in (0, found.shape[1] - 1):
        closely = analysis.class_activation_map(half, images, k)
        assert np.abs(evidence[:, k] - closely).max() < maps * max(1, np.abs(closely).max())


@pytest.mark.parametrize(("name", "itself"), [("cifar10-resnet-20", 2e-3), ("cifar10-plain-20", 0.01)])
def test_the_page_answers_as_the_shipped_networks(tmp_path, name, itself):
    ship = keras.utils.img_to_array(keras.utils.load_img(ROOT / "docs" / "ship.png"))
    ship = crops.center_crop(ship, 32, 32).numpy()
    images = np.concatenate([pictures(7, 32), ship[None]])
    check(evaluation.load_model(Run(name).found), images, tmp_path, itself)


# Each order, shortcut, variant and kind of block at least once.
NETWORKS = (
    {"depth": 14, "shortcut": "C"},
    {"shortcut": None, "normalization": None},
    {"activation_order": "bn_after_addition", "shortcut": "B", "shortcut_variant": "constant_scaling"},
    {"activation_order": "relu_before_addition", "shortcut": "A", "shortcut_variant": "exclusive_gate"},
    {"activation_order": "relu_only_preactivation", "shortcut": "B", "shortcut_variant": "shortcut_gate"},
    {"activation_order": "full_preactivation", "shortcut": "C", "shortcut_variant": "dropout"},
    {"activation_order": "full_preactivation", "shortcut": "A"},
    {"activation_order": "bare_stem_preactivation", "shortcut": "A", "block": "bottleneck", "stride_in": "3x3"},
    {"activation_order": "bare_ends_preactivation", "shortcut": "B", "block": "bottleneck", "stride_in": "1x1"},
)


def small(depth=None, size=12, classes=4, normalization=((120.0, 125.0, 110.0), (60.0, 62.0, 65.0)), **options):
    depth = depth or (11 if options.get("block") == "bottleneck" else 8)
    model = keras_resnet.CifarResNet(
        depth, input_shape=(size, size, 3), classes=classes, normalization=normalization, **options
    )
    return telling_apart(model)


def telling_apart(model, size=None):
    """The network with random weights, scaled so that the scores of each class have mean 0 and standard deviation 1."""
    randomize(model)
    scores = keras.ops.convert_to_numpy(analysis.logits(model)(pictures(4, size or model.input_shape[1])))
    kernel, bias = model.get_layer("fc").get_weights()
    model.get_layer("fc").set_weights([kernel / scores.std(0), (bias - scores.mean(0)) / scores.std(0)])
    return model


@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: ", ".join(map(str, options.values())))
def test_the_page_answers_as_every_kind_of_network(tmp_path, options):
    check(small(**options), pictures(4, 12), tmp_path, itself=0.02)


def test_batch_normalisation_that_is_not_folded(tmp_path):
    check(small(shortcut="B"), pictures(4, 12), tmp_path, itself=0.02, batch_norm=False)


def test_four_stages_and_a_mean_image(tmp_path):
    mean = np.random.default_rng(1).uniform(0, 255, (9, 9, 3))
    network = Architecture("basic", (1, 1, 1, 1), width=8, stem="3x3", shortcut="B")
    model = models.build(network, input_shape=(9, 9, 3), classes=5, normalization=(mean, 64.0))
    check(telling_apart(model), pictures(4, 9), tmp_path, itself=0.02)


def test_a_network_of_logits_and_any_size(tmp_path):
    model = keras_resnet.CifarResNet(8, classes=3, input_shape=(None, None, 3), classifier_activation=None)
    telling_apart(model, 10)
    path = serving.export(model, tmp_path / "web", classes=["one", "</script>", "“three”"], crop=10, format="web")
    assert sorted(os.listdir(path)) == ["about.json", "index.html"]
    html = pathlib.Path(path, "index.html").read_text("utf-8")
    images = pictures(3, 10)
    found, _ = answers(html, images, tmp_path)
    expected = keras.ops.softmax(rounded(model)(images))
    assert np.abs(found - keras.ops.convert_to_numpy(expected)).max() < 1e-5
    about = json.loads(pathlib.Path(path, "about.json").read_text())
    assert 0 < about["largest_difference"] < 0.02
    assert json.loads(described(html))["classes"] == ["one", "</script>", "“three”"]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 32), (601, 450, 32), (97, 64, 32), (40, 1003, 24), (20, 11, 32), (333, 500, 64)],
)
def test_pictures_are_averaged_as_files_are(tmp_path, height, width, size):
    image = pictures(1, 1024)[0, :height, :width].round()
    alpha = np.full((height, width, 1), 255)
    program = f"""
    const bytes = Uint8Array.from(picture);
    const rows = (top, count) => bytes.subarray(4 * {width} * top, 4 * {width} * (top + count));
    const answer = Array.from(shrink(rows, {width}, {height}, {size}, 7));
    """
    found = in_node(program, tmp_path, picture=np.concatenate([image, alpha], -1))
    expected = crops.center_crop(image, size, size).numpy()
    assert np.abs(np.reshape(found, expected.shape) - expected).max() < 0.01


def nested():
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, small(size=32)(inputs), name="nested")


def rectified_otherwise():
    model = small(size=32)
    swap = lambda layer: layers.ReLU(6.0, name=layer.name) if isinstance(layer, layers.ReLU) else None
    return graphs.copy(model, lambda layer: swap(layer) or graphs.same_layer(layer))


def with_another_layer():
    model = small(size=32)
    x = layers.Conv2D(64, 1, name="more")(model.get_layer("conv4_1").output)
    x = layers.Dense(4, activation="softmax", name="fc")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(model.input, x, name="another")


def overflowing():
    model = small(size=32)
    kernel, bias = model.get_layer("fc").get_weights()
    model.get_layer("fc").set_weights([kernel, np.full_like(bias, 1e5)])
    return model


REFUSED = {
    "the 3x3 stem": lambda: keras_resnet.ResNet18(input_shape=(64, 64, 3), classes=3),
    "up to 64x64 pixels; .* 224x224": lambda: keras_resnet.ResNet18(classes=3, stem="3x3"),
    "contains models": nested,
    "other layers": rectified_otherwise,
    "unexpected": with_another_layer,
    "a softmax": lambda: small(size=32, classifier_activation="sigmoid"),
    "BGR": lambda: small(size=32, normalization="caffe"),
    "float16": overflowing,
    "holds no residual network": lambda: keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Flatten(), layers.Dense(3, activation="softmax")]
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_a_page_cannot_express_is_refused(tmp_path, why):
    with pytest.raises(serving.ExportError, match=why):
        serving.export(REFUSED[why](), tmp_path / "web", format="web")
    assert not os.listdir(tmp_path)


def test_the_page_is_one_file_that_asks_for_nothing():
    html = page(small(size=32))
    assert not re.search(r"""(src|href)=["'](?!data:,)|https?://|@import|url\(|fetch\(|XMLHttpRequest""", html)
    assert html.count("<script>") == 4 and html.count("<style>") == 2 and "default-src 'none'" in html


def test_the_page_answers_in_a_browser(tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    path = serving.export_run("cifar10-resnet-20", tmp_path / "web", format="web")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    options += ["--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([chromium, *options, f"file://{path}/index.html"], capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert re.search(r'aria-live="polite">A ship: ResNet-20: ship \d\d', done.stdout)
    assert '<h1 id="title">ResNet-20 classifies your image</h1>' in done.stdout
    assert "wrong on 8.2 % of its test images" in done.stdout
    assert done.stdout.count("<canvas") == 3 + 12  # the pictures, one of them in the template, and the drawings
