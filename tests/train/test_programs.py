"""The common behaviour of all programs."""

import argparse
import importlib
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

import keras_resnet
from keras_resnet import choices, evaluation, normalization
from keras_resnet.data import sources
from keras_resnet.files import own_line
from keras_resnet.serving import formats
from keras_resnet.training.settings import names
from keras_resnet.weights import readers

PROGRAMS = ("colors", "convert", "evaluate", "export", "fit", "report", "reproduce", "tune")
EVERY = ("benchmark", *PROGRAMS)
FRAMEWORKS = {"h5py", "jax", "keras", "matplotlib", "tensorflow", "tensorflow_datasets", "torch"}


@pytest.fixture
def program(monkeypatch):
    """A function from a program's name to its module."""
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    return importlib.import_module


@pytest.fixture
def ends(program, monkeypatch):
    """A function that runs a program that should end with a message, and returns the message."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with pytest.raises(SystemExit) as end:
            program(name).main()
        return str(end.value)

    return run


@pytest.mark.parametrize("name", ["benchmark", *PROGRAMS])
def test_every_program_says_its_version(ends, capsys, name):
    assert ends(name, "--version") in ("0", "None") and capsys.readouterr().out.endswith(
        f"keras_resnet {keras_resnet.__version__}\n"
    )


@pytest.mark.parametrize("words", ["--help", "--version", "--typo"])
@pytest.mark.parametrize("name", EVERY)
def test_flags_are_read_before_frameworks_are_imported(name, words):
    """Because importing TensorFlow takes seconds, too long for a mistyped flag."""
    code = f"""if True:
        import atexit, runpy, sys
        atexit.register(lambda: print(*sorted(sys.modules.keys() & {FRAMEWORKS}), "at the end"))
        sys.argv = ["{name}.py", "{words}"]
        sys.path.insert(0, {str(ROOT / "train")!r})
        runpy.run_path({str(ROOT / "train" / f"{name}.py")!r}, run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1] == "at the end" and done.returncode == (2 if words == "--typo" else 0)
    assert "Traceback" not in done.stderr and (words == "--typo") == bool(done.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="closes a file descriptor of another process")
def test_output_that_is_closed_or_has_another_encoding(tmp_path):
    command = [sys.executable, str(ROOT / "train" / "fit.py"), "--depth", "21"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(1))
    assert done.stderr.startswith("fit.py: --depth is 6n+2") and done.returncode == 1
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'train')!r}); import arguments; print('\u82b1')"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "\\u82b1\n", done.stderr


def test_the_choices_are_those_of_the_library():
    assert (*readers.READERS,) == choices.WEIGHTS and (*normalization.NAMED,) == choices.NORMALIZATIONS
    assert ("saved_model", *formats.WRITERS, "web") == choices.FORMATS


def test_the_version_of_an_export(program):
    parse = program("export").parse
    assert parse(["model.keras", "--version", "7"]).version == 7 and parse(["model.keras"]).version is None


def test_an_export_of_another_kind_is_another_model(program):
    """Otherwise a server that watches the folder would replace a network by its approximation in int8."""
    export = program("export")
    name = lambda *words: export.model_name(export.parse(["runs/r50.keras", *words]))
    assert name() == "r50" and name("--dtype", "bfloat16") == "r50-bfloat16"
    assert name("--format", "onnx") == "r50-onnx"
    assert name("--format", "openvino", "--dtype", "int8") == "r50-openvino-int8"
    assert name("--format", "openvino", "--dtype", "int8", "--name", "x") == "x"


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_every_default_and_choice(program, monkeypatch, name):
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, words: self)
    parser = program(name).parse([])
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        if action.option_strings and action.default not in (None, False, (), argparse.SUPPRESS):
            assert re.search(r"\bdefault\b", action.help, re.IGNORECASE), action.option_strings
        for choice in action.choices or ():
            assert str(choice) in text, action.dest


def test_every_setting_has_a_flag_and_an_experiment_takes_all_but_its_own(program, monkeypatch):
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, words: self)
    fit, reproduce = ({action.dest for action in program(name).parse([])._actions} for name in ("fit", "reproduce"))
    assert fit - reproduce == {*names("network", "weights"), "dataset", "seed", "export", "profile"}
    assert {"strategy", "batch_size", "skip_damaged", "sync_bn", "jit", "checkpoint_every", "deterministic"} < reproduce


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("evaluate", ["typo", "--data", "cifar10"], "evaluate.py: typo does not exist"),
        ("evaluate", ["typo"], "evaluate.py: typo does not exist"),
        ("evaluate", ["there.keras", "typo.keras", "--data", "cifar10"], "evaluate.py: typo.keras does not exist"),
        ("evaluate", ["unfinished", "--data", "cifar10"], "unfinished has no model.keras; a run writes it when it"),
        ("evaluate", ["runs", "--data", "cifar10"], "runs holds runs: a, b; give one of these folders"),
        ("export", ["typo", "--dtype", "int8", "--calibrate", "cifar10"], "export.py: typo does not exist"),
        ("export", ["there.keras", "--dtype", "int8", "--format", "litert"], "--calibrate DATA.*found --dtype int8 al"),
        ("export", ["there.keras", "--calibrate", "cifar10"], "found --calibrate alone"),
    ],
)
def test_mistakes_are_noticed_before_data_are_read(tmp_path, ends, monkeypatch, name, arguments, message):
    def load(*arguments, **options):
        raise AssertionError("data were read")

    monkeypatch.setattr(sources, "load", load)
    monkeypatch.chdir(tmp_path)
    zipfile.ZipFile(tmp_path / "there.keras", "w").close()
    (tmp_path / "unfinished").mkdir()
    for run in "ab":
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "model.keras").touch()
    assert re.search(message, ends(name, *arguments))


def test_the_benchmarks_have_one_network_for_imagenet(ends, capsys):
    assert ends("benchmark", "step", "--depth", "18") == "2"
    assert "--depth is 6n+2 with basic blocks; found 18, nearest 14 and 20; 50 is ImageNet's" in capsys.readouterr().err


@pytest.mark.parametrize("verbose", [0, 1])
def test_an_error_has_a_line_of_its_own(capsys, verbose):
    """Not on the line of the interrupted progress bar."""
    model = keras_resnet.CifarResNet(8, normalization=(127.5, 1.0))
    labels = np.arange(40, dtype="int64") // 3  # at last 13
    examples = tf.data.Dataset.from_tensor_slices((np.zeros((40, 32, 32, 3), "uint8"), labels))
    with pytest.raises(evaluation.EvaluationError, match=r"a label is in \[0, 10\)"):
        evaluation.evaluate(model, examples, "abcdefghij", "single", batch_size=10, verbose=verbose)
    printed = capsys.readouterr().out
    assert printed.endswith("image\n") if verbose else not printed
    with pytest.raises(KeyboardInterrupt), own_line(1):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "\n"


def test_evaluate_is_silent_where_it_is_told_to(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 50, "test": 20})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 10})
    keras_resnet.CifarResNet(8, normalization=(127.5, 1.0)).save(tmp_path / "m.keras")
    for verbose in "01":
        words = ["evaluate.py", str(tmp_path / "m.keras"), "--data", "shapes", "--verbose", verbose]
        monkeypatch.setattr(sys, "argv", words)
        program("evaluate").main()
        printed = capsys.readouterr().out
        assert printed.startswith(words[1]) == (verbose == "0") and "top-1 error" in printed
