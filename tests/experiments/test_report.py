import html
import importlib
import json
import os
import re
import shlex
import sys

import numpy as np
import pytest
from conftest import ROOT

from keras_resnet.architecture import cifar
from keras_resnet.experiments import experiments, report
from keras_resnet.experiments.tables import EXPERIMENTS
from keras_resnet.files import RunError

CPU = "TensorFlow on 1 CPU core"


def made_up(experiment, settings, error):
    """A record as `experiments.run` writes it, with made-up results."""
    epochs, rng = 12, np.random.default_rng(settings.seed + settings.depth)
    steps = settings.length(50_000)
    step = np.linspace(steps / epochs, steps, epochs)
    falling = error + 0.6 * 0.5 ** np.arange(epochs)
    noisy = falling * rng.uniform(1, 1.2, epochs)
    history = {"step": step.tolist(), "error": (falling * 0.7).tolist()}
    if not settings.train_on_all:
        history["val_error"] = noisy.tolist()
    layers = 2 * sum(cifar(settings.depth, settings.block).repetitions) + 1 if experiment.dataset else 0
    return {
        **experiments.describe(settings),
        "error": error,
        "measured_on": "test images, single view",
        "response_std": {f"layer{i}": float(rng.uniform(0.2, 1)) for i in range(layers)},
        "result": {"parameters": 1000 * settings.depth, "val_error": None if settings.train_on_all else error + 0.01},
        "history": history,
        "segments": [segment(settings.bn_batch_size, steps)],
    }


def segment(together, steps, backend="tensorflow", *devices):
    """A segment of a run: where its steps were trained."""
    made = {"commit": "0123456", "python": "3", "keras": "3", backend: "2", "devices": [*devices] or ["1 CPU core"]}
    return {"from": 0, "to": steps, "backend": backend, "normalized_together": together, **made}


def runs(name, error, only=None, **options):
    pairs = EXPERIMENTS[name].settings(only, **options)
    return [made_up(EXPERIMENTS[name], settings, error) for _, settings in pairs]


def drawn(name, records):
    """The figure of the first group of entries."""
    return report.draw(EXPERIMENTS[name], report.groups(report.entries(EXPERIMENTS[name], records))[0])


def cells(page, name, network):
    """The text of the cells of a network's rows in an experiment's table."""
    section = re.search(f'<section id="{name}">(.*?)</section>', page, re.S)[1]
    rows = re.findall(r"<tr.*?>(.*?)</tr>", section, re.S)
    found = [re.findall(r"<td.*?>(.*?)</td>", row) for row in rows]
    return [[re.sub("<.*?>", "", cell) for cell in row] for row in found if row and row[0] == network]


def test_the_tables_show_our_numbers_beside_the_papers(tmp_path):
    records = [
        *runs("fig6", 0.1, ["ResNet-20"], steps=8000),
        *[{**record, "error": 0.1 + 0.02 * i} for i, record in enumerate(runs("fig6", 0.1, ["ResNet-56"], seeds=3))],
        *runs("fig6", 0.12, ["plain-20"], steps=8000),
        *runs("fig6", 0.0875, ["ResNet-20"], train_on_all=True),
        *runs("table3", 0.3, ["ResNet-34-C"], dataset=str(tmp_path), steps=1000, accumulate=2),
    ]
    paths = report.write(records, str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert [path.removeprefix(f"{tmp_path}/") for path in paths] == [
        *("report.html", "table3.png", "fig6.png", "fig6-2.png", "fig6-3.png", "fig7.png", "fig7-2.png", "fig7-3.png"),
        *("shortcuts.png", "shortcuts-2.png", "seeds.png"),
    ]
    assert all((tmp_path / path).read_bytes().startswith(b"\x89PNG") for path in paths[1:])
    assert "http" not in re.sub(r'<a href=".*?">|data:image/svg\+xml;base64,\S*', "", page)  # one file, nothing to load

    fig6 = "python train/reproduce.py fig6 --only"
    validation, all_images, short = "11.00", "–", "8,000 of 64,000 steps"
    assert cells(page, "fig6", "ResNet-20") == [
        ["ResNet-20", "20,000", "8.75", "8.75", all_images, "1", CPU, "64,000 steps, --train-on-all"]
        + [f"{fig6} ResNet-20 --train-on-all"],
        ["ResNet-20", "20,000", "8.75", "10.00", validation, "1", CPU, short, f"{fig6} ResNet-20 --steps 8000"],
    ]
    assert cells(page, "fig6", "ResNet-56") == [
        ["ResNet-56", "56,000", "6.97", "12.00 ± 2.00", "11.00 ± 0.00", "3", CPU, "64,000 steps"]
        + [f"{fig6} ResNet-56 --seeds 3"]
    ]
    # What is missing would be run as most of the others were.
    assert cells(page, "fig6", "plain-44") == [
        ["plain-44", *["–"] * 7, f"{fig6} plain-44 --steps 8000"],
    ]
    assert cells(page, "table6", "ResNet-110")[0][2] == "6.43 (6.61 ± 0.16)"
    assert cells(page, "shortcuts", "ResNet-20-A")[1][3] == "10.00"  # the same run as in fig6
    (table3,) = cells(page, "table3", "ResNet-34-C")
    assert table3[2:4] == ["24.19", "30.00"]
    assert table3[7] == f"1,000 of 600,000 steps, {tmp_path.name}, --accumulate 2"
    assert "--steps 1000 --accumulate 2 --data" in table3[8]
    text = re.sub("<.*?>", "", page)
    assert "P1 Fig. 4: python train/reproduce.py fig4 --data IMAGENET" in text
    assert "P2 Table 1: python train/reproduce.py identity-shortcuts" in text


def test_runs_of_another_backend_or_with_other_ghost_batches_are_not_averaged(tmp_path):
    """They have separate rows, each with its command; a run that changed machines names both."""
    records = runs("fig6", 0.1, ["ResNet-20"], seeds=4)
    for record, error in zip(records, (0.10, 0.12, 0.20, 0.30), strict=True):
        record["error"] = error
    records[2]["segments"] = [segment(64, 64_000, "jax", "NVIDIA H200", "NVIDIA H200")]
    records[3]["segments"] = [segment(64, 10), {**segment(16, 64_000, "tensorflow", "NVIDIA L4"), "from": 10}]
    report.write(records, str(tmp_path))
    found = cells((tmp_path / "report.html").read_text(), "fig6", "ResNet-20")
    assert sorted((row[3], row[5], row[6]) for row in found) == [
        ("11.00 ± 1.41", "2", CPU),
        ("20.00", "1", "JAX on 2 x NVIDIA H200"),
        ("30.00", "1", f"{CPU}; then TensorFlow on NVIDIA L4"),
    ]
    commands = {row[3]: row[-1] for row in found}
    assert commands["20.00"].startswith("KERAS_BACKEND=jax python train/reproduce.py fig6 --only ResNet-20")
    assert commands["11.00 ± 1.41"].startswith("python train/reproduce.py")
    assert "16 and 64 images normalised together" in found[[row[3] for row in found].index("30.00")][7]
    assert report.command("fig6", report.Entry(EXPERIMENTS["fig6"].rows[0], {}, []), {}).startswith("python train/")

    groups = lambda: [
        [(entry.row.name, len(entry.records)) for entry in group]
        for group in report.groups(report.entries(EXPERIMENTS["fig6"], records))
    ]
    assert groups() == [[("ResNet-20", 2)]]
    records += runs("fig6", 0.1, ["plain-20"], seeds=3)
    records[-1]["segments"] = [segment(64, 64_000, "jax", "NVIDIA H200", "NVIDIA H200")]
    assert groups() == [[("plain-20", 2), ("ResNet-20", 2)], [("plain-20", 1), ("ResNet-20", 1)]]


def test_every_experiment_is_drawn_from_comparable_runs(tmp_path):
    records = {}
    for name, experiment in EXPERIMENTS.items():
        dataset = None if experiment.dataset else str(tmp_path)
        for record in runs(name, 0.1, seeds=2, dataset=dataset, steps=8000):
            records[record["command"]] = record
    records = list(records.values())
    assert len(records) == 2 * (4 + 5 + 5 + 6 + 2 + 5 + 4 + 5)  # each network once
    for name, experiment in EXPERIMENTS.items():
        found = report.entries(experiment, records)
        assert len(found) == len(experiment.rows) and all(len(entry.records) == 2 for entry in found), name
        (group,) = report.groups(found)
        figure = report.draw(experiment, group)
        if figure is None:
            assert not experiment.panels and not experiment.responses
            continue
        labels = [sorted(text.get_text() for text in axes.texts) for axes in figure.axes]
        if not experiment.responses:
            assert labels == [sorted(n.removeprefix(f"{title}-") for n in names) for title, names in experiment.panels]
        assert "8,000 of" in figure.get_suptitle()


def test_curves_are_the_mean_over_seeds():
    records = runs("fig6", 0.1, ["ResNet-20"], seeds=2)
    figure = drawn("fig6", records)
    training, validation = figure.axes[0].lines
    assert np.allclose(training.get_ydata(), 100 * np.array(records[0]["history"]["error"]))
    expected = np.mean([record["history"]["val_error"] for record in records], axis=0)
    assert np.allclose(validation.get_ydata(), 100 * expected) and training.get_linestyle() == "--"


def test_runs_without_validation_show_the_test_error_as_a_point():
    records = runs("table6", 0.0821, ["ResNet-20"], train_on_all=True)
    records += runs("fig6", 0.0943, ["plain-20"], train_on_all=True)
    figure = drawn("fig6", records)
    for axes, record in zip(figure.axes, (records[1], records[0]), strict=True):
        training, test = axes.lines
        assert np.allclose(training.get_ydata(), 100 * np.array(record["history"]["error"]))
        assert np.allclose(test.get_xydata(), [[record["history"]["step"][-1] / 1000, 100 * record["error"]]])
        assert (training.get_linestyle(), test.get_marker()) == ("--", "o")
    assert "dashed: training, point: test, at the end" in figure.get_suptitle()


def test_the_page_says_of_both_kinds_of_runs_what_they_train_on(tmp_path):
    report.write([], tmp_path)
    text = re.sub("<[^>]*>", "", (tmp_path / "report.html").read_text()).replace("\n", " ")
    assert "all 50,000 images, as are runs with --train-on-all; the others are trained on 45,000" in text


def test_every_schedule_of_the_table_is_drawn(tmp_path):
    records = [*runs("fig6", 0.2, ["ResNet-20", "plain-20"], steps=8000), *runs("fig6", 0.1, ["ResNet-20"])]
    records += runs("fig6", 0.15, ["ResNet-20"], steps=8000, lr=0.05)
    found = report.groups(report.entries(EXPERIMENTS["fig6"], records))
    figures = [report.draw(EXPERIMENTS["fig6"], group) for group in found]
    titles = [figure.get_suptitle().splitlines()[1] for figure in figures]
    assert titles[0].startswith("8,000 of 64,000 steps") and "--lr" not in titles[0]  # which most networks share
    assert titles[1].startswith("64,000 steps") and titles[2].startswith("8,000 of 64,000 steps, --lr 0.05")
    assert [len(figure.axes) for figure in figures] == [2, 1, 1]
    report.write(records, str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    shown = re.search('<section id="fig6">(.*?)</section>', page, re.S)[1]
    assert shown.count("<img ") == 3 and (tmp_path / "fig6-3.png").exists()


@pytest.mark.parametrize("epochs", [4, 40])
def test_what_is_off_the_axis_is_said(epochs):
    """With few epochs nothing is: each is drawn as a point."""
    (record,) = runs("fig6", 0.1, ["ResNet-20"])
    falling = np.maximum(0.8 * 0.7 ** np.arange(epochs), 0.1)
    record["history"] = {"step": list(np.arange(1, epochs + 1) * 64_000 / epochs), "error": [0.0] * epochs}
    record["history"]["val_error"] = falling.tolist()
    figure = drawn("fig6", [record])
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert ("errors above 20 % are off the axis" in figure.get_suptitle()) == (epochs > 10)
    for line in figure.axes[0].lines:
        x, y = line.get_xdata(), line.get_ydata()
        assert left < x.min() and x.max() < right and bottom < y.min()  # with the whole width of line and marker
        assert (y.max() < top) == (epochs == 4 or not y.any())


def test_commands_can_be_pasted(tmp_path, monkeypatch):
    """Whatever the conditions of a run, the report's command trains the same run."""
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    reproduce = importlib.import_module("reproduce")
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path)
    photographs = {"image_size": 112, "without": ("color", "flip"), "skip_damaged": True, "dataset": "a folder"}
    for name, only, options in (
        ("fig6", "ResNet-20", {"steps": 8000, "batch_size": 64, "lr": 0.05, "warmup": True, "train_on_all": True}),
        ("fig6", "ResNet-110", {"warmup": False, "deterministic": True, "weight_decay": 0.0, "schedule": "plateau"}),
        ("identity-activations", "ResNet-164-original", {"bn_batch_size": 32, "mixed_precision": "bfloat16"}),
        ("table3", "ResNet-50", {"accumulate": 4, "sync_bn": True, "colors": "imagenet", **photographs}),
    ):
        ((_, settings), *_) = EXPERIMENTS[name].settings([only], **options)
        records = [made_up(EXPERIMENTS[name], settings, 0.1)]
        (entry,) = (e for e in report.entries(EXPERIMENTS[name], records) if e.records)
        program, file, *words = shlex.split(report.command(name, entry, {}))
        assert (program, file) == ("python", "train/reproduce.py")
        pasted = vars(reproduce.parse(words))
        arguments = [pasted.pop(key) for key in ("name", "only", "seeds", "data")]
        assert arguments[0] == name
        for key in ("results", "verbose", "at_a_time", "seconds"):
            del pasted[key]
        assert EXPERIMENTS[name].settings(*arguments[1:], **pasted) == [(only, settings)]


def test_responses_are_drawn_in_their_order_and_sorted():
    records = runs("fig7", 0.1, ["plain-20", "ResNet-56"])
    figure = drawn("fig7", records)
    upper, lower = figure.axes
    for record, ours, ranked in zip(records, upper.lines, lower.lines, strict=True):
        std = list(record["response_std"].values())
        assert np.allclose(ours.get_ydata(), std) and np.allclose(ranked.get_ydata(), sorted(std, reverse=True))
    assert [line.get_linestyle() for line in upper.lines] == ["--", "-"]


def test_what_is_no_result_is_said(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="does not exist"):
        experiments.load(str(tmp_path / "none"))
    (tmp_path / "a.json").write_text('{"command": "x"}')
    with pytest.raises(RunError, match="a.json is not a result of train/reproduce.py: it has no conditions, error"):
        experiments.load(str(tmp_path))
    (tmp_path / "a.json").write_text("{")
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="report.py: .*a.json is damaged: .* Delete it and run the experiment again"):
        importlib.import_module("report").main()


def test_no_error_at_all_can_be_drawn(tmp_path):
    records = runs("fig6", 0.1, ["ResNet-20"])
    for record in records:
        record["history"] |= {"error": [0.0] * 12, "val_error": [0.0] * 12}
    assert len(report.write(records, tmp_path)) == 4


def test_a_foreign_record_runs_no_script(tmp_path):
    """All texts of a foreign record are escaped."""
    script = "<script>alert(1)</script>"
    (record,) = runs("table2", 0.3, ["plain-18"], dataset=str(tmp_path), steps=1000)
    record |= {
        "measured_on": script,
        "command": script,
        "segments": [{**segment(64, 2, "jax", script), "commit": script}],
    }
    record["settings"] |= {"dataset": script, "colors": script}
    record["conditions"] |= {"colors": script, "data": "$x_1^{2$ & {a} \udcff"}
    report.write([record], str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert script not in page and html.escape(script) in page


@pytest.mark.parametrize("data", ["$x_1^{2$ & {a}", "50% $ and $ 日本 \udcff"])
def test_a_folder_of_any_name_can_be_drawn(tmp_path, data):
    records = runs("fig4", 0.3, ["plain-18", "ResNet-18-A"], dataset=str(tmp_path), steps=1000)
    for record in records:
        record["settings"]["dataset"] = data
    assert len(report.write(records, str(tmp_path))) == 2
    figure = drawn("fig4", records)
    assert data.replace("\udcff", r"\udcff")[:10] in figure.get_suptitle()


def test_runs_of_different_lengths_are_not_averaged(tmp_path):
    records = runs("fig6", 0.1, ["ResNet-20"], seeds=2)
    records[1]["history"] = {name: column[1:] for name, column in records[1]["history"].items()}
    with pytest.raises(RunError, match="curves of different lengths(.|\n)*--seed 1"):
        report.write(records, tmp_path)


def test_the_page_shows_the_results_that_are_kept():
    text = (ROOT / "docs/results.md").read_text()
    records = experiments.load(ROOT / experiments.RESULTS)
    for name, experiment in EXPERIMENTS.items():
        for entry in report.entries(experiment, records):
            if entry.records:
                assert report.ours(entry.errors) in text, report.command(name, entry, {})


def test_the_program(tmp_path, monkeypatch, capsys):
    (record,) = runs("fig6", 0.1, ["ResNet-20"])
    (tmp_path / "run.json").write_text(json.dumps(record))
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path), "--output", str(tmp_path / "pages")])
    importlib.import_module("report").main()
    assert capsys.readouterr().out.split()[0] == str(tmp_path / "pages" / "report.html")
    assert len(os.listdir(tmp_path / "pages")) == 4


def test_a_length_in_epochs_stands_beside_one_in_steps():
    epochs = runs("fig6", 0.2, ["ResNet-20"], epochs=20)  # of 390 steps
    found = report.entries(EXPERIMENTS["fig6"], [*runs("fig6", 0.3, ["ResNet-20"], steps=7799), *epochs])
    first, second = (entry for entry in found if entry.row.name == "ResNet-20")
    assert (first.errors, second.errors) == ([20.0], [30.0])  # the longest first
    assert report.command("fig6", first, {}) == "python train/reproduce.py fig6 --only ResNet-20 --epochs 20"
    assert "7,800 of 64,000 steps" in drawn("fig6", epochs).get_suptitle()
