"""Runs the code of the pages unchanged; tests/serving/test_contract.py does the same for docs/serving.md."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, blocks

from keras_resnet.data import sources
from keras_resnet.experiments import tables
from keras_resnet.training.settings import Settings

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDER = re.compile(r"\b(NAME|WHICH)\b|\.\.\.|…")  # of the text, not of a command


def commands(page):
    """Every `python train/PROGRAM.py ...` of a page, in blocks and in sentences, as lists of words."""
    texts = [text.replace("\\\n", " ") for texts in blocks(page).values() for text in texts]
    shown = [line for text in texts for line in text.splitlines()]
    shown += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
    found = (re.search(r"python (train/\w+\.py.*)", line) for line in shown)
    return [shlex.split(match[1], comments=True) for match in found if match and not PLACEHOLDER.search(match[1])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_programs_take_the_commands_of_the_pages(page, monkeypatch, tmp_path):
    """Parses flags and values; does not run what needs days or data that are not included."""
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    monkeypatch.chdir(tmp_path)
    for folder in ("IMAGENET", "FLOWERS", "A", "B", "DIR"):  # the names of folders of photographs in the pages
        (tmp_path / folder).mkdir()
    for program, *words in commands(page):
        assert (ROOT / program).is_file(), program
        if words == ["--list"]:  # is answered while the flags are read
            with pytest.raises(SystemExit, match="^0$"):
                importlib.import_module(program[6:-3]).parse(words)
            continue
        options = vars(importlib.import_module(program[6:-3]).parse(words))
        if program == "train/fit.py" and not options["dataset"].startswith("/"):
            Settings(**{name: value for name, value in options.items() if name in Settings.__dataclass_fields__})
        if program == "train/reproduce.py":
            experiment = tables.EXPERIMENTS[options["name"]]
            kept = {key: options[key] for key in options.keys() & Settings.__dataclass_fields__.keys()}
            experiment.settings(options["only"], options["seeds"], options["data"], **kept)


def test_the_pages_have_commands():
    found = [command[0] for page in PAGES for command in commands(page)]
    assert len(found) > 40 and {"train/fit.py", "train/benchmark.py", "train/convert.py"} < set(found)


def test_training_on_several_devices_in_keras_code(tmp_path):
    """On two logical CPUs and small images."""
    (program,) = blocks(ROOT / "docs" / "distribution.md", "## In Keras code")["python"]
    assert program.count("ResNet50()") == 1
    program = program.replace("ResNet50()", "CifarResNet(8, classes=3)")
    two = (
        "import tensorflow as tf\n"
        "tf.config.set_logical_device_configuration(\n"
        "    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2)\n"
    )
    program = f"{two}{program}\nassert model.distribute_strategy.num_replicas_in_sync == 2\n"
    program += "import numpy as np\nmodel.fit(np.ones((16, 32, 32, 3)), np.arange(16) % 3, batch_size=8)\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2/2" in done.stdout and "loss" in done.stdout


def test_the_table_of_bandwidths_is_what_its_program_prints():
    page = ROOT / "docs" / "distribution.md"
    program = blocks(page, "## When the interconnect becomes the bottleneck")["python"][0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rows = []
    for line in done.stdout.splitlines():
        name, *numbers = re.findall(r"ResNet-\d+|\d+\.?\d*(?:e-?\d+)?", line)
        size, sent, slow, slow_limit, fast, fast_limit = map(float, numbers)
        cells = (f"{size:.1f}", f"{sent:.1f}", f"{slow:.1f}", f"{slow_limit:,.0f}", f"{fast:.1f}", f"{fast_limit:,.0f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    assert len(rows) == 7 and "\n".join(rows) in page.read_text()


@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.slow)])
def test_the_first_lines_of_the_readme_name_a_ship(backend):
    program = blocks(ROOT / "README.md")["python"][0]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    best = ast.literal_eval(done.stdout.splitlines()[-1])[0][0]
    assert best[:2] == ("8", "ship") and best[2] > 0.9


def test_the_lines_of_the_readme_use_a_finished_run(monkeypatch, capsys):
    (program,) = (program for program in blocks(ROOT / "README.md")["python"] if "Run(" in program)
    assert program.count('"cat.jpg"') == 1 and program.count('Run("runs/cifar10-resnet-20")') == 1
    program = program.replace("cat.jpg", "docs/ship.png").replace('Run("runs/', 'Run("')
    monkeypatch.chdir(ROOT)
    exec(compile(program, "README.md", "exec"), {})
    best = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])[0][0]
    assert best[:2] == ("8", "ship")


@pytest.fixture
def after_2015(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 288, "test": 48})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 32})
    program = importlib.import_module("after_2015")
    monkeypatch.setattr(program, "RECALIBRATION", 2)
    return program


@pytest.mark.parametrize("kind", [pytest.param("cosine", marks=pytest.mark.slow), "smoothing"])
def test_what_came_after_2015(kind, after_2015, monkeypatch, capsys):
    """Each way of testing sees other weights or statistics, and leaves both as they were."""
    evaluate, seen = keras.Model.evaluate, []

    def observed(model, *arguments, callbacks, **options):
        def look():
            kernel, variance = model.get_layer("conv1").kernel, model.get_layer("conv1_bn").moving_variance
            seen.append((kernel.numpy().sum(), variance.numpy().sum()))

        look()
        looking = keras.callbacks.LambdaCallback(on_test_begin=lambda logs: look())
        return evaluate(model, *arguments, callbacks=[*callbacks, looking], **options)

    monkeypatch.setattr(keras.Model, "evaluate", observed)
    after_2015.main([kind, "--dataset", "shapes", "--steps", "4"])
    found = re.findall(r"step (\d), ([\w ,]+): ([\d.]+)%", capsys.readouterr().out)
    ways = ["weights", "weights, statistics anew", "EMA", "EMA, statistics anew"]
    assert [(step, way) for step, way, _ in found] == [(step, way) for step in "24" for way in ways]
    for half in (seen[:8], seen[8:]):
        (kernels, variances), (shown_kernels, shown_variances) = (zip(*half[i::2], strict=True) for i in (0, 1))
        assert np.allclose(kernels, kernels[0], rtol=1e-5) and len({*variances}) == 1
        assert np.allclose(shown_kernels[:2], kernels[0], rtol=1e-5) and shown_kernels[2] == shown_kernels[3]
        assert abs(shown_kernels[2] / kernels[0] - 1) > 1e-4  # swapped
        assert shown_variances[0] == shown_variances[2] == variances[0]
        assert len({*shown_variances}) == 3  # anew, of each weights


def test_statistics_are_estimated_anew_for_a_test_alone(after_2015):
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    before = [variable.numpy() for variable in model.non_trainable_variables]
    callback = after_2015.Recalibrate([(np.array([[1.0, 2], [3, 8]]), None), (np.array([[5.0, 2], [5, 4]]), None)])
    callback.set_model(model)
    callback.on_test_begin()
    mean, variance = (variable.numpy() for variable in model.non_trainable_variables)
    assert np.allclose(mean, [3.5, 4]) and np.allclose(variance, [0.5, 5], atol=1e-3)
    callback.on_test_end()
    assert all(np.array_equal(a, b) for a, b in zip(before, model.non_trainable_variables, strict=True))


def test_the_schedules_after_2015(after_2015):
    rates = after_2015.learning_rate("steps", 8)
    assert np.allclose([rates(step) for step in (0, 4, 5, 6, 7)], [0.1, 0.1, 0.01, 0.01, 0.001])
    assert np.allclose(after_2015.learning_rate("cosine", 8)(4), 0.05)
