"""Exports classifiers: SavedModels for TF Serving, and the forms of other runtimes.

A folder NAME/ holds versions, NAME/1, NAME/2 and so on. A server that watches it takes up a new version by itself,
because a version appears whole or not at all. docs/serving.md shows how they are served.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile
import time
import typing
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_resnet import evaluation, origin
from keras_resnet.data import imagenet
from keras_resnet.files import Path
from keras_resnet.graphs import LOADING_DEPTH, fold, recursion_limit
from keras_resnet.serving import formats, signatures, web
from keras_resnet.serving.formats import ExportError
from keras_resnet.weights.published import find

TOP_K = 5
CALIBRATION_IMAGES = 300
DTYPES = ("float32", "bfloat16", "int8")
FORMATS = ("saved_model", *formats.WRITERS, "web")
WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")  # where TF Serving looks for it
ABOUT = "about.json"
UNFINISHED, REMOVED = ".unfinished-", ".removed-"  # names of folders that no server looks at
NEW = 60  # seconds in which a new unfinished folder becomes a locked one
LAST_VERSION = 2**63 - 1  # a server counts in int64


def export(
    model: keras.Model, folder: Path, *, classes: Sequence[str] | None = None, version: int | None = None,
    format: str = "saved_model", batch_norm: str = "fold", dtype: str = "float32",
    calibration: tf.data.Dataset | None = None, top_k: int = TOP_K, crop: int | None = None,
    max_pixels: int = signatures.MAX_PIXELS, keep: int | None = None, about: dict | None = None,
) -> str:  # fmt: skip
    """Writes FOLDER/VERSION/, whole or not at all.

    Args:
        model: a functional `keras.Model`. Input: (batch, height, width, 3), RGB pixels in [0, 255]; a network that was
            built with `normalization` takes them. Output: (batch, classes), probabilities or logits, to which a
            softmax is added. The outputs of sigmoids are served as they are, as `probabilities`.
        folder: of the versions; its name is the model's name for the server.
        classes: the classes' names; default "0", "1" and so on.
        version: an integer from 1 to 2^63 - 1 that is not there yet; default the next one.
        format: "saved_model", "openvino", "onnx", "litert", or "web": a page in which a network for small images runs.
        batch_norm: "fold" into the convolutions, the same within 1e-5, or "keep".
        dtype: of weights and arithmetic: "float32"; "bfloat16" in a SavedModel; "int8" for OpenVINO and LiteRT, with
            `calibration`.
        calibration: for int8: a `tf.data.Dataset` of images (height, width, 3) of any size, RGB in [0, 255], like those
            that will be seen. The first 300 are cropped as files are, and the ranges of activations are fitted to them.
        top_k: how many classes the answers `classes`, `scores` and `labels` hold.
        crop: size in pixels of the crops that are made of files; default the network's, or 224 where it takes any.
        max_pixels: of a file that a SavedModel is sent. A larger image is refused before it is decoded, which takes
            three bytes a pixel.
        keep: how many versions to keep, the newest ones; default all.
        about: a dictionary of what else is to stand in VERSION/about.json.

    Returns:
        The path of the version. A SavedModel has the signatures `serving_default` (input `images`, float32, any batch
        size), `predict_uint8` (the same in uint8), `predict_bytes` (input `image_bytes`, the contents of JPEG or PNG
        files) and `classify` (tf.Examples with the feature "image/encoded"). They answer `probabilities`
        (batch, classes) and, of the `top_k` most probable, `classes`, `scores` and `labels` (batch, top_k).

    Raises:
        ExportError: the model is no classifier, the folder cannot be written, or an argument is out of range.
    """
    folder = os.path.abspath(folder)
    _check_choices(format, batch_norm, dtype, calibration, keep=keep, top_k=top_k, max_pixels=max_pixels)
    network, outputs = _check_classifier(model)
    classes = [str(i) for i in range(outputs)] if classes is None else [str(name) for name in classes]
    if len(classes) != outputs:
        raise ExportError(f"{model.name} has {outputs} classes; found {len(classes)} names of classes")
    crop = _crop(model, crop)
    preprocess = signatures.preprocessing(crop)
    images = None if calibration is None else _crops(calibration, preprocess)
    written = {
        **_origin(),
        **(about or {}),
        "model": model.name,
        "parameters": int(sum(np.prod(variable.shape) for variable in model.trainable_variables)),
        "format": format,
        "batch_norm": batch_norm,
        "dtype": dtype,
        "input_shape": model.input_shape,
        "preprocessing": preprocess._asdict(),
        "max_pixels": max_pixels,
        "classes": classes,
    }
    if format == "web":  # what a page cannot express is refused before anything is written
        page, written["largest_difference"] = web.page(network, classes, crop, written, batch_norm == "fold")
    with _unfinished(folder, version) as (temporary, file):
        with recursion_limit(LOADING_DEPTH):
            copy = fold(network, "float32" if dtype == "int8" else dtype, batch_norm == "fold")
            if format == "saved_model":
                top_k = min(top_k, outputs)
                written["signatures"] = signatures.save(copy, temporary, classes, top_k, preprocess, max_pixels)
                os.makedirs(os.path.join(temporary, os.path.dirname(WARMUP)))
                with tf.io.TFRecordWriter(os.path.join(temporary, WARMUP)) as requests:
                    for log in signatures.warmup_requests(os.path.basename(folder), model.input_shape, crop):
                        requests.write(log.SerializeToString())
            elif format == "web":
                pathlib.Path(temporary, web.NAME).write_text(page, "utf-8")
            else:
                written["largest_difference"] = formats.write(copy, network, temporary, format, crop, images)
        json.dump(written, file, indent=2)
        file.flush()
        path = _publish(temporary, folder, version)
    for old in versions(folder)[:-keep] if keep else []:
        _remove(folder, old)
    return path


def export_run(
    path: Path, folder: Path, *, classes: Sequence[str] | None = None, crop: int | None = None, **options: typing.Any,
) -> str:  # fmt: skip
    """Exports what `train/fit.py` left, or a `.keras` file.

    Args:
        path: the folder of a finished run, a `.keras` file, or the name of a network in the package.
        folder, options: as for `export`.
        classes, crop: the same; default the run's, the classes those in classes.json beside the model.

    Returns:
        The path of the version, whose about.json names the run, its depth and its error.

    Raises:
        ExportError, evaluation.EvaluationError: there is no such model, or it cannot be exported.
    """
    path = find(path)
    model = evaluation.load_model(path)
    about = {"source": os.path.abspath(path)}
    if os.path.isdir(path):
        settings, result = (_read_json(os.path.join(path, f"{name}.json")) for name in ("args", "result"))
        if model.input_shape[1] is None:
            crop = crop or settings.get("image_size")
        about |= {"depth": settings.get("depth"), "data": settings.get("dataset")}
        about |= {name: result.get(name) for name in ("test_error", "val_error")}
    classes = classes or evaluation.class_names(path)
    return export(model, folder, classes=classes, crop=crop, about=about, **options)


def versions(folder: Path) -> list[int]:
    """The numbers of the versions in a folder, in ascending order."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(name) for name in names if name.isdecimal())


def _check_choices(format, batch_norm, dtype, calibration, **positive):
    for argument, value, choices in (
        ("format", format, FORMATS),
        ("batch_norm", batch_norm, ("fold", "keep")),
        ("dtype", dtype, DTYPES),
    ):
        if value not in choices:
            raise ExportError(f"{argument} is one of {', '.join(choices)}; found {value!r}")
    if dtype == "int8" and format not in formats.QUANTIZED:
        raise ExportError(f"int8 is for the formats {' and '.join(formats.QUANTIZED)}; found {format}")
    if dtype == "bfloat16" and format != "saved_model":
        raise ExportError(
            f"bfloat16 is for saved_model; {format} stays float32, and its runtime chooses the arithmetic"
        )
    if (dtype == "int8") != (calibration is not None):
        raise ExportError("int8 is fitted to images that are given for calibration; another dtype takes none")
    for argument, value in positive.items():
        if value is not None and value < 1:
            raise ExportError(f"{argument} is positive; found {value}")


def _check_classifier(model):
    """The model with probabilities as output, and the number of its classes."""
    shape, outputs = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 4 and shape[-1] == 3):
        raise ExportError(f"{model.name} has the input shape {shape}; what is exported takes (batch, height, width, 3)")
    if not (isinstance(outputs, tuple) and len(outputs) == 2 and outputs[1]):
        raise ExportError(f"{model.name} is no classifier: its output is {outputs} instead of (batch, classes)")
    try:
        logits = evaluation.gives_logits(model)
    except evaluation.EvaluationError as error:
        raise ExportError(str(error)) from error
    if logits and outputs[1] == 1:
        raise ExportError(f"{model.name} has one linear output; the softmax of one class is always 1")
    with recursion_limit(LOADING_DEPTH):
        probe = np.random.default_rng(0).uniform(0, 255, (1, *(length or 64 for length in shape[1:3]), 3))
        answer = keras.ops.convert_to_numpy(model(probe.astype("float32"), training=False)).astype("float64")
        if not np.isfinite(answer).all():
            raise ExportError(f"{model.name} gives outputs that are not finite; has its training diverged?")
        if logits:
            softmax = layers.Softmax(dtype="float32", name="probabilities")(model.outputs[0])
            model = keras.Model(model.inputs[0], softmax, name=model.name)
    return model, outputs[1]


def _crop(model, crop):
    height, width = model.input_shape[1:3]
    if height != width:
        raise ExportError(f"{model.name} takes images of {height}x{width}; files are cropped to squares")
    if crop is not None and (crop < 1 or height not in (None, crop)):
        size = "a positive number" if height is None else f"{height}, the size that {model.name} takes"
        raise ExportError(f"crop is {size}; found {crop}")
    return crop or height or imagenet.IMAGE_SIZE


def _crops(images, preprocess):
    """The first images of a data set as the network sees them: float32 (n, crop, crop, 3)."""
    side, crop, _ = preprocess
    crops = images.take(CALIBRATION_IMAGES).map(lambda image: imagenet.center_crop(image, crop, side))
    crops = list(crops.as_numpy_iterator())
    if not crops:
        raise ExportError("there are no images for calibration")
    return np.stack(crops)


@contextlib.contextmanager
def _unfinished(folder, version):
    """A folder beside the versions that a server does not look at, because its name is no number, and its about.json.

    The file is locked as long as it is open, so that another export knows that this one is running. What remains of
    the folder in the end is removed.
    """
    if version is not None:
        if not 1 <= version <= LAST_VERSION:
            raise ExportError(f"a version is a number from 1 to {LAST_VERSION}; found {version}")
        if version in versions(folder):
            raise ExportError(f"{os.path.join(folder, str(version))} exists; a version is never overwritten")
    new = [path for path in (folder, *pathlib.Path(folder).parents) if not os.path.exists(path)]
    try:
        os.makedirs(folder, exist_ok=True)
        _remove_left_over(folder)
        temporary = tempfile.mkdtemp(prefix=UNFINISHED, dir=folder)
        os.chmod(temporary, 0o755)  # the server is often another user
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error}") from error
    try:
        with open(os.path.join(temporary, ABOUT), "w") as file:
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield temporary, file
    except (OSError, tf.errors.OpError) as error:
        free = shutil.disk_usage(folder).free / 1e6
        reason = str(error).splitlines()[0]
        raise ExportError(f"{folder} could not be written, {free:.1f} MB are free there: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in new:
            with contextlib.suppress(OSError):
                os.rmdir(path)  # which is empty, if nothing was published


def _remove_left_over(folder):
    """Removes what exports and removals that were killed have left; not what is locked, or about to be."""
    for entry in os.scandir(folder):
        if entry.name.startswith(REMOVED):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.startswith(UNFINISHED):
            with contextlib.suppress(OSError):  # locked, or there are no locks
                if time.time() - entry.stat().st_mtime > NEW:
                    with open(os.path.join(entry, ABOUT), "a") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(entry)


def _publish(temporary, folder, version):
    """Renames the folder to its version: the next one, if `version` is None."""
    os.sync()  # so that after a power cut, too, what has its name is whole
    while True:
        number = version or max(versions(folder), default=0) + 1
        if number > LAST_VERSION:
            raise ExportError(f"{folder} holds the last version, {LAST_VERSION}; give a version that is free")
        path = os.path.join(folder, str(number))
        try:
            os.rename(temporary, path)
            return path
        except OSError:
            if version or not os.path.exists(path):
                raise
            # Another export has just taken this number.


def _remove(folder, version):
    """A server never sees half a version, neither here."""
    hidden = tempfile.mkdtemp(prefix=REMOVED, dir=folder)
    os.rename(os.path.join(folder, str(version)), os.path.join(hidden, str(version)))
    shutil.rmtree(hidden, ignore_errors=True)


def _origin():
    """Who wrote this: the git commit, None outside of a repository, and the versions of packages."""
    own = "keras-deep-residual"
    # TensorFlow's distribution has other names, too: tensorflow-cpu, tf-nightly.
    versions = {own: importlib.metadata.version(own), "keras": keras.__version__, "tensorflow": tf.__version__}
    return {"git_commit": origin.commit(), "versions": versions}


def _read_json(path):
    if not os.path.exists(path):
        return {}
    try:
        with open(path) as file:
            return json.load(file)
    except ValueError as error:
        raise ExportError(f"{path} is damaged: {error}") from error
