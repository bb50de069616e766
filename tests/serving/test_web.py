import json
import pathlib
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, randomize
from keras import layers

import keras_resnet
from keras_resnet import analysis, evaluation, serving
from keras_resnet.data import imagenet
from keras_resnet.graphs import fold
from keras_resnet.serving import web
from keras_resnet.weights.published import find

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def in_node(program, folder, **arrays):
    """What a program of the page's functions puts into `answer`; `arrays` are Float32Arrays with their names."""
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


def rounded(model, batch_norm=True):
    """The network with its weights in float16, batch normalisations as a scale and an offset."""
    copy = fold(model, batch_norm=batch_norm)
    half = lambda array: array.astype("float16").astype("float32")
    for layer in copy.layers:
        weights = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            scale = weights[0] / np.sqrt(weights[3].astype("float64") + 1e-5)
            offset = weights[1] - weights[2] * scale
            weights = [scale, offset, np.zeros_like(scale), np.full_like(scale, 1 - 1e-5)]
            weights[:2] = half(scale), half(offset)
        else:
            weights = [half(array) for array in weights]
        layer.set_weights(weights)
    return copy


def pictures(n, size, seed=0):
    """Noise of all scales, in [0, 255], as sharp as pictures are."""
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


@pytest.mark.parametrize("name", ["cifar10-resnet-20", "cifar10-plain-20"])
def test_the_page_answers_as_the_shipped_networks(tmp_path, name):
    ship = keras.utils.img_to_array(keras.utils.load_img(ROOT / "docs" / "ship.png"))
    ship = imagenet.center_crop(ship, 32, 32).numpy()
    images = np.concatenate([pictures(7, 32), ship[None]])
    check(evaluation.load_model(find(name)), images, tmp_path, itself=2e-3)


NETWORKS = {
    "B": {"shortcut": "B"},
    "C": {"shortcut": "C"},
    "plain": {"shortcut": None},
    "bottleneck": {"depth": 11, "block": "bottleneck", "shortcut": "B"},
    "bottleneck A, stride in 3x3": {"depth": 11, "block": "bottleneck", "shortcut": "A", "stride_in": "3x3"},
    "two blocks a stage": {"depth": 14},
    **{
        order: {"activation_order": order, "shortcut": shortcut}
        for order, shortcut in (
            ("bn_after_addition", "B"), ("relu_before_addition", "A"), ("relu_only_preactivation", "B"),
            ("full_preactivation", "C"), ("bare_stem_preactivation", "A"), ("bare_ends_preactivation", "B"),
        )
    },
    **{
        variant: {"shortcut_variant": variant}
        for variant in ("constant_scaling", "exclusive_gate", "shortcut_gate", "dropout")
    },
}  # fmt: skip


def small(depth=8, size=12, classes=4, normalization=((120.0, 125.0, 110.0), (60.0, 62.0, 65.0)), **options):
    model = keras_resnet.CifarResNet(
        depth, input_shape=(size, size, 3), classes=classes, normalization=normalization, **options
    )
    randomize(model)
    fc = model.get_layer("fc")
    fc.kernel.assign(20 * fc.kernel)  # so that the answers tell images apart
    return model


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_the_page_answers_as_every_kind_of_network(tmp_path, options):
    check(small(**options), pictures(4, 12), tmp_path, itself=0.02)
