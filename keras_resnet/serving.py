"""Exports classifiers: SavedModels for TF Serving, and the forms of other runtimes.

A folder NAME/ holds versions, NAME/1, NAME/2 and so on. A server that watches it takes up a new version by itself,
because a version appears whole or not at all. docs/serving.md shows how they are served.
"""

import importlib.metadata
import json
import os
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_resnet import evaluation, formats, origin, signatures
from keras_resnet.data import imagenet
from keras_resnet.folding import fold
from keras_resnet.formats import ExportError
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit

TOP_K = 5
CALIBRATION_IMAGES = 300
DTYPES = ("float32", "bfloat16", "int8")
FORMATS = ("saved_model", *formats.WRITERS)
WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")  # where TF Serving looks for it
ABOUT = "about.json"


def export(
    model, folder, *, classes=None, version=None, format="saved_model", batch_norm="fold", dtype="float32",
    calibration=None, top_k=TOP_K, crop=None, keep=None, about=None,
):  # fmt: skip
    """Writes FOLDER/VERSION/, whole or not at all.

    Args:
        model: a functional `keras.Model`. Input: (batch, height, width, 3), RGB pixels in [0, 255]; a network that was
            built with `normalization` takes them. Output: (batch, classes), probabilities or logits.
        folder: of the versions; its name is the model's name for the server.
        classes: the classes' names; default "0", "1" and so on.
        version: a positive integer that is not there yet; default the next one.
        format: "saved_model", "openvino", "onnx" or "litert".
        batch_norm: "fold" into the convolutions, the same within 1e-5, or "keep".
        dtype: of weights and arithmetic: "float32"; "bfloat16" in a SavedModel; "int8" for OpenVINO and LiteRT, with
            `calibration`.
        calibration: for int8: a `tf.data.Dataset` of images (height, width, 3) of any size, RGB in [0, 255], like those
            that will be seen. The first 300 are cropped as files are, and the ranges of activations are fitted to them.
        top_k: how many classes the answers `classes`, `scores` and `labels` hold.
        crop: size in pixels of the crops that are made of files; default the network's, or 224 where it takes any.
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
    _check_choices(format, batch_norm, dtype, calibration, keep, top_k)
    network, outputs = _check_classifier(model)
    classes = [str(i) for i in range(outputs)] if classes is None else [str(name) for name in classes]
    if len(classes) != outputs:
        raise ExportError(f"{model.name} has {outputs} classes; found {len(classes)} names of classes")
    crop = _crop(model, crop)
    preprocess = signatures.preprocessing(crop)
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
        "classes": classes,
    }
    temporary = _open(folder, version)
    try:
        with recursion_limit(LOADING_DEPTH):
            network = fold(network, "float32" if dtype == "int8" else dtype, batch_norm == "fold")
            if format == "saved_model":
                signatures.save(network, temporary, classes, min(top_k, outputs), preprocess)
                os.makedirs(os.path.join(temporary, os.path.dirname(WARMUP)))
                with tf.io.TFRecordWriter(os.path.join(temporary, WARMUP)) as file:
                    for log in signatures.warmup_requests(os.path.basename(folder), model.input_shape, crop):
                        file.write(log.SerializeToString())
            else:
                images = None if calibration is None else _crops(calibration, preprocess)
                written["largest_difference"] = formats.write(network, temporary, format, crop, images)
        with open(os.path.join(temporary, ABOUT), "w") as file:
            json.dump(written, file, indent=2)
        path = _publish(temporary, folder, version)
    except OSError as error:
        raise ExportError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in versions(folder)[:-keep] if keep else []:
        _remove(folder, old)
    return path


def export_run(path, folder, *, classes=None, crop=None, **options):
    """Exports what `train/fit.py` left, or a `.keras` file.

    Args:
        path: the folder of a finished run, or a `.keras` file.
        folder, options: as for `export`.
        classes, crop: the same; default the run's, the classes those in classes.json beside the model.

    Returns:
        The path of the version, whose about.json names the run, its depth and its error.

    Raises:
        ExportError, evaluation.EvaluationError: there is no such model, or it cannot be exported.
    """
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


def versions(folder):
    """The numbers of the versions in a folder, in ascending order."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(name) for name in names if name.isdecimal())


def _check_choices(format, batch_norm, dtype, calibration, keep, top_k):
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
    for argument, value in (("keep", keep), ("top_k", top_k)):
        if value is not None and value < 1:
            raise ExportError(f"{argument} is positive; found {value}")


def _check_classifier(model):
    """The model with probabilities as output, and the number of its classes."""
    shape, outputs = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 4 and shape[-1] == 3):
        raise ExportError(f"{model.name} has the input shape {shape}; what is exported takes (batch, height, width, 3)")
    if not (isinstance(outputs, tuple) and len(outputs) == 2 and outputs[1]):
        raise ExportError(f"{model.name} is no classifier: its output is {outputs} instead of (batch, classes)")
    with recursion_limit(LOADING_DEPTH):
        probe = np.random.default_rng(0).uniform(0, 255, (1, *(length or 64 for length in shape[1:3]), 3))
        answer = keras.ops.convert_to_numpy(model(probe.astype("float32"), training=False)).astype("float64")
        if not np.isfinite(answer).all():
            raise ExportError(f"{model.name} gives outputs that are not finite; has its training diverged?")
        if not evaluation.are_probabilities(answer):
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


def _open(folder, version):
    """Makes a folder beside the versions that a server does not look at, because its name is no number."""
    if version is not None:
        if version < 1:
            raise ExportError(f"a version is a positive number; found {version}")
        if version in versions(folder):
            raise ExportError(f"{os.path.join(folder, str(version))} exists; a version is never overwritten")
    try:
        os.makedirs(folder, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".unfinished-", dir=folder)
        os.chmod(temporary, 0o755)  # the server is often another user
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error}") from error
    return temporary


def _publish(temporary, folder, version):
    """Renames the folder to its version: the next one, if `version` is None."""
    os.sync()  # so that after a power cut, too, what has its name is whole
    while True:
        path = os.path.join(folder, str(version or max(versions(folder), default=0) + 1))
        try:
            os.rename(temporary, path)
            return path
        except OSError:
            if version or not os.path.exists(path):
                raise
            # Another export has just taken this number.


def _remove(folder, version):
    """A server never sees half a version, neither here."""
    hidden = tempfile.mkdtemp(prefix=".removed-", dir=folder)
    os.rename(os.path.join(folder, str(version)), os.path.join(hidden, str(version)))
    shutil.rmtree(hidden)


def _origin():
    """Who wrote this: the git commit, None outside of a repository, and the versions of packages."""
    names = ("keras-deep-residual", "keras", "tensorflow")
    return {"git_commit": origin.commit(), "versions": {name: importlib.metadata.version(name) for name in names}}


def _read_json(path):
    if not os.path.exists(path):
        return {}
    try:
        with open(path) as file:
            return json.load(file)
    except ValueError as error:
        raise ExportError(f"{path} is damaged: {error}") from error
