"""Runs of `distributed.py` on two logical CPUs, and in two processes that communicate over loopback."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
from conftest import free_ports
from distributed import small_shapes
from PIL import Image

from keras_resnet.data import shards
from keras_resnet.files import DataError, RunError
from keras_resnet.runs import Run
from keras_resnet.training import Settings, distribution, loop, precision, train

RUN = {"dataset": "shapes", "depth": 8, "steps": 5, "batch_size": 16, "lr": 0.01, "checkpoint_every": 3}
LOST_WITHIN = 60  # seconds; measured: 8


class Process(subprocess.Popen):
    """A process of `distributed.py`, with its results in `folder` and its output in `folder`/output."""

    def __init__(self, folder, devices, environment, many_settings):
        self.folder = folder
        self.output = folder / "output"
        many_settings = [json.dumps({**RUN, "output": str(folder.parent), **settings}) for settings in many_settings]
        with open(self.output, "w") as output:
            super().__init__(
                [
                    sys.executable,
                    str(pathlib.Path(__file__).with_name("distributed.py")),
                    str(devices),
                    str(folder),
                    *many_settings,
                ],
                stdout=output,
                stderr=output,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
            )

    def says(self, pattern, seconds=100):
        """Waits until the output matches."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.output.read_text())):
            assert self.poll() is None and time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
        return found

    def result(self, name):
        """The result of a run, and its variables: a list of arrays whose first axis is the replica."""
        assert self.wait(timeout=100) == 0, self.output.read_text()
        with np.load(self.folder / f"{name}.npz") as file:
            variables = [file[each] for each in file.files]
        return json.loads((self.folder / f"{name}.json").read_text()), variables


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts processes, and ends the remaining ones at the end. `start.runs` is the folder of all runs."""
    runs = tmp_path_factory.mktemp("runs")
    with contextlib.ExitStack() as stack:

        def start(*many_settings, devices=1, environment=()):
            folder = runs / f"process-{time.monotonic_ns()}"
            folder.mkdir()
            process = Process(folder, devices, dict(environment), many_settings)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        start.runs = runs
        yield start


def start_workers(start, settings):
    """Two processes, the chief first, that train together."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(2)]
    return [start(settings, environment={"TF_CONFIG": config}) for config in configs]


@pytest.fixture(scope="module")
def one_device(start):
    """The result, and the weights, of a run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        small_shapes(patch)
        result = train(Settings(**RUN, output=str(start.runs), name="one", strategy="none"), verbose=0)
    return result, keras.saving.load_model(start.runs / "one" / "model.keras").get_weights()


def assert_same_run(run, one_device):
    """The errors are equal, so every example has been counted once; the weights are to 1e-4, of the value above 1."""
    (result, variables), (expected, weights) = run, one_device
    for name in ("train_error", "val_error", "test_error"):
        assert result[name] == expected[name]
    for replicas, weight in zip(variables, weights, strict=True):
        assert np.allclose(replicas, weight, rtol=1e-4, atol=1e-4)


def test_two_devices(start, one_device):
    process = start(
        {"name": "sync", "strategy": "mirrored", "sync_bn": True},
        {"name": "local", "strategy": "mirrored"},
        {"name": "two-xla", "strategy": "mirrored", "jit": True},
        {"name": "frozen", "strategy": "mirrored", "init_from": str(start.runs / "one"), "freeze_until": "conv4"},
        devices=2,
    )
    assert_same_run(process.result("sync"), one_device)
    config = keras.saving.load_model(start.runs / "sync" / "model.keras").get_layer("conv1_bn").get_config()
    assert not config["synchronized"]  # Keras could not load it elsewhere
    _, variables = process.result("local")
    for replicas in variables:
        assert len(replicas) == 2 and np.array_equal(replicas[0], replicas[1])
    assert not all(np.allclose(a, b, 1e-4, 1e-4) for a, b in zip(variables, one_device[1], strict=True))
    assert process.result("sync")[0]["segments"][0]["normalized_together"] == RUN["batch_size"]
    assert process.result("local")[0]["segments"][0]["normalized_together"] == RUN["batch_size"] // 2
    one, frozen = (keras.saving.load_model(start.runs / name / "model.keras") for name in ("one", "frozen"))
    same = {v.path for v, w in zip(one.weights, frozen.weights, strict=True) if np.array_equal(v.numpy(), w.numpy())}
    assert {v.path for v in one.weights} - same == {"fc/kernel", "fc/bias"}
    for replicas, compiled in zip(variables, process.result("two-xla")[1], strict=True):
        assert np.allclose(replicas, compiled, rtol=1e-4, atol=1e-4)
    assert "Warning" not in process.output.read_text()


def test_the_validation_loss_does_not_depend_on_devices_and_ghost_batches(start):
    """Two devices with two ghost batches each once reported half of it."""
    run = {"strategy": "mirrored", "bn_batch_size": 4}
    process = start({"name": "two-two", **run}, {"name": "two-turns", **run, "accumulate": 2}, devices=2)
    process.result("two-turns")
    with pytest.MonkeyPatch.context() as patch:
        small_shapes(patch)
        train(Settings(**RUN, output=str(start.runs), name="four", bn_batch_size=4, strategy="none"), verbose=0)
    expected = Run(start.runs / "four").history
    for name in ("two-two", "two-turns"):
        found = Run(start.runs / name).history
        for column in ("loss", "error", "val_loss", "val_error"):
            assert found[column] == pytest.approx(expected[column], rel=1e-4), (name, column)


def test_two_workers_train_like_one_device(start, one_device):
    for worker in start_workers(start, {"name": "workers", "sync_bn": True}):
        assert_same_run(worker.result("workers"), one_device)


def wait_until(condition, *processes):
    while not condition():
        assert all(process.poll() is None for process in processes), [each.output.read_text() for each in processes]
        time.sleep(0.05)


def step_in(path):
    with np.load(path) as file:
        return json.loads(file["state"].tobytes())["step"]


ENDLESS = {"steps": 100_000, "checkpoint_every": 1}


def test_a_signal_to_one_worker_stops_all(start):
    path = start.runs / "stopped" / "checkpoint" / "latest.npz"
    chief, worker = start_workers(start, {**ENDLESS, "name": "stopped"})
    wait_until(path.exists, chief, worker)
    worker.send_signal(signal.SIGTERM)  # the chief gets none
    stopped = {int(each.says(r"Stopped: stopped by SIGTERM at step (\d+)")[1]) for each in (chief, worker)}
    assert chief.wait(30) == worker.wait(30) == 1 and stopped == {step_in(path)}


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_others_and_all_resume(start):
    path = start.runs / "killed" / "checkpoint" / "latest.npz"
    endless = {**ENDLESS, "name": "killed"}
    chief, worker = start_workers(start, endless)
    wait_until(path.exists, chief, worker)
    worker.kill()
    chief.says(r"RunError: (worker 1 at 127.0.0.1:\d+|another worker) cannot be reached any more", LOST_WITHIN)
    assert chief.wait(30) == 1
    assert "Start all workers again with the same command" in chief.output.read_text()

    step = step_in(path)
    chief, worker = start_workers(start, endless)
    for each in (chief, worker):
        each.says(f"resuming from step {step}\n")
    wait_until(lambda: step_in(path) > step, chief, worker)


@pytest.mark.slow
@pytest.mark.parametrize("mixed_precision", [None, "float16", "bfloat16"])
def test_a_chief_that_dies_ends_the_others(start, mixed_precision):
    name = f"chief-{mixed_precision}"
    path = start.runs / name / "checkpoint" / "latest.npz"
    chief, worker = start_workers(start, {"name": name, "mixed_precision": mixed_precision, "steps": 100_000})
    wait_until(path.exists, chief, worker)
    chief.kill()
    worker.says(r"RunError: worker 0 at 127.0.0.1:\d+ cannot be reached any more", LOST_WITHIN)
    assert worker.wait(30) == 1


def test_workers_that_do_not_fit_together_say_so():
    class Devices:
        def __init__(self, *others):
            self.others = others

        def exchange(self, number):
            return np.array([[number + other] for other in self.others])

    loop.check_same(Devices(0, 0), {"lr": 0.1}, "different settings")
    with pytest.raises(RunError, match="different settings"):
        loop.check_same(Devices(0, 1), {"lr": 0.1}, "different settings")


def test_names_of_all_processes():
    names = [{"a", "b\udcff"}, {"b\udcff", "é/c d"}, set()]
    met, rows = threading.Barrier(3), [(), (), ()]

    class Devices:
        def __init__(self, number):
            self.number = number

        def exchange(self, *numbers):
            met.wait()
            rows[self.number] = numbers
            met.wait()
            return np.array(rows)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda number: loop.of_all(Devices(number), names[number]), range(3)))
        assert found == [["a", "b\udcff", "é/c d"]] * 3
        assert list(pool.map(lambda number: loop.of_all(Devices(number), set()), range(3))) == [[]] * 3


@pytest.mark.slow
def test_files_that_any_worker_skipped_are_listed(start, tmp_path):
    for i in range(48):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), "uint8")).save(path)
    damaged = [f"{tmp_path}/images/a/{i}.jpg" for i in range(0, 20, 2)]
    for path in damaged:
        pathlib.Path(path).write_bytes(b"nothing")
    images = {"dataset": str(tmp_path / "images"), "depth": 18, "image_size": 32, "schedule": "steps"}
    workers = start_workers(start, {"name": "skipping", **images, "skip_damaged": True, "colors": "imagenet"})
    for worker in workers:
        assert worker.result("skipping")[0]["damaged_files"] == len(damaged)
    assert (start.runs / "skipping" / "damaged.txt").read_text().split() == sorted(damaged)


@pytest.mark.parametrize("replicas, workers", [(1, 1), (4, 1), (4, 2), (6, 3)])
def test_an_epoch_sees_every_example_once(replicas, workers):
    here = replicas // workers
    own = [shards.Shards(replicas, range(i * here, (i + 1) * here)) for i in range(workers)]
    order = np.random.default_rng(0).permutation(125).astype("int32")
    rows = [shards.training_order(order, 12, part).numpy() for part in own]
    assert all(each.shape == (10 * here, 12 // replicas) for each in rows)
    batches = np.concatenate([each.reshape(10, -1) for each in rows], 1)
    assert np.array_equal(batches.reshape(-1), order[:120])  # the same batches, whatever the number of replicas
    for n in (replicas, 41, 96, 97):
        ranges = [shards.ranges(n, 8, part).tolist() for part in own]
        assert len({len(each) for each in ranges}) == 1 and len(ranges[0]) % here == 0
        sizes = [end - begin for each in ranges for begin, end in each]
        assert min(sizes) > 0 and max(sizes) <= 8 and max(sizes) - min(sizes) <= 1
        assert sorted(i for each in ranges for begin, end in each for i in range(begin, end)) == list(range(n))


def test_fewer_examples_than_devices():
    with pytest.raises(DataError, match="4 devices cannot share 3 examples in evaluation; train on fewer devices"):
        shards.ranges(3, 8, shards.Shards(4, range(4)))


def test_slurm_nodes_in_any_order(monkeypatch):
    step = {
        "SLURM_PROCID": "0", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "node[9-10]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURMD_NODENAME": "node9",
    }  # fmt: skip
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    cluster = distribution._cluster()
    workers = cluster.cluster_spec().job_tasks("worker")
    assert workers == ["node10:8888", "node10:8889", "node9:8888", "node9:8889"]
    assert (cluster.task_type, cluster.task_id) == ("worker", 3)


def test_which_strategy(monkeypatch):
    for name in ("auto", "none"):
        assert distribution.strategy(name).num_replicas_in_sync == 1
    with pytest.raises(RunError, match="finds no cluster: set TF_CONFIG"):
        distribution.strategy("multiworker")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert distribution.strategy("auto").num_replicas_in_sync == 1
    for wrong in ("{", "{}", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}'):
        monkeypatch.setenv("TF_CONFIG", wrong)
        with pytest.raises(RunError, match="TF_CONFIG should be like"):
            distribution.strategy("auto")


def test_settings_that_do_not_fit_several_devices(start):
    refused = (
        ({"batch_size": 15}, "--batch-size is a multiple of the number of devices, 2, .*; found 15"),
        ({"accumulate": 8, "batch_size": 8}, "--batch-size is a multiple .* 2 times --accumulate 8, .*; found 8"),
        ({"jit": True, "sync_bn": True}, "--jit and --sync-bn do not go together on 2 devices"),
        ({"accumulate": 2, "sync_bn": True}, "--accumulate and --sync-bn do not go together on 2 devices"),
    )
    process = start(*({"name": "refused", "strategy": "mirrored", **changes} for changes, _ in refused), devices=2)
    for _, message in refused:
        process.says(f"RunError: {message}")
    assert process.wait(30) == 1 and not (start.runs / "refused").exists()


def test_mixed_precision_and_xla(start, one_device, monkeypatch):
    """Each trains like float32 within its precision; the last layer and the saved model are in float32."""
    small_shapes(monkeypatch)
    for name, settings, least, most in (
        ("float16", {"mixed_precision": "float16"}, 1e-7, 1e-4),
        ("bfloat16", {"mixed_precision": "bfloat16"}, 1e-6, 1e-3),
        ("xla", {"jit": True}, 0, 1e-5),
    ):
        train(Settings(**RUN, output=str(start.runs), name=name, **settings), verbose=0)
        model = keras.saving.load_model(start.runs / name / "model.keras")
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
        kernels = [(a, b) for a, b in zip(one_device[1], model.get_weights(), strict=True) if a.ndim == 4]
        assert least <= max(np.abs(a - b).max() for a, b in kernels) <= most
    precision.set_precision(model, "bfloat16")
    assert model.get_layer("conv1").compute_dtype == "bfloat16"
    assert model.get_layer("fc").compute_dtype == model.get_layer("predictions").compute_dtype == "float32"
    assert {variable.dtype for variable in model.weights} == {"float32"}


def test_one_replicas_overflow_leaves_the_step_out(start):
    """Keras' own loss scale looks at the first replica only."""
    program = """if True:
        import keras, numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from keras_resnet.optimizers import SGD
        from keras_resnet.training import distribution, precision
        strategy = distribution.strategy("mirrored")
        with strategy.scope():
            variable = keras.Variable([1.0, 2.0])
            optimizer = precision.LossScaleOptimizer(SGD(0.1, 0.9, 0.0), initial_scale=8.0)
            optimizer.build([variable])
        @tf.function
        def step(second):
            def replica():
                i = tf.distribute.get_replica_context().replica_id_in_sync_group
                gradient = tf.where(i == 0, 8.0, second) * tf.ones(2)
                optimizer.apply([gradient], [variable])
            strategy.run(replica)
        for second in (np.inf, 16.0):
            step(tf.constant(second))
            print(variable.numpy().tolist(), optimizer.dynamic_scale.numpy().item())
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=100)
    # inf: nothing but the scale changes; then 1 - .1 (8 + 16) / 4, the sum of what both contribute.
    lines = [json.loads(line.rpartition("]")[0] + "]") for line in done.stdout.splitlines()]
    assert done.stdout.splitlines()[0].endswith(" 4.0"), done.stderr
    assert lines[0] == [1.0, 2.0] and np.allclose(lines[1], [0.4, 1.4])
