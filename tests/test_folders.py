import os

import numpy as np
import pytest

from keras_resnet.data import folders
from keras_resnet.data.sources import DataError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return str(folder)


def test_train_and_val(tmp_path):
    folder = make(tmp_path, "train/b/2.JPEG", "train/b/1.png", "train/a/1.jpg", "val/a/9.JPG", "val/b/8.jpeg")
    make(tmp_path, "train/a/.hidden.jpg", "train/a/notes.txt", "train/.git/1.jpg", "README.md")
    classes, train, validation = folders.load(folder)
    assert classes == ("a", "b")
    assert train.paths == [
        os.path.join(folder, "train", *name) for name in (("a", "1.jpg"), ("b", "1.png"), ("b", "2.JPEG"))
    ]
    assert train.labels.dtype == np.int64 and list(train.labels) == [0, 1, 1]
    assert [os.path.basename(path) for path in validation.paths] == ["9.JPG", "8.jpeg"]
    assert list(validation.labels) == [0, 1]


def test_a_tenth_is_drawn_for_validation(tmp_path):
    folder = make(tmp_path, *(f"{c}/{i:02}.jpg" for c in "abcd" for i in range(15)))
    classes, train, validation = folders.load(folder)
    assert classes == tuple("abcd") and len(validation.paths) == 6
    assert len(set(train.paths) | set(validation.paths)) == 60 == len(train.paths) + len(validation.paths)
    for files in (train, validation):
        assert files.paths == sorted(files.paths)
        assert [classes[label] for label in files.labels] == [path.split(os.sep)[-2] for path in files.paths]
    assert folders.load(folder, seed=0)[2].paths == validation.paths
    assert folders.load(folder, seed=1)[2].paths != validation.paths


@pytest.mark.parametrize(
    "names, message",
    [
        ((), "no folder in it"),
        (("1.jpg",), "no folder in it"),
        (("a/1.jpg",), "holds one image"),
        (("a/1.jpg", "b/notes.txt"), "b holds no image"),
        (("train/a/1.jpg",), "holds train/ but not val/"),
        (("val/a/1.jpg",), "holds val/ but not train/"),
        (("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"), "only one of them has b"),
        (("train/a/1.jpg", "val/1.jpg"), "val should hold a folder of images for each class"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        folders.load(make(tmp_path, *names))


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        folders.load(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="it is not a folder"):
        folders.load(make(tmp_path, "file") + "/file")


def test_real_photographs(photographs_dir, imagenette_dir):
    sample = folders.load(photographs_dir)
    assert [len(part) for part in (sample.classes, sample.train.paths, sample.validation.paths)] == [200, 180, 20]
    classes, train, validation = folders.load(imagenette_dir)
    assert [len(part) for part in (classes, train.paths, validation.paths)] == [10, 2000, 500]
    assert list(np.bincount(validation.labels)) == [50] * 10
