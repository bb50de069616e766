import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from PIL import Image
from test_imagenet import SMALL, photograph, small_batches, take

from keras_resnet.data import color, folders, imagenet, records, sources
from keras_resnet.files import DataError, RunError
from keras_resnet.training import tasks
from keras_resnet.training.folder import CHECKPOINT, Folder
from keras_resnet.training.loop import Settings, train

CLASSES = ("dawn", "noon", "dusk")


class TinyPhotographs(tfds.core.GeneratorBasedBuilder):
    """30 drawn images for training, in several files, and 7 for validation; the brightness is the class."""

    VERSION = tfds.core.Version("1.0.0")
    other = "validation"

    def _info(self):
        features = {"file_name": tfds.features.Text(), "image": tfds.features.Image(), "label": CLASSES}
        features["label"] = tfds.features.ClassLabel(names=CLASSES)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), self.other: self._generate_examples(7, seed=100)}

    def _generate_examples(self, n, seed=0):
        for i in range(n):
            image = np.asarray(photograph(80 + i, 100, seed + i)) // 3 + 80 * (i % 3)
            yield i, {"file_name": f"{i}.png", "image": image.astype("uint8"), "label": i % 3}


class TinyTested(TinyPhotographs):
    """The same with a split "test" instead."""

    other = "test"


class TinySecret(TinyPhotographs):
    """The same with a split "test" of unknown classes."""

    def _split_generators(self, dl_manager):
        secret = ((i, {**example, "label": -1}) for i, example in self._generate_examples(5))
        return {**super()._split_generators(dl_manager), "test": secret}


class TinyPairs(TinyPhotographs):
    """Two images each."""

    def _info(self):
        image = tfds.features.Image()
        features = tfds.features.FeaturesDict({"left": image, "right": image})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self, n, seed=0):
        for i in range(3):
            image = np.asarray(photograph(20, 20, i))
            yield i, {"left": image, "right": image}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tensorflow_datasets"))
    for builder in (TinyPhotographs, TinyTested, TinySecret, TinyPairs):
        builder(data_dir=folder).download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return folder


@pytest.fixture
def copy(data_dir, tmp_path):
    """A data set that a test may damage, and the first file of its training images."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", data_dir, folder], check=True)
    return str(folder), folder / "tiny_photographs" / "1.0.0" / "tiny_photographs-train.tfrecord-00000-of-00002"


def test_the_records_are_those_that_tfds_reads(data_dir):
    classes, train, validation = records.load("tiny_photographs", data_dir)
    assert classes == CLASSES and (len(train), len(validation)) == (30, 7) and len(train.paths) == 2
    for split, found in (("train", train), ("validation", validation)):
        expected = list(tfds.load("tiny_photographs", split=split, data_dir=data_dir).as_numpy_iterator())
        read = list(imagenet.examples(found).as_numpy_iterator())
        assert len(read) == len(expected)
        for (image, label), example in zip(read, expected, strict=True):
            assert np.array_equal(image, example["image"]) and label == example["label"]


def test_real_cifar10(cifar10_dir):
    classes, train, validation = records.load("cifar10", cifar10_dir)
    assert (len(classes), len(train), len(validation)) == (10, 45_000, 5_000)
    whole = tfds.load("cifar10", split="train", data_dir=cifar10_dir)
    expected = {example["id"]: example for example in whole.take(300).as_numpy_iterator()}
    examples = imagenet.examples(train.subset(np.arange(100))).as_numpy_iterator()
    known = [e for image, label in examples for e in expected.values() if np.array_equal(e["image"], image)]
    assert len(known) == 100


def test_a_stream_is_that_of_the_same_images_in_files(data_dir, tmp_path):
    _, train, _ = records.load("tiny_photographs", data_dir)
    paths, labels = [], []
    for i, (image, label) in enumerate(imagenet.examples(train).as_numpy_iterator()):
        paths.append(str(tmp_path / f"{i}.png"))
        labels.append(label)
        Image.fromarray(image).save(paths[-1])
    files = folders.Files(paths, np.array(labels))
    for part in (0, 10):
        ours, theirs = (take(small_batches(source, first_step=part), 9) for source in (train, files))
        for (x, y), (other_x, other_y) in zip(ours, theirs, strict=True):
            assert np.array_equal(x, other_x) and np.array_equal(y, other_y)


def test_without_a_validation_split_a_tenth_is_drawn(data_dir):
    _, train, validation = records.load("tiny_tested", data_dir, seed=1)
    assert (len(train), len(validation)) == (27, 3)
    places = {(f, o) for part in (train, validation) for f, o in zip(part.files, part.offsets, strict=True)}
    assert len(places) == 30
    classes, test = records.load_split("tiny_tested", "test", data_dir)
    assert classes == CLASSES and len(test) == 7
    assert len(records.load_split("tiny_photographs", "validation", data_dir)[1]) == 7
    for name, part in (("tiny_tested", "validation"), ("tiny_photographs", "test")):
        assert records.load_split(name, part, data_dir) is records.load_split(name, "all", data_dir) is None


def test_test_images_without_classes_are_no_test(data_dir):
    """Like ImageNet's test labels."""
    assert records.load_split("tiny_secret", "test", data_dir) is None
    assert len(records.load_split("tiny_secret", "validation", data_dir)[1]) == 7


def test_a_description_tells_data_apart(data_dir):
    data = records.load("tiny_tested", data_dir, seed=1)
    found = records.describe(data, "tiny_tested")
    assert found == records.describe(records.load("tiny_tested", data_dir, seed=1), "tiny_tested")
    assert [text.split(",")[0] for text in found.values()] == ["3", "27", "3"]
    other = records.describe(records.load("tiny_tested", data_dir, seed=2), "tiny_tested")
    assert other["classes"] == found["classes"] and other["train"] != found["train"]
    renamed = records.describe(data._replace(classes=("dawn", "dusk", "noon")), "tiny_tested")
    assert renamed["classes"] != found["classes"] and renamed["train"] == found["train"]
    moved = records.Records([f"/elsewhere{path}" for path in data.train.paths], data.train.keys, *data.train.locations)
    assert records.describe(data._replace(train=moved), "tiny_tested") == found
    moved.paths[0] += "x"
    assert records.describe(data._replace(train=moved), "tiny_tested")["train"] != found["train"]


def test_a_description_of_a_folder_is_that_of_its_names(tmp_path):
    """With any names, in any folder."""
    for folder in (tmp_path / "one", tmp_path / "two"):
        for name in (b"a/\xff.jpg", b"a/2.jpg", b"b/1.jpg"):
            path = os.path.join(os.fsencode(folder), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "w").close()
    one, two = (records.describe(folders.load(str(folder)), str(folder)) for folder in sorted(tmp_path.iterdir()))
    assert one == two and [text.split(",")[0] for text in one.values()] == ["2", "1", "1"]


def test_damage(copy):
    folder, path = copy
    _, train, _ = records.load("tiny_photographs", folder)
    data = bytearray(path.read_bytes())
    begin = train.offsets[2] + train.lengths[2] // 2
    data[begin : begin + 1000] = bytes(1000)
    path.write_bytes(data)
    message = rf"00000-of-00002, record at byte {train.offsets[2]}, is damaged"
    with pytest.raises(DataError, match=message), imagenet.errors_named():
        take(small_batches(train), 7)
    with pytest.raises(DataError, match=message), imagenet.errors_named():
        take(imagenet.examples(train), -1)
    skipped = set()
    assert len(take(imagenet.center_batches(train, batch_size=1, image_size=SMALL, skipped=skipped), -1)) == 29
    assert len(skipped) == 1
    path.write_bytes(data[: train.offsets[4] + 5])
    with pytest.raises(DataError, match=r"00000-of-00002 is damaged: it should hold \d+ records; found 4"):
        records.load("tiny_photographs", folder)


def test_a_shard_that_is_gone(copy):
    """The file is named, and never skipped as damaged."""
    folder, path = copy
    _, train, _ = records.load("tiny_photographs", folder)
    path.unlink()
    for skipped in (None, set()):
        batches = small_batches(train, skipped=skipped)
        for stream in (batches, imagenet.center_batches(train, batch_size=2, image_size=SMALL, skipped=skipped)):
            message = r"00000-of-00002, record at byte \d+, cannot be read: .*No such file"
            with pytest.raises(DataError, match=message), imagenet.errors_named():
                take(stream, 7)
        with pytest.raises(DataError, match="cannot be read"), imagenet.errors_named():
            take(imagenet.examples(train, skipped), -1)
        assert not skipped


@pytest.fixture(scope="module")
def array_dir(tmp_path_factory):
    """The same data as array_record files."""
    pytest.importorskip("array_record", reason="array_record is not installed")
    folder = str(tmp_path_factory.mktemp("array_record"))
    config = tfds.download.DownloadConfig(num_shards=2)
    TinyPhotographs(data_dir=folder, file_format="array_record").download_and_prepare(download_config=config)
    return folder


def test_array_records_are_read_as_tfrecords_are(data_dir, array_dir):
    ours, theirs = (records.load("tiny_photographs", folder) for folder in (array_dir, data_dir))
    assert isinstance(ours.train, records.ArrayRecords) and ours.classes == theirs.classes
    for found, expected in zip(ours[1:], theirs[1:], strict=True):
        assert len(found) == len(expected) and len(found.paths) == len(expected.paths)
        for (x, y), (other_x, other_y) in zip(
            *(take(imagenet.examples(f), -1) for f in (found, expected)), strict=True
        ):
            assert np.array_equal(x, other_x) and y == other_y
    for (x, y), (other_x, other_y) in zip(*(take(small_batches(d.train), 9) for d in (ours, theirs)), strict=True):
        assert np.array_equal(x, other_x) and np.array_equal(y, other_y)
    some = np.array([3, 17, 29])
    assert type(ours.train.subset(some)) is records.ArrayRecords
    assert [ours.train.subset(some)._content(i) for i in range(3)] == [theirs.train._content(i) for i in some]
    digests = records.describe(ours, "tiny_photographs")
    assert digests == records.describe(records.load("tiny_photographs", array_dir), "tiny_photographs")
    assert digests["train"] != records.describe(theirs, "tiny_photographs")["train"]


def test_damaged_array_records(array_dir, tmp_path):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", array_dir, folder], check=True)
    _, train, _ = records.load("tiny_photographs", str(folder))
    path, image = train.paths[0], train._content(2)
    with open(path, "rb") as file:
        content = file.read()
    place = content.index(image[200:300])
    damaged = content[:place] + bytes(100) + content[place + 100 :]
    with open(path, "wb") as file:
        file.write(damaged)
    records._array_record.cache_clear()
    _, train, _ = records.load("tiny_photographs", str(folder))
    with pytest.raises(DataError, match="array_record-00000-of-00002, record 2, is damaged"), imagenet.errors_named():
        take(imagenet.examples(train), -1)
    skipped = set()
    assert len(take(imagenet.center_batches(train, batch_size=1, image_size=SMALL, skipped=skipped), -1)) == 29
    assert skipped == {f"{path}, record 2,"}
    for content in (damaged[:3000], b"", b"nonsense" * 1000):
        with open(path, "wb") as file:
            file.write(content)
        with pytest.raises(DataError, match=r"00000-of-00002 is damaged: it should hold \d+ records; found 0"):
            records.load("tiny_photographs", str(folder))


def test_array_records_need_their_package(array_dir, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "array_record" else find_spec(name))
    with pytest.raises(DataError, match="tiny_photographs in .* need the package array_record: pip install array-reco"):
        records.load("tiny_photographs", array_dir)


def test_small_images_in_array_records(data_dir, array_dir):
    """With similar sizes."""

    class Drawn(TinyPhotographs, skip_registration=True):
        name = "cifar10"

        def _generate_examples(self, n, seed=0):
            for i in range(n):
                yield i, {"file_name": "", "image": np.asarray(photograph(32, 32, seed + i)), "label": i % 3}

        other = "test"

    found = []
    for folder, kind in ((data_dir, "tfrecord"), (array_dir, "array_record")):
        Drawn(data_dir=folder, file_format=kind).download_and_prepare()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sources.VALIDATION_EXAMPLES, "cifar10", 5)
            patch.setattr(sources, "find", lambda name, data_dir: Drawn(data_dir=data_dir))
            found.append(sources.load("cifar10", folder))
    assert sources.describe(found[0]) == sources.describe(found[1]) and len(found[1].test.labels) == 7
    assert found[1].train.labels.dtype == np.int64


@pytest.mark.parametrize(
    "name, message",
    [
        ("tiny_pairs", "is not a set of images with one class each: its examples have left, right"),
        ("tiny_nothing", "has no prepared tiny_nothing"),
    ],
)
def test_sets_that_cannot_be_used(data_dir, name, message):
    with pytest.raises(DataError, match=message):
        records.load(name, data_dir)


IMAGE, LABEL = tfds.features.Image(), tfds.features.ClassLabel(num_classes=2)


@pytest.mark.parametrize(
    "features, file_format, message",
    [
        ({"image": IMAGE}, "TFRECORD", "not a set of images with one class each: its examples have image"),
        ({"left": IMAGE, "right": IMAGE, "label": LABEL}, "TFRECORD", "its examples have left, right, label"),
        ({"image": IMAGE, "coarse": LABEL, "fine": LABEL}, "TFRECORD", "its examples have image, coarse, fine"),
        ({"image": IMAGE, "label": LABEL}, "RIEGELI", "in nowhere is in files of the format riegeli; prepare it as"),
        ({"image": IMAGE, "label": LABEL}, "TFRECORD", "tiny has no split train; it has test"),
    ],
)
def test_sets_of_another_kind(monkeypatch, features, file_format, message):
    kind = getattr(tfds.core.FileFormat, file_format)
    info = types.SimpleNamespace(features=features, file_format=kind, splits={"test": None}, supervised_keys=None)
    builder = types.SimpleNamespace(info=info, data_dir="nowhere")
    monkeypatch.setattr(sources, "prepared", lambda name, data_dir: builder)
    with pytest.raises(DataError, match=message):
        records.load("tiny")


@pytest.mark.parametrize("meant, found", [(("image", "breed"), ("image", "breed")), (("image", "box"), None)])
def test_a_set_says_which_label_is_meant(monkeypatch, meant, found):
    """As that of pets, which has a mask and the species, too."""
    features = {"image": IMAGE, "breed": LABEL, "species": LABEL, "mask": IMAGE, "box": tfds.features.BBoxFeature()}
    options = {"file_format": tfds.core.FileFormat.TFRECORD, "splits": {}, "supervised_keys": meant}
    builder = types.SimpleNamespace(info=types.SimpleNamespace(features=features, **options), data_dir="nowhere")
    monkeypatch.setattr(sources, "prepared", lambda name, data_dir: builder)
    if found:
        assert records._builder("pets", None) == (builder, ("0", "1"), found)
        return
    with pytest.raises(DataError, match="its examples have image, breed, species, mask, box"):
        records._builder("pets", None)


def test_a_run_and_its_evaluation(data_dir, tmp_path):
    settings = {"dataset": "tiny_tested", "data_dir": data_dir, "output": str(tmp_path), "colors": "imagenet"}
    result = train(Settings(**settings, name="run", image_size=32, batch_size=8, steps=4), verbose=0)
    assert 0 <= result["val_error"] <= 1
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert np.allclose(model.get_layer("normalization").offset, -color.IMAGENET_STATISTICS.mean)
    evaluate = [sys.executable, str(ROOT / "train" / "evaluate.py"), tmp_path / "run"]
    process = subprocess.run(
        [*evaluate, "--json", tmp_path / "result.json"], capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["examples"] == 7 and found["split"] == "test images"
    assert found["protocol"]["crop"] == "32x32, centre" and found["protocol"]["resize"] == "shorter side to 37"


def test_a_run_goes_on_with_its_own_data(tmp_path):
    def photos(name, n=6):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            photograph(40, 50, i).save(tmp_path / "photos" / name / f"{i}.jpg")

    def task(**changes):
        settings = Settings(
            dataset=str(tmp_path / "photos"), output=str(tmp_path), name="run", image_size=32, batch_size=2, **changes
        )
        folder = Folder(settings)
        with folder.own():
            folder.open()
            return tasks.of(folder)

    photos("cat")
    photos("dog")
    first, colors = task(), tmp_path / "run" / "colors.npz"
    measured = color.load(colors).mean
    for path in (tmp_path / "photos" / "cat").iterdir():
        photograph(40, 50, 100).save(path)
    task()  # nothing was saved: the colours of the other photographs are measured
    assert np.abs(color.load(colors).mean - measured).max() > 10

    (tmp_path / "run" / CHECKPOINT).touch()  # from here on the run goes on
    kept = color.load(colors).mean
    assert task().classes == first.classes and np.array_equal(color.load(colors).mean, kept)
    (tmp_path / "photos" / "cat").rename(tmp_path / "photos" / "zebra")
    with pytest.raises(RunError, match="has changed since this run began") as error:
        task()
    for row in ("cat: 6, [0-9a-f]{12} then; none now", "zebra: none then; 6, .* now", "--data-changed"):
        assert re.search(row, str(error.value)), row
    assert "dog" not in str(error.value)
    (tmp_path / "photos" / "zebra").rename(tmp_path / "photos" / "cat")
    task()
    digests = json.loads((tmp_path / "run" / "data.json").read_text())
    held_out = digests.pop(records.ASIDE)  # as a run that was begun when another tenth was drawn
    assert held_out.startswith("2, ")
    (tmp_path / "run" / "data.json").write_text(json.dumps(digests))
    with pytest.raises(RunError, match="has changed since this run began(.|\n)*  set aside/for .*: none then; 2, "):
        task()
    (tmp_path / "run" / "data.json").write_text(json.dumps({**digests, records.ASIDE: held_out}))
    (tmp_path / "photos" / "dog" / "0.jpg").rename(tmp_path / "photos" / "dog" / "9.jpg")
    with pytest.raises(RunError, match="dog: 6, .* then; 6, .* now"):
        task()
    task(data_changed=True)
    assert np.array_equal(color.load(colors).mean, kept)  # which the network subtracts
    task()
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    (tmp_path / "photos").symlink_to(tmp_path / "elsewhere")
    task()


def test_small_images_are_recognised():
    source = sources.load("shapes")
    found = sources.describe(source)
    assert found["train"].startswith("12800, ") and found == sources.describe(sources.load("shapes"))
    renamed = source._replace(classes=source.classes[::-1])
    assert {name for name, digest in sources.describe(renamed).items() if digest != found[name]} == {"classes"}
    source.validation.images[5, 3, 3, 0] ^= 1
    different = {name for name, text in sources.describe(source).items() if found[name] != text}
    assert different == {"validation"}


def test_no_validation_image_can_be_read(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            path = tmp_path / "photos" / part / name / "1.jpg"
            photograph(40, 50).save(path) if part == "train" else path.write_text("nonsense")
    settings = Settings(
        dataset=str(tmp_path / "photos"), output=str(tmp_path), batch_size=2, colors="imagenet", skip_damaged=True
    )
    folder = Folder(settings)
    with folder.own(), pytest.raises(DataError, match="none of the 2 validation images can be read"):
        tasks.of(folder)


def test_the_mean_image_is_subtracted_at_the_papers_size(tmp_path, data_dir):
    """And the channels' means at other sizes."""

    def network(name, **changes):
        settings = Settings(dataset="tiny_photographs", data_dir=data_dir, output=str(tmp_path), name=name, **changes)
        folder = Folder(settings)
        with folder.own():
            return tasks.of(folder).build()

    model = network("paper", batch_size=2)
    colors = str(tmp_path / "paper" / "colors.npz")
    measured = color.load(colors)
    assert measured.mean.shape == (224, 224, 3) and model.input_shape == (None, 224, 224, 3)
    assert np.allclose(model.get_layer("normalization").offset, -measured.mean, atol=1e-3)
    model = network("small", batch_size=2, image_size=32, colors=colors)
    assert model.input_shape == (None, None, None, 3)
    assert np.allclose(model.get_layer("normalization").offset, -measured.channel_means, atol=1e-3)
    model = network("raw", batch_size=2, colors=colors, without=("mean",))
    assert "normalization" not in [layer.name for layer in model.layers]
    with open(colors, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match="colors.npz should hold colour statistics.* damaged"):
        network("broken", batch_size=2, colors=colors)


def test_the_program_that_measures_colors(tmp_path, data_dir):
    program, file = [sys.executable, str(ROOT / "train" / "colors.py")], tmp_path / "tiny.npz"
    arguments = ["tiny_photographs", file, "--data-dir", data_dir, "--image-size", "32"]
    process = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    found, (_, train, _) = color.load(file), records.load("tiny_photographs", data_dir)
    images = np.concatenate([x for x, _ in take(imagenet.center_batches(train, image_size=32), -1)])
    assert np.allclose(found.mean, images.mean(0), atol=1e-2)
    assert f"{found.components.values[0]:.4f}" in process.stdout
