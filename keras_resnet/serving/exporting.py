"""Exports classifiers: SavedModels for TF Serving, and the formats of other runtimes.

A folder NAME/ holds versions, NAME/1, NAME/2 and so on. A server that watches the folder can load a new version by
itself, because a version appears whole or not at all. docs/serving.md shows how to serve them.
"""

import json
import os
import pathlib
import typing
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_resnet import analysis, environment, evaluation
from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.choices import DTYPES, FORMATS, TOP_K
from keras_resnet.data import crops
from keras_resnet.files import Path
from keras_resnet.graphs import LOADING_DEPTH, copy, fold, recursion_limit
from keras_resnet.runs import Run
from keras_resnet.serving import formats, publishing, signatures, web
from keras_resnet.serving.formats import ExportError

CALIBRATION_IMAGES = 300
WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")  # where TF Serving looks for it
ABOUT = "about.json"


def export(
    model: keras.Model, folder: Path, *, classes: Sequence[str] | None = None, version: int | None = None,
    format: str = "saved_model", batch_norm: str = "fold", dtype: str = "float32",
    calibration: tf.data.Dataset | None = None, top_k: int = TOP_K, crop: int | None = None,
    shorter_side: int | None = None, max_pixels: int = signatures.MAX_PIXELS, range_check: bool = True,
    keep: int | None = None, about: dict | None = None,
) -> str:  # fmt: skip
    """Writes FOLDER/VERSION/, whole or not at all.

    Args:
        model: a functional `keras.Model`. Input: (batch, height, width, 3), RGB pixels in [0, 255]; a network that was
            built with `normalization` takes them. Output: (batch, classes), probabilities or logits, to which a
            softmax is added. The outputs of sigmoids are served unchanged, as `probabilities`.
        folder: for the versions; its name is the model's name on the server.
        classes: the classes' names; default "0", "1" and so on.
        version: an integer from 1 to 2^63 - 1 that does not exist yet; default the next one.
        format: "saved_model", "openvino", "onnx", "litert", or "web": a page that runs a network for small images.
        batch_norm: "fold" into the convolutions (the outputs are the same within 1e-5), or "keep".
        dtype: of weights and arithmetic: "float32"; "bfloat16" in a SavedModel; "int8" for OpenVINO and LiteRT, with
            `calibration`.
        calibration: for int8: a `tf.data.Dataset` of images (height, width, 3) of any size, RGB in [0, 255], like those
            to be classified. The first 300, cropped as files are, determine the ranges of the activations.
        top_k: the number of classes in the outputs `classes`, `scores` and `labels`.
        crop: size in pixels to which images from files are cropped; default the network's, or 224 if it takes any.
        shorter_side: size in pixels to which the shorter side of images from files is resized before the center is
            cropped; default 256/224 of `crop` or, up to 64, `crop` itself, as in CIFAR's test.
        max_pixels: limit for files sent to a SavedModel. A larger image is rejected before it is decoded, which takes
            three bytes a pixel.
        range_check: whether a SavedModel rejects float32 images with pixels outside of [0, 255], or with none above 1,
            which were probably divided by 255 (black images pass). False for a network that takes other pixels.
        keep: how many versions to keep, those with the highest numbers; default all.
        about: a dictionary of additional entries of VERSION/about.json.

    Returns:
        The path of the version. A SavedModel has the signatures `serving_default` (input `images`, float32, any batch
        size), `predict_uint8` (the same in uint8), `predict_bytes` (input `image_bytes`, the contents of JPEG or PNG
        files) and `classify` (tf.Examples with the feature "image/encoded"). They return `probabilities`
        (batch, classes) and, for the `top_k` most probable, `classes`, `scores` and `labels` (batch, top_k).

    Raises:
        ExportError: the model is not a classifier, the folder cannot be written, or an argument is out of range.
    """
    folder = os.path.abspath(folder)
    _check_choices(format, batch_norm, dtype, calibration, keep=keep, top_k=top_k, max_pixels=max_pixels)
    publishing.check(folder, version, keep)
    network, outputs = _check_classifier(model)
    classes = [str(i) for i in range(outputs)] if classes is None else [str(name) for name in classes]
    if len(classes) != outputs:
        raise ExportError(f"{model.name} has {outputs} classes; found {len(classes)} class names")
    crop = _crop(model, crop)
    preprocess = signatures.preprocessing(crop, shorter_side)
    images = None if calibration is None else _crops(calibration, preprocess)
    written = {
        **_origin(),
        **(about or {}),
        "model": model.name,
        "parameters": analysis.count_parameters(model),
        "format": format,
        "batch_norm": batch_norm,
        "dtype": dtype,
        "input_shape": network.input_shape,
        "input_range": signatures.RANGE if range_check else None,
        "preprocessing": preprocess._asdict(),
        "max_pixels": max_pixels,
        "classes": classes,
    }
    if format == "web":  # a network that the page does not support is rejected before anything is written
        page, written["largest_difference"] = web.page(network, classes, crop, written, batch_norm == "fold")
    with publishing.unfinished(folder) as temporary:
        with recursion_limit(LOADING_DEPTH):
            folded = lambda: fold(network, "float32" if dtype == "int8" else dtype, batch_norm == "fold")
            if format == "saved_model":
                top_k = min(top_k, outputs)
                written["signatures"] = signatures.save(
                    folded(), temporary, classes, top_k, preprocess, max_pixels, range_check
                )
                if not environment.lacks("tensorflow_serving", "file of warm-up requests"):
                    os.makedirs(os.path.join(temporary, os.path.dirname(WARMUP)))
                    with tf.io.TFRecordWriter(os.path.join(temporary, WARMUP)) as requests:
                        for log in signatures.warmup_requests(os.path.basename(folder), network.input_shape, crop):
                            requests.write(log.SerializeToString())
            elif format == "web":
                pathlib.Path(temporary, web.NAME).write_text(page, "utf-8")
            else:
                written["largest_difference"] = formats.write(folded(), network, temporary, format, crop, images)
                written["checked_in"] = None if written["largest_difference"] is None else formats.CHECKED_IN
        with open(os.path.join(temporary, ABOUT), "w") as file:
            json.dump(written, file, indent=2)
        path = publishing.publish(temporary, folder, version)
    if keep:
        publishing.keep(folder, keep)
    return path


def export_run(
    path: Path, folder: Path, *, classes: Sequence[str] | None = None, crop: int | None = None, **options: typing.Any,
) -> str:  # fmt: skip
    """Exports a run of `train/fit.py`, or a `.keras` file.

    Args:
        path: the folder of a finished run, a `.keras` file, or the name of a network in the package.
        folder, options: as for `export`.
        classes, crop: the same; default the run's (the classes in classes.json beside the model).

    Returns:
        The path of the version, whose about.json names the run, its depth and its error.

    Raises:
        RunError: the model does not exist, or it or another file of its run is damaged.
        ExportError: it cannot be exported.
    """
    run = Run(path)
    about: dict = {"source": os.path.abspath(run.found)}
    if os.path.isdir(run.found):
        about |= {"depth": run.settings.get("depth"), "data": run.settings.get("dataset")}
        about |= {name: run.result.get(name) for name in ("test_error", "val_error")}
    classes, crop = classes or run.classes, crop or run.crop
    if run.imagenet_style and crop:  # as the run was tested, whatever the size
        options = {"shorter_side": crops.shorter_sides(crop)[0], **options}
    return export(run.load_model(), folder, classes=classes, crop=crop, about=about, **options)


def _check_choices(format, batch_norm, dtype, calibration, **positive):
    for argument, value, choices in (
        ("format", format, FORMATS),
        ("batch_norm", batch_norm, ("fold", "keep")),
        ("dtype", dtype, DTYPES),
    ):
        if value not in choices:
            raise ExportError(f"{argument} is one of {', '.join(choices)}; found {value!r}")
    if format != "web" and (backend := keras.backend.backend()) != "tensorflow":
        raise ExportError(
            f"{format} is exported on the backend tensorflow; found {backend}. Save the network as .keras, and run "
            "python train/export.py FILE.keras"
        )
    if dtype == "int8" and format not in formats.QUANTIZED:
        raise ExportError(f"int8 is for the formats {' and '.join(formats.QUANTIZED)}; found {format}")
    if dtype == "bfloat16" and format != "saved_model":
        raise ExportError(
            f"bfloat16 is for saved_model; {format} stays float32, and its runtime chooses the arithmetic"
        )
    if (dtype == "int8") != (calibration is not None):
        raise ExportError("int8 needs images for calibration; other dtypes take none")
    for argument, value in positive.items():
        if value is not None and value < 1:
            raise ExportError(f"{argument} is positive; found {value}")


def _check_classifier(model):
    """The model with probabilities as output, and the number of its classes."""
    shape, outputs = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 4 and shape[-1] == 3):
        raise ExportError(f"{model.name} has the input shape {shape}; exported models take (batch, height, width, 3)")
    if not (isinstance(outputs, tuple) and len(outputs) == 2 and outputs[1]):
        raise ExportError(f"{model.name} is not a classifier: its output is {outputs} instead of (batch, classes)")
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
        if shape[0] is not None:  # servers send batches of any size
            model = copy(model, inputs=lambda tensor: keras.Input(tensor.shape[1:], dtype=tensor.dtype))
    return model, outputs[1]


def _crop(model, crop):
    height, width = model.input_shape[1:3]
    if height != width:
        raise ExportError(f"{model.name} takes images of {height}x{width}, but files are cropped to squares")
    if crop is not None and (crop < 1 or height not in (None, crop)):
        size = "a positive number" if height is None else f"{height}, the size that {model.name} takes"
        raise ExportError(f"crop is {size}; found {crop}")
    return crop or height or IMAGE_SIZE


def _crops(images, preprocess):
    """The first images of a data set as the network sees them: float32 (n, crop, crop, 3)."""
    side, crop, _ = preprocess
    found = images.take(CALIBRATION_IMAGES).map(lambda image: crops.center_crop(image, crop, side))
    found = list(found.as_numpy_iterator())
    if not found:
        raise ExportError("there are no images for calibration")
    return np.stack(found)


def _origin():
    """What wrote an export: the git commit, None outside of a repository, and the versions of packages."""
    own = {"keras-deep-residual": environment.__version__}
    versions = {**own, "keras": keras.__version__, "tensorflow": tf.__version__}
    return {"git_commit": environment.commit(), "versions": versions}
