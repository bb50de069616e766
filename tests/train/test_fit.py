"""train/fit.py as users run it, in its own processes."""

import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import keras_resnet

FIT = [sys.executable, str(ROOT / "train" / "fit.py")]
SHAPES = ["--dataset", "shapes", "--depth", "8", "--steps", "40", "--batch-size", "32", "--checkpoint-every", "4"]


def fit(folder, *arguments):
    return subprocess.run(
        [*FIT, *arguments, "--output", folder], capture_output=True, text=True, timeout=300, cwd=folder
    )


def fit_until_checkpoint(folder, *arguments):
    """Starts a run, and returns its process after the first checkpoint."""
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
    path = tmp_path / "shapes-resnet-8" / "checkpoint" / "latest.npz"
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:  # until it makes steps
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "stopped by SIGTERM at step" in stderr and "run the same command again to resume" in stderr

    done = fit(tmp_path, *SHAPES, *steps, "--export")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1, step 400/400, ") == done.stdout.count("\nepoch") == 1
    assert not {"\b", "\r", "\x1b"} & set(done.stdout)
    assert "resuming from step" in done.stdout and "test error" in done.stdout
    result = json.loads((tmp_path / "shapes-resnet-8" / "result.json").read_text())
    assert result["test_error"] < 0.8  # chance is 0.9
    exported = os.path.join("saved_models", "shapes-resnet-8", "1")
    assert f"exported to {tmp_path / exported}" in done.stdout
    assert (tmp_path / exported / "saved_model.pb").exists()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can limit the files of another process")
def test_a_full_disk_and_a_vanished_folder(tmp_path):
    steps = ["--steps", "5000"]
    process = fit_until_checkpoint(tmp_path, *SHAPES, *steps)
    second = fit(tmp_path, *SHAPES, *steps)
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert f"another process is training this run, PID {process.pid} on " in second.stderr
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))  # no file may become larger, as on a full disk
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1, stderr
    assert "latest.npz could not be written: File too large" in stderr and "Traceback" not in stderr

    process = fit_until_checkpoint(tmp_path, *SHAPES, *steps)
    while "resuming from step" not in process.stdout.readline():
        pass
    (tmp_path / "shapes-resnet-8").rename(tmp_path / "elsewhere")
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1, stderr
    assert "could not be written: No such file or directory" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--depth", "21"], "--depth is 6n+2 with basic blocks; found 21, nearest 20 and 26"),
        (
            ["--dataset", "cifar11"],
            "a data set of TensorFlow Datasets; found 'cifar11', and no folder of this name. Did you mean cifar10?",
        ),
        (["--data-dir", "nowhere"], "--data-dir nowhere has no prepared cifar10: no such folder"),
        (["--output", "/dev/null/runs"], "cannot be written"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(tmp_path, monkeypatch, arguments, message):
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    monkeypatch.setattr(sys, "argv", ["fit.py", "--output", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as end:
        importlib.import_module("fit").main()
    assert str(end.value).startswith("fit.py: ") and message in str(end.value)


INTERRUPTED = """
import importlib, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # if the tests' process ignores it
sys.path.insert(0, sys.argv[1])
import backend
backend.choose("tensorflow")

def interrupted(*arguments, **options):
    {before}
    try:
        signal.raise_signal(signal.{number})
    except BaseException as raised:
        raise {error}

setattr(importlib.import_module("{module}"), "{function}", interrupted)
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LIBRARY = "('C++ made this of it')"  # which OpenVINO does
EXPORT = (
    *("export.py", ["model.keras", "--output", "a/b"]),
    *("keras_resnet.serving.signatures", "save", "arguments[0].save(arguments[1] + '/half.keras')"),
)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "program, arguments, module, function, before, number, error",
    [
        ("fit.py", SHAPES, "keras_resnet.data.sources", "load", "", "SIGINT", "raised"),
        ("evaluate.py", ["model.keras", "--data", "shapes"], "keras_resnet.evaluation", "evaluate", "",
         "SIGTERM", "raised"),
        slow("convert.py", ["model.keras", "x.safetensors"], "safetensors.numpy", "save", "", "SIGTERM", "raised"),
        (*EXPORT, "SIGINT", "OSError" + LIBRARY),
        slow(*EXPORT, "SIGTERM", "RuntimeError" + LIBRARY),
    ],
)  # fmt: skip
def test_a_signal_outside_the_training_ends_in_one_line(
    tmp_path, program, arguments, module, function, before, number, error
):
    keras_resnet.CifarResNet(8).save(tmp_path / "model.keras")
    code = INTERRUPTED.format(module=module, function=function, before=before, number=number, error=error)
    run = subprocess.run(
        [sys.executable, "-c", code, ROOT / "train", ROOT / "train" / program, *arguments],
        capture_output=True, text=True, timeout=100, cwd=tmp_path, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    what, status = {"SIGINT": ("interrupted", -signal.SIGINT), "SIGTERM": ("terminated", 128 + signal.SIGTERM)}[number]
    assert (run.returncode, run.stderr) == (status, f"\n{program}: {what}\n")
    left = {name for _, folders, names in os.walk(tmp_path) for name in (*folders, *names)}
    assert left == {"model.keras", *(["runs"] if program == "fit.py" else [])}


JAX_ERROR = "RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.')"


@pytest.mark.parametrize(
    "error", ["MemoryError()", "tf.errors.ResourceExhaustedError(None, None, 'OOM [Op:Conv2D]')", JAX_ERROR]
)
def test_out_of_memory_is_one_line(error):
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT / "train")!r})
        import interrupted
        {"import tensorflow as tf" * error.startswith("tf.")}
        sys.argv = ["fit.py"]
        raise {error}"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("fit.py")]
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert line.startswith("fit.py: out of memory; a smaller --batch-size")


def test_a_signal_is_not_lost_in_the_garbage_collector():
    code = f"""if True:
        import signal, sys, time
        sys.path.insert(0, {str(ROOT / "train")!r})
        import interrupted
        class Last:
            def __del__(self):
                signal.raise_signal(signal.SIGTERM)
        Last()
        time.sleep(60)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stderr) == (128 + signal.SIGTERM, "\n-c: terminated\n")


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system cannot limit the size of files")
@pytest.mark.parametrize(
    "program, arguments, out",
    [
        ("evaluate.py", ["--data", "shapes", "--json", "out.json"], "out.json"),
        ("convert.py", ["out.keras"], "out.keras"),
    ],
)
def test_a_program_on_a_full_disk_leaves_what_was_there(tmp_path, program, arguments, out):
    keras_resnet.CifarResNet(8).save(tmp_path / "model.keras")
    (tmp_path / out).write_text("good")
    run = subprocess.run(
        [sys.executable, FIT[1].replace("fit.py", program), "model.keras", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert run.returncode == 1 and f"{out} could not be written: " in run.stderr and "Traceback" not in run.stderr
    assert (tmp_path / out).read_text() == "good" and set(os.listdir(tmp_path)) == {out, "model.keras"}


def test_help_teaches():
    text = subprocess.run([*FIT, "--help"], capture_output=True, text=True, timeout=100).stdout
    for word in (
        "--depth",
        "6n+2",
        "(default 64000; ImageNet 600000)",
        "python train/fit.py --depth 110",
        "resumes",
    ):
        assert word in " ".join(text.split())  # however the lines are broken


def test_real_cifar10(tmp_path, cifar10_dir):
    """A few steps on the real images, with the columns of a short epoch."""
    run = fit(tmp_path, "--data-dir", cifar10_dir, "--depth", "8", "--steps", "30", "--train-on-all")
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "cifar10-resnet-8" / "result.json").read_text())
    assert result["test_error"] < 0.88 and result["val_error"] is None
    assert set(os.listdir(tmp_path / "cifar10-resnet-8")) >= {"curves.png", "history.csv", "model.keras"}
