import importlib
import io
import itertools
import json
import os
import re
import subprocess
import sys

import keras
import keras_tuner
import pytest
from conftest import ROOT, free_ports

import keras_resnet
from keras_resnet.data import shapes, sources
from keras_resnet.experiments import figures
from keras_resnet.training import tuning


@pytest.fixture(scope="module")
def data():
    images, labels = shapes.draw(400, seed=0)
    return sources.Split(images[:320], labels[:320]), sources.Split(images[320:], labels[320:])


@pytest.mark.slow
def test_a_user_of_keras_tuner(tmp_path, data):
    """Two rungs of Hyperband: the better trials resume from their weights, with the schedule of the longer training."""
    train, validation = data
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            rates.append([])

        def on_train_batch_begin(self, batch, logs=None):
            rates[-1].append(float(self.model.optimizer.learning_rate))

        def __deepcopy__(self, memo):
            return self

    tuner = keras_tuner.Hyperband(
        keras_resnet.ResNetHyperModel(8), keras_tuner.Objective("val_error", "min"), 2, 2, seed=0, directory=tmp_path
    )
    tuner.search(*train, validation_data=validation, callbacks=[Rates()], verbose=0)
    trials = list(tuner.oracle.trials.values())
    assert {trial.status for trial in trials} == {"COMPLETED"}, [trial.message for trial in trials]
    for trial, seen in zip(trials, rates, strict=True):
        values = trial.hyperparameters.values
        assert {"shortcut", "lr", "weight_decay", "batch_size", "warmup"} <= values.keys()
        first, last = values["tuner/initial_epoch"], values["tuner/epochs"]
        steps = 320 // values["batch_size"]
        assert len(seen) == (last - first) * steps
        if values["warmup"] and not first:
            assert seen[:steps] == pytest.approx([0.01] * steps)
        else:
            drops = [sum(step >= round(part * last * steps) for part in (1 / 2, 3 / 4)) for step in range(last * steps)]
            assert seen == pytest.approx([values["lr"] / 10**n for n in drops[first * steps :]], rel=1e-5)
    assert any(trial.hyperparameters.values["tuner/initial_epoch"] for trial in trials)
    # The best model is what was measured.
    best, model = tuner.oracle.get_best_trials()[0], tuner.get_best_models()[0]
    wrong = model.predict(validation.images.astype("float32"), verbose=0).argmax(-1) != validation.labels
    assert best.score == pytest.approx(wrong.mean(), abs=1e-5)
    assert model.optimizer.weight_decay == best.hyperparameters.get("weight_decay")


def test_too_few_images(data):
    hp, model = keras_tuner.HyperParameters(), keras_resnet.ResNetHyperModel(8)
    few = [part[:100] for part in data[0]]
    with pytest.raises(ValueError, match="batches of 256, and only 100 images"):
        model.fit(hp, model.build(hp), *few, validation_data=data[1])


def test_the_library_does_without_keras_tuner():
    code = (
        "import sys; sys.modules['keras_tuner'] = None; import keras_resnet;"
        "assert 'keras_resnet.training' not in sys.modules; keras_resnet.NoSuchName"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "AttributeError: module 'keras_resnet' has no attribute 'NoSuchName'" in done.stderr


@pytest.fixture
def tune(monkeypatch):
    """A function that calls train/tune.py's `main` with arguments."""
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    program = importlib.import_module("tune")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tune.py", *arguments])
        program.main()

    return call


def test_the_program_is_interrupted_goes_on_and_prints_a_command(tmp_path, tune, monkeypatch, capsys):
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 290, "test": 10})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 30})
    command = ["--dataset", "shapes", "--depth", "8", "--max-epochs", "2", "--output", str(tmp_path), "--verbose", "0"]
    command += ["--seed", "3"]
    folder, fit, calls = tmp_path / "tune-shapes-resnet-8-epochs-2-seed-3", tuning.ResNetHyperModel.fit, []

    def interrupted(self, hp, *args, **options):
        calls.append(hp.values)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, hp, *args, **options)

    monkeypatch.setattr(tuning.ResNetHyperModel, "fit", interrupted)
    with pytest.raises(SystemExit):
        tune(*command)
    assert "run the same command again" in capsys.readouterr().err
    tune(*command)
    printed = capsys.readouterr().out
    assert len(calls) == 3 and calls[1] == calls[2] != calls[0]  # the trial that was cut is repeated, no other
    found = [json.loads(path.read_text()) for path in folder.glob("trial_*/trial.json")]
    rows = re.findall(r"^ +(\d+\.\d+)% +2 +([ABC]) +(\S+) +(\S+) +(\d+) +(yes|no)$", printed, re.M)
    assert re.search(r"^2 trials, 4 epochs, 0:\d\d:\d\d in all; in ", printed, re.M)
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")
    spent = json.loads((folder / "cost.json").read_text())["seconds"]
    assert spent > 0.5
    scores = sorted(100 * trial["score"] for trial in found)
    assert [float(row[0]) for row in rows] == pytest.approx(scores, abs=0.01) and len(rows) == 2
    values = min(found, key=lambda trial: trial["score"])["hyperparameters"]["values"]
    words = printed.splitlines()[-1].split()
    assert words[:4] == ["python", "train/fit.py", "--depth", "8"]
    assert words[words.index("--dataset") + 1] == "shapes" and words[words.index("--seed") + 1] == "3"
    assert float(words[words.index("--lr") + 1]) == pytest.approx(values["lr"], rel=0.01)
    assert float(words[words.index("--weight-decay") + 1]) == pytest.approx(values["weight_decay"], rel=0.01)
    assert ("--warmup" in words) == values["warmup"]
    assert {path.parts[-4] for path in folder.glob("tensorboard/*/*/*/events*")} == {t["trial_id"] for t in found}
    tune(*command)
    assert capsys.readouterr().out.endswith(printed.splitlines()[-1] + "\n") and len(calls) == 3
    assert spent <= json.loads((folder / "cost.json").read_text())["seconds"] < spent + 5


def test_the_picture_of_a_search():
    values = [(0.1, "A", True, 128), (0.01, "B", False, 64), (1.0, "A", False, 256)]
    names = ("learning rate", "shortcut", "warm-up", "batch size")
    trials = [
        figures.Trial(dict(zip(names, row, strict=True)), epochs, error)
        for row, epochs, error in zip(values, (3, 9, 3), (0.5, 0.25, 0.9), strict=True)
    ]
    figure = figures.draw_search(trials, "note")
    rate, shortcut, warmup, batch = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == list(names)
    assert rate.get_xscale() == "log" and batch.get_xscale() == shortcut.get_xscale() == "linear"
    few, many, ring = rate.lines
    assert few.get_xydata().tolist() == [[0.1, 50], [1.0, 90]] and many.get_xydata().tolist() == [[0.01, 25]]
    assert ring.get_xydata().tolist() == [[0.01, 25]]
    assert [line.get_xdata().tolist() for line in batch.lines] == [[1, 2], [0], [0]]
    assert [label.get_text() for label in warmup.get_xticklabels()] == ["no", "yes"]
    assert warmup.lines[0].get_xdata().tolist() == [1, 0]
    assert [text.get_text() for text in batch.get_legend().get_texts()] == ["3 epochs", "9 epochs"]


@pytest.mark.parametrize("rates", [(0.01, 1.0), (1e-5, 0.9), (0.05, 0.13), (0.03, 0.03)])
def test_labels_of_a_logarithmic_axis_are_numbers_beside_each_other(rates):
    trials = [figures.Trial({"lr": rate, **dict.fromkeys("abc", 1.0)}, 3, 0.5) for rate in rates]
    figure = figures.draw_search(trials, "note")
    figure.savefig(io.BytesIO(), dpi=150)  # places them
    low, high = (axis := figure.axes[0].xaxis).get_view_interval()
    shown = [label for label in axis.get_ticklabels(which="both") if label.get_text()]
    shown = [label for label in shown if low <= label.get_position()[0] <= high]
    assert shown and all(float(label.get_text()) == pytest.approx(label.get_position()[0]) for label in shown)
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.x0)
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


SMALL = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
import backend
backend.choose("tensorflow")
from keras_resnet.data import sources
sources.SHAPES_EXAMPLES = {"train": 290, "test": 10}
sources.VALIDATION_EXAMPLES = {"shapes": 30}
sys.argv[0] = "tune.py"
runpy.run_path(f"{sys.path[0]}/tune.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_chief_and_two_tuners_search_together(tmp_path):
    (port,) = free_ports(1)
    command = ["--dataset", "shapes", "--depth", "8", "--max-epochs", "2", "--output", str(tmp_path), "--verbose", "0"]
    oracle = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port), "PYTHONPATH": str(ROOT)}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", SMALL, str(ROOT / "train"), *command],
            env=os.environ | oracle | {"KERASTUNER_TUNER_ID": name},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("chief", "tuner0", "tuner1")
    }  # fmt: skip
    printed = {}
    for name, process in processes.items():
        printed[name], errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    (folder,) = tmp_path.iterdir()
    trials = [json.loads(path.read_text()) for path in folder.glob("trial_*/trial.json")]
    assert len(trials) == 2 and {trial["status"] for trial in trials} == {"COMPLETED"}
    assert re.search(r"^2 trials, 4 epochs, .* The best:$", printed["chief"], re.M)
    assert printed["chief"].splitlines()[-1].startswith("python train/fit.py --depth 8")
    for name in ("tuner0", "tuner1"):
        assert printed[name].endswith(f"{name}: the search is over; its chief prints the result\n")


def test_a_search_together_that_lacks_a_variable_says_so(tmp_path, tune, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    with pytest.raises(SystemExit, match='"KERASTUNER_ORACLE_PORT" was not'):
        tune("--dataset", "shapes", "--depth", "8", "--max-epochs", "2", "--output", str(tmp_path))


def test_trials_that_fail_are_counted_and_the_others_shown(tmp_path, tune, monkeypatch, capsys):
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 290, "test": 10})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 30})
    command = ["--dataset", "shapes", "--depth", "8", "--max-epochs", "2", "--output", str(tmp_path), "--verbose", "0"]
    fit, calls = tuning.ResNetHyperModel.fit, []

    def fails_once(self, hp, *args, **options):
        calls.append(hp)
        if len(calls) == 1:
            raise MemoryError("too large a batch")
        return fit(self, hp, *args, **options)

    monkeypatch.setattr(tuning.ResNetHyperModel, "fit", fails_once)
    for _ in range(2):  # and once more when everything is done
        tune(*command)
        printed = capsys.readouterr()
        assert "1 of 2 trials failed, the first with: MemoryError: too large a batch" in printed.err
        assert len(re.findall(r"^ +\d+\.\d+%", printed.out, re.M)) == 1 and "python train/fit.py" in printed.out
    (damaged,) = [path for path in tmp_path.glob("*/trial_*/trial.json") if "COMPLETED" in path.read_text()]
    damaged.write_text(damaged.read_text()[:40])
    with pytest.raises(SystemExit, match="is damaged: .*Delete the folder"):
        tune(*command)


@pytest.mark.parametrize("file", ["oracle.json", "tuner0.json", "cost.json"])
@pytest.mark.parametrize("content", [b"[1, 2]", b"", b"\x89PNG\xff", b"{}", b'{"seconds": "5", "trials": 7}'])
def test_damaged_files_of_a_search(tmp_path, tune, monkeypatch, file, content):
    command = ("--dataset", "shapes", "--depth", "8", "--max-epochs", "1", "--output", str(tmp_path))
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 50, "test": 20})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 10})
    monkeypatch.setattr(keras_tuner.Hyperband, "search", lambda tuner, *arguments, **options: tuner.save())
    with pytest.raises(SystemExit, match="no trial was completed"):
        tune(*command)
    (path,) = tmp_path.glob(f"*/{file}")
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"tune.py: .*(is damaged: |no trial was completed)") as error:
        tune(*command)
    assert str(error.value).count("\n") == 0
    if file != "tuner0.json":  # of which keras_tuner reads no field
        assert "is damaged" in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--depth", "9"], "--depth is 6n+2 with basic blocks; found 9, nearest 8 and 14"),
        (["--max-epochs", "0"], "--max-epochs is positive; found 0"),
        (["--data-dir", "nowhere"], "--data-dir nowhere has no prepared cifar10"),
    ],
)
def test_mistakes_are_explained(tmp_path, tune, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        tune(*arguments, "--output", str(tmp_path))
    assert not os.listdir(tmp_path)
