"""The experiments' table, and train/reproduce.py as users run it."""

import importlib
import json
import os
import re
import sys
import time
import types

import pytest
from conftest import ROOT
from PIL import Image

from keras_resnet import analysis, environment, evaluation, models
from keras_resnet.data import folders, imagenet, shapes, sources
from keras_resnet.experiments import experiments, several, tables
from keras_resnet.experiments.tables import EXPERIMENTS, Experiment, Row
from keras_resnet.files import RunError
from keras_resnet.runs import Run
from keras_resnet.training import folder, recipes
from keras_resnet.training.options import flags
from keras_resnet.training.settings import Settings
from keras_resnet.training.signals import Stopped


@pytest.fixture
def tiny(monkeypatch):
    """An experiment on a few drawn images."""
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 9 * 16 + 32, "test": 48})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 32})
    rows = Row("ResNet-8", {"depth": 8}, "9.87"), Row("plain-8", {"depth": 8, "plain": True})
    return Experiment("Tiny", "nowhere", "shapes", rows)


def tiny_settings(tiny, folder, **options):
    found = tiny.settings(output=str(folder / "runs"), steps=12, batch_size=16, lr=0.01, **options)
    return [settings for _, settings in found]


def test_a_run_is_recorded_and_never_repeated(tmp_path, tiny, monkeypatch):
    results = str(tmp_path / "results")
    residual, plain = tiny_settings(tiny, tmp_path)
    record = experiments.run(residual, results, verbose=0)
    path = tmp_path / "results" / "shapes-resnet-8-batch-size-16-lr-0.01-steps-12-seed-0.json"
    assert json.loads(path.read_text()) == record and path.read_text().count("\n") < 15
    assert "output" not in record["settings"] and str(tmp_path) not in path.read_text()
    assert record["conditions"] == {"steps": 12, "batch_size": 16, "lr": 0.01}
    assert record["command"] == "python train/fit.py --depth 8 --dataset shapes --steps 12 --batch-size 16 --lr 0.01"
    assert record["history"]["step"] == [9, 12] and len(record["history"]["val_error"]) == 2
    # The numbers are those of the saved model.
    model = evaluation.load_model(residual.folder)
    source = sources.load("shapes")
    wrong = model.predict(source.test.images, verbose=0).argmax(-1) != source.test.labels
    assert record["error"] == pytest.approx(wrong.mean(), abs=1e-5)
    expected = analysis.response_std(model, source.train.images.astype("float32"))
    assert record["response_std"] == pytest.approx(expected, abs=1e-4) and len(expected) == 7

    monkeypatch.setattr("keras_resnet.training.loop.train", None)
    assert experiments.run(residual, results) == record
    with pytest.raises(TypeError):
        experiments.run(plain, results)


def test_a_run_that_was_cut_goes_on(tmp_path, tiny, terminated_at, capsys, monkeypatch):
    settings = tiny_settings(tiny, tmp_path)[0]
    with terminated_at(5), pytest.raises(Stopped):
        experiments.run(settings, str(tmp_path / "results"), verbose=0)
    assert not os.listdir(tmp_path / "results")
    here = environment.circumstances
    monkeypatch.setattr(environment, "circumstances", lambda devices: {**here(devices), "devices": ["NVIDIA L4"]})
    record = experiments.run(settings, str(tmp_path / "results"), verbose=0)
    assert "resuming from step 5" in capsys.readouterr().out
    (name,) = os.listdir(tmp_path / "results")
    assert json.loads((tmp_path / "results" / name).read_text())["segments"] == record["segments"]
    first, second = record["segments"]
    assert (first["from"], first["to"], second["from"], second["to"]) == (0, 5, 5, 12)
    assert second["devices"] == ["NVIDIA L4"] != first["devices"] and first["backend"] == "tensorflow"


def test_a_process_that_does_not_write_leaves_no_record(tmp_path, tiny, monkeypatch):
    settings = tiny_settings(tiny, tmp_path)[0]
    record = experiments.run(settings, str(tmp_path / "results"), verbose=0)
    monkeypatch.setattr("keras_resnet.training.engine.writes", lambda settings: False)
    assert experiments.run(settings, str(tmp_path / "others"), verbose=0) == record
    assert not (tmp_path / "others").exists()


def test_photographs_are_tested_with_ten_crops(tmp_path):
    images, labels = shapes.draw(60, seed=0, size=48)
    for label in range(3):
        for i, image in enumerate(images[labels == label].repeat(3, 0)[:12]):
            folder = tmp_path / "photographs" / ("val" if i < 4 else "train") / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    data = str(tmp_path / "photographs")
    options = {"steps": 3, "batch_size": 8, "image_size": 32, "output": str(tmp_path / "runs")}
    ((_, settings),) = EXPERIMENTS["fig4"].settings(["ResNet-18-A"], dataset=data, **options)
    record = experiments.run(settings, str(tmp_path / "results"), verbose=0)
    found = folders.load(data)
    examples = imagenet.examples(found.validation)
    model = evaluation.load_model(settings.folder)
    expected = evaluation.evaluate(model, examples, found.classes, "10-crop", crop=32, verbose=0)
    assert record["error"] == pytest.approx(expected.error(1), abs=1e-5) and "response_std" not in record
    assert record["settings"]["dataset"] == "photographs" and str(tmp_path) not in json.dumps(record)
    assert experiments.run(settings, str(tmp_path / "results"), verbose=0) == record
    (tmp_path / "photographs" / "train" / "class0" / "4.png").unlink()  # as if of another folder of this name
    with pytest.raises(RunError, match="with 3 classes, 24 images to train on.* has 3 classes, 23 images"):
        experiments.run(settings, str(tmp_path / "results"), verbose=0)
    row = EXPERIMENTS["fig4"].row
    assert experiments.matches(EXPERIMENTS["table2"], row("ResNet-18-A"), record)
    assert not experiments.matches(EXPERIMENTS["table2"], row("plain-18"), record)


def test_runs_have_one_name_each_and_are_shared():
    """The name contains everything that affects the result, and nothing else."""
    runs = {}
    for name, experiment in EXPERIMENTS.items():
        for row, settings in experiment.settings(seeds=2, dataset=None if experiment.dataset else str(ROOT)):
            runs.setdefault(settings.name, []).append((name, row, settings))
    for same in runs.values():
        assert len({json.dumps({**settings.as_json()}) for _, _, settings in same}) == 1
    # plain-20 and ResNet-110 are trained once for all tables and figures, with each seed.
    assert {name for name, _, _ in runs["cifar10-plain-20-steps-64000-seed-1"]} == {"fig6", "fig7"}
    assert {name for name, _, _ in runs["cifar10-resnet-110-steps-64000-seed-0"]} == {
        *("table6", "fig6", "fig7", "identity-shortcuts", "identity-activations")
    }
    name = lambda **settings: tables.identity(Settings(**settings))
    assert name(checkpoint_every=3, output="x", jit=True) == name() == "cifar10-resnet-20-steps-64000-seed-0"
    assert name(shortcut="B", train_on_all=True) == ("cifar10-resnet-20-shortcut-B-train-on-all-steps-64000-seed-0")
    assert name(depth=164) != name(depth=164, block="bottleneck")
    assert name(depth=110, warmup=False) == "cifar10-resnet-110-no-warmup-steps-64000-seed-0"


def test_the_tables_networks_can_be_built():
    built = {}
    for experiment in EXPERIMENTS.values():
        for row in experiment.rows:
            network = dict(row.network)
            depth, plain = network.pop("depth"), network.pop("plain", False)
            if experiment.dataset is None:
                assert hasattr(models, f"{'Plain' if plain else 'Res'}Net{depth}")
            else:  # as shallow as there is one
                shallow = {"depth": 11 if "block" in network else 8, "shortcut": None if plain else "A", **network}
                built[json.dumps(shallow)] = shallow
        assert {name for _, names in experiment.panels for name in names} <= {row.name for row in experiment.rows}
        assert len({row.name for row in experiment.rows}) == len(experiment.rows)
    for shallow in built.values():
        models.CifarResNet(**shallow)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("fig6", {"only": ["plain-21"]}, "--only takes plain-20, .*ResNet-1202; found plain-21"),
        ("fig6", {"seeds": 0}, "--seeds is positive; found 0"),
        ("fig6", {"dataset": "x"}, "is on CIFAR-10; leave --data out"),
        ("fig4", {}, "is on ImageNet; it needs --data"),
        ("table6", {"steps": 0}, "--steps is positive; found 0"),
        ("fig4", {"dataset": str(ROOT), "train_on_all": True}, "--train-on-all is for small images"),
    ],
)
def test_mistakes_are_explained(name, options, message):
    with pytest.raises(RunError, match=message):
        EXPERIMENTS[name].settings(**options)


def test_a_network_that_is_named_twice_is_one():
    assert len(EXPERIMENTS["fig6"].settings(["plain-20", "plain-20"])) == 1


def test_a_run_has_its_length_in_its_name():
    names = [EXPERIMENTS["fig6"].settings(["ResNet-20"], **length)[0][1].name for length in ({}, {"epochs": 20})]
    assert names == ["cifar10-resnet-20-steps-64000-seed-0", "cifar10-resnet-20-epochs-20-seed-0"]


def test_flags_are_those_of_the_settings():
    settings = Settings(depth=110, warmup=False, shortcut="C", lr=0.03, data_dir="x", seed=2)
    assert flags(settings.changes) == "--depth 110 --shortcut C --lr 0.03 --no-warmup --seed 2"
    assert Settings(depth=110).changes == {"depth": 110} and Settings(depth=20).changes == {}
    photographs = Settings(dataset=str(ROOT), without=("color", "flip"))
    assert flags(photographs.changes) == f"--dataset {ROOT} --without color flip"


@pytest.fixture
def reproduce(tmp_path, tiny, monkeypatch, capsys):
    """A function that runs the program and returns what it printed."""
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    program = importlib.import_module("reproduce")
    monkeypatch.setitem(EXPERIMENTS, "tiny", tiny)
    monkeypatch.setitem(recipes.CIFAR, "batch_size", 16)
    folders = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]

    def run(*arguments, name="tiny"):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", name, "--steps", "3", "--verbose", "0", *folders, *arguments])
        program.main()
        return capsys.readouterr().out

    return run


def test_data_that_changed(tmp_path, reproduce, terminated_at, capsys):
    """A run is stopped and its data change; it continues only with the flag for this."""
    with terminated_at(2), pytest.raises(SystemExit):
        reproduce("--only", "ResNet-8")
    data = tmp_path / "runs" / "shapes-resnet-8-steps-3-seed-0" / folder.DATA
    data.write_text(json.dumps({**json.loads(data.read_text()), "train": "7, another"}))
    with pytest.raises(SystemExit, match="1 of 1 runs failed"):
        reproduce("--only", "ResNet-8")
    assert re.search("train: 7, another then; .* give --data-changed to continue", capsys.readouterr().err, re.DOTALL)
    assert "resuming from step 2" in reproduce("--only", "ResNet-8", "--data-changed")
    assert "another" not in data.read_text() and len(os.listdir(tmp_path / "results")) == 1


@pytest.mark.parametrize("seconds", [pytest.param(None, marks=pytest.mark.slow), 300])
def test_several_runs_at_a_time(tmp_path, monkeypatch, capsys, seconds):
    """All finish, or those still running after some seconds are saved; the next call continues them."""
    monkeypatch.chdir(tmp_path)
    steps = 12 if seconds is None else 40_000
    options = {"dataset": "shapes", "depth": 8, "steps": steps, "batch_size": 16, "lr": 0.01, "checkpoint_every": 5}
    runs = [Settings(**options, strategy="none", seed=seed, name=f"run-{seed}") for seed in range(3)]
    if seconds:  # which are over when two runs have saved something
        saved = [f"runs/run-{seed}/checkpoint/latest.npz" for seed in range(2)]
        over = lambda: time.monotonic() + seconds * all(map(os.path.exists, saved))
        monkeypatch.setattr(several, "time", types.SimpleNamespace(sleep=time.sleep, monotonic=over))
    begun = time.monotonic()
    left, failed = several.train(runs, 2, seconds)
    assert not failed
    if seconds is None:
        assert not left and all(Run(f"runs/run-{seed}").result["steps"] == 12 for seed in range(3))
        assert capsys.readouterr().out.count("finished after") == 3
        assert several.train(runs, 2) == ([], [])
        assert "12 steps" in (tmp_path / "runs" / "run-2" / several.LOG).read_text()
    else:
        assert left == runs and time.monotonic() - begun < seconds
        said = (tmp_path / "runs" / "run-0" / several.LOG).read_text()
        assert "SIGTERM: stopping as soon as the run is saved" in said and "Traceback" not in said
        assert os.path.exists("runs/run-0/checkpoint/latest.npz") and not os.path.exists("runs/run-2")
    assert not {"XLA_PYTHON_CLIENT_MEM_FRACTION", "TF_FORCE_GPU_ALLOW_GROWTH"} & os.environ.keys()


def test_a_run_that_fails_among_several(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [Settings(dataset="shapes", depth=8, steps=3, batch_size=20_000, strategy="none", name="large")]
    assert several.train(runs, 2) == (runs, runs)
    assert "large: ended with status 1; see log.txt" in capsys.readouterr().out
    assert "--batch-size is at most" in (tmp_path / "runs" / "large" / several.LOG).read_text()


def test_colours_in_a_folder_are_part_of_a_name(tmp_path):
    options = {"dataset": str(tmp_path), "colors": str(tmp_path / "DIR" / "colors.npz")}
    (_, found), *_ = EXPERIMENTS["fig4"].settings(["plain-18"], **options)
    assert "colors-colors.npz" in found.name and found.colors == options["colors"]


def test_the_program(tmp_path, reproduce, monkeypatch, capsys):
    """Finishes, continues with other networks if one fails, and does nothing when called again."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "shapes-plain-8-steps-3-seed-0").write_text("in the way")
    with pytest.raises(SystemExit, match="1 of 2 runs failed: shapes-plain-8-steps-3-seed-0"):
        reproduce()
    printed = capsys.readouterr()
    assert "cannot be written" in printed.err and "[2 of 2] plain-8, seed 0" in printed.out
    (tmp_path / "runs" / "shapes-plain-8-steps-3-seed-0").unlink()
    first = reproduce()
    errors = {}
    for network in ("plain", "resnet"):
        path = tmp_path / "results" / f"shapes-{network}-8-steps-3-seed-0.json"
        errors[network] = 100 * json.loads(path.read_text())["error"]
    assert re.search(rf"ResNet-8 +{errors['resnet']:.2f} +9.87\nplain-8 +{errors['plain']:.2f} +-\n", first)
    monkeypatch.setattr("keras_resnet.training.loop.train", None)
    assert "ResNet-8" in reproduce() and "plain-8" not in reproduce("--only", "ResNet-8")
    with pytest.raises(SystemExit, match="reproduce.py: nowhere is on CIFAR-10; leave --data out"):
        reproduce("--data", "x")
    with pytest.raises(SystemExit, match="an image folder or a data set of TensorFlow Datasets; found '/"):
        reproduce("--data", str(tmp_path / "none"), name="fig4")
