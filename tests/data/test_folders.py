import hashlib
import os

import numpy as np
import pytest

from keras_resnet.data import folders
from keras_resnet.files import DataError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return str(folder)


def test_train_and_val(tmp_path):
    folder = make(tmp_path, "train/b/2.JPEG", "train/b/1.png", "train/a/1.jpg", "val/a/9.JPG", "val/b/8.jpeg")
    make(tmp_path, "train/a/.hidden.jpg", "train/a/notes.txt", "train/.git/1.jpg", "README.md")
    with pytest.warns(UserWarning, match="train: 1 file left out: 1 .txt"):
        classes, train, validation = folders.load(folder)
    assert classes == ("a", "b")
    assert train.paths == [
        os.path.join(folder, "train", *name) for name in (("a", "1.jpg"), ("b", "1.png"), ("b", "2.JPEG"))
    ]
    assert train.labels.dtype == np.int64 and list(train.labels) == [0, 1, 1]
    assert [os.path.basename(path) for path in validation.paths] == ["9.JPG", "8.jpeg"]
    assert list(validation.labels) == [0, 1]


def test_what_is_left_out_is_told_and_images_within_folders_are_read(tmp_path):
    kinds = ("jpg", "webp", "bmp", "GIF", "tiff", "txt")
    folder = make(tmp_path, *(f"{c}/{i}.{kind}" for c in "ab" for i in range(2) for kind in kinds))
    make(tmp_path, "a/inner/more/1.jpg", "a/inner/.cache/1.jpg", "a/README", "a/3.TXT", "beside.JPG", "README.md")
    make(tmp_path, "._beside.JPG", "c.jpg/1.jpg")  # a hidden file, and a class
    (tmp_path / "a" / "inner" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "inner" / "loop2").symlink_to(tmp_path / "a")  # two: 2^40 ways, if they were all gone
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "a" / "inner")
    with pytest.warns(UserWarning, match="17 files left out: 8 .txt, 6 .tiff, 2 without an ending, 1 beside") as warned:
        classes, files = folders.list_classes(folder)
    assert len(warned) == 1
    within = [os.path.relpath(path, folder) for path in files.paths if "more" in path]
    assert within == ["a/inner/more/1.jpg", "b/linked/more/1.jpg"]
    assert list(np.bincount(files.labels)) == [9, 9 + 8, 1]  # in b the loop leads to a, once


def test_names_that_are_no_utf8(tmp_path):
    for name in (b"caf\xe9", b"th\xc3\xa9"):
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
        open(os.path.join(os.fsencode(tmp_path), name, b"\xff.jpg"), "w").close()
    classes, files = folders.list_classes(str(tmp_path))
    assert classes == (r"caf\xe9", "th\u00e9") and "".join(classes).encode()  # can be printed and served
    paths, _ = files.rows(np.arange(2))
    assert list(paths.numpy()) == [os.fsencode(path) for path in files.paths]
    assert all(os.path.exists(path) for path in paths.numpy())


def test_parts_to_test_on(tmp_path):
    divided = make(tmp_path / "divided", "train/a/1.jpg", "val/a/2.jpg", "test/3.jpg")
    assert folders.load_split(divided, "test") is None and folders.load_split(divided, "all") is None
    assert folders.load_split(divided, "validation")[1].paths == [os.path.join(divided, "val", "a", "2.jpg")]
    make(tmp_path / "divided", "test/a/3.jpg")
    with pytest.warns(UserWarning, match="1 beside the folders of classes"):
        assert folders.load_split(divided, "test")[1].paths == [os.path.join(divided, "test", "a", "3.jpg")]
    whole = make(tmp_path / "whole", "a/1.jpg", "test/1.jpg")  # a class of this name
    assert folders.load_split(whole, "all")[0] == ("a", "test")
    assert folders.load_split(whole, "test") is None and folders.load_split(whole, "validation") is None


def sides(folder, seed=0):
    """Whether each file of a folder, by its relative name, is set aside for validation."""
    _, train, validation = folders.load(str(folder), seed)
    assert len({*train.paths, *validation.paths}) == len(train) + len(validation)
    every = [(path, False) for path in train.paths] + [(path, True) for path in validation.paths]
    return {os.path.relpath(path, folder): aside for path, aside in every}


def test_of_each_class_a_tenth_is_set_aside(tmp_path):
    folder = make(tmp_path, *(f"{c}/{i:03}.jpg" for c in "abcd" for i in range(200)), "small/1.jpg", "small/2.jpg")
    classes, train, validation = folders.load(folder)
    aside = np.bincount(validation.labels)
    assert np.abs(aside[:4] - 20).max() < 5 * np.sqrt(200 * 0.1 * 0.9) and aside[4] == 1
    assert list(aside + np.bincount(train.labels)) == [200] * 4 + [2]
    for files in (train, validation):
        assert files.paths == sorted(files.paths)
        assert [classes[label] for label in files.labels] == [path.split(os.sep)[-2] for path in files.paths]
    for name, is_aside in sides(folder, seed=7).items():  # the definition
        digest = hashlib.sha256(f"7/{name}".encode()).hexdigest()
        assert is_aside == (int(digest[:12], 16) < 0.1 * 16**12) or name.startswith("small")
    assert sides(folder) == sides(folder) != sides(folder, seed=1)
    assert abs(np.mean(list(sides(folder).values())) - np.mean(list(sides(folder, seed=1).values()))) < 0.06


def test_a_file_stays_on_its_side_when_others_are_added(tmp_path):
    before = sides(make(tmp_path / "photos", *(f"{c}/{i:03}.jpg" for c in "abc" for i in range(100))))
    make(tmp_path / "photos", *(f"{c}/new{i:03}.jpg" for c in "abcd" for i in range(300)))
    after = sides(tmp_path / "photos")
    assert len(after) == 1500 and before.items() <= after.items()
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    assert sides(tmp_path / "elsewhere") == after
    for i in range(50):
        (tmp_path / "elsewhere" / "a" / f"{i:03}.jpg").unlink()
    assert sides(tmp_path / "elsewhere").items() <= after.items()


@pytest.mark.parametrize("counts", [(2, 2), (1, 1), (1, 2), (3, 1), (5, 7, 1)])
def test_small_classes_have_both_sides(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"{label}/{i}.jpg" for i, label in enumerate(labels)]
    for seed in range(300):
        aside = folders.held_out(names, labels, seed)
        assert aside.any() and not aside.all()
        for label, n in enumerate(counts):
            assert n == 1 or 0 < aside[labels == label].sum() < n


@pytest.mark.parametrize(
    "names, message",
    [
        ((), "it holds no folder"),
        (("1.jpg",), "it holds no folder"),
        (("a/1.jpg",), "holds one class only, a, and a classifier needs two. Are the classes in .*/a?"),
        (("photos/a/1.jpg", "photos/b/1.jpg"), "one class only, photos, .* Are the classes in .*/photos?"),
        (("train/a/1.jpg", "val/a/1.jpg"), "one class only, a, .* in .*/train/a?"),
        (("training/a/1.jpg", "Validation/a/1.jpg"), "holds Validation/, training/; call its splits train/ and val/"),
        (
            ("a/1.jpg", "b/notes.txt", "b/2.tiff"),
            "b holds no image; a class needs .*; found 1 .tiff, 1 .txt",
        ),
        (("Train/a/1.jpg", "Testing/a/1.jpg"), "holds Testing/, Train/; call its splits train/ and val/"),
        (("a/1.jpg", "b/.hidden"), "b holds no image; .*; found no file at all"),
        (
            ("train/a/1.jpg",),
            "holds train/ but not val/; it needs train/ and val/, or just a folder for each class. Of .*/train, given",
        ),
        (
            ("train/a/1.jpg", "Validation/a/1.jpg"),
            "holds train/, Validation/ but not val/; .* each class. Rename Validation/ to val/",
        ),
        (("val/a/1.jpg",), "holds val/ but not train/"),
        (("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"), "only val/ has c"),
        (("train/a/1.jpg", "val/1.jpg"), "val should hold a folder of images for each class"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        folders.load(make(tmp_path, *names))


def test_validation_without_a_class(tmp_path):
    folder = make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/c/2.jpg", "val/a/2.jpg")
    with pytest.warns(UserWarning, match="val has no images of b$"):
        found = folders.load(folder)
    assert found.classes == ("a", "b", "c")
    assert [os.path.relpath(path, folder) for path in found.validation.paths] == ["val/a/2.jpg", "val/c/2.jpg"]
    assert found.validation.labels.tolist() == [0, 2] and found.validation.labels.dtype == np.int64


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="should be an image folder: it does not exist"):
        folders.load(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="it is not a folder"):
        folders.load(make(tmp_path, "file") + "/file")


def test_real_photographs(photographs_dir, imagenette_dir):
    sample = folders.load(photographs_dir)
    assert [len(part) for part in (sample.classes, sample.train.paths, sample.validation.paths)] == [200, 184, 16]
    classes, train, validation = folders.load(imagenette_dir)
    assert [len(part) for part in (classes, train.paths, validation.paths)] == [10, 2000, 500]
    assert list(np.bincount(validation.labels)) == [50] * 10
