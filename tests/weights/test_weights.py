import functools
import hashlib
import importlib
import itertools
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, by_hand, images, randomize, shared
from conftest import blocks as fenced

import keras_resnet
from keras_resnet import analysis, architecture, evaluation, graphs, normalization
from keras_resnet.files import WeightsError
from keras_resnet.weights import load_weights, published, readers

IMAGENET = published.PUBLISHED["imagenet"].files

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
RELATIVE = 1e-4  # of the largest logit


def close(found, expected):
    found, expected = (np.asarray(keras.ops.convert_to_numpy(x)) for x in (found, expected))
    return found.shape == expected.shape and np.abs(found - expected).max() < RELATIVE * np.abs(expected).max()


def pixels(n, size, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (n, size, size, 3)).astype("float32")


def state_dict(blocks, widths=(64, 128, 256, 512), stem=7, last="fc", classes=10, projections=True, seed=0):
    """Random tensors of a network of basic blocks under the names of PyTorch's networks."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def conv_bn(conv, bn, inputs, outputs, size):
        scale = math.sqrt(1 / (inputs * size * size))
        tensors[f"{conv}.weight"] = rng.normal(0, scale, (outputs, inputs, size, size)).astype("float32")
        for name, low, high in (
            ("weight", 0.5, 1.5),
            ("running_var", 0.5, 1.5),
            ("bias", -1, 1),
            ("running_mean", -1, 1),
        ):
            tensors[f"{bn}.{name}"] = rng.uniform(low, high, outputs).astype("float32")

    conv_bn("conv1", "bn1", 3, widths[0], stem)
    inputs = widths[0]
    for stage, width in enumerate(widths, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            conv_bn(f"{name}.conv1", f"{name}.bn1", inputs, width, 3)
            conv_bn(f"{name}.conv2", f"{name}.bn2", width, width, 3)
            if projections and inputs != width:
                conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", inputs, width, 1)
            inputs = width
    tensors[f"{last}.weight"] = rng.normal(0, 0.1, (classes, inputs)).astype("float32")
    tensors[f"{last}.bias"] = rng.normal(0, 0.1, classes).astype("float32")
    return tensors


def forward(tensors, x, zeros):
    """The logits of a `state_dict`, implemented after PyTorch's networks; `zeros(x, width)` is option A's padding."""
    relu = lambda x: np.maximum(x, 0)

    def conv_bn(x, conv, bn, strides=1):
        x = by_hand(x, tensors[f"{conv}.weight"].transpose(2, 3, 1, 0), strides)
        scale = tensors[f"{bn}.weight"] / np.sqrt(tensors[f"{bn}.running_var"] + 1e-5)
        return (x - tensors[f"{bn}.running_mean"]) * scale + tensors[f"{bn}.bias"]

    large = tensors["conv1.weight"].shape[-1] == 7
    x = relu(conv_bn(x, "conv1", "bn1", 2 if large else 1))
    if large:
        size = (x.shape[1] - 1) // 2 + 1
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        x = np.max([x[:, i:, j:][:, ::2, ::2][:, :size, :size] for i in range(3) for j in range(3)], axis=0)
    for stage, block in itertools.product(range(1, 5), range(9)):
        name = f"layer{stage}.{block}"
        if f"{name}.conv1.weight" not in tensors:
            continue
        strides = 2 if stage > 1 and block == 0 else 1
        y = relu(conv_bn(x, f"{name}.conv1", f"{name}.bn1", strides))
        y = conv_bn(y, f"{name}.conv2", f"{name}.bn2")
        if f"{name}.downsample.0.weight" in tensors:
            x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", strides)
        elif strides > 1:
            x = zeros(x[:, ::2, ::2], y.shape[-1])
        x = relu(x + y)
    last = "fc" if "fc.weight" in tensors else "linear"
    return x.mean((1, 2)) @ tensors[f"{last}.weight"].T + tensors[f"{last}.bias"]


def both_sides(x, width):
    before = (width - x.shape[-1]) // 2
    return np.pad(x, ((0, 0), (0, 0), (0, 0), (before, width - x.shape[-1] - before)))


def torch_normalized(x):
    return (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])


def test_torchvision_against_numpy(tmp_path):
    tensors = state_dict(2)
    counters = {"bn1.num_batches_tracked": np.array(7)}
    safetensors.save_file({**tensors, **counters}, tmp_path / "resnet18.safetensors")
    model = keras_resnet.ResNet18(weights=tmp_path / "resnet18.safetensors", classes=10, classifier_activation=None)
    x = pixels(2, 33)
    assert close(model(x), forward(tensors, torch_normalized(x), None))


def test_akamaster_against_numpy(tmp_path):
    """Their option A has zero channels on both sides, and DataParallel its prefix."""
    tensors = state_dict(3, (16, 32, 64), 3, "linear", projections=False)
    safetensors.save_file({f"module.{name}": t for name, t in tensors.items()}, tmp_path / "x.safetensors")
    x = pixels(2, 32)
    expected = forward(tensors, torch_normalized(x), both_sides)
    model = keras_resnet.CifarResNet(20, weights=tmp_path / "x.safetensors", classifier_activation=None)
    assert close(model(x), expected)
    inferred = keras_resnet.from_weights(tmp_path / "x.safetensors")
    assert inferred.name == "cifar_resnet20" and close(analysis.logits(inferred)(x), expected)


def test_state_dicts_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason='torch is not installed: pip install ".[torch]"')
    tensors = state_dict(3, (16, 32, 64), 3, "linear", projections=False)
    wrapped = {f"module.{name}": torch.tensor(array) for name, array in tensors.items()}
    torch.save({"state_dict": wrapped, "best_prec1": 91.8}, tmp_path / "x.th")
    torch.save({"state_dict": wrapped}, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    x = pixels(2, 32)
    expected = forward(tensors, torch_normalized(x), both_sides)
    for name in ("x.th", "old.th"):
        model = keras_resnet.CifarResNet(20, weights=tmp_path / name, classifier_activation=None)
        assert close(model(x), expected)


CIFAR10 = np.array([[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]])


def cifar10_normalized(x):
    return (x / 255 - CIFAR10[0]) / CIFAR10[1]


KUANGLIU = ("downsample", "shortcut"), ("fc", "linear")
PYTORCHCV = (
    (r"^conv1", "features.init_block.conv"),
    (r"^bn1", "features.init_block.bn"),
    (r"^layer(\d)\.(\d)\.(conv|bn)(\d)", r"features.stage\1.unit\2.body.conv\4.\3"),
    (r"^layer(\d)\.(\d)\.downsample\.0", r"features.stage\1.unit\2.identity_conv.conv"),
    (r"^layer(\d)\.(\d)\.downsample\.1", r"features.stage\1.unit\2.identity_conv.bn"),
    (r"unit(\d)", lambda match: f"unit{int(match[1]) + 1}"),
    ("fc", "output"),
)


def renamed(tensors, pairs):
    for pattern, replacement in pairs:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    return tensors


@pytest.mark.parametrize(
    "names, widths, classes",
    [
        (KUANGLIU, (8, 16, 32, 64), 10),  # four stages at 32x32
        (PYTORCHCV, (8, 16, 32), 10),
        (PYTORCHCV, (8, 16, 32), 100),
    ],
)
def test_cifar_networks_of_pytorch_against_numpy(tmp_path, names, widths, classes):
    """Their published scripts all normalise with the same numbers."""
    tensors = state_dict(2, widths, 3, classes=classes)
    safetensors.save_file(renamed(tensors, names), tmp_path / "x.safetensors")
    x = pixels(2, 32)
    model = keras_resnet.from_weights(tmp_path / "x.safetensors")
    assert close(analysis.logits(model)(x), forward(tensors, cifar10_normalized(x), None))
    assert normalization.of(model) == "cifar10"


def preactivated(tensors, x):
    """The logits of pytorchcv's pre-activation networks, implemented after its source."""

    def act(x, name):
        scale = tensors[f"{name}.weight"] / np.sqrt(tensors[f"{name}.running_var"] + 1e-5)
        return np.maximum((x - tensors[f"{name}.running_mean"]) * scale + tensors[f"{name}.bias"], 0)

    conv = lambda x, name, strides=1: by_hand(x, tensors[f"{name}.weight"].transpose(2, 3, 1, 0), strides)
    x = conv(x, "features.init_block")  # and nothing behind it
    for stage, unit in itertools.product((1, 2, 3), (1, 2)):
        name, parts = f"features.stage{stage}.unit{unit}", itertools.count(1)
        strides = 2 if stage > 1 and unit == 1 else 1
        strided = 2 if f"{name}.body.conv3.conv.weight" in tensors else 1  # in bottlenecks the 3x3
        y = first = act(x, f"{name}.body.conv1.bn")
        for part in itertools.takewhile(lambda i, name=name: f"{name}.body.conv{i}.conv.weight" in tensors, parts):
            y = y if part == 1 else act(y, f"{name}.body.conv{part}.bn")
            y = conv(y, f"{name}.body.conv{part}.conv", strides if part == strided else 1)
        x = y + (conv(first, f"{name}.identity_conv", strides) if f"{name}.identity_conv.weight" in tensors else x)
    return act(x, "features.post_activ.bn").mean((1, 2)) @ tensors["output.weight"].T + tensors["output.bias"]


@pytest.mark.parametrize("kernels", [(3, 3), (1, 3, 1)])
def test_preactivation_of_pytorchcv_against_numpy(tmp_path, kernels):
    """No layers follow conv1 there, so the first shortcut of basic blocks starts before any batch normalisation."""
    rng, tensors, inputs, expansion = np.random.default_rng(0), {}, 8, 4 if len(kernels) == 3 else 1

    def conv(name, inputs, outputs, size):
        scale = math.sqrt(1 / (inputs * size * size))
        tensors[f"{name}.weight"] = rng.normal(0, scale, (outputs, inputs, size, size)).astype("float32")

    def bn(name, channels):
        for part, low in (("weight", 0.5), ("running_var", 0.5), ("bias", -1), ("running_mean", -1)):
            tensors[f"{name}.{part}"] = rng.uniform(low, low + 1, channels).astype("float32")

    conv("features.init_block", 3, inputs, 3)
    for stage, width in enumerate((8, 16, 32), 1):
        for unit in (1, 2):
            name, outputs, before = f"features.stage{stage}.unit{unit}", width * expansion, inputs
            for part, size in enumerate(kernels, 1):
                after = outputs if part == len(kernels) else width
                bn(f"{name}.body.conv{part}.bn", before)
                conv(f"{name}.body.conv{part}.conv", before, after, size)
                before = after
            if inputs != outputs:
                conv(f"{name}.identity_conv", inputs, outputs, 1)
            inputs = outputs
    bn("features.post_activ.bn", inputs)
    tensors["output.weight"] = rng.normal(0, 0.1, (10, inputs)).astype("float32")
    tensors["output.bias"] = rng.normal(0, 0.1, 10).astype("float32")
    safetensors.save_file(tensors, tmp_path / "x.safetensors")
    x = pixels(2, 32)
    expected = preactivated(tensors, cifar10_normalized(x))
    model = keras_resnet.from_weights(tmp_path / "x.safetensors")
    assert close(analysis.logits(model)(x), expected)
    model.save(tmp_path / "x.keras")
    assert close(analysis.logits(keras_resnet.from_weights(tmp_path / "x.keras"))(x), expected)
    p2 = keras_resnet.CifarResNet(14, activation_order="full_preactivation", shortcut="B", normalization="cifar10")
    with pytest.raises(WeightsError, match="'full_preactivation', but the weights were .* 'bare_stem_preactivation'"):
        load_weights(p2, tmp_path / "x.safetensors")


def preact_resnet(torch, bottleneck):
    """The layers and names of kuangliu's PreActResNets, in PyTorch."""
    nn, expansion = torch.nn, 4 if bottleneck else 1

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            outputs, kernels = width * expansion, (1, 3, 1) if bottleneck else (3, 3)
            channels = [inputs, *[width] * (len(kernels) - 1), outputs]
            strided = kernels.index(3)
            for i, kernel in enumerate(kernels):
                step = stride if i == strided else 1
                conv = nn.Conv2d(channels[i], channels[i + 1], kernel, step, kernel // 2, bias=False)
                setattr(self, f"bn{i + 1}", nn.BatchNorm2d(channels[i]))
                setattr(self, f"conv{i + 1}", conv)
            self.depth = len(kernels)
            if stride != 1 or inputs != outputs:
                self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

        def forward(self, x):
            y = self.bn1(x).relu()
            x = self.shortcut(y) if hasattr(self, "shortcut") else x
            for i in range(1, self.depth + 1):
                y = getattr(self, f"conv{i}")(y if i == 1 else getattr(self, f"bn{i}")(y).relu())
            return x + y

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            inputs = 8
            for stage in (1, 2, 3, 4):
                width = 4 * 2**stage
                strides = (1 if stage == 1 else 2), 1
                blocks = [Block(i, width, s) for i, s in zip((inputs, width * expansion), strides, strict=True)]
                setattr(self, f"layer{stage}", nn.Sequential(*blocks))
                inputs = width * expansion
            self.linear = nn.Linear(inputs, 10)

        def forward(self, x):
            x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
            return self.linear(nn.functional.avg_pool2d(x, 4).flatten(1))

    network = Network().eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.ndim == 1:
            low = 0.5 if re.search(r"bn\d\.weight|running_var", name) else -1
            tensor.uniform_(low, low + 1, generator=generator)
    return network


@pytest.mark.parametrize("bottleneck", [False, True])
def test_preactivation_of_kuangliu_against_pytorch(tmp_path, bottleneck):
    torch = pytest.importorskip("torch", reason='torch is not installed: pip install ".[torch]"')
    theirs = preact_resnet(torch, bottleneck)
    torch.save({"net": {f"module.{name}": t for name, t in theirs.state_dict().items()}}, tmp_path / "ckpt.pth")
    x = pixels(2, 32)
    with torch.no_grad():
        expected = theirs(torch.tensor(cifar10_normalized(x).transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    assert expected.std(0).max() > 0.01  # the images tell apart
    model = keras_resnet.from_weights(tmp_path / "ckpt.pth")
    assert close(analysis.logits(model)(x), expected) and normalization.of(model) == "cifar10"
    model.save(tmp_path / "x.keras")
    keras_resnet.save_torchvision(model, tmp_path / "x.safetensors")
    for name in ("x.keras", "x.safetensors"):
        assert close(analysis.logits(keras_resnet.from_weights(tmp_path / name))(x), expected)
    other = keras_resnet.ResNet50V2 if bottleneck else keras_resnet.ResNet18V2
    with pytest.raises(WeightsError, match="'full_preactivation', but the weights were .* 'bare_ends_preactivation'"):
        other(stem="3x3", classes=10, weights=tmp_path / "ckpt.pth")
    bn = {f"bn.{name}": torch.ones(expected.shape[1]) for name in ("weight", "bias", "running_mean", "running_var")}
    torch.save({**theirs.state_dict(), **bn}, tmp_path / "another.pth")
    with pytest.raises(WeightsError, match="kuangliu's pre-activation networks.*\n  4 unexpected: bn.weight"):
        keras_resnet.from_weights(tmp_path / "another.pth")


UNSAID = "the weights do not state how the images were normalised .*--normalization cifar10"


@pytest.mark.parametrize(
    "widths, options, names",
    [
        ((8, 16, 32), {}, ()),  # chenyaofo: torchvision's names, one mean for CIFAR-10 and another for CIFAR-100
        ((8, 16, 32, 64), {}, ()),  # torchvision's network, its stem replaced
        ((8, 16, 32, 64), {"classes": 100}, KUANGLIU),
        ((8, 16, 32), {}, KUANGLIU),  # akamaster's option B too
        ((8, 16, 32), {"projections": False, "classes": 100, "last": "linear"}, ()),
    ],
)
def test_an_unknown_normalisation_is_asked_for(tmp_path, widths, options, names):
    tensors = state_dict(1, widths, 3, **options)
    path, x = tmp_path / "x.safetensors", pixels(2, 32)
    safetensors.save_file(renamed(tensors, names), path)
    with pytest.raises(WeightsError, match=UNSAID):
        keras_resnet.from_weights(path)
    if "last" in options:
        return
    expected = forward(tensors, cifar10_normalized(x), None)
    for numbers in ("cifar10", tuple(255 * CIFAR10)):
        model = keras_resnet.from_weights(path, numbers)
        assert close(analysis.logits(model)(x), expected)
    bare = keras_resnet.from_weights(path, normalization=None)
    assert close(analysis.logits(bare)(keras_resnet.preprocess_input(x, "cifar10")), expected)
    tensors["se.weight"] = np.zeros(3, "float32")
    safetensors.save_file(renamed(tensors, names), path)
    with pytest.raises(WeightsError, match="1 unexpected: se.weight"):  # no question about what does not fit anyway
        keras_resnet.from_weights(path)


def test_a_builder_and_a_run_ask_too(tmp_path):
    safetensors.save_file(state_dict(1, (16, 32, 64), 3), tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=UNSAID):
        keras_resnet.CifarResNet(8, shortcut="B", weights=tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=UNSAID):  # as fine-tuning builds it
        keras_resnet.CifarResNet(8, shortcut="B", normalization=readers.read(tmp_path / "x.safetensors").normalization)
    load_weights(keras_resnet.CifarResNet(8, shortcut="B", normalization="torch"), tmp_path / "x.safetensors")


@pytest.mark.parametrize("nested", [True, False])
def test_the_config_of_timms_cifar_networks(tmp_path, nested):
    tensors = state_dict(2, (8, 16, 32, 64), 3)
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    said = dict(zip(("mean", "std"), CIFAR10.tolist(), strict=True))
    config = {"architecture": "resnet18_cifar10", **({"pretrained_cfg": said} if nested else said)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    x = pixels(2, 32)
    model = keras_resnet.from_weights(tmp_path / "model.safetensors")
    assert close(analysis.logits(model)(x), forward(tensors, cifar10_normalized(x), None))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors, torch: {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()},
        lambda tensors, torch: {"model": tensors, "optimizer": {"lr": 0.1}, "epoch": 3},
        lambda tensors, torch: {"model_state": tensors},
        lambda tensors, torch: {"model_state_dict": tensors},
        lambda tensors, torch: {"net": {f"module.{name}": t for name, t in tensors.items()}, "acc": 95.0},
        lambda tensors, torch: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors, torch: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors, torch: {"state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()}},
    ],
)
def test_checkpoints_of_training_scripts(tmp_path, wrap):
    torch = pytest.importorskip("torch", reason='torch is not installed: pip install ".[torch]"')
    tensors = state_dict(1, (8, 16, 32), 3, "linear", projections=False)
    torch.save(wrap({name: torch.tensor(array) for name, array in tensors.items()}, torch), tmp_path / "x.pth")
    x = pixels(1, 32)
    model = keras_resnet.from_weights(tmp_path / "x.pth")
    assert close(analysis.logits(model)(x), forward(tensors, torch_normalized(x), both_sides))


def test_what_is_no_state_dict(tmp_path):
    torch = pytest.importorskip("torch", reason='torch is not installed: pip install ".[torch]"')
    tensors = {name: torch.tensor(array) for name, array in state_dict(1, (8, 16, 32), 3).items()}
    torch.save(list(tensors.values()), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"holds a list; in PyTorch, save the model's state_dict\(\)"):
        readers.read(tmp_path / "x.pth")
    torch.save(tensors | {f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="several networks, whose tensors differ only in a prefix: conv1.weight"):
        readers.read(tmp_path / "x.pth")
    with pytest.raises(WeightsError, match='a Keras model, a path, "imagenet" or "cifar10"; found 18'):
        readers.read(18)


@pytest.mark.parametrize(
    "weights_file, error",
    [
        ("resnet20-12fca82f.th", "8.27%"),
        pytest.param("resnet32-d509ac18.th", "7.37%", marks=pytest.mark.slow),
    ],
)
def test_published_cifar_networks_to_the_image(tmp_path, cifar10_dir, weights_file, error):
    pytest.importorskip("torch", reason='torch is not installed: pip install ".[torch]"')
    source, out = shared("weights") / weights_file, tmp_path / "m.keras"
    run = lambda program, *options: (
        subprocess.run(
            [sys.executable, ROOT / "train" / program, *options], check=True, capture_output=True, text=True
        ).stdout
    )
    assert "preprocessing layer: 'torch'" in run("convert.py", source, out)
    said = run("evaluate.py", out, "--data", "cifar10", "--data-dir", cifar10_dir)
    assert f"top-1 error       {error}" in said


@pytest.mark.parametrize(
    "name", ["ResNet50", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ResNet101", "ResNet152"))]
)
def test_keras_applications(name):
    theirs = getattr(keras.applications, name)(weights=None, classifier_activation=None, classes=10)
    randomize(theirs)
    x = pixels(2, 224)
    model = getattr(keras_resnet, name)(weights=theirs, classes=10, classifier_activation=None)
    assert close(model(x), theirs(keras.applications.resnet.preprocess_input(x.copy())))


def publish(model, path):
    """Writes the weights alone, in the layout in which keras.applications publishes them."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            name = "probs" if layer.name == "predictions" else layer.name
            names = {f"{name}/{variable.name}:0": variable for variable in layer.weights}
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in names.items():
                group[name] = variable.numpy()


def test_epsilon_of_keras_applications(tmp_path):
    """With small variances a wrong epsilon would show: 1.001e-5 becomes part of the variance."""
    theirs = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.full(layer.moving_variance.shape, 1e-6, "float32"))
    publish(theirs, tmp_path / "weights.h5")
    for source in (theirs, tmp_path / "weights.h5"):
        ours = keras_resnet.ResNet50(weights=source, include_top=False)
        assert np.allclose(ours.get_layer("conv2_1_1_bn").moving_variance, 1.01e-6, rtol=1e-4, atol=0)


def test_h5_files_of_keras_applications(tmp_path):
    theirs = keras.applications.ResNet50(weights=None, classifier_activation=None, classes=10)
    randomize(theirs)
    theirs.save(tmp_path / "whole.h5")
    publish(theirs, tmp_path / "weights.h5")
    x = pixels(1, 224)
    expected = theirs(keras.applications.resnet.preprocess_input(x.copy()))
    for name in ("whole.h5", "weights.h5"):
        model = keras_resnet.from_weights(tmp_path / name)
        assert model.name == "resnet50" and close(analysis.logits(model)(x), expected)


def hub(block_type, **options):
    keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed")
    bottleneck = block_type.startswith("bottleneck")
    backbone = keras_hub.models.ResNetBackbone(
        **{
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 128, 256, 512],
            "stackwise_num_blocks": [3, 4, 6, 3] if bottleneck else [2, 2, 2, 2],
            "stackwise_num_strides": [1, 2, 2, 2],
            "block_type": block_type,
            **options,
        }
    )
    randomize(backbone)
    return backbone


@pytest.mark.parametrize("name, block_type", [("ResNet18", "basic_block"), ("ResNet50", "bottleneck_block")])
def test_keras_hub(name, block_type):
    theirs = hub(block_type)
    x = pixels(2, 64)
    model = getattr(keras_resnet, name)(weights=theirs, include_top=False)
    assert close(model(x), theirs(torch_normalized(x).astype("float32")))
    with pytest.raises(WeightsError, match="2 missing: fc/kernel, fc/bias$"):
        load_weights(getattr(keras_resnet, name)(stride_in="3x3"), theirs)


@pytest.mark.parametrize(
    "block_type, options, message",
    [
        ("bottleneck_block", {"use_pre_activation": True}, "pools before the first batch normalisation"),
        (
            "bottleneck_block_vd",
            {"input_conv_filters": [32, 32, 64], "input_conv_kernel_sizes": [3] * 3},
            "conv1 has the stride 2",
        ),
        ("basic_block_vd", {}, "conv3_1_shortcut has the stride 1; in the papers it is 2"),
        ("basic_block", {"stackwise_num_strides": [1, 2, 2, 1]}, "conv5_1_1 has the stride 1; in the papers it is 2"),
    ],
)
def test_other_networks_of_keras_hub_are_refused(block_type, options, message):
    name = "ResNet50" if block_type.startswith("bottleneck") else "ResNet18"
    with pytest.raises(WeightsError, match=message):
        getattr(keras_resnet, name)(weights=hub(block_type, **options), include_top=False)


def test_padding_of_keras_is_refused():
    theirs = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 7, 2, padding="same", name="conv1"),
            keras.layers.Conv2D(8, 3, name="conv2_1_1"),
        ]
    )
    with pytest.raises(WeightsError, match='conv1 pads as "same" with a stride'):
        keras_resnet.from_weights(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, config",
    [
        ("ResNet18", {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}),
        ("ResNet50", {}),
        ("ResNet50", {"downsample_in_bottleneck": True}),
    ],
)
def test_transformers(tmp_path, name, config):
    torch = pytest.importorskip("torch", reason='torch is not installed: pip install ".[torch]"')
    transformers = pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[torch]"')
    theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=10, **config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in theirs.state_dict().items():
            if key.endswith(("running_mean", "normalization.bias")):
                tensor.normal_(0, 0.2, generator=generator)
            elif key.endswith(("running_var", "normalization.weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
    theirs.save_pretrained(tmp_path)
    x = pixels(2, 224)
    with torch.no_grad():
        expected = theirs(torch.tensor(torch_normalized(x).transpose(0, 3, 1, 2).astype("float32"))).logits.numpy()
    model = getattr(keras_resnet, name)(weights=tmp_path / "model.safetensors", classes=10, classifier_activation=None)
    assert close(model(x), expected)
    other = "3x3" if config.get("downsample_in_bottleneck") else "1x1"
    if name == "ResNet50":
        with pytest.raises(WeightsError, match="stride_in"):
            keras_resnet.ResNet50(weights=tmp_path / "model.safetensors", classes=10, stride_in=other)


@pytest.fixture
def file(tmp_path):
    """Random weights of a ResNet-18 for 10 classes, under torchvision's names."""
    safetensors.save_file(state_dict(2), tmp_path / "resnet18.safetensors")
    return tmp_path / "resnet18.safetensors"


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}, (127.5, 63.75)),
        ({"architecture": "resnet18"}, "torch"),
        ({"architectures": ["ResNet"], "downsample_in_bottleneck": True}, "torch"),
    ],
)
def test_the_config_of_timm_gives_the_normalisation(file, config, expected):
    (file.parent / "config.json").write_text(json.dumps(config))
    assert normalization.same(readers.read(file).normalization, expected)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"architecture": "resnetblur18"}, "resnetblur18 is not a network of the paper"),
        ({"downsample_in_first_stage": True}, "a stride in the first stage"),
        ({"hidden_act": "gelu"}, "another nonlinearity"),
    ],
)
def test_a_config_of_another_network_is_refused(file, config, message):
    (file.parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        keras_resnet.ResNet18(weights=file, classes=10)


def unchanged(model, source, message):
    """Loading fails with a reason, and every variable is unchanged."""
    before = model.get_weights()
    with pytest.raises(WeightsError, match=message):
        load_weights(model, source)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_every_misfit_is_listed(tmp_path):
    tensors = state_dict(2)
    del tensors["bn1.bias"], tensors["layer4.1.conv2.weight"]
    tensors["layer1.0.se.weight"] = np.zeros(3, "float32")
    tensors["conv1.weight"] = np.zeros((64, 1, 7, 7), "float32")
    safetensors.save_file(tensors, tmp_path / "x.safetensors")
    lines = (
        r"2 missing: bn1.bias, layer4.1.conv2.weight\n"
        r"  1 unexpected: layer1.0.se.weight\n"
        r"  3 of the wrong shape: conv1.weight \(64, 1, 7, 7\), not \(64, 3, 7, 7\), "
        r"fc.weight \(10, 512\), not \(5, 512\), fc.bias \(10,\), not \(5,\)$"
    )
    unchanged(keras_resnet.ResNet18(classes=5), tmp_path / "x.safetensors", lines)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: keras_resnet.ResNet34(classes=10), "missing: layer1.2.conv1.weight"),
        (lambda: keras_resnet.ResNet18(classes=10, shortcut="C"), "missing: layer1.0.downsample.0.weight"),
        (lambda: keras_resnet.ResNet18(classes=10, shortcut="A"), "15 unexpected: layer2.0.downsample.0.weight"),
        (lambda: keras_resnet.ResNet18(classes=10, normalization="caffe"), "preprocessing layer normalises by 'caffe'"),
        (lambda: keras_resnet.ResNet18(classes=10, normalization=(120, 60)), r"by \(mean 120.0, std 60.0\), but the w"),
        (
            lambda: keras_resnet.PlainNet18(classes=10),
            "the network has shortcut=None, but the weights were trained with 'B'",
        ),
    ],
)
def test_another_network_is_refused(file, build, message):
    unchanged(build(), file, message)


def test_what_the_tensors_do_not_tell_is_checked(file):
    model = keras_resnet.ResNet18(classes=10)
    load_weights(model, file)  # pixels normalised outside
    assert np.array_equal(model.get_layer("conv1").kernel, state_dict(2)["conv1.weight"].transpose(2, 3, 1, 0))
    load_weights(keras_resnet.ResNet18(classes=10, normalization="torch"), file)
    top = keras_resnet.ResNet18(include_top=False, weights=file)  # a classifier without its last layer
    assert normalization.of(top) == "torch"
    one, three = keras_resnet.ResNet50(classes=10), keras_resnet.ResNet50(classes=10, stride_in="3x3")
    unchanged(one, three, "the network has stride_in='1x1', but the weights were trained with '3x3'")


@pytest.mark.parametrize("other", [lambda: keras_resnet.CifarPlainNet(20), lambda: keras_resnet.CifarResNet(20)])
def test_plain_and_residual_are_not_confused(tmp_path, other):
    """With option A both have the same variables."""
    akamaster = state_dict(3, (16, 32, 64), 3, "linear", projections=False)
    safetensors.save_file(akamaster, tmp_path / "x.safetensors")
    plain, residual = keras_resnet.CifarPlainNet(20), keras_resnet.CifarResNet(20)
    unchanged(plain, residual, "the network has shortcut=None, but the weights were trained with 'A'")
    unchanged(plain, tmp_path / "x.safetensors", "the network has shortcut=None")
    unchanged(residual, plain, "the network has shortcut='A', but the weights were trained with None")


class Malice:
    def __reduce__(self):
        return print, ("executed",)


def test_pickles_are_not_executed(tmp_path, capsys):
    pytest.importorskip("torch", reason='torch is not installed: pip install ".[torch]"')
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"conv1.weight": Malice()}))
    with pytest.raises(WeightsError, match="x.pth is damaged or holds objects other than tensors"):
        keras_resnet.ResNet18(weights=tmp_path / "x.pth")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("extension, package", [(".pth", "torch"), (".safetensors", "safetensors")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, extension, package):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"x{extension}"
    path.touch()
    with pytest.raises(WeightsError, match=rf"needs the package {package}: pip install"):
        readers.read(path)


def test_strangers_and_damage_are_refused(tmp_path):
    safetensors.save_file({"features.0.weight": np.zeros(3, "float32")}, tmp_path / "vgg.safetensors")
    with pytest.raises(WeightsError, match="no residual network .* first tensors are: features.0.weight"):
        keras_resnet.from_weights(tmp_path / "vgg.safetensors")
    for extension in (".keras", ".h5", ".safetensors"):
        (tmp_path / f"x{extension}").write_bytes(b"damaged")
        with pytest.raises(WeightsError, match=f"x{extension} (cannot be read|is damaged): "):
            readers.read(tmp_path / f"x{extension}")


@pytest.mark.parametrize(
    "build, size",
    [
        (lambda: keras_resnet.ResNet50(classes=10, shortcut="A", normalization="caffe"), 64),
        (lambda: keras_resnet.ResNet18(include_top=False, shortcut="C"), 64),
        (lambda: keras_resnet.CifarResNet(20, normalization=(pixels(1, 32)[0], 1.0)), 32),
        (lambda: keras_resnet.CifarResNet(29, block="bottleneck", shortcut="B", normalization="torch"), 32),
        (lambda: keras_resnet.CifarPlainNet(20, normalization=(120.0, 60.0)), 32),
    ],
)
def test_there_and_back_is_exact(tmp_path, build, size):
    model = build()
    randomize(model)
    keras_resnet.save_torchvision(model, tmp_path / "m.safetensors")
    names = set(safetensors.load_file(tmp_path / "m.safetensors"))
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight"} <= names
    back = keras_resnet.from_weights(tmp_path / "m.safetensors")
    for a, b in zip(model.weights, back.weights, strict=True):
        assert np.array_equal(a, b)
    x = pixels(2, size)
    assert close(back(x), model(x)) and back.name == model.name
    assert np.array_equal(
        *(np.array(analysis.logits(m)(x) if m.layers[-1].name == "predictions" else m(x)) for m in (model, back))
    )
    model.save(tmp_path / "m.keras")
    assert np.array_equal(keras_resnet.from_weights(tmp_path / "m.keras")(x), model(x))


def test_torchvision_reads_what_was_saved(tmp_path):
    """The independent forward pass accepts its names and layout."""
    model = keras_resnet.ResNet18(classes=10, classifier_activation=None)
    randomize(model)
    keras_resnet.save_torchvision(model, tmp_path / "m.safetensors")
    x = images(1, 40)
    tensors = safetensors.load_file(tmp_path / "m.safetensors")
    assert set(tensors) == set(state_dict(2)) and close(model(x), forward(tensors, x, None))
    with pytest.raises(WeightsError, match="not a network of this package"):
        keras_resnet.save_torchvision(keras.applications.ResNet50(weights=None), tmp_path / "m.safetensors")
    folded = keras_resnet.fold(keras_resnet.CifarResNet(8))
    with pytest.raises(WeightsError, match="conv1 of cifar_resnet8 has one, as after keras_resnet.fold"):
        keras_resnet.save_torchvision(folded, tmp_path / "folded.safetensors")
    assert not (tmp_path / "folded.safetensors").exists()


def test_weights_h5_is_counted(tmp_path):
    model = keras_resnet.CifarResNet(20)
    randomize(model)
    model.save_weights(tmp_path / "m.weights.h5")
    copy = keras_resnet.CifarResNet(20, normalization="torch")
    load_weights(copy, tmp_path / "m.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), copy.get_weights(), strict=True))
    unchanged(keras_resnet.CifarResNet(32), tmp_path / "m.weights.h5", "has 97 tensors, but cifar_resnet32 has 157")
    unchanged(
        keras_resnet.CifarResNet(20, classes=5), tmp_path / "m.weights.h5", "does not fit cifar_resnet20; nothing"
    )
    with pytest.raises(WeightsError, match="does not name its layers"):
        keras_resnet.from_weights(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["measurements"] = np.zeros(3)
    unchanged(copy, tmp_path / "other.h5", "is not a .weights.h5 of Keras")


def test_weights_h5_asks_for_the_normalisation(tmp_path):
    """It has no preprocessing layer: with raw pixels, such a network gives other outputs than in training."""
    model = keras_resnet.CifarResNet(8, normalization="cifar10")
    randomize(model)
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(WeightsError, match=UNSAID):
        keras_resnet.CifarResNet(8, weights=tmp_path / "m.weights.h5")
    again = keras_resnet.CifarResNet(8, weights=tmp_path / "m.weights.h5", normalization="cifar10")
    assert np.array_equal(again(pixels(2, 32)), model(pixels(2, 32)))


def test_a_dropout_that_does_not_halve_is_none_in_inference():
    """Networks of this variant that were saved before it halved the shortcut compute the same as original ones."""
    model = keras_resnet.CifarResNet(8, shortcut_variant="dropout")
    halved = lambda layer: layer.name.endswith("halved_shortcut")
    before = graphs.copy(model, lambda layer: None if halved(layer) else graphs.same_layer(layer))
    randomize(before)
    x = pixels(2, 32) / 255
    assert np.array_equal(keras_resnet.from_weights(before)(x), before(x))
    assert not np.allclose(model(x), before(x), atol=1e-3)


def test_a_message_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    """And not the temporary one."""
    keras_resnet.CifarResNet(8).save(tmp_path / "m.keras")
    monkeypatch.syspath_prepend(ROOT / "train")
    for package, words in (("safetensors", ["r.safetensors"]), ("keras_hub", ["r", "--keras-hub"])):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, f"{package}.numpy", None)
        out = str(tmp_path / words[0])
        monkeypatch.setattr(sys, "argv", ["convert.py", str(tmp_path / "m.keras"), out, *words[1:]])
        with pytest.raises(SystemExit, match=f"^convert.py: {re.escape(out)} needs the package {package}"):
            importlib.import_module("convert").main()


def test_a_stem_of_one_channel(tmp_path):
    tensors = state_dict(2)
    tensors["conv1.weight"] = tensors["conv1.weight"].sum(1, keepdims=True)
    safetensors.save_file(tensors, tmp_path / "grey.safetensors")
    with pytest.raises(WeightsError, match=UNSAID):  # ImageNet's numbers are of three channels
        keras_resnet.from_weights(tmp_path / "grey.safetensors")
    model = keras_resnet.from_weights(tmp_path / "grey.safetensors", ([120], [60]))
    x = np.repeat(pixels(1, 40)[..., :1], 3, -1)
    assert close(analysis.logits(model)(x[..., :1]), forward(state_dict(2), (x - 120) / 60, None))


@pytest.mark.parametrize("prefix", ["backbone.", "encoder_q."])
def test_a_prefix_is_named(tmp_path, prefix):
    tensors = {prefix + name: tensor for name, tensor in state_dict(2).items()} | {"queue": np.zeros(3, "float32")}
    safetensors.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=f"names of torchvision or timm after the prefix '{prefix}'"):
        keras_resnet.from_weights(tmp_path / "x.safetensors")


def test_files_of_torchvisions_names_are_files_as_others(tmp_path):
    model, other = keras_resnet.CifarResNet(8), tmp_path / "other"
    other.touch()
    keras_resnet.save_torchvision(model, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_mode == other.stat().st_mode  # others may read it, as the umask says
    with pytest.raises(WeightsError, match="ends in .safetensors; found '.*noext'"):
        keras_resnet.save_torchvision(model, tmp_path / "noext")
    with pytest.raises(WeightsError, match="could not be written"):
        keras_resnet.save_torchvision(model, tmp_path / "none" / "m.safetensors")


def test_half_a_file_is_damaged(tmp_path):
    keras_resnet.CifarResNet(8).save(tmp_path / "m.keras")
    whole = (tmp_path / "m.keras").read_bytes()
    (tmp_path / "m.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="m.keras is damaged: the .keras file is incomplete"):
        readers.read(tmp_path / "m.keras")


@pytest.mark.parametrize("size", [(64, 64), (None, None), (32, 32)])
def test_a_mean_image_at_other_sizes(tmp_path, size):
    """If the input has another size than the mean image, its mean colour is subtracted."""
    mean = pixels(1, 32)[0]
    model = keras_resnet.CifarResNet(8, normalization=(mean, 2.0))
    randomize(model)
    model.save(tmp_path / "m.keras")
    found = keras_resnet.CifarResNet(8, weights=tmp_path / "m.keras", input_shape=(*size, 3))
    subtracted = mean if size == (32, 32) else mean.mean((0, 1))
    bare = keras_resnet.CifarResNet(8, weights=model, input_shape=(*size, 3), normalization=None)
    x = pixels(2, size[0] or 48)
    assert close(found(x), bare((x - subtracted) / 2))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder as Keras' cache."""
    monkeypatch.setattr(keras.utils, "get_file", functools.partial(keras.utils.get_file, cache_dir=tmp_path))


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """A network of keras.applications, its file, and the file's SHA-256."""
    theirs = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3))
    randomize(theirs)
    path = tmp_path_factory.mktemp("published") / "published.h5"
    theirs.save(path)
    return theirs, path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_imagenet_is_fetched_once_and_checked(tmp_path, monkeypatch, cache, resnet50):
    theirs, path, digest = resnet50
    shutil.copy(path, tmp_path)
    monkeypatch.setitem(IMAGENET, "resnet50", ((tmp_path / "published.h5").as_uri(), digest))
    x = pixels(1, 64)
    model = keras_resnet.ResNet50(weights="imagenet")
    assert normalization.of(model) == "caffe"
    assert close(model(x), theirs(keras.applications.resnet.preprocess_input(x.copy())))
    (tmp_path / "published.h5").unlink()
    features = keras_resnet.ResNet50(weights="imagenet", include_top=False)  # from the cache
    assert np.array_equal(features.get_layer("conv1").kernel, model.get_layer("conv1").kernel)


@pytest.mark.parametrize("page, heading", [("README.md", "## Four uses"), ("docs/weights.md", "")])
def test_the_lines_of_the_pages_run(tmp_path, monkeypatch, cache, resnet50, page, heading):
    """As one script, in a folder with files of these names and layouts."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    programs = fenced(ROOT / page, heading)["python"]
    program = next(program for program in programs if 'weights="imagenet"' in program and "fit(" not in program)
    _, path, digest = resnet50
    monkeypatch.setitem(IMAGENET, "resnet50", (path.as_uri(), digest))
    monkeypatch.chdir(tmp_path)
    keras_resnet.save_torchvision(keras_resnet.ResNet50(normalization="torch", stride_in="3x3"), "model.safetensors")
    files = {"resnet50.pth": safetensors.load_file("model.safetensors")}
    files["resnet56.th"] = state_dict(9, (16, 32, 64), 3, "linear", projections=False)
    files["cifar10_resnet20.pt"] = state_dict(3, (16, 32, 64), 3)
    for name, tensors in files.items():
        torch.save({key: torch.tensor(array) for key, array in tensors.items()}, name)
    found = {"keras_hub_backbone": hub("bottleneck_block") if "keras_hub" in program else None}
    exec(compile(program, page, "exec"), found)
    assert list(found["maps"].output) == ["conv2", "conv3", "conv4", "conv5"]
    if page == "docs/weights.md":
        expected = files["resnet50.pth"]["fc.weight"]
        assert np.array_equal(found["model"].get_layer("fc").kernel, expected.T)
        assert np.array_equal(safetensors.load_file("model.safetensors")["fc.weight"], expected)
        assert os.path.exists("preset/config.json")


@pytest.mark.parametrize("digest", ["0" * 64, "0" * 32])
def test_imagenet_of_another_hash_is_refused(tmp_path, monkeypatch, cache, digest):
    (tmp_path / "published.h5").write_bytes(b"something else")
    monkeypatch.setitem(IMAGENET, "resnet50", ((tmp_path / "published.h5").as_uri(), digest))
    with pytest.raises(WeightsError, match="hash does not match"):
        keras_resnet.ResNet50(weights="imagenet")


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch, cache):
    address = (tmp_path / "resnet50_weights.h5").as_uri()
    monkeypatch.setitem(IMAGENET, "resnet50", (address, "0" * 32))
    with pytest.raises(WeightsError, match=rf"could not be downloaded: .*\n.*download {address} elsewhere and put it"):
        keras_resnet.ResNet50(weights="imagenet")
    with pytest.raises(WeightsError, match="exists for resnet18, .*; found cifar_resnet20"):
        keras_resnet.CifarResNet(20, weights="imagenet")


@pytest.mark.parametrize("name, address", [(n, a) for n, (a, _) in IMAGENET.items() if a.endswith(".pth")])
def test_the_address_has_the_hash(name, address):
    """PyTorch's names end in the first eight digits of the hash."""
    assert IMAGENET[name][1].startswith(address.removesuffix(".pth").rsplit("-", 1)[1])


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_hashes_are_those_of_keras(name):
    address, digest = IMAGENET[name]
    their = sys.modules["keras.src.applications.resnet"]
    assert their.WEIGHTS_HASHES[name][0] == digest and address.startswith(their.BASE_WEIGHTS_PATH)


def test_code_for_keras_applications_preprocesses_once():
    options = {"classes": 10, "classifier_activation": None, "input_shape": (64, 64, 3)}
    theirs, x = keras.applications.ResNet50(weights=None, **options), pixels(2, 64)
    randomize(theirs)
    expected = theirs(keras.applications.resnet.preprocess_input(x.copy()))
    options["weights"] = theirs
    model = keras_resnet.ResNet50(**options)  # normalization="auto"
    assert close(model(keras_resnet.preprocess_input(x)), expected)
    bare = keras_resnet.ResNet50(normalization=None, **options)
    assert normalization.of(bare) is None and close(bare(keras_resnet.preprocess_input(x, "caffe")), expected)


@pytest.mark.parametrize("mode", ["caffe", "torch"])
def test_preprocess_input_is_that_of_keras_applications(mode):
    for x in (pixels(2, 8), pixels(1, 8)[0], pixels(2, 8).astype("uint8")):
        expected = keras.applications.imagenet_utils.preprocess_input(x.copy(), mode=mode)
        for given in (x, keras.ops.convert_to_tensor(x)):
            found = keras_resnet.preprocess_input(given, mode)
            assert type(found) is type(given)
            assert np.allclose(keras.ops.convert_to_numpy(found), expected, atol=1e-5)


@pytest.mark.parametrize("mode", normalization.NAMED)
def test_preprocess_input_is_the_first_layer(mode):
    x = pixels(2, 32)
    before = x.copy()
    model = keras_resnet.CifarResNet(20, normalization=mode)
    outside = keras_resnet.CifarResNet(20)
    load_weights(outside, model)
    assert normalization.of(model) == mode
    assert np.allclose(outside(keras_resnet.preprocess_input(x, mode)), model(x), atol=1e-6)
    assert np.array_equal(x, before)
    with pytest.raises(ValueError, match="found 'tf'"):
        keras_resnet.preprocess_input(x, "tf")


def test_decode_predictions(monkeypatch):
    index = {str(i): (f"n{i}", f"name {i}") for i in range(1000)}
    monkeypatch.setattr(sys.modules["keras.src.applications.imagenet_utils"], "CLASS_INDEX", index)
    scores = keras.ops.one_hot([3, 7], 1000) * 0.9
    found = keras_resnet.decode_predictions(scores, top=1)
    assert [[name for _, name, _ in row] for row in found] == [["name 3"], ["name 7"]]


def test_convert_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "train")
    convert = importlib.import_module("convert")
    for arguments, message in (
        (["x.th", "out.onnx"], "OUT ends in .keras or .safetensors, or is FOLDER/; found 'out.onnx'"),
        (["x.th", "nowhere/out.keras"], "nowhere/out.keras cannot be written: there is no folder nowhere"),
    ):
        with pytest.raises(WeightsError, match=re.escape(message)):
            convert.check(convert.parse(arguments))
    convert.check(convert.parse(["x.th", "out.keras"]))
    monkeypatch.setattr(sys, "argv", ["convert.py", str(tmp_path / "x.th"), str(tmp_path / "out.keras")])
    with pytest.raises(SystemExit, match="^convert.py: the weights .*x.th' do not exist; weights are a file"):
        convert.main()
    assert not (tmp_path / "out.keras").exists()


@pytest.mark.parametrize(
    "word, expected",
    [
        ("auto", "auto"),
        ("none", None),
        ("cifar10", "cifar10"),
        ("125,123,114/63,62,67", ([125.0, 123.0, 114.0], [63.0, 62.0, 67.0])),
        ("120/60", ([120.0], [60.0])),
    ],
)
def test_convert_takes_a_normalization(monkeypatch, word, expected):
    monkeypatch.syspath_prepend(ROOT / "train")
    convert = importlib.import_module("convert")
    options = convert.parse(["x.th", "out.keras", "--normalization", word])
    convert.check(options)
    assert options.normalization == expected
    for wrong in ("imagenet", "1,2,3", "1,2,3/0,1,2", "a/b", "1/2/3"):
        options = convert.parse(["x.th", "out.keras", "--normalization", wrong])
        with pytest.raises(WeightsError, match=f"none or R,G,B/R,G,B with a positive std; found {wrong!r}$"):
            convert.check(options)


WITHOUT = """
import runpy, sys

class Without:  # as if some packages were not installed
    def __init__(self, finder):
        self.finder, self.missing = finder, sys.argv[1].split()
    def find_spec(self, name, *place):
        return None if name.partition(".")[0] in self.missing else self.finder.find_spec(name, *place)

sys.meta_path[:] = map(Without, sys.meta_path)
sys.argv = sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without(packages, program, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, packages, str(ROOT / "train" / program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )


def test_convert_needs_no_tensorflow(tmp_path):
    pytest.importorskip("torch", reason='torch is not installed: pip install ".[torch]"')
    tensors = state_dict(1, (8, 16, 32), 3)
    safetensors.save_file(tensors, tmp_path / "x.safetensors")
    done = without(
        "tensorflow jax", "convert.py", tmp_path / "x.safetensors", tmp_path / "x.keras", "--normalization", "cifar10"
    )
    assert done.returncode == 0 and "preprocessing layer: 'cifar10'" in done.stdout, done.stderr
    x = pixels(1, 32)
    model = keras.saving.load_model(tmp_path / "x.keras")
    assert close(analysis.logits(model)(x), forward(tensors, cifar10_normalized(x), None))


def test_convert_asks_for_the_normalisation(tmp_path):
    safetensors.save_file(state_dict(1, (8, 16, 32), 3), tmp_path / "x.safetensors")
    done = without("", "convert.py", tmp_path / "x.safetensors", tmp_path / "x.keras")
    assert done.returncode and "--normalization cifar10" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x.keras").exists()


@pytest.mark.parametrize("missing", ["tensorflow jax torch", "keras"])
def test_convert_says_what_it_needs(missing):
    done = without(missing, "convert.py", "x.pth", "x.keras")
    assert done.returncode and done.stderr.startswith("convert.py needs Keras and one of its backends TensorFlow, JAX")


PROGRAMS = sorted(path.name for path in (ROOT / "train").glob("*.py") if "def main" in path.read_text())


WORDS = {
    "benchmark.py": ["step"],
    "colors.py": ["x", "x.npz"],
    "evaluate.py": ["x"],
    "export.py": ["x"],
    "fit.py": [],
    "reproduce.py": ["fig6"],
    "tune.py": [],
}


@pytest.mark.parametrize("program", WORDS)
def test_programs_without_tensorflow(program):
    assert {*WORDS, "convert.py", "report.py"} == {*PROGRAMS}  # the last two need none
    done = without("tensorflow jax", program, *WORDS[program])
    needs = "the package tensorflow: pip install tensorflow"
    if program in ("benchmark.py", "fit.py", "reproduce.py", "tune.py"):
        needs = "Keras and one of its backends TensorFlow and JAX: pip install keras, and tensorflow or jax"
    assert done.returncode and done.stderr == f"{program} needs {needs}\n"


def test_convert_there_and_back(tmp_path, monkeypatch, capsys, file):
    monkeypatch.syspath_prepend(ROOT / "train")
    convert = importlib.import_module("convert")
    for source, out in ((file, "a.keras"), (tmp_path / "a.keras", "b.safetensors")):
        monkeypatch.setattr(sys, "argv", ["convert.py", str(source), str(tmp_path / out)])
        convert.main()
    assert "2, 2, 2, 2 basic blocks" in capsys.readouterr().out
    before, after = safetensors.load_file(file), safetensors.load_file(tmp_path / "b.safetensors")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_identity_mappings_keep_their_own_names(tmp_path):
    options = {"activation_order": "full_preactivation", "normalization": (120.0, 60.0)}
    model = keras_resnet.CifarResNet(8, shortcut_variant="shortcut_gate", **options)
    randomize(model)
    model.save(tmp_path / "v2.keras")
    again = keras_resnet.CifarResNet(8, shortcut_variant="shortcut_gate", **options, weights=tmp_path / "v2.keras")
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), again.get_weights(), strict=True))
    with pytest.raises(ValueError, match="unexpected: .*post_bn/gamma"):
        keras_resnet.CifarResNet(8, weights=tmp_path / "v2.keras")
    with pytest.raises(WeightsError, match="torchvision has no names for conv2_1_gate, .*post_bn; save"):
        keras_resnet.save_torchvision(model, tmp_path / "v2.safetensors")
    assert not os.path.exists(tmp_path / "v2.safetensors")


@pytest.mark.parametrize(
    "order, variant",
    [
        *((order, None) for order in (*architecture.ORDERS, *architecture.OTHER_ORDERS)),
        *(("original", variant) for variant in architecture.VARIANTS),
    ],
)
@pytest.mark.parametrize("block, depth", [("basic", 8), ("bottleneck", 11)])
def test_identity_mappings_are_not_confused(tmp_path, order, variant, block, depth):
    """Some have the same variables and give other outputs."""
    model = keras_resnet.CifarResNet(depth, block=block, activation_order=order, shortcut_variant=variant)
    randomize(model)
    x = pixels(2, 32) / 255
    assert np.array_equal(keras_resnet.from_weights(model)(x), model(x))
    original = keras_resnet.CifarResNet(depth, block=block)
    if (order, variant) == ("original", None):
        keras_resnet.load_weights(original, model)
        assert np.array_equal(original(x), model(x))
    else:
        message = f"the network has activation_order='original', .*'{order}'" if order != "original" else variant
        unchanged(original, model, message)
    if order.startswith(("original", "relu_", "bare_ends")) and "gate" not in (variant or ""):
        keras_resnet.save_torchvision(model, tmp_path / "m.safetensors")
        assert np.allclose(keras_resnet.from_weights(tmp_path / "m.safetensors")(x), model(x), atol=1e-6)
    else:
        with pytest.raises(WeightsError, match="torchvision has no names for"):
            keras_resnet.save_torchvision(model, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "build",
    [
        lambda: keras_resnet.CifarResNet(8, classifier_activation="sigmoid"),
        lambda: keras_resnet.CifarResNet(8, classifier_activation=None, input_shape=(48, 40, 3)),
        lambda: keras_resnet.CifarResNet(8, include_top=False, pooling="max", input_shape=(None, None, 3)),
        lambda: keras_resnet.CifarResNet(11, block="bottleneck", include_top=False, pooling="avg"),
        lambda: keras_resnet.CifarResNet(8, shortcut="C"),  # blocks of which the shape stays, in the first stage alone
        lambda: keras_resnet.CifarResNet(8, shortcut="B"),
        lambda: keras_resnet.CifarResNet(20, block="bottleneck", shortcut="C"),
        lambda: keras_resnet.CifarResNet(20, block="bottleneck", shortcut="B"),
        lambda: keras_resnet.CifarResNet(8, input_shape=(32, 32, 1), normalization=([120], [60])),
        lambda: keras_resnet.CifarResNet(8, input_shape=(32, 32, 4), normalization=([1, 2, 3, 4], [5, 6, 7, 8])),
        lambda: keras_resnet.CifarResNet(8, input_shape=(32, 32, 2), normalization=(np.ones((32, 32, 2)), 2.0)),
    ],
)
def test_from_weights_keeps_what_is_told(tmp_path, build):
    model = build()
    randomize(model)
    keras_resnet.save_torchvision(model, tmp_path / "m.safetensors")
    x = np.random.default_rng(0).uniform(
        0, 255, (2, *(size or 32 for size in model.input_shape[1:3]), model.input_shape[3])
    )
    for source in (model, tmp_path / "m.safetensors"):
        back = keras_resnet.from_weights(source)
        assert (back.name, back.input_shape, back.output_shape) == (model.name, model.input_shape, model.output_shape)
        assert np.allclose(back(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, options, output_stride",
    [
        ("ResNet18", {}, 8),
        ("ResNet50", {"stride_in": "1x1"}, 16),
        ("ResNet50", {"stride_in": "3x3"}, 8),
        ("ResNet18", {}, None),
    ],
)
def test_from_weights_keeps_the_output_stride(name, options, output_stride):
    model = getattr(keras_resnet, name)(output_stride=output_stride, include_top=False, **options)
    source = readers.read(model)
    assert source.architecture.output_stride == output_stride
    if name == "ResNet18":
        x = images(1, 64)
        assert np.allclose(keras_resnet.from_weights(source)(x), model(x), rtol=1e-4, atol=1e-4)


def test_from_weights_keeps_v2s_name_and_an_activation_of_ones_own(tmp_path):
    assert keras_resnet.from_weights(keras_resnet.ResNet18V2(include_top=False)).name == "resnet18v2"
    model = keras_resnet.CifarResNet(8, classifier_activation=lambda x: 3 * x)
    x = images(1, 32)
    assert np.allclose(keras_resnet.from_weights(model)(x), model(x), rtol=1e-5)
    with pytest.raises(WeightsError, match="the last activation of cifar_resnet8 has no name in Keras; save it as"):
        keras_resnet.save_torchvision(model, tmp_path / "m.safetensors")


@pytest.mark.parametrize("classes, include_top", [(10, True), (1000, True), (10, False)])
def test_imagenet_for_other_classes(monkeypatch, cache, resnet50, classes, include_top):
    """A trained body and a new last layer."""
    theirs, path, digest = resnet50
    monkeypatch.setitem(IMAGENET, "resnet50", (path.as_uri(), digest))
    model = keras_resnet.ResNet50(include_top, "imagenet", classes=classes)
    x = pixels(1, 64)
    body = keras.Model(theirs.input, theirs.get_layer("conv5_block3_out").output)
    expected = body(keras.applications.resnet.preprocess_input(x.copy()))
    assert close(keras_resnet.features(model)(x)["conv5"], expected)
    if include_top:
        kernel, theirs = np.array(model.get_layer("fc").kernel), np.array(theirs.get_layer("predictions").kernel)
        assert kernel.shape == (2048, classes) and (classes == 10 or np.array_equal(kernel, theirs))
        assert classes == 1000 or kernel.std() == pytest.approx(0.01, rel=0.05)  # as every new last layer
        other = keras_resnet.ResNet50(name="backbone", normalization="caffe")
        load_weights(other, "imagenet")  # the architecture decides, not the name
        assert np.array_equal(other.get_layer("fc").kernel, theirs)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("ResNet50", {"stem": "3x3"}, "stem='7x7'; found stem='3x3'"),
        ("ResNet18", {"shortcut": "A"}, "shortcut='B'; found shortcut='A'"),
        ("ResNet50", {"input_shape": (64, 64, 1)}, "channels=3; found channels=1"),
        ("ResNet50V2", {}, "exists for resnet18, .*; found resnet50v2"),
    ],
)
def test_imagenet_is_not_fetched_for_another_network(monkeypatch, name, options, message):
    monkeypatch.setattr(keras.utils, "get_file", lambda **_: pytest.fail("fetched"))
    with pytest.raises(ValueError, match=message):
        getattr(keras_resnet, name)(weights="imagenet", **options)
    model = keras_resnet.CifarResNet(8)
    with pytest.raises(WeightsError, match="found cifar_resnet8"):
        load_weights(model, "imagenet")


def test_a_network_under_a_head_is_named(tmp_path):
    """The README's own fine-tuning."""
    inner = keras_resnet.CifarResNet(8, include_top=False, pooling="avg")
    model = keras.Sequential([keras.Input((32, 32, 3)), inner, keras.layers.Dense(5)], name="flowers")
    model.save(tmp_path / "flowers.keras")
    message = r"contains models, cifar_resnet8; give one of them: model.get_layer\('cifar_resnet8'\)"
    for use in (
        keras_resnet.features,
        keras_resnet.from_weights,
        lambda model: load_weights(model, keras_resnet.CifarResNet(8)),
        lambda model: load_weights(inner, model),
        lambda model: keras_resnet.save_torchvision(model, tmp_path / "x.safetensors"),
        lambda model: keras_resnet.CifarResNet(8, weights=tmp_path / "flowers.keras"),
    ):
        with pytest.raises(WeightsError, match=message):
            use(model)
    body = model.get_layer("cifar_resnet8")
    assert list(keras_resnet.features(body).output) == ["conv2", "conv3", "conv4"]
    with pytest.raises(ValueError, match="x is not a network of this package: it has no blocks"):
        keras_resnet.features(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3)], name="x"))


def in_front(*front, **options):
    """A network after other layers, and those layers alone."""
    tensor = keras.Input((32, 32, 3))
    x = tensor
    for layer in front:
        x = layer(x)
    return keras_resnet.CifarResNet(8, input_tensor=x, **options), keras.Model(tensor, x)


def test_stock_normalization_in_front(tmp_path):
    adapted = keras.layers.Normalization()
    adapted.adapt(pixels(8, 32) * np.array([1.0, 0.5, 0.2], "float32"))
    given = keras.layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[3600.0, 2500.0, 1600.0])
    image = keras.layers.Normalization(axis=(1, 2, 3))
    image.adapt(pixels(8, 32))
    scaled = keras.layers.Rescaling(1 / 255)
    x = pixels(2, 32, seed=1)
    for front in ((adapted,), (given,), (image,), (scaled,), (scaled, keras.layers.Normalization(-1, 0.5, 0.04))):
        model, _ = in_front(keras.layers.RandomFlip(), *front)
        model.save(tmp_path / "m.keras")
        for source in (model, tmp_path / "m.keras"):
            back = keras_resnet.from_weights(source)
            assert np.allclose(back(x), model(x, training=False), atol=1e-5)
            assert back.layers[1].name == "normalization"
    behind, other = in_front(adapted)[0], in_front(adapted)[0]
    load_weights(behind, other)
    assert np.allclose(behind(x), other(x))
    unchanged(behind, model, "the network's preprocessing layer normalises by")


def test_other_layers_in_front_are_asked_about():
    for front in (
        (lambda x: x / 100,),
        (keras.layers.Resizing(32, 32),),
        (keras.layers.Rescaling(0.5), lambda x: keras.ops.flip(x, -1)),
    ):
        model, layers = in_front(*front)
        with pytest.raises(WeightsError, match=UNSAID):
            keras_resnet.from_weights(model)
        x = pixels(1, 32)
        outside = layers(x, training=False)  # Keras calls such layers in training mode otherwise
        assert np.allclose(keras_resnet.from_weights(model, None)(outside), model(x, training=False), atol=1e-6)
    theirs = keras.applications.ResNet50(
        weights=None, include_top=False, input_tensor=keras.layers.Rescaling(1 / 255)(keras.Input((64, 64, 3)))
    )
    assert normalization.same(readers.read(theirs).normalization, (0.0, 255.0))  # not what is usual there


def test_h5_of_a_caffe_network(tmp_path, monkeypatch):
    model = keras_resnet.CifarResNet(8, normalization="caffe")
    randomize(model)
    model.save(tmp_path / "m.h5")
    x = pixels(2, 32)
    assert np.allclose(keras_resnet.from_weights(tmp_path / "m.h5")(x), model(x), atol=1e-6)
    assert np.allclose(keras_resnet.CifarResNet(8, weights=tmp_path / "m.h5")(x), model(x), atol=1e-6)
    assert np.allclose(evaluation.load_model(tmp_path / "m.h5")(x), model(x), atol=1e-6)
    with pytest.raises(ValueError, match="Unknown layer: 'Flip'"):  # as docs/weights.md says
        keras.saving.load_model(tmp_path / "m.h5")
    keras_resnet.CifarResNet(8, normalization="torch").save(tmp_path / "torch.h5")
    keras.saving.load_model(tmp_path / "torch.h5")
    monkeypatch.syspath_prepend(ROOT / "train")
    monkeypatch.setattr(sys, "argv", ["convert.py", str(tmp_path / "m.h5"), str(tmp_path / "m.keras")])
    importlib.import_module("convert").main()
    assert np.allclose(keras.saving.load_model(tmp_path / "m.keras")(x), model(x), atol=1e-6)


@pytest.mark.parametrize("change", [lambda layer: layer.enable_lora(2), lambda layer: layer.quantize("int8")])
def test_lora_and_quantized_layers_are_refused(tmp_path, change):
    model, other = keras_resnet.CifarResNet(8), keras_resnet.CifarResNet(8)
    change(model.get_layer("fc"))
    model.save(tmp_path / "m.keras")
    for use in (
        keras_resnet.from_weights,
        lambda model: load_weights(model, other),
        lambda model: load_weights(other, model),
        lambda model: load_weights(other, tmp_path / "m.keras"),
        lambda model: keras_resnet.save_torchvision(model, tmp_path / "x.safetensors"),
    ):
        with pytest.raises(
            WeightsError, match=r"the layer fc of cifar_resnet8 has other variables, .* enable_lora\(\)"
        ):
            use(model)
