"""Networks by name; a folder as a run writes it stands for those in the package."""

import hashlib
import json
import os
import pathlib
import shutil
import struct

import keras
import numpy as np
import pytest
from conftest import ROOT, images, randomize, write_cifar10

import keras_resnet
from keras_resnet import evaluation, normalization, runs
from keras_resnet.data import sources
from keras_resnet.experiments import experiments, report
from keras_resnet.files import RunError
from keras_resnet.training.settings import Settings, names
from keras_resnet.weights import WeightsError, published, readers

FOLDERS = [pathlib.Path(path).parent for path in published.shipped().values()]


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
    monkeypatch.setattr(runs, "SHIPPED", folder.parent)
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
    later = keras_resnet.CifarResNet(20, normalization=(images(1, 32)[0] + 120.0, 1.0))
    keras_resnet.load_weights(later, "cifar10")
    assert same(later, shipped)
    other = keras_resnet.CifarResNet(20, weights="cifar10", classes=7)
    assert other.output_shape == (None, 7)
    assert np.array_equal(other.get_layer("conv4_3_2").kernel, shipped.get_layer("conv4_3_2").kernel)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: keras_resnet.CifarResNet(26, weights="cifar10"), "exists for cifar_resnet20; found cifar_resnet26"),
        (lambda: keras_resnet.CifarPlainNet(20, weights="cifar10"), "found cifar_plainnet20"),
        (lambda: keras_resnet.ResNet18(weights="cifar10"), "found resnet18"),
        (lambda: keras_resnet.CifarResNet(20, weights="cifar10", shortcut="B"), "shortcut='A'; found shortcut='B'"),
        (
            lambda: keras_resnet.CifarResNet(20, weights="cifar10", block="bottleneck"),
            "block='basic', .*; found block='bottlene",
        ),
        (
            lambda: keras_resnet.CifarResNet(20, weights="cifar10", input_shape=(32, 32, 1)),
            "channels=3; found channels=1",
        ),
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
    with pytest.raises(RunError, match="has no model.keras"):
        evaluation.load_model("cifar10-resnet-20")


def record_of(folder, results):
    """The record of the run that wrote a folder, after a comparison of the two."""
    settings, result = (json.loads((folder / f"{name}.json").read_text()) for name in ("args", "result"))
    record = json.loads((results / f"{settings['name']}.json").read_text())
    found = published.weights_sha256(evaluation.load_model(folder))
    assert record.get("weights_sha256") == found, f"the weights in {folder} have the SHA-256 {found}"
    assert record["settings"].items() <= settings.items() and record["settings"].items() <= result["settings"].items()
    assert record["result"].items() <= result.items() and record["error"] == result["test_error"]
    for name in ("data_dir", "output"):  # of another machine
        assert not any(os.path.isabs(found[name] or "") for found in (settings, result["settings"])), name
    return record


def wrong(folder, data_dir):
    """The number of CIFAR-10 test images that a network classifies wrongly, and the number of test images."""
    test = sources.load("cifar10", data_dir, train_on_all=True).test
    found = evaluation.load_model(folder).predict(test.images, batch_size=500, verbose=0).argmax(-1)
    return int((found != test.labels).sum()), len(test.labels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two steps, as it could be shipped, its results and its data."""
    folder = tmp_path_factory.mktemp("run")
    drawn, labels = (
        np.random.default_rng(0).integers(0, n, shape) for n, shape in ((256, (100, 32, 32, 3)), (10, 100))
    )
    data = (drawn.astype("uint8"), labels)
    write_cifar10(folder / "data" / "cifar-10-batches-py", data, data, normalization.CIFAR10_CLASSES)
    options = {
        "depth": 8,
        "dataset": "cifar10",
        "train_on_all": True,
        "steps": 2,
        "batch_size": 20,
        "bn_batch_size": 20,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sources.VALIDATION_EXAMPLES, "cifar10", 20)
        settings = Settings(**options, name="two-steps", data_dir="data", output="runs")
        experiments.run(settings, "results", verbose=0)
    shipped = folder / "shipped" / "cifar10-resnet-8"
    shipped.mkdir(parents=True)
    for name in ("model.keras", "classes.json", "args.json", "result.json"):
        shutil.copy(folder / "runs" / "two-steps" / name, shipped)
    return shipped, folder / "results", folder / "data"


def test_a_record_proves_the_weights_of_its_run(run):
    folder, results, data = run
    record = record_of(folder, results)
    assert wrong(folder, data) == (round(100 * record["error"]), 100)
    assert "weights_sha256" in (results / "two-steps.json").read_text()


def test_a_record_does_not_prove_other_weights(run, tmp_path):
    other = shutil.copytree(run[0], tmp_path / "other")
    model = evaluation.load_model(other)
    model.get_layer("conv3_1_1_bn").moving_mean.assign_add(np.eye(32)[7] * 1e-6)
    model.save(other / "model.keras")
    with pytest.raises(AssertionError, match="have the SHA-256"):
        record_of(other, run[1])


def test_the_hash_is_of_all_numbers_and_of_nothing_else(tmp_path):
    inputs = keras.Input((1, 1, 2))
    outputs = keras.layers.Rescaling([0.5, 2.0], 1.0, name="first")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="fc")(outputs))
    model.set_weights([np.array([[3.0], [-4.0]]), np.array([5.0])])
    text = b"first/scale(2,)", struct.pack("<2f", 0.5, 2), b"first/offset()", struct.pack("<f", 1)
    text += b"fc/kernel(2, 1)", struct.pack("<2f", 3, -4), b"fc/bias(1,)", struct.pack("<f", 5)
    expected = hashlib.sha256(b"".join(text)).hexdigest()
    assert published.weights_sha256(model) == expected
    model.compile("adam", "mse")
    for name in ("one.keras", "one.h5"):
        model.save(tmp_path / name)
        assert published.weights_sha256(keras.models.load_model(tmp_path / name, compile=False)) == expected


def test_what_the_package_brings_is_what_its_records_say():
    """Each folder is that of a finished run, and its network is the builder's."""
    for name, path in published.shipped().items():
        depth = int("".join(filter(str.isdigit, name)))
        build = keras_resnet.CifarPlainNet if "plain" in name else keras_resnet.CifarResNet
        assert same(build(depth, weights="cifar10"), evaluation.load_model(path))
        record_of(pathlib.Path(path).parent, ROOT / experiments.RESULTS)


def row(folder, results):
    """The row of a shipped network in docs/weights.md."""
    record = record_of(folder, results)
    decides = lambda one: [one["conditions"], *(one["settings"][name] for name in ("dataset", *names("network")))]
    seeds = {}  # by backend
    for other in experiments.load(results):
        if decides(other) == decides(record):
            seeds.setdefault(report.made_with(other), []).append(100 * other["error"])
    paper = json.loads((folder / "result.json").read_text())["paper_test_error"]
    name = json.loads((folder / "args.json").read_text())["name"]
    cells = (f"{record['error']:.2%}", ", ".join(map(report.ours, seeds.values())), f"{paper:.2%}" if paper else "–")
    return f"| `{folder.name}` | {' | '.join(cells)} | [record](results/{name}.json) |"


def test_a_row_has_the_spread_over_seeds(run, tmp_path):
    results = shutil.copytree(run[1], tmp_path / "results")
    record = json.loads((results / "two-steps.json").read_text())
    others = {"seed": {"settings": {**record["settings"], "seed": 1}, "error": record["error"] + 0.02}}
    others["recipe"] = {"conditions": {**record["conditions"], "steps": 3}, "error": 0.5}
    others["network"] = {"settings": {**record["settings"], "plain": True}, "error": 0.5}
    for name, changes in others.items():
        (results / f"{name}.json").write_text(json.dumps({**record, **changes}))
    one, mean = record["error"], 100 * record["error"] + 1
    expected = f"| `cifar10-resnet-8` | {one:.2%} | {mean:.2f} ± 1.41 | – | [record](results/two-steps.json) |"
    assert row(run[0], results) == expected


def test_the_page_has_the_rows_of_the_shipped_networks():
    page = (ROOT / "docs" / "weights.md").read_text()
    rows = [row(folder, ROOT / experiments.RESULTS) for folder in FOLDERS]
    assert [line for line in page.splitlines() if line.startswith("| `cifar10-")] == rows


@pytest.mark.parametrize(
    "shipped_folder",
    [pytest.param(path, marks=pytest.mark.slow) if path.name != "cifar10-resnet-20" else path for path in FOLDERS],
    ids=lambda path: path.name,
)
def test_a_shipped_network_makes_the_error_of_its_record(shipped_folder, cifar10_dir):
    record = record_of(shipped_folder, ROOT / experiments.RESULTS)
    assert wrong(shipped_folder, cifar10_dir) == (round(10_000 * record["error"]), 10_000)


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


@pytest.mark.parametrize("word", ["cifar100", "CIFAR10", "abc"])
def test_a_word_is_no_list_of_names(word):
    """Not even if it has as many letters as there are classes."""
    with pytest.raises(ValueError, match=f'classes is "imagenet", "cifar10" or a list of the names.*found {word!r}'):
        keras_resnet.decode_predictions(np.full((1, len(word)), 1 / len(word)), classes=word)


@pytest.mark.parametrize("classes, count", [("cifar10", 10), ("imagenet", 1000), (("cat", "dog"), 2)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_class_is_named_where_a_network_says_nothing(classes, count, value):
    with pytest.raises(ValueError, match="predictions are probabilities; found some that are not finite"):
        keras_resnet.decode_predictions(np.full((2, count), value), classes=classes)


def test_the_classes_of_other_networks_are_asked_for():
    with pytest.raises(ValueError, match=r'predictions of 10 classes, \(2, 10\); give classes="cifar10" or the names'):
        keras_resnet.decode_predictions(np.full((2, 10), 0.1))
