import os
import socket

import numpy as np
import pytest
import tensorflow as tf

import keras_resnet
from keras_resnet.data import cifar, shapes, sources

BLACK = np.zeros((32, 32, 3), "float32")


def split(n=50, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return sources.Split(rng.integers(0, 256, (n, size, size, 3), "uint8"), np.arange(n))


def take(dataset, n):
    return [(x.numpy(), y.numpy()) for x, y in dataset.take(n)]


def padded_crop(image, mean, dy, dx, flip):
    """P1 4.2 for one image: the mean is subtracted afterwards, so the padding is the mean at its new position."""
    height, width = mean.shape[:2]
    padded = np.full((height + 8, width + 8, 3), np.nan)
    padded[4:-4, 4:-4] = image
    crop = padded[dy : dy + height, dx : dx + width]
    crop = crop[:, ::-1] if flip else crop
    return np.where(np.isnan(crop), mean, crop)


@pytest.mark.parametrize("size", [32, 9])
def test_augment_against_numpy(size):
    images = split(81 * 2, size).images
    mean = sources.per_pixel_mean(images)
    dy, dx = (np.tile(a.ravel(), 2).astype("int32") for a in np.mgrid[:9, :9])
    flip = np.arange(81 * 2) >= 81
    result = cifar.augment(images, mean, tf.constant(dy), tf.constant(dx), tf.constant(flip)).numpy()
    for i in range(len(images)):
        assert np.array_equal(result[i], padded_crop(images[i], mean, dy[i], dx[i], flip[i]).astype("float32"))


def test_padding_is_zero_after_the_networks_first_layer():
    images = split(4).images
    mean = sources.per_pixel_mean(images)
    corner = tf.zeros(4, "int32")
    network = keras_resnet.CifarResNet(8, normalization=(mean, 1.0))
    crops = cifar.augment(images, mean, corner, corner, tf.zeros(4, "bool"))
    normalized = network.get_layer("normalization")(crops).numpy()
    assert not normalized[:, :4].any() and not normalized[:, :, :4].any()
    assert np.count_nonzero(normalized[:, 4:, 4:]) > 0.9 * normalized[:, 4:, 4:].size


def test_an_epoch_has_every_example_once_and_a_new_order_each_time():
    data = split(48)
    labels = [y for _, y in take(cifar.training_batches(data, BLACK, batch_size=8, seed=0), 18)]
    epochs = [np.concatenate(labels[i : i + 6]) for i in (0, 6, 12)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(48))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


def test_the_partial_batch_is_left_out():
    data = split(50)
    labels = np.concatenate([y for _, y in take(cifar.training_batches(data, BLACK, batch_size=8, seed=0), 6)])
    assert len(set(labels)) == 48


@pytest.mark.parametrize("step", [1, 5, 6, 7, 20])
def test_a_resumed_stream_is_the_same(step):
    data = split(50)
    mean = sources.per_pixel_mean(data.images)
    whole = take(cifar.training_batches(data, mean, batch_size=8, seed=3), step + 8)[step:]
    resumed = take(cifar.training_batches(data, mean, batch_size=8, seed=3, first_step=step), 8)
    for (x, y), (other_x, other_y) in zip(whole, resumed, strict=True):
        assert np.array_equal(x, other_x) and np.array_equal(y, other_y)


def test_seeds_differ_and_epochs_are_augmented_differently():
    data = split(16)
    mean = sources.per_pixel_mean(data.images)
    (first, _), (second, labels) = take(cifar.training_batches(data, mean, batch_size=16, seed=0), 2)
    ((other, _),) = take(cifar.training_batches(data, mean, batch_size=16, seed=1), 1)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[np.argsort(labels)], second[np.argsort(labels)])


def test_all_offsets_and_both_flips_are_drawn_alike():
    """Images that show where they were cropped: red is the row, green the column."""
    ramp = np.zeros((1, 32, 32, 3), "uint8")
    ramp[..., 0], ramp[..., 1] = np.arange(100, 132)[:, None], np.arange(100, 132)
    data = sources.Split(np.repeat(ramp, 500, 0), np.arange(500))
    batches = take(cifar.training_batches(data, BLACK, batch_size=500, seed=0), 9)
    centers = np.concatenate([x[:, 15:17, 15:17] for x, _ in batches])
    rows = centers[:, 0, 0, 0] - 115
    flipped = centers[:, 0, 1, 1] < centers[:, 0, 0, 1]
    columns = np.minimum(centers[:, 0, 0, 1], centers[:, 0, 1, 1]) - 115
    for offsets in (rows, columns):
        values, counts = np.unique(offsets, return_counts=True)
        assert list(values) == list(range(-4, 5))
        assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(4500)


def test_evaluation_batches_have_every_example_once_and_in_order():
    data = split(50)
    batches = take(cifar.evaluation_batches(data, batch_size=16), -1)
    assert [len(y) for _, y in batches] == [12, 13, 12, 13]
    assert np.array_equal(np.concatenate([x for x, _ in batches]), data.images)


def test_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="50 examples"):
        cifar.training_batches(split(50), BLACK, batch_size=51, seed=0)


def test_shapes_are_reproducible_balanced_and_not_linear():
    images, labels = shapes.draw(3000, seed=5)
    again, _ = shapes.draw(3000, seed=5)
    assert images.shape == (3000, 32, 32, 3) and images.dtype == np.uint8
    assert np.array_equal(images, again)
    assert not np.array_equal(images, shapes.draw(3000, seed=6)[0])
    assert list(np.bincount(labels)) == [300] * 10
    # Ridge regression on the pixels stays near chance, 90 %.
    x = images.reshape(3000, -1) / 127.5 - 1.0
    train, test = slice(2000), slice(2000, None)
    kernel = x[train] @ x[train].T + 100 * np.eye(2000)
    scores = x[test] @ x[train].T @ np.linalg.solve(kernel, np.eye(10)[labels[train]])
    assert (scores.argmax(-1) != labels[test]).mean() > 0.6


def test_shapes_source():
    source = sources.load("shapes")
    assert [len(part.labels) for part in source[1:]] == [12_800, 1_280, 2_000]
    assert len(source.classes) == 10
    assert len(sources.load("shapes", train_on_all=True).train.labels) == 14_080


def test_cifar10(cifar10_dir):
    source = sources.load("cifar10", cifar10_dir)
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    assert [part.images.shape for part in source[1:]] == [(n, 32, 32, 3) for n in (45_000, 5_000, 10_000)]
    assert list(np.bincount(source.test.labels)) == [1_000] * 10
    both = np.bincount(source.train.labels) + np.bincount(source.validation.labels)
    assert list(both) == [5_000] * 10
    whole = sources.load("cifar10", cifar10_dir, train_on_all=True)
    assert whole.validation is None and len(whole.train.labels) == 50_000
    mean = sources.per_pixel_mean(whole.train.images)
    assert np.allclose(mean.mean((0, 1)), (125.307, 122.950, 113.865), atol=0.02)  # as published for CIFAR-10


def test_unknown_data_set():
    with pytest.raises(sources.DataError, match="unknown data set 'cifar11'; there are cifar10, cifar100, shapes"):
        sources.load("cifar11")


def test_data_dir_without_the_data_set(tmp_path):
    (tmp_path / "tensorflow_datasets" / "cifar10").mkdir(parents=True)
    with pytest.raises(sources.DataError, match="it holds tensorflow_datasets") as error:
        sources.load("cifar10", str(tmp_path))
    assert f"Did you mean --data-dir {tmp_path}{os.sep}tensorflow_datasets?" in str(error.value)
    with pytest.raises(sources.DataError, match="no such folder"):
        sources.load("cifar100", str(tmp_path / "nowhere"))


def test_no_data_and_no_network(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(sources.DataError, match="Name or service not known") as error:
        sources.load("cifar100")
    assert "Three ways to continue" in str(error.value) and "--dataset shapes" in str(error.value)
