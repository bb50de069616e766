"""CIFAR in the files of its authors' page, against TensorFlow Datasets' copies of the same images."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import WITHOUT_TENSORFLOW, pickle_as_python2, write_cifar10

from keras_resnet import data
from keras_resnet.data import pickles, sources
from keras_resnet.files import DataError


@pytest.fixture
def drawn(tmp_path):
    """A folder with `cifar-10-batches-py` of drawn images, and the images."""
    rng = np.random.default_rng(0)
    train, test = ((rng.integers(0, 256, (n, 32, 32, 3), "uint8"), rng.integers(0, 10, n)) for n in (1003, 50))
    write_cifar10(tmp_path / "cifar-10-batches-py", train, test, "abcdefghij")
    return tmp_path, train, test


def test_the_real_images_are_those_of_tfds_one_by_one(tmp_path, cifar10_dir):
    import tensorflow_datasets as tfds

    builder, parts = tfds.builder("cifar10", data_dir=cifar10_dir), {}
    for split in ("train", "test"):
        examples = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        numbers = [int(name.split(b"_")[1]) for name in examples["id"]]
        parts[split] = [examples[key][np.argsort(numbers)] for key in ("image", "label")]  # as the authors number them
    write_cifar10(tmp_path / "cifar-10-batches-py", *parts.values(), builder.info.features["label"].names)
    expected, found = (sources.load("cifar10", folder) for folder in (cifar10_dir, str(tmp_path)))
    assert found.classes == expected.classes
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.images.dtype == np.uint8 and ours.labels.dtype == np.int64
        assert np.array_equal(ours.images, theirs.images) and np.array_equal(ours.labels, theirs.labels)
    assert sources.describe(found) == sources.describe(expected)  # a run goes on with the other copy


def test_the_order_is_that_in_which_tfds_writes(tmp_path):
    """The order for any number of images, also for CIFAR-100."""
    import tensorflow_datasets as tfds

    class Numbers(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"i": np.int64}))

        def _split_generators(self, dl_manager):
            return {split: ((i, {"i": i}) for i in range(n)) for split, n in (("train", 700), ("test", 90))}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Numbers(data_dir=str(tmp_path / "tfds"))
    builder.download_and_prepare()
    order = {s: list(builder.as_dataset(split=s, batch_size=-1)["i"].numpy()) for s in ("train", "test")}

    folder, rng = tmp_path / "cifar-100-python", np.random.default_rng(0)
    folder.mkdir()
    pickle_as_python2(folder / "meta", {b"fine_label_names": [b"x"] * 100, b"coarse_label_names": [b"y"] * 20})
    images = {split: rng.integers(0, 256, (len(order[split]), 32, 32, 3), "uint8") for split in order}
    for split, found in images.items():
        fine = [i % 100 for i in range(len(found))]
        batch = {b"data": found.transpose(0, 3, 1, 2).reshape(len(found), -1), b"fine_labels": fine}
        pickle_as_python2(folder / split, {**batch, b"coarse_labels": [i % 20 for i in fine]})
    train, test = data.cifar100(str(tmp_path))
    for split, (found, labels) in (("train", train), ("test", test)):
        assert np.array_equal(found, images[split][order[split]])
        assert list(labels) == [i % 100 for i in order[split]]


def test_the_validation_images_are_the_last(drawn, monkeypatch):
    folder, (images, labels), _ = drawn
    monkeypatch.setitem(sources.VALIDATION_EXAMPLES, "cifar10", 100)
    source = sources.load("cifar10", str(folder))
    (train, train_labels), (test, test_labels) = data.cifar10(str(folder))
    assert [len(part.labels) for part in source[1:]] == [903, 100, 50] and source.classes == tuple("abcdefghij")
    assert np.array_equal(np.concatenate([source.train.images, source.validation.images]), train)
    assert np.array_equal(source.validation.labels, train_labels[-100:]) and np.array_equal(source.test.images, test)
    as_pairs = lambda images, labels: sorted((x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True))
    assert as_pairs(train, train_labels) == as_pairs(images, labels)
    assert len(sources.load("cifar10", str(folder), train_on_all=True).train.labels) == 1003


def test_where_it_may_lie(drawn, tmp_path, monkeypatch):
    folder = drawn[0]
    own = folder / "cifar-10-batches-py"
    assert pickles.find("cifar10", str(folder)) == pickles.find("cifar10", f"{own}{os.sep}").rstrip(os.sep) == str(own)
    assert pickles.find("cifar100", str(folder)) is None
    (expected, _), _ = data.cifar10(str(folder))
    for inner in ("", "cifar-10-batches-py-target"):  # as Keras 3 and as Keras 2 extract it
        home = tmp_path / f"home{inner}"
        (home / "datasets" / inner).mkdir(parents=True)
        (home / "datasets" / inner / own.name).symlink_to(own)
        monkeypatch.setenv("KERAS_HOME", str(home))
        assert np.array_equal(data.cifar10()[0][0], expected)
        assert np.array_equal(data.cifar10(str(home / "datasets"))[0][0], expected)
        assert pickles.cached("cifar100") is None


class Malice:
    def __reduce__(self):
        return print, ("executed",)


def test_pickles_are_not_executed(drawn, capsys):
    folder, (images, labels), _ = drawn
    for content in ({b"data": Malice(), b"labels": []}, Malice()):
        pickle_as_python2(folder / "cifar-10-batches-py" / "data_batch_3", content)
        with pytest.raises(DataError, match="data_batch_3 is not .* calls __builtin__.print, which arrays do not need"):
            data.cifar10(str(folder))
    objects = np.array([Malice()], object)
    pickle_as_python2(folder / "cifar-10-batches-py" / "data_batch_3", {b"data": objects, b"labels": [0]})
    with pytest.raises(DataError, match="which arrays do not need"):
        data.cifar10(str(folder))
    assert "executed" not in capsys.readouterr().out


def rows(path, labels, kind="uint8"):
    pickle_as_python2(path, {b"data": np.zeros((2, 3072), kind), b"labels": labels})


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "data_batch_3 of the python version of cifar10 cannot be read: .*No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "data_batch_3 is not a file .* Extract cifar-10-bat"),
        (lambda path: path.write_bytes(b""), "data_batch_3 is not a file"),
        (lambda path: path.write_text("nonsense"), "data_batch_3 is not a file"),
        (lambda path: pickle_as_python2(path, [1]), "data_batch_3 is not a file"),
        (lambda path: rows(path, [0, 1], "float64"), "found float64"),
        (lambda path: rows(path, [0]), r"uint8 \(1, 3072\) expected"),
        (lambda path: rows(path, [0, 10]), "found 0 to 10"),
        (lambda path: rows(path, [-1, 9]), "found -1 to 9"),
    ],
)
def test_damage_is_explained(drawn, damage, message):
    damage(drawn[0] / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(DataError, match=message):
        data.cifar10(str(drawn[0]))


def test_without_tensorflow_keras_downloads(drawn, tmp_path, monkeypatch):
    """Downloads once; without a network the message says what to do."""
    code = WITHOUT_TENSORFLOW + (
        "import keras, pathlib, keras_resnet.data\n"
        "def load_data():\n"
        "    inner = pathlib.Path(sys.argv[2]) / 'datasets' / 'cifar-10-batches-py-target'\n"
        "    inner.mkdir(parents=True)\n"
        "    (inner / 'cifar-10-batches-py').symlink_to(sys.argv[1])\n"
        "keras.datasets.cifar10.load_data = load_data\n"
        "def offline(*arguments, **options): raise Exception('URL fetch failure')\n"
        "keras.datasets.cifar100.load_data = offline\n"
        "for _ in range(2): (x, y), (xt, yt) = keras_resnet.data.cifar10()\n"
        "assert x.shape == (1003, 32, 32, 3) and yt.shape == (50,)\n"
        "try: keras_resnet.data.cifar100()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "KERAS_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, str(drawn[0] / "cifar-10-batches-py"), str(tmp_path / "home")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DataError cifar100 could not be downloaded: URL fetch failure")
    assert "cifar-100-python" in done.stdout
