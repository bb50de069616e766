"""train/fit.py as people run it: in processes of its own."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

FIT = [sys.executable, str(ROOT / "train" / "fit.py")]
SHAPES = ["--dataset", "shapes", "--depth", "8", "--steps", "40", "--batch-size", "32", "--checkpoint-every", "4"]


def fit(folder, *arguments):
    return subprocess.run(
        [*FIT, *arguments, "--output", folder], capture_output=True, text=True, timeout=300, cwd=folder
    )


def fit_until_checkpoint(folder, *arguments):
    """Starts a run, and returns its process when the first checkpoint is there."""
    process = subprocess.Popen(
        [*FIT, *arguments, "--output", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    path = folder / "shapes-resnet-8" / "checkpoint" / "latest.npz"
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_killed_resumed_and_finished(tmp_path):
    steps = ["--steps", "400"]  # more than it can make before it is killed
    process = fit_until_checkpoint(tmp_path, *SHAPES, *steps)
    process.kill()
    process.communicate()
    process = fit_until_checkpoint(tmp_path, *SHAPES, *steps)
    while "resuming from step" not in process.stdout.readline():
        pass
    time.sleep(8)  # into the steps
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "stopped by SIGTERM at step" in stderr and "the same command goes on" in stderr

    other = fit(tmp_path, *SHAPES, *steps, "--lr", "0.05")
    assert other.returncode == 1
    assert "--lr" in other.stderr and "0.05 now" in other.stderr and "Traceback" not in other.stderr

    done = fit(tmp_path, *SHAPES, *steps, "--verbose", "2", "--export")
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stdout and "test error" in done.stdout
    result = json.loads((tmp_path / "shapes-resnet-8" / "result.json").read_text())
    assert result["test_error"] < 0.8  # chance is 0.9
    exported = os.path.join("saved_models", "shapes-resnet-8", "1")
    assert f"exported to {tmp_path / exported}" in done.stdout
    assert (tmp_path / exported / "saved_model.pb").exists()
    again = fit(tmp_path, *SHAPES, *steps)
    assert "is finished" in again.stdout and "test error" in again.stdout


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can limit the files of another process")
def test_a_full_disk_and_a_vanished_folder(tmp_path):
    steps = ["--steps", "5000"]
    process = fit_until_checkpoint(tmp_path, *SHAPES, *steps)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))  # no file may become larger, as on a full disk
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1, stderr
    assert "latest.npz could not be written: [Errno 27] File too large" in stderr and "Traceback" not in stderr

    process = fit_until_checkpoint(tmp_path, *SHAPES, *steps)
    while "resuming from step" not in process.stdout.readline():
        pass
    (tmp_path / "shapes-resnet-8").rename(tmp_path / "elsewhere")
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1, stderr
    assert "could not be written: [Errno 2]" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--depth", "21"], "--depth is 6n+2 with basic blocks; found 21, nearest 20 and 26"),
        (
            ["--dataset", "cifar11"],
            "a folder of photographs or a set of TensorFlow Datasets; found 'cifar11'. Did you mean cifar10?",
        ),
        (["--data-dir", "nowhere"], "--data-dir nowhere has no prepared cifar10: no such folder"),
        (["--output", "/dev/null/runs"], "cannot be written"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(tmp_path, arguments, message):
    run = subprocess.run([*FIT, "--output", tmp_path, *arguments], capture_output=True, text=True, timeout=100)
    assert run.returncode == 1
    assert run.stderr.startswith("fit.py: ") and message in run.stderr and "Traceback" not in run.stderr


def test_help_teaches():
    text = subprocess.run([*FIT, "--help"], capture_output=True, text=True, timeout=100).stdout
    for word in (
        "--depth",
        "6n+2",
        "(default 64000; photographs 600000)",
        "python train/fit.py --depth 110",
        "goes on",
    ):
        assert word in text


def test_real_cifar10(tmp_path, cifar10_dir):
    """A few steps on the real images, with the columns of a short epoch."""
    run = fit(tmp_path, "--data-dir", cifar10_dir, "--depth", "8", "--steps", "30", "--train-on-all", "--verbose", "2")
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "cifar10-resnet-8" / "result.json").read_text())
    assert result["test_error"] < 0.88 and result["val_error"] is None
    assert set(os.listdir(tmp_path / "cifar10-resnet-8")) >= {"curves.png", "history.csv", "model.keras"}
