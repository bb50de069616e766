import gc
import io
import os
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnet.data import color, crops, folders, imagenet
from keras_resnet.files import DataError

SMALL = 64  # crops of it are quick to make


def photograph(height=150, width=200, seed=0):
    """A smooth random image, which JPEG compresses well."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), "uint8")
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def files_in(folder, n=12):
    """`n` JPEG files of different sizes and colours, as `folders.Files`."""
    paths = [str(folder / f"{i}.jpg") for i in range(n)]
    for i, path in enumerate(paths):
        photograph(100 + i, 120 + 3 * i, i).save(path, quality=95)
    return folders.Files(paths, np.arange(n))


def take(dataset, n):
    return [(x.numpy(), y.numpy()) for x, y in dataset.take(n)]


def small_batches(files, **options):
    return imagenet.training_batches(files, **({"batch_size": 4, "seed": 3, "image_size": SMALL} | options))


# Decoding


def sixteen_bit(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype("uint16") * 257)


def transparent(image):
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


EXIF = Image.Exif()
EXIF[0x0112] = 6  # the camera was held upright


@pytest.mark.parametrize(
    "data, tolerance",
    [
        (encoded(photograph(), "JPEG", quality=95), 0),
        (encoded(photograph(), "JPEG", quality=95, progressive=True), 0),
        (encoded(photograph().convert("L"), "JPEG", quality=95), 0),
        (encoded(photograph().convert("CMYK"), "JPEG", quality=95), 0),
        (encoded(photograph(), "JPEG", quality=95, exif=EXIF), 0),
        (encoded(photograph(), "PNG"), 0),
        (encoded(photograph().convert("L"), "PNG"), 0),
        (encoded(photograph().convert("LA"), "PNG"), 0),
        (encoded(transparent(photograph()), "PNG"), 0),
        (encoded(photograph().quantize(50), "PNG"), 0),
        (encoded(photograph().convert("1"), "PNG"), 0),
        (encoded(photograph(), "WEBP", lossless=True), 0),
        (encoded(photograph(), "WEBP"), 1),
        (encoded(transparent(photograph()), "WEBP", lossless=True, exact=True), 0),
        (encoded(photograph(), "BMP"), 0),
        (encoded(transparent(photograph()), "BMP"), 0),
        (encoded(photograph(), "GIF", save_all=True, append_images=[photograph(seed=1)]), 0),
    ],
    ids=[
        "RGB",
        "progressive",
        "grey",
        "CMYK",
        "EXIF",
        "PNG",
        "grey PNG",
        "grey-alpha PNG",
        "RGBA PNG",
        "palette PNG",
        "1-bit PNG",
        "lossless WebP",
        "WebP",
        "transparent WebP",
        "BMP",
        "RGBA BMP",
        "first of GIF",
    ],
)
def test_everything_that_imagenet_has_is_decoded_to_rgb(data, tolerance):
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype("int32")
    image = crops.decode(data)
    assert image.dtype == tf.uint8 and image.shape == (150, 200, 3)
    assert np.abs(image.numpy() - expected).mean() <= tolerance
    place = np.array([20.5 / 51, 31.5 / 101], "float32")  # the image at its own size
    window = crops.cut(data, 100, 150.0, place, False).numpy()
    assert np.abs(window - expected[20:120, 31:131]).mean() <= tolerance
    assert np.array_equal(crops.cut(data, 100, 150.0, place, True), window[:, ::-1])


def test_photographs_are_decoded_as_pillow_does(photographs_dir):
    """To the bit; TensorFlow's fast DCT differs by up to 18 of 255."""
    for path in folders.list_classes(photographs_dir)[1].paths[::10]:
        with Image.open(path) as image:
            assert np.array_equal(crops.decode(tf.io.read_file(path)), image.convert("RGB")), path


def test_sixteen_bit_png():
    image = photograph()
    decoded = crops.decode(encoded(sixteen_bit(image), "PNG")).numpy()
    assert np.array_equal(decoded, np.repeat(np.asarray(image.convert("L"))[..., None], 3, -1))


@pytest.mark.parametrize(
    "data",
    [
        encoded(photograph().quantize(50), "BMP"),
        encoded(photograph(), "WEBP", save_all=True, append_images=[photograph(seed=1)]),
        encoded(transparent(photograph()), "WEBP", save_all=True, append_images=[photograph(seed=1)]),
        encoded(photograph(), "TIFF"),
        b"BM",
        encoded(photograph(), "WEBP")[:18],
    ],
    ids=["palette BMP", "moving WebP", "moving transparent WebP", "TIFF", "two bytes", "start of WebP"],
)
def test_what_would_be_decoded_wrongly_is_refused(data):
    with pytest.raises(tf.errors.InvalidArgumentError):
        crops.decode(data)


# Geometry


def test_shorter_sides_are_in_proportion_to_the_crop():
    assert crops.shorter_sides(224) == (256, 480)
    assert crops.shorter_sides(112) == (128, 240)


@pytest.mark.parametrize("height, width, side", [(375, 500, 256), (500, 375, 480), (333, 500, 300), (90, 900, 64)])
def test_resize_shorter_side_against_pillow(height, width, side):
    image = photograph(height, width)
    resized = crops.resize_shorter_side(np.asarray(image), side).numpy()
    shape = [round(length * side / min(height, width)) for length in (height, width)]
    assert resized.dtype == np.float32 and resized.shape == (*shape, 3)
    expected = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR), "float32")
    assert np.abs(resized - expected).max() <= 1.01  # Pillow rounds twice


def test_resize_shorter_side_filters_what_it_shrinks():
    """Stripes of one pixel become grey; without the wider filter they would become other stripes."""
    stripes = np.zeros((90, 90, 3), "uint8")
    stripes[::2] = 255
    assert np.ptp(crops.resize_shorter_side(stripes, 29).numpy()[2:-2].mean((1, 2))) < 40


def test_center_crop_against_pillow():
    image = photograph(151, 200)
    crop = crops.center_crop(np.asarray(image), SMALL).numpy()
    resized = image.resize((round(200 * 73 / 151), 73), Image.Resampling.BILINEAR)
    left, top = (resized.width - SMALL) // 2, (73 - SMALL) // 2
    expected = resized.crop((left, top, left + SMALL, top + SMALL))
    assert np.abs(crop - np.asarray(expected, "float32")).max() <= 1.01


def literal_window(shape, size, side, place):
    """The crop's top, left, bottom and right in pixels of the original, not rounded; and the resized image's shape."""
    resized = [round(length * side / min(shape)) for length in shape]
    corner = [int(p * (length - size + 1)) for p, length in zip(place, resized, strict=True)]
    edges = [(c + s) * old / new for s in (0, size) for c, old, new in zip(corner, shape, resized, strict=True)]
    return edges, resized, corner


def test_the_window_is_the_literal_crops_to_a_pixel():
    rng = np.random.default_rng(0)
    for _ in range(100):
        shape, place = rng.integers(60, 2000, 2), rng.random(2).astype("float32")
        side = rng.integers(256, 481)
        top, left, height, width = crops.crop_window(tf.constant(shape, "int32"), 224, float(side), place).numpy()
        edges, _, _ = literal_window([int(length) for length in shape], 224, int(side), place)
        assert np.abs(np.array([top, left, top + height, left + width]) - edges).max() <= 0.501
        assert top >= 0 and left >= 0 and top + height <= shape[0] and left + width <= shape[1]


def test_the_window_of_a_tiny_image_is_not_empty():
    for place in (0.0, 0.5, 0.999):
        top, left, height, width = crops.crop_window(tf.constant([1, 2]), 224, 256.0, tf.fill([2], place)).numpy()
        assert height == 1 and width >= 1 and top == 0 and left + width <= 2


def test_augment_against_resize_then_crop(photographs_dir):
    """The same random numbers, the whole image resized, then cropped: equal to within half a pixel."""
    rng, differences, two_pixels_off = np.random.default_rng(0), [], []
    for path in folders.list_classes(photographs_dir)[1].paths[::5]:
        data = tf.io.read_file(path)
        side, place, flip = int(rng.integers(256, 481)), rng.random(2).astype("float32"), bool(rng.random() < 0.5)
        shift = rng.normal(size=3).astype("float32")
        crop = imagenet.augment(data, 224, float(side), place, flip, shift).numpy()
        whole = crops.decode(data)
        _, resized, (top, left) = literal_window(whole.shape[:2], 224, side, place)
        literal = tf.image.resize(whole, resized).numpy()[top : top + 224, left : left + 224]
        literal = (literal[:, ::-1] if flip else literal) + shift
        assert crop.shape == (224, 224, 3) and crop.dtype == np.float32
        differences.append(np.abs(crop - literal).mean())
        two_pixels_off.append(np.abs(crop[:-2, :-2] - literal[2:, 2:]).mean())
    assert np.mean(differences) < 3 and np.mean(differences) < 0.4 * np.mean(two_pixels_off)


def test_crops_of_large_photographs_are_filtered():
    """Stripes of one pixel become grey at every size; without the wider filter they would become other stripes."""
    stripes = np.zeros((2400, 2400, 3), "uint8")
    stripes[::2] = 255
    files = [encoded(Image.fromarray(stripes[:size, :size]), "JPEG", quality=95) for size in (540, 900, 1400, 2400)]
    files += [encoded(Image.fromarray(stripes[:900, :900]), "PNG")]
    for data in files:
        crop = crops.cut(data, 224, 256.0, np.array([0.3, 0.6], "float32"), False).numpy()
        assert np.abs(crop - 127.5).max() < 45, tf.io.extract_jpeg_shape(data) if data[:3] == crops.JPEG else "PNG"


@pytest.mark.parametrize("length", [420, 600, 1100, 2300, 4500])
def test_crops_of_large_photographs_are_where_they_should_be(length):
    """At every ratio of the JPEG decoder, on a smooth image, which a filter alone does not change."""
    image = photograph(length, length * 4 // 3)
    data = encoded(image, "JPEG", quality=95)
    place, flip = np.array([0.7, 0.2], "float32"), length % 200 == 0
    crop = crops.cut(data, 224, 256.0, place, flip).numpy()
    _, resized, (top, left) = literal_window((length, length * 4 // 3), 224, 256, place)
    literal = np.asarray(image.resize(resized[::-1], Image.Resampling.BILINEAR), "float32")
    one_off = np.abs(literal[1:] - literal[:-1]).mean()
    literal = literal[top : top + 224, left : left + 224]
    literal = literal[:, ::-1] if flip else literal
    assert np.abs(crop - literal).mean() < 0.75 * one_off + 0.5


# Streams


def test_an_epoch_has_every_example_once_and_a_new_order_each_time(tmp_path):
    labels = [y for _, y in take(small_batches(files_in(tmp_path, 13)), 9)]
    epochs = [np.concatenate(labels[i : i + 3]) for i in (0, 3, 6)]
    for epoch in epochs:
        assert len(set(epoch)) == 12
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8])
def test_a_resumed_stream_is_the_same(tmp_path, step):
    files = files_in(tmp_path)
    whole = take(small_batches(files), step + 4)[step:]
    resumed = take(small_batches(files, first_step=step), 4)
    for (x, y), (other_x, other_y) in zip(whole, resumed, strict=True):
        assert np.array_equal(x, other_x) and np.array_equal(y, other_y)


def test_the_augmentation_depends_on_the_example_and_not_on_the_batch(tmp_path):
    files = files_in(tmp_path)
    in_batches = {tuple(y): x for x, y in take(small_batches(files, batch_size=2), 6)}
    one_by_one = {label: x for labels, images in in_batches.items() for label, x in zip(labels, images, strict=True)}
    for images, labels in take(small_batches(files, batch_size=6), 2):
        for image, label in zip(images, labels, strict=True):
            assert np.array_equal(image, one_by_one[label])


def test_labels_belong_to_images(tmp_path):
    """Each file has one colour, which is its label."""
    for i in range(8):
        Image.new("RGB", (90, 80), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    files = folders.Files([str(tmp_path / f"{i}.png") for i in range(8)], np.arange(8))
    for images, labels in take(small_batches(files, components=None), 4):
        assert np.array_equal(images[..., 0], np.broadcast_to(20.0 * labels[:, None, None], images.shape[:3]))


def ramp_files(folder, n):
    """Files that show where they were cropped: red is the row, green the column."""
    ramp = np.zeros((100, 100, 3), "uint8")
    ramp[..., 0], ramp[..., 1] = np.arange(100, 200)[:, None], np.arange(100, 200)
    Image.fromarray(ramp).save(folder / "ramp.png")
    return folders.Files([str(folder / "ramp.png")] * n, np.zeros(n, "int64"))


def test_scales_places_and_flips_are_drawn_alike(tmp_path):
    ((images, _),) = take(small_batches(ramp_files(tmp_path, 1000), batch_size=1000, components=None), 1)
    flipped = images[:, 0, 0, 1] > images[:, 0, -1, 1]
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(1000)
    windows = images[:, -1, 0, 0] - images[:, 0, 0, 0] + 1  # in the original's pixels
    sides = 100 * SMALL / windows
    assert 72 <= sides.min() < 76 and 132 < sides.max() <= 141
    assert abs(sides.mean() - (73 + 137) / 2) < 3
    for axis in (0, 1):
        begin = images[..., axis].min((1, 2)) - 100
        place = begin / (100 - windows + 1e-6)
        assert place.min() < 0.02 and place.max() > 0.95 and abs(place.mean() - 0.5) < 5 * 0.3 / np.sqrt(1000)


def test_each_augmentation_can_be_switched_off(tmp_path):
    files = ramp_files(tmp_path, 50)
    off = {"scale": False, "crop": False, "flip": False, "components": None}

    def variants(**options):
        ((images, _),) = take(small_batches(files, batch_size=50, **(off | options)), 1)
        return {image.tobytes() for image in images}

    (center,) = variants()
    expected = crops.center_crop(crops.decode(tf.io.read_file(files.paths[0])), SMALL)
    assert np.abs(np.frombuffer(center, "float32").reshape(SMALL, SMALL, 3) - expected).max() < 1.1
    assert len(variants(flip=True)) == 2
    for option in ({"scale": True}, {"crop": True}, {"components": color.IMAGENET}):
        assert len(variants(**option)) > 20


def test_colour_noise_of_the_stream(tmp_path):
    files = ramp_files(tmp_path, 2000)
    still = {"batch_size": 2000, "scale": False, "crop": False, "flip": False, "image_size": 8}
    ((noisy, _),) = take(small_batches(files, **still), 1)
    ((clean, _),) = take(small_batches(files, **still, components=None), 1)
    shifts = noisy - clean
    assert np.ptp(shifts, axis=(1, 2)).max() < 1e-4  # all pixels of an image alike
    values, vectors = color.IMAGENET
    along = shifts[:, 0, 0] @ vectors
    assert np.allclose(along.std(0), 25.5 * values, rtol=0.1) and np.abs(along.mean(0)).max() < 0.6


def test_a_batch_larger_than_the_data(tmp_path):
    with pytest.raises(ValueError, match="12 examples"):
        small_batches(files_in(tmp_path), batch_size=13)


def test_center_batches_have_every_example_once_and_in_order(tmp_path):
    files = files_in(tmp_path)
    batches = take(imagenet.center_batches(files, batch_size=5, image_size=SMALL), -1)
    assert [len(y) for _, y in batches] == [4, 4, 4]
    assert list(np.concatenate([y for _, y in batches])) == list(range(12))
    for path, image in zip(files.paths, np.concatenate([x for x, _ in batches]), strict=True):
        expected = crops.center_crop(crops.decode(tf.io.read_file(path)), SMALL)
        assert np.array_equal(image, expected)


def test_statistics_against_numpy(tmp_path):
    files = files_in(tmp_path, 70)  # more than one batch
    images = np.concatenate([x for x, _ in imagenet.center_batches(files, image_size=SMALL)]).astype("float64")
    mean, components = imagenet.statistics(files, image_size=SMALL, verbose=0)
    assert mean.dtype == np.float32 and np.allclose(mean, images.mean(0), atol=1e-3)
    values, vectors = np.linalg.eigh(np.cov(images.reshape(-1, 3).T, ddof=0) / 255**2)
    assert np.allclose(components.values, values[::-1], rtol=1e-4)
    assert np.allclose(np.abs(vectors[:, ::-1].T @ components.vectors), np.eye(3), atol=1e-3)


# Damaged files


def damage(path, how):
    with open(path, "rb") as file:
        data = file.read()
    changed = {"empty": b"", "truncated": data[: len(data) // 8], "text": b"not found", "header": data[:20]}
    if how == "missing":
        os.remove(path)
    else:
        with open(path, "wb") as file:
            file.write(changed[how])


@pytest.mark.parametrize("how", ["empty", "truncated", "text", "header"])
def test_a_damaged_file_is_named(tmp_path, how):
    files = files_in(tmp_path)
    damage(files.paths[7], how)
    streams = small_batches(files), imagenet.center_batches(files, batch_size=1, image_size=SMALL)
    for stream in (*streams, imagenet.examples(files)):
        with pytest.raises(DataError, match=r"7\.jpg is damaged") as error, imagenet.errors_named():
            take(stream, 12)
        assert str(error.value).startswith(files.paths[7]) and "--skip-damaged" in str(error.value)


def streams(files, skipped=None):
    yield small_batches(files, skipped=skipped)
    yield imagenet.center_batches(files, batch_size=2, image_size=SMALL, skipped=skipped)
    yield imagenet.examples(files, skipped)


def test_names_that_are_hard_to_read(tmp_path):
    files, name = files_in(tmp_path), 'a] b\'s 3% \n"z" \\ 日本'.encode() + b" caf\xe9.JPG"
    files.paths[7] = os.path.join(tmp_path, "b, [x] #1", os.fsdecode(name))
    os.mkdir(os.path.dirname(files.paths[7]))
    photograph().save(files.paths[7], "JPEG")
    for stream in streams(files):
        take(stream, 6)
    damage(files.paths[7], "text")
    for stream in streams(files):
        with pytest.raises(DataError) as error, imagenet.errors_named():
            take(stream, 12)
        assert str(error.value).startswith(f"{files.paths[7]} is damaged")
    for stream in streams(files, skipped := set()):
        take(stream, 12)
        assert skipped == {files.paths[7]}
        skipped.clear()


def test_what_cannot_be_read_is_not_damaged(tmp_path):
    """A folder in place of a file stands for a failing disk; only damaged files are skipped."""
    files = files_in(tmp_path)
    os.remove(files.paths[7])
    for reason in ("No such file", "Is a directory|is a directory"):
        for skipped in (None, set()):
            for stream in streams(files, skipped):
                message = f"7.jpg cannot be read: .*({reason})"
                with pytest.raises(DataError, match=message) as error, imagenet.errors_named():
                    take(stream, 12)
                assert "--skip-damaged does not skip it" in str(error.value)
            assert not skipped
        os.makedirs(files.paths[7], exist_ok=True)


def test_what_failed_once_is_not_damaged(tmp_path):
    """For example because memory was short."""
    files, calls = files_in(tmp_path), []

    def fails_once(path, label):
        failing = tf.numpy_function(lambda: not calls and not calls.append(1), [], tf.bool)
        with tf.control_dependencies([tf.debugging.Assert(~failing, ["no memory"])]):
            return tf.io.read_file(path), label

    object.__setattr__(files, "read", fails_once)
    message = "jpg cannot be read: it failed once and can be read now"
    for stream in streams(files, set()):
        calls.clear()
        with pytest.raises(DataError, match=message), imagenet.errors_named():
            take(stream, 3)  # one of them reads the file that fails


def test_no_files_are_no_examples():
    assert list(imagenet.examples(folders.Files([], np.zeros(0, "int64")))) == []


def test_damaged_files_are_left_out_of_examples(tmp_path):
    files, skipped = files_in(tmp_path), set()
    for number in (0, 5, 11):
        damage(files.paths[number], "text")
    labels = [int(label) for _, label in imagenet.examples(files, skipped)]
    assert labels == [1, 2, 3, 4, 6, 7, 8, 9, 10] and skipped == {files.paths[number] for number in (0, 5, 11)}


def test_the_error_of_a_stream_does_not_keep_it(tmp_path):
    files, kept = files_in(tmp_path), []
    damage(files.paths[7], "text")

    def read(stream):
        kept.append(weakref.ref(stream))
        list(stream)

    for stream in streams(files):
        with pytest.raises(DataError) as error, imagenet.errors_named():
            read(iter(stream))
        assert error.value.__cause__.__traceback__ is not None and kept[-1]() is None


def test_garbage_is_collected_while_an_abandoned_stream_reads(tmp_path):
    """Were it collected by Python within the stream, the stream would wait for itself, and the collector with it."""
    photograph(600, 800).save(tmp_path / "x.jpg")
    files = folders.Files([str(tmp_path / "x.jpg")] * 200, np.zeros(200, "int64"))
    for _ in range(5):
        gc.disable()
        try:
            cycle = [iter(imagenet.examples(files))]
            next(cycle[0])
            cycle.append(cycle)
            del cycle
        finally:
            gc.enable()
        time.sleep(0.2)  # in which only the threads of the stream work
    cycle = [set()]
    cycle.append(cycle)
    kept = weakref.ref(cycle[0])
    del cycle
    gc.collect()
    assert kept() is None


def test_other_errors_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError), imagenet.errors_named():
        tf.io.decode_png("no image")


def test_damaged_files_are_skipped_and_counted(tmp_path):
    files, skipped = files_in(tmp_path), set()
    whole = take(small_batches(files), 6)
    damage(files.paths[7], "truncated")
    damage(files.paths[2], "empty")
    others = take(small_batches(files, skipped=skipped), 6)
    assert skipped == {files.paths[7], files.paths[2]}
    for (x, y), (other_x, other_y) in zip(whole, others, strict=True):
        good = ~np.isin(y, (2, 7))
        assert np.array_equal(x[good], other_x[good]) and np.array_equal(y[good], other_y[good])
        for image, label in zip(other_x[~good], other_y[~good], strict=True):
            assert label not in (2, 7)
            assert np.array_equal(image, x[list(y).index(label)])  # another one of the same batch


def test_damaged_files_are_left_out_of_center_batches(tmp_path):
    files, skipped = files_in(tmp_path), set()
    for path in files.paths[4:7]:
        damage(path, "text")
    batches = take(imagenet.center_batches(files, batch_size=2, image_size=SMALL, skipped=skipped), -1)
    assert [list(y) for _, y in batches] == [[0, 1], [2, 3], [7], [8, 9], [10, 11]]
    assert skipped == set(files.paths[4:7])


def test_a_batch_without_a_single_image(tmp_path):
    files = files_in(tmp_path, 2)
    for path in files.paths:
        damage(path, "text")
    with pytest.raises(DataError, match="no image of a batch can be read"), imagenet.errors_named():
        take(small_batches(files, batch_size=2, skipped=set()), 1)


def test_files_are_read_when_their_batch_is_made(tmp_path):
    """A hundred thousand names of missing files: the stream can be created, and only its batches fail."""
    files = folders.Files([str(tmp_path / f"{i % 100}.jpg") for i in range(100_000)], np.zeros(100_000, "int64"))
    stream = iter(small_batches(files))
    with pytest.raises(DataError, match="jpg cannot be read: .*No such file"), imagenet.errors_named():
        next(stream)
