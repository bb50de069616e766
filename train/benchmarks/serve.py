"""ResNet-50 when served: our exports against keras.applications' own, with the same options and random weights.

SavedModels run in a session of TensorFlow's C++ runtime, as in TF Serving, without a network connection. TensorFlow
reads its environment at startup: variants that need other variables run in processes of their own, in the same rounds.
"""

import concurrent.futures
import multiprocessing
import os
import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import keras_resnet
from keras_resnet import serving
from keras_resnet.architecture import IMAGE_SIZE

try:
    import torch
    from benchmarks import torch_networks
except ImportError:
    torch = None

SIZE = IMAGE_SIZE
HEIGHT, WIDTH = 375, 500  # of the image files that are sent, as of many in ImageNet
PAUSE = 0.1  # seconds, until the threads of the previous variant are idle
FROZEN = {"TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1"}
BF16 = {"TF_SET_ONEDNN_FPMATH_MODE": "BF16"}


def session(path, signature="serving_default"):
    """A function from the signature's input to its outputs."""
    tf.get_logger().setLevel("ERROR")  # it warns that the next function is deprecated; no other loads into a session
    graph = tf.Graph()
    running = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        meta = tf.compat.v1.saved_model.load(running, ["serve"], path)
    found = meta.signature_def[signature]
    (inputs,) = found.inputs.values()
    return running.make_callable([info.name for info in found.outputs.values()], [inputs.name])


def timed(work):
    """A function from `work`'s argument to the seconds that it takes."""

    def seconds(argument):
        begin = time.perf_counter()
        work(argument)
        return time.perf_counter() - begin

    return seconds


def timed_elsewhere(path, variables):
    """The same for a SavedModel's session in a process with these environment variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    process = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _load, [path])
    process.submit(_call, np.zeros((1, SIZE, SIZE, 3), "float32")).result()  # waits until it has started
    for name in variables.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    return lambda images: process.submit(_call, images).result()


def _load(path):
    global _loaded  # of the process
    _loaded = timed(session(path))


def _call(images):
    return _loaded(images)


def openvino_request(path, precision=None):
    import openvino

    options = {"PERFORMANCE_HINT": "LATENCY"}
    if precision:
        options["INFERENCE_PRECISION_HINT"] = precision
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda images: request.infer([images])


def onnxruntime_session(path):
    import onnxruntime

    running = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = running.get_inputs()[0].name
    return lambda images: running.run(None, {name: images})


def torch_network():
    """The same network in PyTorch: channels last, frozen, with folded batch normalisation."""
    network = torch.nn.Sequential(torch_networks.network(50), torch.nn.Softmax(1)).eval()
    example = torch.zeros(1, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():  # freezing folds batch normalisation into the convolutions
        network = torch.jit.freeze(torch.jit.trace(network, example))

    def run(images):
        with torch.inference_mode():
            return network(torch.from_numpy(images).permute(0, 3, 1, 2))

    return run


def rivals(folder):
    """Functions from images, float32 (batch, 224, 224, 3), to seconds, by name; the first is the baseline."""
    keras.applications.ResNet50(weights=None).export(f"{folder}/applications", verbose=False)
    model = keras_resnet.ResNet50(input_shape=(SIZE, SIZE, 3))
    works = {"keras.applications, SavedModel": timed(session(f"{folder}/applications"))}
    noise = np.random.default_rng(0).uniform(0, 255, (16, SIZE, SIZE, 3)).astype("float32")
    exports = (
        ("SavedModel, not folded", {"batch_norm": "keep"}, session),
        ("SavedModel, float32", {}, session),
        ("SavedModel, bfloat16", {"dtype": "bfloat16"}, session),
        ("OpenVINO, float32", {"format": "openvino"}, lambda path: openvino_request(f"{path}/model.xml", "f32")),
        ("OpenVINO, bfloat16", {"format": "openvino"}, lambda path: openvino_request(f"{path}/model.xml", "bf16")),
        (
            "OpenVINO, int8",
            {"format": "openvino", "dtype": "int8", "calibration": tf.data.Dataset.from_tensor_slices(noise)},
            lambda path: openvino_request(f"{path}/model.xml"),
        ),
        ("ONNX Runtime, float32", {"format": "onnx"}, lambda path: onnxruntime_session(f"{path}/model.onnx")),
    )
    for name, options, load in exports:
        try:
            works[name] = timed(load(serving.export(model, f"{folder}/{name}", **options)))
        except (ImportError, serving.ExportError) as error:
            print(f"without {name}: {error}")
        if session is load and options.get("batch_norm") != "keep":
            for words, variables in (("frozen", FROZEN), ("BF16", BF16), ("both", FROZEN | BF16)):
                works[f"{name}, {words}"] = timed_elsewhere(f"{folder}/{name}/1", variables)
    if torch:
        torch.set_num_threads(os.cpu_count())
        works[f"PyTorch {torch.__version__}, folded, channels last"] = timed(torch_network())
    return works


def turns(works, rounds):
    """Seconds of each (function, argument), called one after the other in each round.

    The functions return their seconds.
    """
    seconds = {name: [] for name in works}
    for round in range(rounds + 1):
        for name, (work, argument) in works.items():
            time.sleep(PAUSE)
            took = work(argument)
            if round:  # the first is a warm-up
                seconds[name].append(took)
    return seconds


def measure(options):
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        works = rivals(folder)
        files = [
            tf.io.encode_jpeg(tf.cast(tf.image.resize(noise, (HEIGHT, WIDTH)), "uint8")).numpy()
            for noise in rng.uniform(0, 255, (8, 30, 40, 3))
        ]
        floats, path = works["SavedModel, float32"], f"{folder}/SavedModel, float32/1"
        by_bytes = timed(session(path, "predict_bytes"))
        for size in (1, 8):
            images = rng.uniform(0, 255, (size, SIZE, SIZE, 3)).astype("float32")
            seconds = turns({name: (work, images) for name, work in works.items()}, options.rounds)
            print(f"\nResNet-50, batch {size}, medians of {options.rounds} rounds, {os.cpu_count()} cores")
            print("speed-up over the first row and over OpenVINO (bfloat16 or else float32), higher is better")
            print(f"{'':<46}{'ms':>8}{'images/s':>11}{'over the first':>19}{'over OpenVINO':>18}")
            for name, values in seconds.items():
                of_type = seconds.get("OpenVINO, bfloat16" if "bfloat16" in name else "OpenVINO, float32")
                first, openvino = (
                    f"{statistics.median(a / b for a, b in zip(others, values, strict=True)):.2f}" if others else ""
                    for others in (next(iter(seconds.values())), of_type)
                )
                median = statistics.median(values)
                print(f"{name:<46}{1000 * median:>8.1f}{size / median:>11.1f}{first:>19}{openvino:>18}")
        pair = turns({"bytes": (by_bytes, files), "pixels": (floats, images)}, options.rounds)
        share = statistics.median(1 - b / a for a, b in zip(pair["bytes"], pair["pixels"], strict=True))
        print(f"\npredict_bytes, batch 8, {HEIGHT}x{WIDTH}: decoding and resizing {share:.1%} of the call")
