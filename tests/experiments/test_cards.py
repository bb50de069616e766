"""Cards and folders for Hugging Face: their statements are true, and their code works."""

import importlib
import json
import os
import re
import shlex
import shutil
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import keras_resnet
from keras_resnet import runs
from keras_resnet.experiments import cards, experiments
from keras_resnet.files import RunError
from keras_resnet.training.settings import Settings
from keras_resnet.weights.published import weights_sha256

SHIPPED = runs.shipped()
NAME = "cifar10-resnet-20"
HOME = "/home/somebody/data"  # where the data of a run were


@pytest.fixture
def program(monkeypatch):
    """A function from a program's name to its module."""
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    return importlib.import_module


@pytest.fixture
def convert(program, monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, words)])
        program("convert").main()

    return run


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def run(tmp_path):
    """The folder of a run that is not in the package."""
    folder = shutil.copytree(runs.SHIPPED / NAME, tmp_path / "runs" / "mine")
    settings = json.loads((folder / "args.json").read_text())
    edit(folder / "args.json", data_dir=HOME)
    edit(folder / "result.json", settings={**settings, "data_dir": HOME})
    return folder


def of_photographs(folder):
    """Changes the folder to that of a run on an image folder."""
    changes = {"dataset": f"{HOME}/flowers/", "train_on_all": False, "image_size": 64, "init_from": f"{HOME}/my.keras"}
    changes |= {"depth": 18, "shortcut": "B", "steps": None, "epochs": 3, "boundaries": [1, 2], "without": ["color"]}
    settings = {**json.loads((folder / "args.json").read_text()), **changes}
    edit(folder / "args.json", **settings)
    edit(folder / "result.json", settings=settings, test_error=None, val_error=0.25)
    (folder / "classes.json").write_text('["cat", "dog"]')


def command(text):
    return shlex.split(re.search(r"\| command \| `(?:KERAS_BACKEND=jax )?python train/(.*)` \|", text)[1])


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_command_of_a_card_trains_the_same_again(folder, program):
    """The program accepts it, and the settings that affect the result are those of the run's record."""
    settings = json.loads((folder / "args.json").read_text())
    text = cards.card(folder.name, runs.load_model(folder))
    name, *words = command(text)
    (segment,) = json.loads((folder / "result.json").read_text())["segments"]
    assert name == "fit.py" and ("KERAS_BACKEND=jax python" in text) == (segment["backend"] == "jax")
    assert f"steps 0 to 64000 on {segment['devices'][0]}: {segment['backend']} " in text
    options = vars(program("fit").parse(words))
    found = Settings(**{key: value for key, value in options.items() if key in Settings.__dataclass_fields__})
    record = json.loads((ROOT / experiments.RESULTS / f"{settings['name']}.json").read_text())
    described = experiments.describe(found, segment["backend"])
    assert {**described["settings"], **record["settings"]} == {**record["settings"], **described["settings"]}
    assert described["conditions"] == record["conditions"] and record["segments"] == [segment]


def test_a_deep_network_that_was_not_warmed_up_is_not_warmed_up_again(run, program):
    settings = {**json.loads((run / "args.json").read_text()), "depth": 110, "warmup": False, "accumulate": 2}
    edit(run / "result.json", settings=settings)
    _, *words = command(cards.card(run, runs.load_model(run)))
    assert "--no-warmup" in words
    found = program("fit").parse(words)
    assert (found.depth, found.warmup, found.accumulate, found.mixed_precision) == (110, False, 2, "bfloat16")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 10, "boundaries": (5, 8)}, "--depth 20 --epochs 10 --boundaries 5 8 --dataset cifar10"),
        ({"depth": 110, "init_from": "a/b.keras"}, "--depth 110 --init-from b.keras --dataset cifar10"),
        ({"batch_size": 32, "lr": 0.05, "data_dir": HOME}, "--depth 20 --batch-size 32 --lr 0.05 --dataset cifar10"),
    ],
)
def test_the_command_of_a_card_leaves_out_defaults(settings, expected, run, program):
    settings = Settings(**settings)
    edit(run / "result.json", settings=settings.as_json())
    _, *words = command(cards.card(run, runs.load_model(run)))
    assert " ".join(words) == expected
    again = vars(program("fit").parse(words))
    again = Settings(**{key: value for key, value in again.items() if key in Settings.__dataclass_fields__})
    assert {**again.deciding, "init_from": None} == {**settings.deciding, "init_from": None}


def test_a_card_names_the_variant(run):
    settings = {**json.loads((run / "args.json").read_text()), "activation_order": "full_preactivation"}
    edit(run / "result.json", settings=settings)
    assert "| network | ResNet-20-full-preactivation, " in cards.card(run, runs.load_model(run))


def test_a_card_says_what_the_record_says():
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    for folder in (SHIPPED[0], SHIPPED[-1]):
        result, model = json.loads((folder / "result.json").read_text()), runs.load_model(folder)
        text = cards.card(folder, model)
        data = huggingface_hub.ModelCard(text).data
        assert (data.license, data.library_name, data.datasets) == ("apache-2.0", "keras", ["uoft-cs/cifar10"])
        found = {one.metric_type: one for one in data.eval_results}
        assert found["error"].metric_value == result["test_error"] and found["error"].dataset_split == "test"
        assert found["accuracy"].metric_value == pytest.approx(1 - result["test_error"])
        assert data.model_name == folder.name and found["error"].dataset_type == "uoft-cs/cifar10"
        assert "93 of the 60,000 images (73 of training, 20 of test)" in text
        assert f"| test error | {result['test_error']:.2%} |" in text and weights_sha256(model) in text
        assert f", {result['parameters']:,} parameters |" in text
        _, _, page = text.split("---\n", 2)
        for paragraph in re.sub(r"```.*?```", "", page, flags=re.S).split("\n\n"):
            assert paragraph.startswith("|") or len(paragraph.strip().splitlines()) <= 1, paragraph


def test_a_card_of_ones_own_run(run):
    text = cards.card(run, runs.load_model(run))
    for fragment in (HOME, "license:", "JPEG"):  # where its data were; what is said of the package's networks alone
        assert fragment not in text
    assert "\n# mine\n" in text and "uoft-cs/cifar10" in text


def test_a_card_says_where_each_part_of_a_run_was_trained(run):
    segments = json.loads((run / "result.json").read_text())["segments"]
    moved = {"from": 100, "backend": "jax", "jax": "0.9", "devices": ["NVIDIA L4"] * 2, "commit": None}
    segments = [{**segments[0], "to": 100}, {**segments[0], **moved, "normalized_together": 32}]
    edit(run / "result.json", segments=segments)
    text = cards.card(run, runs.load_model(run))
    assert (
        "| trained on | steps 0 to 100 on 2 CPU cores: tensorflow 2.21.0, keras_resnet 5cb1161, "
        "64 images normalised together; then steps 100 to 64000 on NVIDIA L4, NVIDIA L4: jax 0.9, "
        "keras_resnet not in git, 32 images normalised together |"
    ) in text
    assert "`python train/fit.py " in text  # as the run was begun


def test_a_card_of_an_older_run_does_not_know_where_it_was_trained(run):
    result = json.loads((run / "result.json").read_text())
    del result["segments"]
    (run / "result.json").write_text(json.dumps(result))
    assert "| trained on | unknown (older version) |" in cards.card(run, runs.load_model(run))


def test_a_card_of_photographs_invents_no_data_set(run, program):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    of_photographs(run)
    text = cards.card(run, runs.load_model(run))
    data = huggingface_hub.ModelCard(text).data
    assert data.datasets is None and data.eval_results is None and "model-index" not in text and HOME not in text
    assert "| data | flowers, training images without those for validation |" in text
    assert "| validation error | 25.00% |" in text
    found = program("fit").parse(command(text)[1:])
    assert (found.dataset, found.init_from, found.image_size) == ("flowers", "my.keras", 64)
    assert (found.epochs, found.boundaries, found.without, found.steps) == (3, [1, 2], ["color"], None)


@pytest.mark.parametrize("beside", [None, "keras_hub"])
def test_a_folder_opens_from_hugging_face(tmp_path, convert, monkeypatch, beside):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    if beside:
        pytest.importorskip(beside, reason=f"{beside} is not installed")
    else:
        monkeypatch.setitem(sys.modules, "keras_hub", None)
    convert(NAME, f"{tmp_path}/out/")
    asked = []

    def download(repo_id, **options):
        asked.append(repo_id)
        return str(tmp_path / "out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    network = runs.load_model(NAME)
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    for path in ("hf://somebody/resnet", str(tmp_path / "out" / "model.keras")):
        opened = keras.saving.load_model(path)
        assert np.array_equal(opened.predict(pixels, verbose=0), network.predict(pixels, verbose=0))
    assert asked == ["somebody/resnet"]


def test_what_a_folder_holds(run, tmp_path, convert):
    def refused(*words):
        with pytest.raises(SystemExit) as raised:
            convert(*words)
        return str(raised.value)

    convert(run, f"{tmp_path}/out/")
    there = {"README.md", "classes.json", "config.json", "metadata.json", "model.keras", "model.weights.h5"}
    assert there == set(os.listdir(tmp_path / "out")) - {"assets"}
    assert json.loads((tmp_path / "out" / "classes.json").read_text())[8] == "ship"
    assert "is not empty" in refused(run, f"{tmp_path}/out/")
    assert "theirs '7x7'" in refused(run, f"{tmp_path}/hub", "--keras-hub")
    shutil.copy(run / "model.keras", tmp_path / "alone.keras")
    assert "a card is written for a finished run" in refused(tmp_path / "alone.keras", f"{tmp_path}/card/")
    assert "so OUT does not end in" in refused(run, f"{tmp_path}/x.keras", "--keras-hub")
    assert "or is FOLDER/; found" in refused(run, f"{tmp_path}/x")
    assert sorted(os.listdir(tmp_path)) == ["alone.keras", "out", "runs"]


def test_a_preset_has_the_card_of_its_run(tmp_path, run, convert):
    keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed")
    of_photographs(run)
    model = keras_resnet.ResNet18(classes=2, normalization="torch")
    model.save(run / "model.keras")
    convert(run / "model.keras", tmp_path / "preset", "--keras-hub")
    classifier = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "preset"))
    assert classifier.preprocessor.image_size == (64, 64)
    assert np.array_equal(classifier.output_dense.kernel, model.get_layer("fc").kernel)
    text = (tmp_path / "preset" / "README.md").read_text()
    assert 'library_name: "keras-hub"' in text and "| validation error | 25.00% |" in text
    assert "datasets:" not in text and "from_preset" in text


@pytest.mark.parametrize("name", ["result.json", "classes.json"])
def test_a_card_needs_a_finished_run(run, name):
    model = runs.load_model(run)
    (run / name).unlink()
    with pytest.raises(RunError, match="a card is written for a finished run"):
        cards.card(run, model)
