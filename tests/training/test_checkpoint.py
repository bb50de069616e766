"""Checkpoints: written atomically, damaged, of another run, on a full disk."""

import concurrent.futures
import contextlib
import errno
import json
import os
import signal
import threading

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.analysis import logits
from keras_resnet.files import RunError
from keras_resnet.training import Settings, tensorflow
from keras_resnet.training.checkpoint import Checkpoint, variables_of
from keras_resnet.training.folder import Folder
from keras_resnet.training.signals import StopSignals

LATEST = "run/checkpoint/latest.npz"
STATE = {"step": 5, "sums": [2.5], "history": {"rows": [{"step": 5}], "seconds": 1.5}}
FRESH = {"step": 0, "sums": [0.0], "history": {"rows": [], "seconds": 0.0}}


def same(arrays, others):
    return all(np.array_equal(a, b) for a, b in zip(arrays, others, strict=True))


def saved(folder, depth=8, seed=0, model=None, **options):
    """A model and its checkpoint."""
    keras.utils.set_random_seed(seed)
    model = model or logits(keras_resnet.CifarResNet(depth))
    optimizer = tensorflow.optimizer_of(model, 0.1, **options)
    (folder / "run" / "checkpoint").mkdir(parents=True, exist_ok=True)
    settings = Settings(dataset="shapes", output=str(folder), name="run")
    return model, Checkpoint(Folder(settings), variables_of(model, optimizer))


def save(callback):
    callback.save(STATE)
    callback.wait()


def test_a_damaged_checkpoint_changes_nothing_and_says_so(tmp_path):
    written, writer = saved(tmp_path)
    save(writer)
    good_weights = written.get_weights()
    good = (tmp_path / LATEST).read_bytes()
    model, reader = saved(tmp_path, seed=1)
    before = model.get_weights()
    rng = np.random.default_rng(0)
    cut = [good[: int(part * len(good))] for part in (0, 0.1, 0.5, 0.999)]
    flipped = []
    for position in rng.integers(0, len(good), 40):
        flipped.append(good[:position] + bytes([good[position] ^ 255]) + good[position + 1 :])
    damaged = 0
    for bad in [*cut, *flipped, b"not a checkpoint"]:
        (tmp_path / LATEST).write_bytes(bad)
        try:
            reader.restore(FRESH)
        except RunError as error:
            damaged += 1
            assert "latest.npz" in str(error) and "Delete it" in str(error) and "pickle" not in str(error)
            assert same(before, model.get_weights())
        else:  # a byte that means nothing, such as a file's date
            assert same(good_weights, model.get_weights())
            for variable, value in zip(model.weights, before, strict=True):
                variable.assign(value)
    assert damaged >= 40
    (tmp_path / LATEST).write_bytes(good)
    assert reader.restore(FRESH) == STATE
    assert same(good_weights, model.get_weights())


@pytest.mark.parametrize(
    "path, lacks",
    [
        (("step",), "its state lacks 'step'"),
        (("backend",), "its state lacks 'backend'"),
        (("sums",), "its state lacks 'sums'"),
        (("history",), "its state lacks 'history'"),
        (("history", "rows"), "its history lacks 'rows'"),
    ],
)
def test_a_checkpoint_whose_state_lacks_something(tmp_path, path, lacks):
    _, writer = saved(tmp_path)
    save(writer)
    with np.load(tmp_path / LATEST) as file:
        arrays = dict(file)
    state = json.loads(arrays["state"].tobytes())
    inner = state
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    np.savez(tmp_path / LATEST, **arrays | {"state": np.frombuffer(json.dumps(state).encode(), "uint8")})
    model, reader = saved(tmp_path, seed=1)
    before = model.get_weights()
    with pytest.raises(RunError, match=f"latest.npz is damaged: {lacks}. Delete it") as error:
        reader.restore(FRESH)
    assert same(before, model.get_weights()) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "state", [b"[1, 2]", b"", b'{"step": 5, "sums": [], "history": 3}', b'{"step": "5", "sums": [], "history": {}}']
)
def test_a_checkpoint_whose_state_is_another(tmp_path, state):
    _, writer = saved(tmp_path)
    save(writer)
    with np.load(tmp_path / LATEST) as file:
        arrays = dict(file)
    np.savez(tmp_path / LATEST, **arrays | {"state": np.frombuffer(state, "uint8")})
    with pytest.raises(RunError, match="latest.npz is damaged: .* Delete it to start from the beginning"):
        saved(tmp_path)[1].restore(FRESH)


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    model, callback = saved(tmp_path)
    before = model.get_weights()
    state = {"step": 5, "backend": "tensorflow", "metrics": 0, "callbacks": {"History": {}}}
    np.savez(tmp_path / LATEST, state=np.frombuffer(json.dumps(state).encode(), "uint8"))
    with pytest.raises(RunError, match="latest.npz was written by an older version, .* Delete it to start"):
        callback.restore(FRESH)
    assert same(before, model.get_weights())


@pytest.mark.parametrize("content", ["[1, 2]", "", "\x89"])
def test_damaged_digests_of_the_data(tmp_path, content):
    folder = Folder(Settings(dataset="shapes", output=str(tmp_path), name="run"))
    (tmp_path / "run").mkdir()
    folder.check_data({"train": "5, 0123"})
    (tmp_path / "run" / "data.json").write_text(content)
    with pytest.raises(RunError, match="data.json is damaged: .* Delete it to continue with the data as they are"):
        folder.check_data({"train": "5, 0123"})


def test_a_checkpoint_of_another_network(tmp_path):
    save(saved(tmp_path)[1])
    with pytest.raises(RunError, match="is of another network; for example"):
        saved(tmp_path, depth=14)[1].restore(FRESH)


@pytest.mark.parametrize("precision", [None, "float16"])
@pytest.mark.parametrize("variant", [None, "dropout"])
def test_the_second_model_of_a_process_has_the_names_of_the_first(tmp_path, variant, precision):
    names = []
    for _ in range(2):
        model = logits(keras_resnet.CifarResNet(8, shortcut_variant=variant))
        optimizer = tensorflow.optimizer_of(model, 0.1, mixed_precision=precision)
        found = variables_of(model, optimizer)
        names.append(list(found))
        assert {id(v) for v in found.values()} == {id(v) for v in [*model.variables, *optimizer.variables]}
        assert any("scale" in name for name in found) == bool(precision)
    assert names[0] == names[1]


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    model, callback = saved(tmp_path)
    save(callback)
    model.get_layer("fc").bias.assign([np.nan] * 10)
    with pytest.raises(RunError, match="model/fc/bias is not finite"):
        callback.save(STATE)
    assert saved(tmp_path)[1].restore(FRESH) == STATE


def test_a_checkpoint_does_not_wait_for_the_disk(tmp_path, disk):
    """The file has the state at the time of `save`. The next `save` waits, because there is one writer at a time."""
    model, callback = saved(tmp_path)
    before = model.get_weights()
    callback.save(STATE)
    for variable in model.variables:
        variable.assign(variable + 1)
    callback.check()
    assert not (tmp_path / LATEST).exists()
    later = {**STATE, "step": 6}
    again = threading.Thread(target=callback.save, args=(later,))
    again.start()
    again.join(0.3)
    assert again.is_alive()
    disk.ready.set()
    again.join()
    callback.wait()
    other, reader = saved(tmp_path, seed=1)
    for state, content, weights in zip((STATE, later), disk.written, (before, model.get_weights()), strict=True):
        (tmp_path / LATEST).write_bytes(content)
        assert reader.restore(FRESH) == state
        assert same(weights, other.get_weights())


def test_a_full_disk_is_told_before_the_next_checkpoint(tmp_path, disk):
    callback = saved(tmp_path)[1]
    disk.full = True
    callback.save(STATE)
    callback.check()
    disk.ready.set()
    concurrent.futures.wait([callback.writing])
    with pytest.raises(RunError, match="the disk is full"):
        callback.check()


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), MemoryError("too large")])
def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, error):
    _, writer = saved(tmp_path)
    save(writer)

    def load(*arguments, **options):
        raise error

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(RunError, match="cannot be read: (Input/output error|too large). Run the same command again"):
        writer.restore(FRESH)


def test_a_field_that_older_versions_did_not_save_is_that_of_a_new_run(tmp_path):
    _, writer = saved(tmp_path)
    save(writer)
    assert writer.restore({**FRESH, "names": []}, newer=("names",)) == {**STATE, "names": []}
    with pytest.raises(RunError, match="its state lacks 'names'"):
        writer.restore({**FRESH, "names": []})


def test_a_signal_during_a_print(capfd, monkeypatch):
    def reentrant(*arguments, **options):
        raise RuntimeError("reentrant call")

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with StopSignals() as stop:
            monkeypatch.setattr("builtins.print", reentrant)
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.undo()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.received == signal.SIGTERM and "SIGTERM: stopping as soon as the run is saved" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_is_noted_and_a_second_one_does_as_usual(number, ignored):
    """Also if the process of the tests ignores SIGINT, as one in the background of a script does."""

    class Usual(Exception):
        pass

    def usual(number, frame):
        raise Usual

    before = signal.signal(number, signal.SIG_IGN if ignored else usual)
    try:
        with StopSignals() as stop:
            signal.raise_signal(number)
            assert stop.received == (None if ignored else number)
            with contextlib.nullcontext() if ignored else pytest.raises(Usual):
                signal.raise_signal(number)
        assert signal.getsignal(number) is (signal.SIG_IGN if ignored else usual)
    finally:
        signal.signal(number, before)
