"""Packages and system functions that only some uses need."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import keras_resnet
from keras_resnet import environment

TRAINED = """
import sys
{before}
import keras, keras_resnet, numpy as np
from keras_resnet import evaluation, files
from keras_resnet.data import sources
sources.SHAPES_EXAMPLES = {{"train": 3 * 16 + 32, "test": 48}}
sources.VALIDATION_EXAMPLES = {{"shapes": 32}}
from keras_resnet.training import Settings, train
result = train(Settings(dataset="shapes", depth=8, steps=3, batch_size=16, output="."), verbose=2)
model = keras_resnet.CifarResNet(20, weights="cifar10")
image = keras.utils.load_img({ship!r}, target_size=(32, 32))
print(keras_resnet.decode_predictions(model.predict(np.array([image]), verbose=0), top=1, classes="cifar10"))
classes, examples, _ = evaluation.load_data("shapes", None)
found = evaluation.evaluate(evaluation.load_model("shapes-resnet-8"), examples, classes, "single", verbose=0)
assert abs(found.error(1) - result["test_error"]) < 1e-4
"""
# What Windows lacks, and macOS in part.
ELSEWHERE = """
import builtins, os, signal
for module in ("fcntl", "resource"):
    sys.modules[module] = None
for module, name in ((os, "sync"), (os, "pread"), (os, "sched_getaffinity"), (signal, "pthread_sigmask"),
                     (signal, "pthread_kill")):
    delattr(module, name)
_open = open
def no_proc(path, *arguments, **options):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(path)
    return _open(path, *arguments, **options)
builtins.open = no_proc
"""


def trained(folder, before):
    """The output of a short training, a prediction and an evaluation in a separate process."""
    code = TRAINED.format(before=before, ship=str(ROOT / "docs" / "ship.png"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "ship" in done.stdout
    return done.stdout


def test_training_and_evaluation_need_nothing_that_only_linux_has(tmp_path):
    assert "3 steps" in trained(tmp_path, ELSEWHERE)
    assert {"result.json", "curves.png", "model.keras"} < set(os.listdir(tmp_path / "shapes-resnet-8"))


def test_a_run_without_packages_that_it_can_do_without(tmp_path):
    gone = ("matplotlib", "tensorboard", "filelock", "tensorflow_serving")
    printed = trained(tmp_path, "".join(f"sys.modules[{name!r}] = None\n" for name in gone))
    for what, name in (("curves.png", "matplotlib"), ("tensorboard/", "tensorboard"), ("lock of the run", "filelock")):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"no {what}")]
        assert line.endswith(f", which needs the package {name}: pip install {name}")
    files = set(os.listdir(tmp_path / "shapes-resnet-8"))
    assert {"history.csv", "model.keras", "result.json"} < files and not {"curves.png", "tensorboard"} & files


def test_an_export_without_warm_up(tmp_path, monkeypatch, capsys):
    from keras_resnet import serving

    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    path = serving.export(keras_resnet.CifarResNet(8, normalization=(127.5, 1.0)), tmp_path / "m")
    assert "no file of warm-up requests, which needs the package tensorflow_serving: pip install " in (
        printed := capsys.readouterr().out
    )
    assert printed.endswith("pip install tensorflow-serving-api\n")
    assert "assets.extra" not in os.listdir(path) and {"saved_model.pb", "about.json"} < set(os.listdir(path))
    with open(os.path.join(path, "about.json")) as file:
        assert json.load(file)["signatures"]


@pytest.mark.parametrize(
    "name, arguments",
    [("evaluate", ["m.keras", "--data", "shapes", "--output", "pictures"]), ("report", []), ("tune", [])],
)
def test_what_a_program_needs_is_looked_for_before_it_begins(tmp_path, name, arguments):
    package = "keras_tuner" if name == "tune" else "matplotlib"
    keras_resnet.CifarResNet(8).save(tmp_path / "m.keras")
    code = f"""if True:
        import runpy, sys
        sys.modules[{package!r}] = None
        sys.path.insert(0, {str(ROOT / "train")!r})
        sys.argv = ["{name}.py", *{arguments!r}]
        runpy.run_path({str(ROOT / "train" / f"{name}.py")!r}, run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 1 and "Traceback" not in done.stderr and not done.stdout
    assert done.stderr.endswith(f"needs the package {package}: pip install {package.replace('_', '-')}\n")
    assert done.stderr.startswith(f"{name}.py") and os.listdir(tmp_path) == ["m.keras"]


def test_how_packages_are_installed():
    assert environment.missing("keras", "no_such_package") == ["no_such_package"]
    assert environment.needed("keras", "numpy") is None
    assert environment.needed("keras", "no_such", "nor_this") == (
        "needs the packages no_such and nor_this: pip install no-such nor-this"
    )
