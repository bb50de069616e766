"""Training with JAX: each step against that of TensorFlow, devices and processes, and runs as users see them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, WITHOUT_TENSORFLOW, free_ports, write_cifar10
from PIL import Image

import keras_resnet
from keras_resnet import evaluation
from keras_resnet.data import cifar, shapes, sources
from keras_resnet.experiments import experiments
from keras_resnet.runs import Run
from keras_resnet.training import Settings, train
from keras_resnet.training.fused import fuse_batch_norm
from keras_resnet.training.tensorflow import Step, optimizer_of
from keras_resnet.weights import published

pytest.importorskip("jax", reason="jax is not installed")

STEPS, BATCH = 3, 32
TRAIN = """
import json, sys
import jax, keras, keras_resnet, numpy as np
from keras_resnet.data import sources
from keras_resnet.optimizers import SGD
from keras_resnet.training import mesh, precision
from keras_resnet.training.jax import Step
from keras_resnet.training.jax_images import augment

folder, ways = sys.argv[1], json.loads(sys.argv[2])
data = np.load(f"{folder}/data.npz")
source = sources.load("shapes")
mean = sources.per_pixel_mean(source.train.images)
for name, (ghosts, turns, kind) in ways.items():
    model = keras_resnet.CifarResNet(8, normalization=(mean, 1.0), classifier_activation=None)
    model.load_weights(f"{folder}/initial.weights.h5")
    precision.set_precision(model, kind)
    optimizer = SGD(0.1, weight_decay=0.01)
    optimizer.build(model.trainable_variables)
    step = Step(model, optimizer, ghosts, turns, mesh.Devices(jax.devices()))
    run, state, shown = jax.jit(step.__call__), step.state(), []
    for order, rate in zip(data["order"], data["rates"]):
        images = augment(source.train.images[order], mean, data["draws"][order])
        state, means = run(state, images, source.train.labels[order].astype("int32"), rate)
        shown.append(means)
    step.assign(state)
    found = {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}
    batch = data["order"][0]
    crops = augment(source.train.images[batch], mean, data["draws"][batch])
    np.savez(f"{folder}/{name}.npz", crops=crops, shown=shown, iterations=optimizer.iterations, **found)
"""
WAYS = {"two": (2, 1, None), "one": (1, 1, None), "in turn": (1, 2, None), "bfloat16": (2, 1, "bfloat16")}


def test_steps_are_those_of_tensorflow(tmp_path):
    """Three steps of TensorFlow with two ghost batches, in float32, against WAYS of JAX to compute them."""
    source = sources.load("shapes")
    mean = sources.per_pixel_mean(source.train.images)
    network = keras_resnet.CifarResNet(8, normalization=(mean, 1.0), classifier_activation=None)
    network.save_weights(tmp_path / "initial.weights.h5")
    fuse_batch_norm(network)
    optimizer = optimizer_of(network, 0.1, weight_decay=0.01)
    step = Step(network, optimizer, 2)
    n, rates = len(source.train.labels), [0.02, 0.01, 0.02]
    # The random numbers of data.cifar for epoch 0, as that module documents and computes them.
    order_seed, draw_seed = tf.unstack(tf.random.split([0, 0], 2))
    order = tf.random.experimental.stateless_shuffle(tf.range(n), order_seed).numpy()
    draws = tf.random.stateless_uniform((n, 3), draw_seed).numpy()
    draws = np.stack([*(draws[:, :2] * 9).astype("int32").T, draws[:, 2] < 0.5], 1).astype("int32")
    batches = list(cifar.training_batches(source.train, mean, batch_size=BATCH, seed=0).take(STEPS))
    order = order[: STEPS * BATCH].reshape(STEPS, BATCH)
    np.savez(tmp_path / "data.npz", order=order, draws=draws, rates=np.array(rates, "float32"))
    shown = []
    for rate, batch in zip(rates, batches, strict=True):
        optimizer.learning_rate = rate
        shown.append(step(*batch).numpy())
    weights = {variable.path: keras.ops.convert_to_numpy(variable) for variable in network.weights}

    environment = os.environ | {"KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", TRAIN, tmp_path, json.dumps(WAYS)], check=True, env=environment)
    found = {way: dict(np.load(tmp_path / f"{way}.npz")) for way in WAYS}
    np.testing.assert_array_equal(found["two"]["crops"], batches[0][0].numpy())
    np.testing.assert_allclose(found["two"]["shown"], shown, rtol=1e-5)
    assert found["two"]["iterations"] == STEPS
    kernels = {path: value for path, value in weights.items() if "beta" not in path}
    assert distance(found["two"], kernels) < 1e-5
    assert distance(found["two"], weights) < 1e-2  # near 0, and rounding moves some inputs over the edge of a ReLU
    assert distance(found["one"], kernels) > 1e-3  # they would be missed
    assert distance(found["in turn"], kernels) < 1e-5
    assert 1e-5 < distance(found["bfloat16"], kernels) < 0.05


def distance(found, expected):
    return max(abs(found[path] - expected[path]).max() / abs(expected[path]).max() for path in expected)


def test_the_random_numbers_of_an_epoch():
    """Each example once; corners and flips equally often; other draws in another epoch."""
    code = """if True:
        import numpy as np
        from keras_resnet.training.jax_images import draws_of
        order, draws = draws_of(3, 7, 60_000)
        assert np.array_equal(np.sort(order), np.arange(60_000)) and not np.array_equal(order, np.arange(60_000))
        for column, values in zip(draws.T, (9, 9, 2)):
            counts = np.bincount(column, minlength=values)
            expected = 60_000 / values
            assert len(counts) == values and abs(counts - expected).max() < 5 * np.sqrt(expected)
        assert abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.02
        for other in ((3, 8), (4, 7)):
            assert (draws_of(*other, 60_000)[0] == order).mean() < 0.001
        assert all(np.array_equal(a, b) for a, b in zip(draws_of(3, 7, 60_000), (order, draws)))
    """
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"KERAS_BACKEND": "jax"})


IMAGES = {"train": 330, "test": 100}
RUN = ["--depth", "8", "--train-on-all", "--batch-size", "32", "--steps", "25", "--bn-batch-size", "16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set in the layout of CIFAR-10."""
    folder = tmp_path_factory.mktemp("data")
    splits = [shapes.draw(count, seed=seed) for seed, count in enumerate(IMAGES.values())]
    write_cifar10(folder / "cifar-10-batches-py", *splits, shapes.CLASSES)
    return folder


def fit(folder, *flags, backend="jax", code="", without=WITHOUT_TENSORFLOW, wait=True, **variables):
    """Runs fit.py, on JAX as if TensorFlow were not installed."""
    path = ROOT / "train" / "fit.py"
    lines = without if backend == "jax" else ""
    lines += f"import runpy, sys; sys.argv[0] = {str(path)!r}; sys.path.insert(0, {str(path.parent)!r})\n{code}\n"
    lines += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    environment = os.environ | {"KERAS_BACKEND": backend, **variables}
    command = [sys.executable, "-c", lines, *map(str, flags), "--output", folder]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    return finished(process) if wait else process


def finished(process):
    """A finished process, with its output."""
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def rows(folder):
    with open(folder / "history.csv") as file:
        return [{**row, "seconds": None, "waiting": None} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run without interruption: two epochs of ten steps and a part of one."""
    folder = tmp_path_factory.mktemp("whole")
    done = fit(folder, *RUN, "--data-dir", data)
    assert done.returncode == 0, done.stderr
    assert "ResNet-8 on cifar10, 25 steps" in done.stdout and "test error" in done.stdout
    return folder / "cifar10-resnet-8"


def test_a_run_leaves_what_a_run_of_fit_leaves(whole, data):
    names = {"args.json", "classes.json", "data.json", "history.csv", "curves.png", "result.json", "model.keras"}
    assert {*os.listdir(whole)} >= names
    result = json.loads((whole / "result.json").read_text())
    (segment,) = result["segments"]
    assert {"jax", "keras", "devices"} < segment.keys() and "tensorflow" not in segment
    assert (segment["from"], segment["to"], segment["backend"], segment["normalized_together"]) == (0, 25, "jax", 16)
    assert result["steps"] == 25 and result["images_per_second"] > 0
    found = [(row["step"], row["learning_rate"]) for row in rows(whole)]  # the rate of an epoch's first step
    assert found == [("10", "0.1"), ("20", "0.1"), ("25", "0.001")]
    # TensorFlow evaluates the saved network.
    test = sources.load("cifar10", data, train_on_all=True).test
    wrong = evaluation.load_model(whole).predict(test.images, verbose=0).argmax(-1) != test.labels
    assert wrong.mean() == pytest.approx(result["test_error"], abs=0.011)  # one image
    assert result["train_error"] < 0.85  # chance is .9


STOP = """
import os, signal
from keras_resnet.training import loop
def one_step(self, count, seconds):
    if self.state.step + count == STEP:
        os.kill(os.getpid(), signal.SIGTERM)
    return 1
loop.Loop.next_pace = one_step
"""


@pytest.mark.parametrize("step", [7, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(whole, data, tmp_path, step):
    """Stopped in the middle of an epoch, or at its end."""
    command = [*RUN, "--data-dir", data]
    done = fit(tmp_path, *command, code=STOP.replace("STEP", str(step)))
    assert done.returncode == 143 and f"stopped by SIGTERM at step {step}" in done.stderr, done.stderr
    done = fit(tmp_path, *command)
    assert done.returncode == 0 and f"resuming from step {step}" in done.stdout, done.stderr
    assert rows(tmp_path / "cifar10-resnet-8") == rows(whole)
    again, before = (evaluation.load_model(path).get_weights() for path in (tmp_path / "cifar10-resnet-8", whole))
    assert all(np.array_equal(a, b) for a, b in zip(again, before, strict=True))


@pytest.mark.slow
def test_the_warm_up_ends_after_the_epoch_whose_error_is_low_enough(data, tmp_path):
    done = fit(tmp_path, *RUN[:-4], "--steps", 150, "--boundaries", 145, "--warmup", "--data-dir", data)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "cifar10-resnet-8" / "result.json").read_text())
    table = rows(tmp_path / "cifar10-resnet-8")
    warm = next(number for number, row in enumerate(table, 1) if float(row["error"]) < 0.8)
    assert result["warm_at_step"] == 10 * warm and warm < 15
    assert [row["learning_rate"] for row in table] == ["0.01"] * warm + ["0.1"] * (15 - warm)


def test_a_run_begun_on_another_backend_is_refused(data, tmp_path):
    """The backends' random numbers differ: images would repeat within an epoch."""
    command = [*RUN, "--data-dir", data]
    done = fit(tmp_path, *command, backend="tensorflow", code=STOP.replace("STEP", "1"))
    assert done.returncode == 143 and "stopped by SIGTERM at step 1" in done.stderr, done.stderr
    before = (tmp_path / "cifar10-resnet-8" / "checkpoint" / "latest.npz").read_bytes()
    done = fit(tmp_path, *command)
    assert done.returncode == 1 and "was begun on tensorflow, and this is jax" in done.stderr
    assert "Resume with KERAS_BACKEND=tensorflow" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "cifar10-resnet-8" / "checkpoint" / "latest.npz").read_bytes() == before


REFUSED = {  # by flags, and variables of the environment
    ("--dataset", str(ROOT)): "needs the package tensorflow: pip install tensorflow",
    ("--dataset", "no_such_data"): "no_such_data",
    ("--mixed-precision", "float16"): "bfloat16",
    ("--depth", "110", "--shortcut-variant", "dropout"): "dropout",
    ("--batch-size", "130"): "3 ghost batches of the same size on JAX",
    ("--batch-size", "20000"): "at most the number of training examples, 12800; found 20000",
    ("--sync-bn",): "--bn-batch-size",
    ("--jit",): "JAX always compiles",
    ("--deterministic",): "--deterministic",
    ("--depth", "21"): "--depth",
    ("--export",): "--export needs TensorFlow",
    ("--strategy", "multiworker"): "no cluster: set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS",
    ("JAX_COORDINATOR_ADDRESS=127.0.0.1",): "should be like 10.0.0.1:1234, 2 and 0",
    ("JAX_COORDINATOR_ADDRESS=a:1", "JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=2"): "counted from 0",
}
SEVERAL = """
import contextlib, io, json, os, runpy, sys
path, folder, cases = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, os.path.dirname(path))
said = []
for case in cases:
    variables = dict(word.split("=") for word in case if word.startswith("JAX_"))
    flags = [word for word in case if not word.startswith("JAX_")]
    os.environ.update(variables)
    sys.argv = [path, "--dataset", "shapes", *flags, "--output", folder]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(path, run_name="__main__")
        said.append("nothing")
    except SystemExit as end:
        said.append(str(end.code))
    for name in variables:
        del os.environ[name]
print(json.dumps(said))
"""


def test_what_is_not_possible_is_refused(tmp_path):
    program = str(ROOT / "train" / "fit.py")
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW + SEVERAL, program, tmp_path, json.dumps([*REFUSED])]
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    for (flags, message), said in zip(REFUSED.items(), json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert said.startswith("fit.py: ") and message in said, flags
    assert not os.listdir(tmp_path)


def test_the_environment_s_64_bits_change_nothing(whole, data, tmp_path):
    done = fit(tmp_path, *RUN, "--data-dir", data, JAX_ENABLE_X64="1")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "cifar10-resnet-8") == rows(whole)


def test_tensorflow_takes_the_finished_run_and_says_who_made_it(whole, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.VALIDATION_EXAMPLES, "cifar10", 20)
    folder = shutil.copytree(whole, tmp_path / "runs" / "one")
    settings = json.loads((folder / "args.json").read_text())
    settings = Settings(**{**settings, "output": str(tmp_path / "runs"), "name": "one"})
    record = experiments.run(settings, tmp_path / "results", verbose=0)
    assert record["command"].startswith("KERAS_BACKEND=jax python train/fit.py --depth 8 ")
    assert record["segments"] == json.loads((whole / "result.json").read_text())["segments"]
    assert record["weights_sha256"] == published.weights_sha256(evaluation.load_model(folder))


def test_without_jax_the_program_says_so(tmp_path):
    code = "import importlib.util; found = importlib.util.find_spec\n"
    code += "importlib.util.find_spec = lambda name: None if name == 'jax' else found(name)"
    done = fit(tmp_path, *RUN, code=code)
    assert done.returncode == 1 and "needs the package jax" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("platforms", ["cuda", pytest.param("no_such_platform", marks=pytest.mark.slow)])
def test_a_device_that_is_not_there_is_a_sentence(tmp_path, platforms):
    done = fit(tmp_path, "--dataset", "shapes", JAX_PLATFORMS=platforms)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "fit.py: JAX finds no device" in done.stderr and "Unset JAX_PLATFORMS" in done.stderr


MANY = """
import json, sys
import numpy as np, keras
from keras_resnet.data import sources
sources.SHAPES_EXAMPLES, sources.VALIDATION_EXAMPLES = {"train": 9 * 16 + 42, "test": 41}, {"shapes": 37}
from keras_resnet.training import Settings, mesh, train
base = {"dataset": "shapes", "depth": 8, "steps": 4, "batch_size": 16, "lr": 0.01, "checkpoint_every": 3}
init = mesh.Devices.__init__
def as_on_a_gpu(self, *arguments):
    init(self, *arguments)
    self.on_cpu = False
for name, options in json.loads(sys.argv[1]).items():
    mesh.Devices.__init__ = as_on_a_gpu if options.pop("gpu", False) else init
    train(Settings(**base, **options, output=sys.argv[2], name=name), verbose=0)
"""


def test_two_devices_are_one_with_as_many_ghost_batches(tmp_path):
    """Ghost batches in parallel, on devices, or one after the other in an XLA loop as on a GPU: the same results."""
    four = {"bn_batch_size": 4}
    runs = {
        "one": {"bn_batch_size": 8, "strategy": "none"},
        "two devices": {"bn_batch_size": 8},
        "gpu": {"bn_batch_size": 8, "strategy": "none", "gpu": True},
        "four": {**four, "strategy": "none"},
        "four on two": four,
        "four on two gpus": {**four, "gpu": True, "accumulate": 2},
    }
    environment = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", MANY, json.dumps(runs), tmp_path], check=True, env=environment)
    for expected, names in (("one", ("two devices", "gpu")), ("four", ("four on two", "four on two gpus"))):
        right = Run(tmp_path / expected)
        for name in names:
            found = Run(tmp_path / name)
            weights = zip(found.load_model().get_weights(), right.load_model().get_weights(), strict=True)
            assert max(abs(a - b).max() / abs(b).max() for a, b in weights) < 1e-5, name
            for column in ("loss", "error", "val_loss", "val_error"):
                assert found.history[column] == pytest.approx(right.history[column], rel=1e-5)
            assert found.result["test_error"] == right.result["test_error"]
            (segment,) = found.result["segments"]
            assert segment["normalized_together"] == (8 if expected == "one" else 4)
    one, four = (Run(tmp_path / name).load_model().get_weights() for name in ("one", "four"))
    assert max(abs(a - b).max() for a, b in zip(one, four, strict=True)) > 1


@pytest.mark.slow
def test_more_devices_than_ghost_batches(tmp_path):
    flags = "--xla_force_host_platform_device_count=4"
    command = ["--dataset", "shapes", "--depth", "8", "--steps", "2"]
    done = fit(tmp_path, *command, "--strategy", "mirrored", XLA_FLAGS=flags)
    assert done.returncode == 1 and not os.listdir(tmp_path)
    assert "in ghost batches of 64 are enough for 2 devices, and there are 4. Train one --seed" in done.stderr
    done = fit(tmp_path, *command, XLA_FLAGS=flags)  # which takes as many as fit
    assert done.returncode == 0 and "2 of 4 devices" in done.stdout and "as 2 devices" in done.stdout, done.stderr
    done = fit(tmp_path, *command, "--bn-batch-size", "40", "--name", "forty", XLA_FLAGS=flags)  # 3 do not divide 128
    assert done.returncode == 0 and "2 of 4 devices" in done.stdout and "as 2 devices" in done.stdout, done.stderr


def cluster(folder, *flags, wait=True):
    """Two processes of fit.py on loopback."""
    (port,) = free_ports(1)
    own = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    found = [fit(folder, *flags, wait=False, **own, JAX_PROCESS_ID=str(i)) for i in range(2)]
    return [finished(process) for process in found] if wait else found


def test_two_processes_train_as_one_device(whole, data, tmp_path):
    first, second = cluster(tmp_path, *RUN, "--data-dir", data)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "2 processes" in first.stdout
    folder = tmp_path / "cifar10-resnet-8"
    for column in ("loss", "error"):
        assert Run(folder).history[column] == pytest.approx(Run(whole).history[column], rel=1e-4)
    weights = zip(*(Run(path).load_model().get_weights() for path in (folder, whole)), strict=True)
    assert all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in weights)
    assert Run(folder).result["test_error"] == Run(whole).result["test_error"]
    assert sorted(os.listdir(folder)) == sorted(os.listdir(whole))


def test_a_signal_to_one_process_stops_both(data, tmp_path):
    flags = [*RUN, "--steps", "100000", "--data-dir", data, "--checkpoint-every", "1"]
    processes = cluster(tmp_path, *flags, wait=False)
    latest = tmp_path / "cifar10-resnet-8" / "checkpoint" / "latest.npz"
    deadline = time.monotonic() + 200
    while not latest.exists():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # the one that writes gets none
    said = [finished(process).stderr for process in processes]
    assert all("stopped by SIGTERM at step " in text for text in said), said
    steps = {text.rpartition("at step ")[2].partition(";")[0] for text in said}
    with np.load(latest) as file:
        assert steps == {str(json.loads(file["state"].tobytes())["step"])}


@pytest.fixture
def photographs(tmp_path):
    """An image folder: four classes of 9 drawn images for training and 3 for validation; and an initial network."""
    images, labels = shapes.draw(120, seed=0, size=48)
    for label in range(4):
        for i, image in enumerate(images[labels == label][:12]):
            folder = tmp_path / "photographs" / ("val" if i < 3 else "train") / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.jpg")
    keras_resnet.ResNet18(classes=4, normalization="torch").save(tmp_path / "before.keras")
    return tmp_path / "photographs"


@pytest.mark.slow
def test_photographs_are_those_of_tensorflow(tmp_path, photographs):
    """The same batches, from the same weights except the last layer, which the small learning rate hardly changes."""
    options = {"depth": 18, "batch_size": 8, "bn_batch_size": 4, "steps": 6, "image_size": 32, "lr": 1e-4}
    options |= {"init_from": str(tmp_path / "before.keras"), "accumulate": 2, "schedule": "steps"}
    train(Settings(dataset=str(photographs), **options, output=str(tmp_path), name="tensorflow"), verbose=0)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = ["--dataset", photographs, *words, "--name", "jax"]
    done = fit(tmp_path, *command, without="", code=STOP.replace("STEP", "3"))
    assert "stopped by SIGTERM at step 3" in done.stderr, done.stderr
    assert "oneDNN" not in done.stderr and "cudart" not in done.stderr
    done = fit(tmp_path, *command, without="")
    assert done.returncode == 0, done.stderr
    ours, theirs = (Run(tmp_path / name) for name in ("jax", "tensorflow"))
    assert ours.history["step"] == theirs.history["step"] and "waiting" in ours.history
    for layer in theirs.load_model().layers:
        if layer.name.endswith("bn"):
            mean, variance = (np.asarray(value) for value in layer.get_weights()[2:])
            now = ours.load_model().get_layer(layer.name).get_weights()[2:]
            np.testing.assert_allclose(now[0], mean, atol=0.02 * np.sqrt(variance).max())
            np.testing.assert_allclose(now[1], variance, rtol=0.1)
            break


CHOSEN = "start_to_end or test_a_folder_of_photographs"


@pytest.mark.parametrize("chosen", [CHOSEN, pytest.param("", marks=pytest.mark.slow)])
def test_the_tests_of_the_loop_pass_on_jax(chosen):
    files = [ROOT / "tests" / "training" / name for name in ("test_loop.py", "test_kills.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files, "-k", chosen]
    done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "jax"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(done.stdout.rpartition(" passed")[0].split()[-1]) >= 2
