import contextlib
import gc
import math
import os
import pathlib
import pickle
import re
import resource
import signal
import socket
import struct
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
# Code for a process that is to be as where neither is installed. (With None in sys.modules Keras believes that it is.)
WITHOUT_TENSORFLOW = """
import importlib.machinery, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = name.partition(".")[0] in ("tensorflow", "tensorflow_datasets")
        return None if missing else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


def shared(*path):
    """A data folder beside the project; skips the test if it is missing."""
    folder = SHARED.joinpath(*path)
    if not folder.is_dir():
        pytest.skip(f"the data of this test are not in {folder}")
    return folder


def blocks(page, heading=""):
    """The fenced blocks of a page or of one of its sections, by language, as users would paste them."""
    text = page.read_text().partition(f"{heading}\n")[2] if heading else page.read_text()
    level = heading.partition(" ")[0]
    fence, found = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S), {}
    if heading:
        text = re.split(
            rf"^{level} ", fence.sub(lambda match: match[0].replace(f"\n{level} ", "\n"), text), flags=re.M
        )[0]
    for language, content in fence.findall(text):
        found.setdefault(language, []).append(content)
    return found


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# Why a test may be skipped where STRICT_SKIPS is set, as CI does; any other reason fails the tests.
MAY_SKIP = (
    "the data of this test are not in",
    "photographs are not in",
    "tensorflow_model_server is not on PATH",
    "torch is not installed",
    "transformers is not installed",
    "kserve is not installed",
    "node is not installed",
    "chromium is not installed",
    "is for pages of the site",  # the extra `docs`; Playwright and axe-core for its tests, which .ci/run installs
    "that is for TensorFlow",  # the tests of the optimizer run again on the other backends
    "Keras has none on PyTorch",
)


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("STRICT_SKIPS"):  # a worker of xdist, or nobody asked
        return
    reasons = {report.longrepr[2] for report in reporter.stats.get("skipped", ())}
    others = sorted(reason for reason in reasons if not any(allowed in reason for allowed in MAY_SKIP))
    if others:
        print("\ntests were skipped for reasons that are not in MAY_SKIP of tests/conftest.py:", *others, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Processes on JAX share what XLA has compiled, which would be half of their time."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.getbasetemp().parent / "jax")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


@pytest.fixture(autouse=True)
def seeded():
    """The same initial weights in every run of a test, so that no run exceeds a tolerance by chance."""
    keras.utils.set_random_seed(0)


TOLD: list[bool] = []


@pytest.fixture(autouse=True)
def collected():
    """A collection that never ends, as in `imagenet._check_lost`, is told soon, not when memory is exhausted."""
    yield
    if gc.get_count()[0] > 1_000_000 and not TOLD:
        TOLD.append(True)
        pytest.fail("no garbage was collected for a million objects: since this test or one before, a collection hangs")


@pytest.fixture
def cifar10_dir():
    """A folder in which tensorflow-datasets has prepared CIFAR-10."""
    return str(shared("tensorflow_datasets", "cifar10").parent)


@pytest.fixture
def photographs_dir():
    """200 ImageNet images of original size, one folder per class."""
    return str(shared("imagenet_sample"))


@pytest.fixture
def imagenette_dir():
    """An image folder with ten classes in train/ and val/."""
    return str(shared("imagenette"))


@pytest.fixture
def terminated_at(monkeypatch):
    """A function that returns a context in which a run gets SIGTERM in its `step`-th step."""

    @contextlib.contextmanager
    def terminated(step):
        from keras_resnet.training.loop import Loop

        def one_step(loop, count, seconds):
            if loop.state.step + count == step:
                signal.raise_signal(signal.SIGTERM)
            return 1

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "next_pace", one_step)
            yield

    return terminated


@pytest.fixture
def full_disk():
    """A context in which no file can become larger than 1,000 bytes, as on a full disk."""

    @contextlib.contextmanager
    def full():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture
def disk(monkeypatch):
    """A disk on which checkpoints are written when its `ready` is set, one at a time, and not when it is `full`."""
    from keras_resnet.files import RunError
    from keras_resnet.training import folder

    class Disk:
        def __init__(self):
            self.ready, self.full, self.busy, self.written = threading.Event(), False, False, []

        def write_whole(self, path, write):
            if not path.endswith(folder.CHECKPOINT):
                return write_whole(path, write)
            assert not self.busy
            self.busy = True
            assert self.ready.wait(10)
            self.busy = False
            if self.full:
                raise RunError(f"{path} could not be written: the disk is full")
            write_whole(path, write)
            self.written.append(pathlib.Path(path).read_bytes())

    disk, write_whole = Disk(), folder.write_whole
    monkeypatch.setattr(folder, "write_whole", disk.write_whole)
    yield disk
    disk.ready.set()


def images(n, size, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size, size, 3)).astype("float32")


def randomize(model, seed=0):
    """Sets every variable, batch normalisation's too, to values that reveal mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "variance" in variable.path or "gamma" in variable.path:
            value = rng.uniform(0.5, 1.5, variable.shape)
        elif "kernel" in variable.path:
            value = rng.normal(0, math.sqrt(1 / math.prod(variable.shape[:-1])), variable.shape)
        else:
            value = rng.normal(0, 0.2, variable.shape)
        variable.assign(value.astype("float32"))


def rounded(model, batch_norm=True):
    """The network with its weights in float16, as in a page, and batch normalisations as a scale and an offset."""
    from keras_resnet.graphs import fold

    copy = fold(model, batch_norm=batch_norm)
    half = lambda array: array.astype("float16").astype("float32")
    for layer in copy.layers:
        weights = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):
            scale = weights[0] / np.sqrt(weights[3].astype("float64") + 1e-5)
            offset = weights[1] - weights[2] * scale
            weights = [scale, offset, np.zeros_like(scale), np.full_like(scale, 1 - 1e-5)]
            weights[:2] = half(scale), half(offset)
        else:
            weights = [half(array) for array in weights]
        layer.set_weights(weights)
    return copy


def by_hand(x, kernel, strides):
    """Convolution with symmetric zero padding, one output pixel at a time."""
    k = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (k, k), (k, k), (0, 0)))
    size = (x.shape[1] - 2 * k - 1) // strides + 1
    out = np.empty((len(x), size, size, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            window = x[:, i * strides : i * strides + 2 * k + 1, j * strides : j * strides + 2 * k + 1]
            out[:, i, j] = np.tensordot(window, kernel, 3)
    return out


class _Python2(pickle._Pickler):
    """Writes bytes as Python 2, with which the original files were made, wrote its strings."""

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}


def pickle_as_python2(path, content):
    with open(path, "wb") as file:
        _Python2(file, 2).dump(content)


def write_cifar10(folder, train, test, names):
    """`cifar-10-batches-py` of pairs of images and labels."""
    folder.mkdir(parents=True)
    pickle_as_python2(folder / "batches.meta", {b"num_vis": 3072, b"label_names": [name.encode() for name in names]})
    images, labels = (np.array_split(part, 5) for part in train)
    files = {"test_batch": test, **{f"data_batch_{i + 1}": (images[i], labels[i]) for i in range(5)}}
    for file, (images, labels) in files.items():
        rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(labels), -1)
        batch = {b"batch_label": b"", b"labels": labels.tolist(), b"data": rows, b"filenames": [b"x.png"]}
        pickle_as_python2(folder / file, batch)
