"""The formats of other runtimes, OpenVINO, ONNX and LiteRT, by Keras' own exporters; two of them also in int8."""

import errno
import os

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import environment
from keras_resnet.files import Path, ResNetError, reason

TOLERANCE = 1e-4  # of probabilities in float32
ROUGH = 0.1  # where the network itself computes in 16 bits
CHECKED_IN = "float32"  # unless it is int8; OpenVINO's default is bfloat16 if the processor has it
INPUT, OUTPUT, AXES = "images", "probabilities", ("batch", "height", "width")  # as in a SavedModel


class ExportError(ResNetError):
    """The model cannot be exported."""


def write(
    model: keras.Model, original: keras.Model, folder: Path, format: str, crop: int,
    calibration: np.ndarray | None = None,
) -> float | None:  # fmt: skip
    """Writes the model and, if the runtime is installed, compares its outputs with the original's.

    Args:
        model: a `keras.Model` from float32 (batch, height, width, 3) to probabilities (batch, classes).
        original: the network; `model` is its copy for inference.
        folder: where model.xml and model.bin, model.onnx or model.tflite go.
        format: "openvino", "onnx" or "litert".
        crop: size of images, in pixels, if the network takes any.
        calibration: None, or float32 (n, height, width, 3): the images for the ranges of int8.

    Returns:
        The largest difference of a probability, for noise or the first images of `calibration`; None without the
        runtime.

    Raises:
        ExportError: the exporter of this format is not installed or cannot write this model, or the runtime's outputs
            differ.
        OSError: the folder cannot be written.
    """
    size = [length or crop for length in model.input_shape[1:3]]
    path = os.path.join(folder, NAMES[format])
    images = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)) if calibration is None else calibration[:2]
    images = images.astype("float32")
    expected = original.predict_on_batch(images)
    model.predict_on_batch(images)  # because Keras exports only called models to ONNX
    named = keras.Model(model.inputs[0], {OUTPUT: model.outputs[0]}, name=model.name)
    try:
        WRITERS[format](named, path, size, calibration)
    except ImportError as error:
        raise ExportError(f"{format} {environment.needed(*PACKAGES[format]) or error}") from error
    except RuntimeError as error:
        if "iostream" in str(error):  # OpenVINO's words for a full disk
            raise OSError(errno.EIO, f"{NAMES[format]} could not be written, as on a full disk") from error
        raise ExportError(f"{model.name} cannot be written as {format}: {reason(error)}") from error
    try:
        answers = RUNNERS[format](path, images)
    except ImportError:
        return None
    if answers.shape != expected.shape:
        raise ExportError(f"{model.name} in {format} returns {answers.shape} instead of {expected.shape}")
    difference = float(np.abs(answers - expected).max())
    short = any(layer.compute_dtype in ("float16", "bfloat16") for layer in original._flatten_layers())
    most = 1 if calibration is not None else ROUGH if short else TOLERANCE
    if not difference <= most:  # also if it is NaN
        raise ExportError(f"{model.name} in {format} differs from the network by {difference:.1e}, more than {most}")
    return difference


def _signature(size):
    return [tf.TensorSpec((None, *size, 3), "float32", INPUT)]


def _write_openvino(model, path, size, calibration):
    import openvino

    options = {"format": "openvino", "input_signature": _signature(model.input_shape[1:3]), "verbose": False}
    if calibration is None:
        model.export(path, **options)
        return
    import nncf

    unquantized = os.path.join(os.path.dirname(path), "unquantized.xml")
    model.export(unquantized, **options)
    images = nncf.Dataset([image[None] for image in calibration])
    quantized = nncf.quantize(openvino.Core().read_model(unquantized), images, subset_size=len(calibration))
    openvino.save_model(quantized, path, compress_to_fp16=False)
    for ending in (".xml", ".bin"):
        os.remove(unquantized.replace(".xml", ending))


def _run_openvino(path, images):
    import openvino

    precise = {"INFERENCE_PRECISION_HINT": "f32"}  # not stored in a model: an option of compile_model alone
    return openvino.compile_model(path, "CPU", precise)({INPUT: images})[OUTPUT]


def _write_onnx(model, path, size, calibration):
    import onnx

    model.export(path, format="onnx", input_signature=_signature(model.input_shape[1:3]), verbose=False)
    written = onnx.load(path)
    for tensor in (*written.graph.input, *written.graph.output):
        for axis, name in zip(tensor.type.tensor_type.shape.dim, AXES, strict=False):
            if not axis.dim_value:  # any length
                axis.dim_param = name
    onnx.save(written, path)


def _run_onnx(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: images})[0]


def _write_litert(model, path, size, calibration):
    options = {"input_signature": _signature(size)}  # LiteRT's convolutions need a fixed size
    if calibration is not None:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
        options["representative_dataset"] = lambda: ([image[None]] for image in calibration)
    model.export(path, format="litert", verbose=False, **options)


def _run_litert(path, images):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(path).get_signature_runner()(**{INPUT: images})[OUTPUT]


NAMES = {"openvino": "model.xml", "onnx": "model.onnx", "litert": "model.tflite"}
PACKAGES = {"openvino": ("openvino", "nncf"), "onnx": ("tf2onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}
WRITERS = {"openvino": _write_openvino, "onnx": _write_onnx, "litert": _write_litert}
RUNNERS = {"openvino": _run_openvino, "onnx": _run_onnx, "litert": _run_litert}
QUANTIZED = ("openvino", "litert")
