"""A finished run as one object, and the error messages of every program if a file is damaged."""

import importlib
import json
import os
import re
import shutil
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import keras_resnet
from keras_resnet import evaluation, files, runs, serving
from keras_resnet.data import shapes, sources
from keras_resnet.experiments import experiments
from keras_resnet.files import ResNetError, RunError
from keras_resnet.runs import Run
from keras_resnet.training.settings import Settings
from keras_resnet.weights import WeightsError, readers

NAMES = [f"cifar10-{kind}-{depth}" for kind in ("plain", "resnet") for depth in (20, 32, 56)]


# What a run left.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run on the built-in data set, as `fit.py` writes it, without training."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = Settings(depth=8, dataset="shapes", strategy="none", name="run", output="runs").as_json()
    errors = {"train_error": 0.5, "val_error": 0.4, "test_error": 0.3, "paper_test_error": None}
    result = {"settings": settings, "steps": 2, "parameters": 75_290, "seconds": 1.5, "images_per_second": 9.5}
    result |= {
        **errors,
        "warm_at_step": 0,
        "damaged_files": 0,
        "waiting": None,
        "segments": [
            {
                "from": 0,
                "to": 2,
                "backend": "tensorflow",
                "tensorflow": "2",
                "commit": "0123456",
                "normalized_together": 64,
                "devices": ["1 CPU core"],
            }
        ],
    }
    folder.mkdir()
    content = {"args": settings, "result": result, "classes": shapes.CLASSES, "data": {"train": "5, 0123456789ab"}}
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "history.csv").write_text("epoch,step,loss,val_loss\n1,1,2.5,\n2,2,2.0,\n")
    keras_resnet.CifarResNet(8, normalization=(127.5, 1.0)).save(folder / "model.keras")
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy, runs/run in the current folder."""
    shutil.copytree(finished, tmp_path / "runs" / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "run"


def test_a_run_is_what_its_folder_says(run):
    for path in (run, str(run / "model.keras"), os.path.relpath(run)):
        found = Run(path)
        assert (found.settings["depth"], found.settings["dataset"], found.settings["seed"]) == (8, "shapes", 0)
        assert found.result["test_error"] == 0.3 and found.classes == shapes.CLASSES
        assert found.history == {"epoch": [1, 2], "step": [1, 2], "loss": [2.5, 2.0]}  # without the empty column
        assert os.path.samefile(found.file, run / "model.keras") and found.crop is None and not found.imagenet_style
        assert found.load_model().count_params() == keras_resnet.CifarResNet(8).count_params()
    (run / "args.json").write_text(json.dumps({"dataset": "photos", "image_size": 96, "seed": 3}))
    assert Run(run).crop == 96 and Run(run).imagenet_style


def test_a_file_without_a_run(run, tmp_path):
    shutil.copy(run / "model.keras", tmp_path / "alone.keras")
    found = Run(tmp_path / "alone.keras")
    assert found.settings == found.result == {} and found.classes is None and found.crop is None
    with pytest.raises(RunError, match=re.escape(f"{tmp_path}/result.json, which states 'test_error', does not exist")):
        found.result["test_error"]


def test_errors_for_people_have_one_class():
    for kind in (RunError, files.DataError, WeightsError, evaluation.EvaluationError, serving.ExportError):
        assert issubclass(kind, ResNetError)
    assert issubclass(WeightsError, ValueError)  # as keras.applications raises of its weights


def test_the_doors_hand_on_what_reads_a_run(run):
    assert evaluation.run_settings(run) == Run(run).settings and evaluation.class_names(run) == shapes.CLASSES
    assert evaluation.model_file(run) == str(run / "model.keras")
    assert evaluation.load_model(run).name == "cifar_resnet8"


# The networks in the package.


def test_the_networks_in_the_package(monkeypatch):
    found = keras_resnet.list_weights()
    assert [one.name for one in found] == NAMES
    # The error of docs/weights.md, and P1's count of 0.27M, 0.46M and 0.85M parameters.
    assert [one.test_error for one in found] == [0.0911, 0.1011, 0.1291, 0.0819, 0.0713, 0.0684]
    assert [round(one.parameters / 1e6, 2) for one in found] == 2 * [0.27, 0.46, 0.85]
    for one in found:
        assert one.size == (runs.SHIPPED / one.name / "model.keras").stat().st_size


def test_what_else_lies_among_them_is_ignored(tmp_path, monkeypatch):
    shutil.copytree(runs.SHIPPED / "cifar10-plain-20", tmp_path / "cifar10-plain-20")
    for stray in ("cifar10-resnet-20 (copy)", "cifar10-x", "notes", "cifar10-resnet-8"):  # the last holds no network
        (tmp_path / stray).mkdir()
        (tmp_path / stray / ("readme" if stray == "cifar10-resnet-8" else "model.keras")).touch()
    (tmp_path / "cifar10-resnet-14").touch()
    monkeypatch.setattr(runs, "SHIPPED", tmp_path)
    assert [one.name for one in keras_resnet.list_weights()] == ["cifar10-plain-20"]
    assert list(importlib.import_module("keras_resnet.weights.published").shipped()) == ["cifar_plainnet20"]


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("cifar10-resnet-110", "cifar10-resnet-56"),
        ("cifar10-resnet-21", "cifar10-resnet-20"),
        ("cifar10-resnet20", "cifar10-resnet-20"),
        ("cifar10-plain-44", "cifar10-plain-"),
        ("runs/cifar10-resnet-56x", "cifar10-resnet-56"),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_those_that_do(name, nearest):
    for read, kind in ((Run, RunError), (readers.read, WeightsError), (keras_resnet.from_weights, WeightsError)):
        with pytest.raises(kind, match=re.escape(", ".join(NAMES)) + f"; the nearest is {nearest}") as error:
            read(name)
        assert name in str(error.value)


def test_a_name_that_is_near_to_nothing():
    with pytest.raises(RunError, match=f"typo does not exist; .*{NAMES[-1]}$"):
        Run("typo")
    with pytest.raises(WeightsError, match=f"'imagenet' is the networks' data set; give one of {NAMES[0]}"):
        readers.read("imagenet")
    with pytest.raises(WeightsError, match="the weights 'typo.pth' do not exist"):
        readers.read("typo.pth")


# The programs.


@pytest.fixture
def program(monkeypatch):
    """A function that runs a program in this process and returns its error message, or None."""
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 50, "test": 20})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 10})

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        try:
            importlib.import_module(name).main()
        except SystemExit as end:
            return str(end.code)
        return None

    return run


WORDS = {
    "convert": ("runs/run", f"folder{os.sep}"),
    "evaluate": ("runs/run", "--verbose", "0"),
    "export": ("runs/run", "--output", "out"),
    "fit": ("--dataset", "shapes", "--depth", "8", "--name", "run", "--strategy", "none"),
}
READ = {  # by which programs, of a finished run
    "args.json": ("evaluate", "export", "fit", "reproduce"),
    "result.json": ("convert", "export", "fit", "reproduce"),
    "classes.json": ("convert", "evaluate", "export"),
    "model.keras": (*WORDS, "reproduce"),
}
DAMAGES = {
    "a list": b"[1, 2]",
    "empty": b"",
    "binary": b"\x89PNG\r\n\x1a\n\0\xff\xfe",
    "cut": b'{"depth": 8, "datas',
    "a number": b"7",
    "deep": b"[" * 100_000,
}


def ends(program, name):
    """The error message of a program for runs/run."""
    if name != "reproduce":
        return program(name, *WORDS[name])
    settings = Settings(depth=8, dataset="shapes", strategy="none", name="run")
    with pytest.raises(RunError) as error:  # which the program prints, and goes on with the next network
        experiments.run(settings, "results", verbose=0)
    return f"reproduce.py: {error.value}"


@pytest.mark.parametrize(
    "name, file, damage",
    [(name, file, damage) for file, names in READ.items() for name in names for damage in DAMAGES],
)
def test_a_damaged_file_is_one_sentence_in_every_program(run, program, name, file, damage):
    (run / file).write_bytes(DAMAGES[damage])
    said = ends(program, name)
    assert said.startswith(f"{name}.py: ") and f"{os.path.join('runs', 'run', file)} is damaged: " in said
    assert said.count("\n") == 0 and len(said) < 300 and not os.path.exists("folder") and not os.path.exists("out")


@pytest.mark.parametrize("name", [*WORDS, "reproduce"])
def test_a_finished_run_whose_network_is_gone_is_damaged(run, program, name):
    (run / "model.keras").unlink()
    said = ends(program, name)
    assert "runs/run is damaged: the run is finished, but its model.keras is missing" in said and said.count("\n") == 0


@pytest.mark.parametrize("name", [*WORDS, "reproduce"])
def test_a_network_that_was_cut_off_is_damaged(run, program, name):
    whole = (run / "model.keras").read_bytes()
    (run / "model.keras").write_bytes(whole[: len(whole) // 2])
    said = ends(program, name)
    assert "runs/run/model.keras is damaged: the .keras file is incomplete" in said and said.count("\n") == 0


def test_a_run_that_is_not_finished_holds_no_network(run, program):
    (run / "model.keras").unlink()
    (run / "result.json").unlink()
    for name in ("convert", "evaluate", "export"):
        assert "has no model.keras; a run writes it when it finishes" in ends(program, name)


WRONG = {
    "args.json": {"dataset": 7, "depth": "8", "seed": None, "data_dir": ["a"], "train_on_all": "yes"},
    "result.json": {"test_error": "none", "settings": [], "segments": [], "parameters": None, "seconds": {}},
}


@pytest.mark.parametrize("file, field", [(file, field) for file, fields in WRONG.items() for field in fields])
def test_a_field_of_another_kind_is_named(run, file, field):
    content = json.loads((run / file).read_text()) | {field: WRONG[file][field]}
    (run / file).write_text(json.dumps(content))
    with pytest.raises(RunError, match=f"{file} is damaged: its '{field}' is "):
        _ = Run(run).settings, Run(run).result


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"to": "2"}, "its 'to' is '2'"),
        ({"devices": []}, "its 'devices' is "),
        ({"devices": [1]}, "its 'devices' is "),
        ({"backend": None}, "its 'backend' is None"),
        ({"normalized_together": 6.5}, "its 'normalized_together' is 6.5"),
        (None, "one of its 'segments' is None"),
    ],
)
def test_a_segment_of_another_kind_is_named(run, changes, said):
    result = json.loads((run / "result.json").read_text())
    result["segments"].append(changes and {**result["segments"][0], **changes})
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match=f"result.json is damaged: {re.escape(said)}"):
        _ = Run(run).result


@pytest.mark.parametrize("names", [["a", 2], {"a": 1}, [], "ab"])
def test_classes_are_a_list_of_names(run, names):
    (run / "classes.json").write_text(json.dumps(names))
    with pytest.raises(RunError, match="classes.json is damaged: it holds .* instead of a list of names"):
        _ = Run(run).classes


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("file", ["args.json", "result.json"])
def test_fields_that_are_missing_are_named_or_not_needed(run, program, name, file):
    """All errors are errors for users."""
    (run / file).write_text("{}")
    said = ends(program, name)
    expected = {
        ("evaluate", "args.json"): "runs/run is not of a run that says its data; give --data",
        ("fit", "args.json"): "runs/run holds a run with other settings",
        ("fit", "result.json"): "runs/run/result.json is damaged: it has no '",
        ("convert", "result.json"): "a card is written for a finished run, with result.json",
    }
    assert expected.get((name, file), "") in (said or ""), said
    assert (said is None) == ((name, file) not in expected)


@pytest.mark.parametrize("content", ["", "epoch,step\n", "epoch,step\n1,two\n", "epoch,step\n1,2\n2\n"])
def test_a_damaged_history(run, content):
    (run / "history.csv").write_text(content)
    with pytest.raises(RunError, match="history.csv is damaged: it is not a table of numbers"):
        _ = Run(run).history
    (run / "history.csv").unlink()
    with pytest.raises(RunError, match="history.csv cannot be read: No such file"):
        _ = Run(run).history


RECORDS = {
    **DAMAGES,
    "fields missing": b"{}",
    "a wrong error": b'{"error": "5"}',
    "no curve": b'{"history": {"step": []}}',
}


@pytest.mark.parametrize("damage", RECORDS)
def test_a_damaged_record_is_one_sentence_of_the_report(program, tmp_path, damage):
    (tmp_path / "x.json").write_bytes(RECORDS[damage])
    said = program("report", "--results", str(tmp_path))
    assert said.startswith(f"report.py: {tmp_path}/x.json is ") and said.count("\n") == 0 and len(said) < 300


@pytest.mark.parametrize("field", ["dataset", "depth"])
def test_a_record_that_lacks_a_setting(program, tmp_path, field):
    path = next((ROOT / experiments.RESULTS).glob("*.json"))
    record = json.loads(path.read_text())
    del record["settings"][field]
    (tmp_path / "x.json").write_text(json.dumps(record))
    assert f"x.json is damaged: it has no '{field}'. Delete it" in program("report", "--results", str(tmp_path))


def test_help_says_where_the_names_are(program, capsys):
    for name in ("convert", "evaluate", "export", "fit"):
        program(name, "--help")
        assert re.search(r"convert\.py\s+--list|a name of --list", capsys.readouterr().out), name
    assert program("convert", "--list") in (None, "0", "None")
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES) and "8.19%     269,722    1.4 MB" in printed


@pytest.mark.parametrize("name", ["convert", "evaluate", "export"])
def test_the_programs_answer_a_name_with_those_that_exist(program, name):
    for typo in ("cifar10-resnet-110", "cifar10"):
        words = {**WORDS, name: (typo, *WORDS[name][1:])}
        said = program(name, *words[name])
        assert ", ".join(NAMES) in said and typo in said
        assert ("; the nearest is cifar10-resnet-56" in said) == (typo == "cifar10-resnet-110")


# Arrays.


@pytest.mark.parametrize("damage", ["text", "cut", "objects", "flipped", "one array"])
def test_arrays_are_read_or_refused_in_words_for_people(tmp_path, damage):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(1000), b=np.eye(3))
    assert {name: array.shape for name, array in files.read_arrays(path).items()} == {"a": (1000,), "b": (3, 3)}
    good = path.read_bytes()
    if damage == "objects":
        np.savez(path, a=np.array([{}, 1], object))
    elif damage == "one array":
        with open(path, "wb") as file:
            np.save(file, np.eye(3))
    else:
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]
        path.write_bytes({"text": b"text", "cut": good[:-9], "flipped": flipped}[damage])
    with pytest.raises(ValueError, match="it is not a .npz file, or is truncated|cannot be read") as error:
        files.read_arrays(path)
    assert "pickle" not in str(error.value)


def test_parameters_are_counted_without_statistics_and_frozen_ones_too():
    """ResNet-20's 0.27M of P1 Table 6: nineteen convolutions, their batch normalisation, and a layer of 10 x 64."""
    stages = [(3, 16, 1), (16, 16, 6), (16, 32, 1), (32, 32, 5), (32, 64, 1), (64, 64, 5)]
    expected = sum(count * (9 * before * after + 2 * after) for before, after, count in stages) + 64 * 10 + 10
    model = keras_resnet.CifarResNet(20)
    assert keras_resnet.analysis.count_parameters(model) == expected == 269_722
    model.trainable = False
    adapted = keras.layers.Normalization(mean=None)
    adapted.adapt(np.ones((2, 32, 32, 3)))
    inputs = keras.Input((32, 32, 3))
    whole = keras.Model(inputs, model(adapted(inputs)))
    assert keras_resnet.analysis.count_parameters(whole) == expected
