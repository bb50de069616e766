"""A run depends on its settings alone, not on keras.json, the environment or the process."""

import csv
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import keras_resnet
from keras_resnet import environment
from keras_resnet.data import sources
from keras_resnet.training import Settings, train

RUN = ["--dataset", "shapes", "--depth", "8", "--steps", "4", "--batch-size", "32"]
OTHERS = {"floatx": "float64", "epsilon": 0.1, "image_data_format": "channels_first", "nnx_enabled": True}
CUT = {"KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "2", "KERAS_NNX_ENABLED": "1"}


def program(home, folder, name, *arguments, **variables):
    """Runs a program of train/ in `folder`, with `home`/keras.json; returns its output."""
    done = subprocess.run(
        [sys.executable, ROOT / "train" / f"{name}.py", *arguments],
        capture_output=True, text=True, timeout=300, cwd=folder, env={**os.environ, "KERAS_HOME": home, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def homes(tmp_path, **values):
    """Two folders for KERAS_HOME, the second with `values` in its keras.json, and an environment for each."""
    for name, content in (("own", {}), ("other", {**OTHERS, "backend": "torch", **values})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keras.json").write_text(json.dumps(content))
    return {str(tmp_path / "own"): {}, str(tmp_path / "other"): CUT}


@pytest.mark.slow
@pytest.mark.parametrize("floatx", ["float16", "float64"])
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.slow)])
def test_keras_json_does_not_change_a_run(tmp_path, backend, floatx):
    pytest.importorskip("jax", reason="jax is not installed")
    found = []
    for home, variables in homes(tmp_path, floatx=floatx).items():
        options, variables = ["--deterministic"] * (backend == "tensorflow"), {**variables, "KERAS_BACKEND": backend}
        assert "float32" in program(home, tmp_path, "fit", *RUN, *options, "--output", home, **variables)
        with open(f"{home}/shapes-resnet-8/history.csv") as file:
            rows = [(row["loss"], row["error"], row["val_loss"]) for row in csv.DictReader(file)]
        saved = keras.saving.load_model(f"{home}/shapes-resnet-8/model.keras")
        found.append((rows, saved))
    (rows, saved), (other_rows, other) = found
    assert rows == other_rows and len(rows) == 1
    assert {layer.dtype_policy.name for layer in other.layers} == {"float32"}
    for ours, theirs in zip(saved.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_keras_json_does_not_change_an_evaluation_a_conversion_or_an_export(tmp_path):
    keras_resnet.CifarResNet(8, normalization=(127.5, 1.0)).save(tmp_path / "m.keras")
    tables, arrays = [], []
    for home, variables in homes(tmp_path).items():
        program(home, tmp_path, "convert", "m.keras", f"{home}/c.keras", **variables)
        program(home, tmp_path, "export", f"{home}/c.keras", "--output", home, **variables)
        table = program(home, tmp_path, "evaluate", f"{home}/c.keras", "--data", "shapes", "--json", f"{home}/r.json",
                        **variables)  # fmt: skip
        assert "2,000 images" in table
        with open(f"{home}/r.json") as file:
            tables.append({**json.load(file), "models": None})
        with open(f"{home}/c/1/about.json") as file:
            assert json.load(file)["dtype"] == "float32"
        arrays.append(keras.saving.load_model(f"{home}/c.keras").get_weights())
    assert tables[0] == tables[1]
    assert all((ours == theirs).all() and ours.dtype == "float32" for ours, theirs in zip(*arrays, strict=True))


def test_train_in_a_process_with_other_values(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHAPES_EXAMPLES", {"train": 3 * 16 + 32, "test": 48})
    monkeypatch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": 32})
    options = {"dataset": "shapes", "depth": 8, "steps": 3, "batch_size": 16, "strategy": "none"}
    fit = lambda name: train(Settings(**options, output=str(tmp_path), name=name), verbose=0)
    expected = fit("own")
    changed = {"floatx": "float16", "dtype_policy": "mixed_float16", "epsilon": 0.1, "max_steps_per_epoch": 1}
    before = {name: getattr(keras.config, name)() for name in environment.DEFAULTS}
    try:
        environment.set_values(changed)
        found = fit("other")
        assert keras.config.floatx() == "float16" and keras.config.dtype_policy().name == "mixed_float16"
        assert keras.config.epsilon() == 0.1 and keras.config.max_steps_per_epoch() == 1
    finally:
        environment.set_values(before)
    for key in ("train_loss", "train_error", "test_error", "val_error"):
        assert found.get(key) == pytest.approx(expected.get(key), abs=1e-5), key
    saved = keras.saving.load_model(tmp_path / "other" / "model.keras")
    assert {layer.dtype_policy.name for layer in saved.layers} == {"float32"}


def test_a_keras_json_that_keras_refuses_is_named(tmp_path):
    (tmp_path / "keras.json").write_text('{"floatx": "bfloat16"}')
    fit = [sys.executable, ROOT / "train" / "fit.py", *RUN]
    done = subprocess.run(fit, capture_output=True, text=True, env={**os.environ, "KERAS_HOME": str(tmp_path)})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Keras does not accept keras.json" in done.stderr and "floatx=bfloat16" in done.stderr
