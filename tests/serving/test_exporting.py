import base64
import importlib.metadata
import io
import json
import os
import pathlib
import pickle
import re
import resource
import struct
import subprocess
import sys
import time
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, shared
from contract_server import signature_defs
from keras import layers
from PIL import Image
from tensorflow.core.example import example_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_log_pb2
from test_graphs import trained

import keras_resnet
from keras_resnet import evaluation, serving
from keras_resnet.data import crops, sources
from keras_resnet.evaluation import views
from keras_resnet.graphs import fold, recursion_limit
from keras_resnet.serving import formats, publishing, signatures

CLASSES = tuple("abcdefghij")
SIGNATURES = {
    "serving_default": ("images", tf.float32),
    "predict_uint8": ("images", tf.uint8),
    "predict_bytes": ("image_bytes", tf.string),
    "classify": ("inputs", tf.string),
}
FROZEN, BF16 = {"TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1"}, {"TF_SET_ONEDNN_FPMATH_MODE": "BF16"}
SWITCHES = {"as it is": {}, "frozen": FROZEN, "BF16": BF16, "frozen, BF16": FROZEN | BF16}


def pixels(n=3, height=32, width=32, seed=0):
    """Blurred noise, because the network's outputs for sharp noise are all alike."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (n, 4, 4, 3))
    return np.round(tf.image.resize(coarse, (height, width)).numpy()).astype("uint8")


def png(image):
    return tf.io.encode_png(image).numpy()


def strings(*values):
    return np.array([*values, None], "O")[:-1]


def serve(path, *requests):
    """Outputs for (signature, array), by TensorFlow's C API in a process without its Python API."""
    return [answer for answer, _ in served(path, *requests)]


def served(path, *requests):
    """The same, each with the process' peak of memory until then, in MB."""
    signature = signature_defs(path)
    asked = []
    for name, array in requests:
        (inputs,) = signature[name].inputs.values()
        asked.append((inputs.name, array, {key: info.name for key, info in signature[name].outputs.items()}))
    files = [os.path.join(os.path.dirname(path), f".{name}.pickle") for name in ("request", "answer")]
    with open(files[0], "wb") as file:
        pickle.dump(asked, file)
    program = pathlib.Path(__file__).with_name("c_api.py")
    command = [sys.executable, program, os.path.dirname(tf.__file__), path, *files]
    subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    with open(files[1], "rb") as file:
        return pickle.load(file)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)  # it is made before the seed of each test is set
    return trained(keras_resnet.CifarResNet(8, normalization=(120.0, 60.0)))


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    return serving.export(small, tmp_path_factory.mktemp("models") / "small", classes=CLASSES, top_k=3)


@pytest.fixture
def listing(tmp_path):
    """The versions that a server sees in the folder."""
    return lambda: sorted(name for name in os.listdir(tmp_path / "m") if not name.startswith("."))


def test_a_server_gets_the_networks_numbers(small, exported):
    images = pixels()
    files = strings(*map(png, images))
    feature = lambda file: {"image/encoded": {"bytes_list": {"value": [file]}}}
    examples = [example_pb2.Example(features={"feature": feature(file)}).SerializeToString() for file in files]
    *predictions, classified = serve(
        exported,
        ("serving_default", images.astype("float32")),
        ("predict_uint8", images),
        ("predict_bytes", files),
        ("classify", strings(*examples)),
    )
    expected = small.predict(images, verbose=0)
    assert expected.std(0).max() > 1e-2  # the images differ
    best = np.argsort(-expected, axis=1)[:, :3]
    labels = [[CLASSES[i].encode() for i in row] for row in best]
    for answer in predictions:
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        np.testing.assert_array_equal(answer["classes"], best)
        np.testing.assert_allclose(answer["scores"], np.take_along_axis(expected, best, 1), atol=1e-5)
        assert answer["labels"].tolist() == labels
    assert classified["classes"].tolist() == labels
    np.testing.assert_allclose(classified["scores"], predictions[0]["scores"], atol=1e-6)


def test_files_are_cropped_as_the_evaluation_does(tmp_path):
    """JPEG and PNG, portrait and landscape, colour and grey, with a network that takes any size."""
    model = trained(keras_resnet.ResNet18(classes=10, normalization="torch"))
    path = serving.export(model, tmp_path / "m", crop=96)
    lying, upright = pixels(1, 120, 150)[0], pixels(1, 200, 100, seed=1)[0]
    grey = tf.io.encode_jpeg(lying[..., :1]).numpy()
    files = strings(tf.io.encode_jpeg(upright).numpy(), png(lying), grey)
    found = np.concatenate([views.center(crops.decode(file), 110, 96) for file in files])
    answer, whole = serve(path, ("predict_bytes", files), ("predict_uint8", lying[None]))
    np.testing.assert_allclose(answer["probabilities"], model(found), atol=1e-4)
    np.testing.assert_allclose(whole["probabilities"], model(lying[None].astype("float32")), atol=1e-4)
    with open(os.path.join(path, serving.ABOUT)) as file:
        assert json.load(file)["preprocessing"] == {
            "shorter_side": 110, "crop": 96, "interpolation": views.INTERPOLATION
        }  # fmt: skip


def test_a_network_of_one_image_is_served_with_batches(small, tmp_path):
    images = keras.Input(batch_shape=(1, 32, 32, 3))
    path = serving.export(keras.Model(images, small(images), name="single"), tmp_path / "m")
    files = strings(*(png(image) for image in pixels()))
    answer, same = serve(path, ("predict_bytes", files), ("serving_default", pixels().astype("float32")))
    expected = small.predict(pixels(), verbose=0)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(same["probabilities"], expected, atol=1e-5)


def test_a_network_of_one_image_stays_a_network_of_this_package(tmp_path):
    model = trained(keras_resnet.CifarResNet(8, input_tensor=keras.Input(batch_shape=(1, 32, 32, 3))))
    path = serving.export(model, tmp_path / "m", format="web")
    assert json.loads(pathlib.Path(path, serving.ABOUT).read_text())["input_shape"] == [None, 32, 32, 3]


def test_a_run_on_photographs_is_served_as_it_was_tested(small, tmp_path):
    """Its crops are of 32 pixels, but it is not a network for CIFAR."""
    (tmp_path / "run").mkdir()
    small.save(tmp_path / "run" / "model.keras")
    for dataset, side in (("/photographs", 37), ("cifar10", 32)):
        (tmp_path / "run" / "args.json").write_text(json.dumps({"depth": 8, "dataset": dataset, "image_size": 32}))
        path = serving.export_run(tmp_path / "run", tmp_path / "m")
        about = json.loads(pathlib.Path(path, serving.ABOUT).read_text())
        assert (about["preprocessing"]["shorter_side"], about["preprocessing"]["crop"]) == (side, 32)


def test_other_backends_export_web_pages_only(small, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(serving.ExportError, match="onnx is exported on the backend tensorflow; found jax. Save"):
        serving.export(small, tmp_path / "m", format="onnx")


def test_a_malformed_image_is_named(exported):
    good = png(pixels(1)[0])
    jpeg = tf.io.encode_jpeg(pixels(1, 300, 300)[0]).numpy()
    answers = serve(
        exported,
        ("predict_bytes", strings(good, b"no image", good)),
        ("predict_bytes", strings(good, good, jpeg[: len(jpeg) // 2], b"")),
        ("predict_bytes", strings(good)),
    )
    assert "index in this batch] [1]" in answers[0]
    assert "index in this batch] [2 3]" in answers[1]
    assert answers[2]["scores"].shape == (1, 3)  # the server goes on


@pytest.mark.parametrize("name", ["serving_default", "predict_uint8"])
def test_pixels_of_another_shape_are_refused(name, exported):
    """They would be broadcast: height and width by option A's padding, channels by the normalization."""
    images = pixels().astype(SIGNATURES[name][1].as_numpy_dtype)
    wrong = images[:, :1, :1], images[..., :1], images[:, :, :16], images[0], images
    *refused, answer = serve(exported, *((name, array) for array in wrong))
    for array, message in zip(wrong, refused, strict=False):
        shape = ",".join(map(str, array.shape))
        assert f"[{shape}] is not compatible with expected shape [?,32,32,3]" in message
    assert answer["scores"].shape == (3, 3)  # the server goes on


def test_pixels_that_are_no_numbers_are_refused(exported):
    images = np.repeat(pixels().astype("float32")[None], 2, axis=0)
    images[0, 1, 2, 3, 0], images[1, 2, 31, 31, 2] = np.nan, -np.inf
    nan, infinite = serve(exported, *(("serving_default", array) for array in images))
    assert "pixels : Tensor had NaN values" in nan and "pixels : Tensor had Inf values" in infinite


def about(path):
    return json.loads(pathlib.Path(path, serving.ABOUT).read_text())


def test_pixels_of_another_range_are_refused(exported):
    """Pixels divided by 255 or normalised would get a confident, wrong prediction. Black is the same in any range."""
    images = pixels().astype("float32")
    dark, black = np.full_like(images, 2), np.zeros_like(images)
    resized = np.where(images > 128, 255.0001, -0.0001).astype("float32")  # what rounding adds
    wrong = images / 255, images / 127.5 - 1, images - 118, images - 1000, images * 1e30, images / 50 - 2, images + 100
    mixed = np.stack([images[0], images[1] / 255, black[0], images[2] * 2])
    answers = serve(exported, *(("serving_default", each) for each in (images, dark, black, resized, *wrong, mixed)))
    assert [isinstance(answer, str) for answer in answers] == [False] * 4 + [True] * 8
    smallest, largest = (f"{function(images[1] / 255):.6g}"[:6] for function in (np.min, np.max))
    assert "RGB in [0, 255], not divided by 255" in answers[-1] and "index in this batch] [1 3] " in answers[-1]
    assert f"[their smallest and largest pixels] [{smallest}" in answers[-1] and f" [{largest}" in answers[-1]
    assert about(exported)["input_range"] == [0, 255]
    (uint8,) = serve(exported, ("predict_uint8", np.ones((1, 32, 32, 3), "uint8")))
    assert uint8["scores"].shape == (1, 3)


def test_a_network_of_another_range_is_served_without_the_check(tmp_path):
    model = ending()
    path = serving.export(model, tmp_path / "m", range_check=False)
    images = pixels(3, 8, 8).astype("float32") / 127.5 - 1
    answer, nan = serve(path, ("serving_default", images), ("serving_default", images * np.nan))
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(model(images)), atol=1e-5)
    assert "NaN" in nan and about(path)["input_range"] is None


def test_an_empty_batch_has_an_empty_answer(exported):
    images = pixels()[:0]
    requests = images.astype("float32"), images, strings(), strings()
    for name, answer in zip(SIGNATURES, serve(exported, *zip(SIGNATURES, requests, strict=True)), strict=True):
        shapes = {"probabilities": (0, 10), "classes": (0, 3), "scores": (0, 3), "labels": (0, 3)}
        assert {key: array.shape for key, array in answer.items()} == {key: shapes[key] for key in answer}, name


def bomb(width, height):
    """A small PNG file of black pixels."""
    rows = zlib.compressobj()
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_huge_image_is_refused_before_it_is_decoded(exported):
    (fine, before), (message, after) = served(
        exported,
        ("predict_bytes", strings(bomb(64, 64))),
        ("predict_bytes", strings(bomb(64, 64), bomb(20_000, 20_000))),
    )
    assert fine["scores"].shape == (1, 3)
    assert "of more than 50000000 pixels: files, by index in this batch] [1]" in message
    assert after - before < 200  # MB; decoded it has 1,200


def test_the_limit_of_pixels_is_to_the_pixel(small, tmp_path):
    path = serving.export(small, tmp_path / "m", max_pixels=40 * 30)
    gif = io.BytesIO()
    Image.new("RGB", (40, 30)).save(gif, "GIF")  # its head announces nothing in PNG's place, and TensorFlow decodes it
    jpeg = lambda *shape: tf.io.encode_jpeg(np.zeros((*shape, 3), "uint8")).numpy()
    files = bomb(40, 30), jpeg(40, 30), bomb(41, 30), jpeg(30, 41), gif.getvalue()
    good, *others = serve(path, ("predict_bytes", strings(*files[:2])), *(("predict_bytes", strings(f)) for f in files))
    assert good["scores"].shape == (2, 5)
    assert [isinstance(answer, str) for answer in others] == [False, False, True, True, True]
    with open(os.path.join(path, serving.ABOUT)) as file:
        assert json.load(file)["max_pixels"] == 1200


def test_signatures_are_what_clients_ask_for(exported):
    """As messages of tensorflow-serving-api, and in REST."""
    found = signature_defs(exported)
    metadata = get_model_metadata_pb2.GetModelMetadataResponse()
    definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=found)
    metadata.metadata["signature_def"].Pack(definitions)
    received = get_model_metadata_pb2.SignatureDefMap()
    metadata.metadata["signature_def"].Unpack(received)
    assert set(received.signature_def) == set(SIGNATURES)
    for name, (argument, dtype) in SIGNATURES.items():
        signature = received.signature_def[name]
        assert isinstance(signature, meta_graph_pb2.SignatureDef)
        assert {key: info.dtype for key, info in signature.inputs.items()} == {argument: dtype.as_datatype_enum}
        assert [dim.size for dim in signature.inputs[argument].tensor_shape.dim][0] == -1
        outputs = {"classes", "scores"} if name == "classify" else {"probabilities", "classes", "scores", "labels"}
        assert set(signature.outputs) == outputs
        method = "classify" if name == "classify" else "predict"
        assert signature.method_name == f"tensorflow/serving/{method}"
    request = predict_pb2.PredictRequest(inputs={"images": tf.make_tensor_proto(pixels())})
    shape = received.signature_def["predict_uint8"].inputs["images"].tensor_shape
    assert request.inputs["images"].dtype == received.signature_def["predict_uint8"].inputs["images"].dtype
    assert tf.TensorShape(shape).is_compatible_with(tf.TensorShape(request.inputs["images"].tensor_shape))
    body = {"instances": [{"b64": base64.b64encode(png(image)).decode()} for image in pixels()]}
    files = strings(*(base64.b64decode(instance["b64"]) for instance in json.loads(json.dumps(body))["instances"]))
    (answer,) = serve(exported, ("predict_bytes", files))
    assert {len(array) for array in answer.values()} == {3}  # REST's rows: each output one for each instance


def test_the_warmup_requests_are_answered(exported):
    file = os.path.join(exported, "assets.extra", "tf_serving_warmup_requests")
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(file)]
    requests, asked = [], []
    for log in logs:
        request = getattr(log, log.WhichOneof("log_type")).request
        assert request.model_spec.name == "small"
        asked.append(request.model_spec.signature_name)
        if asked[-1] == "classify":
            array = strings(*(example.SerializeToString() for example in request.input.example_list.examples))
        else:
            array = tf.make_ndarray(next(iter(request.inputs.values())))
        requests.append((asked[-1], array))
    assert asked == list(SIGNATURES)
    assert [answer["scores"].shape for answer in serve(exported, *requests)] == [(1, 3)] * 4


def test_versions_follow_each_other_and_stay(small, tmp_path, listing):
    (tmp_path / "m" / "7").mkdir(parents=True)
    path = serving.export(small, tmp_path / "m")
    assert path == str(tmp_path / "m" / "8")
    before = {file: file.stat().st_mtime_ns for file in pathlib.Path(path).rglob("*")}
    with pytest.raises(serving.ExportError, match="8 exists"):
        serving.export(small, tmp_path / "m", version=8)
    assert {file: file.stat().st_mtime_ns for file in pathlib.Path(path).rglob("*")} == before
    serving.export(small, tmp_path / "m", version=10, keep=2)
    assert listing() == ["10", "8"] and len(os.listdir(tmp_path / "m")) == 2
    with pytest.raises(serving.ExportError, match="keep=1 would remove version 9 at once, because .* has 10"):
        serving.export(small, tmp_path / "m", version=9, keep=1)
    serving.export(small, tmp_path / "m", version=9, keep=2)
    assert listing() == ["10", "9"]


def test_a_server_takes_007_for_version_7(small, tmp_path, listing, monkeypatch):
    monkeypatch.setattr(signatures, "save", lambda *arguments: None)
    for name in ("007", "6", "\N{ARABIC-INDIC DIGIT NINE}"):  # the last is a decimal to Python alone
        (tmp_path / "m" / name).mkdir(parents=True)
    with pytest.raises(serving.ExportError, match="7 exists"):
        serving.export(small, tmp_path / "m", version=7)
    serving.export(small, tmp_path / "m", keep=2)
    assert listing() == ["007", "8", "\N{ARABIC-INDIC DIGIT NINE}"]


def test_another_user_may_read_a_version(small, tmp_path):
    """A server often runs as another user, and the folders of `tempfile` are readable only by their owner."""
    for format in ("saved_model", "onnx"):
        path = pathlib.Path(serving.export(small, tmp_path / format, format=format))
        for each in (path, *path.rglob("*")):
            wanted = 0o005 if each.is_dir() else 0o004
            assert each.stat().st_mode & wanted == wanted, each


def test_a_version_appears_whole_or_not_at_all(small, tmp_path, listing, monkeypatch):
    seen, write = [], signatures.save

    def save(*arguments):
        write(*arguments)
        seen.append(listing())
        raise OSError("No space left on device")

    monkeypatch.setattr(signatures, "save", save)
    with pytest.raises(serving.ExportError, match="could not be written, .* MB are free there: No space left"):
        serving.export(small, tmp_path / "m")
    assert seen == [[]] and not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "format, why",
    [
        ("saved_model", "File too large"),
        ("onnx", "File too large"),
        ("openvino", "model.xml could not be written, as on a full disk"),
    ],
)
def test_a_full_disk_is_said(format, why, small, tmp_path):
    if format != "saved_model":
        pytest.importorskip(format)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the weights have 300,000 bytes
    try:
        with pytest.raises(serving.ExportError) as error:
            serving.export(small, tmp_path / "m", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.fullmatch(rf"{tmp_path}/m could not be written, [\d.]+ MB are free there: {why}", str(error.value))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "fault, sentence",
    [
        (
            tf.errors.ResourceExhaustedError(
                None, None, "{{function_node __wrapped__SaveV2}} /a/part-0; No space left on device [Op:SaveV2]"
            ),
            r"m could not be written, [\d.]+ MB are free there: No space left on device$",
        ),
        (OSError(28, "No space left on device", "/a"), "MB are free there: No space left on device$"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), "not enough memory"),
        (MemoryError(), "not enough memory"),
    ],
    ids=["TensorFlow's disk", "disk", "TensorFlow's memory", "memory"],
)
def test_what_runs_out_is_one_sentence(fault, sentence, small, tmp_path, monkeypatch):
    def save(*arguments):
        raise fault

    monkeypatch.setattr(signatures, "save", save)
    with pytest.raises(serving.ExportError, match=sentence):
        serving.export(small, tmp_path / "m")


def test_a_network_that_a_runtime_cannot_hold_is_no_full_disk(small, tmp_path, monkeypatch):
    def write(*arguments):
        raise RuntimeError("no such operation")

    monkeypatch.setitem(formats.WRITERS, "openvino", write)
    with pytest.raises(serving.ExportError, match="cifar_resnet8 cannot be written as openvino: no such operation"):
        serving.export(small, tmp_path / "m", format="openvino")


def test_what_killed_exports_left_is_removed_but_not_what_others_write(small, tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "save", lambda *arguments: None)
    folder = tmp_path / "m"
    (folder / ".unfinished-killed").mkdir(parents=True)
    (folder / ".unfinished-killed" / publishing.LOCK).write_text("")  # a dead process holds no lock
    for name in (".unfinished-empty", ".unfinished-new", ".removed-half", ".other"):
        (folder / name).mkdir()
    with publishing.unfinished(folder) as running:
        for path in folder.glob(".*[!w]"):  # all but the new one, which might not be locked yet
            os.utime(path, (time.time() - publishing.NEW - 1,) * 2)
        assert serving.export(small, folder) == str(folder / "1")
        assert set(os.listdir(folder)) == {"1", ".other", ".unfinished-new", pathlib.Path(running).parent.name}
    assert set(os.listdir(folder)) == {"1", ".other", ".unfinished-new"}


def test_the_last_version_is_that_of_a_server(small, tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "save", lambda *arguments: None)
    with pytest.raises(serving.ExportError, match="from 1 to 9223372036854775807; found 9223372036854775808"):
        serving.export(small, tmp_path / "m", version=2**63)
    path = serving.export(small, tmp_path / "m", version=2**63 - 1)
    assert path.endswith("/9223372036854775807")
    with pytest.raises(serving.ExportError, match="holds the last version"):
        serving.export(small, tmp_path / "m")
    assert len(os.listdir(tmp_path / "m")) == 1


@pytest.mark.parametrize("answer", [np.full((2, 10), np.nan), np.full((2, 10), 0.5)], ids=["nan", "other"])
def test_another_runtimes_wrong_answers_are_no_export(answer, small, tmp_path, monkeypatch):
    monkeypatch.setitem(formats.WRITERS, "onnx", lambda *arguments: None)
    monkeypatch.setitem(formats.RUNNERS, "onnx", lambda path, images: answer)
    with pytest.raises(serving.ExportError, match="in onnx differs from the network by"):
        serving.export(small, tmp_path / "m", format="onnx")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "answer, message", [(np.full((2, 10), np.nan), "by nan"), (np.zeros((1, 10)), r"returns \(1, 10\) instead")]
)
def test_int8_that_answers_something_else_is_no_export(answer, message, small, tmp_path, monkeypatch):
    monkeypatch.setitem(formats.WRITERS, "litert", lambda *arguments: None)
    monkeypatch.setitem(formats.RUNNERS, "litert", lambda path, images: answer)
    images = tf.data.Dataset.from_tensor_slices(pixels(2))
    with pytest.raises(serving.ExportError, match=message):
        serving.export(small, tmp_path / "m", format="litert", dtype="int8", calibration=images)


def test_tensorflow_by_another_name_is_a_version_too(small, tmp_path, monkeypatch):
    """tensorflow-cpu and tf-nightly have no distribution that is called tensorflow."""
    known = importlib.metadata.version

    def version(name):
        if name == "tensorflow":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(signatures, "save", lambda *arguments: None)
    with open(os.path.join(serving.export(small, tmp_path / "m"), serving.ABOUT)) as file:
        assert json.load(file)["versions"]["tensorflow"] == tf.__version__


def ending(*last, classes=10):
    """A classifier of the mean colour: a linear layer, then the last layers."""
    kernel = np.random.default_rng(4).normal(0, 0.02, (3, classes))
    inputs = x = keras.Input((8, 8, 3))
    for layer in (layers.GlobalAveragePooling2D(), layers.Dense(classes), *last):
        x = layer(x)
    model = keras.Model(inputs, x)
    dense = next(layer for layer in model.layers if isinstance(layer, layers.Dense))
    dense.set_weights([kernel, np.ones(classes)])
    return model


def within(model):
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.Dropout(0.5)(model(inputs)))


def averaged(*models):
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.Average()([model(inputs) for model in models]))


def by_positions(activation):
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(10, 1, activation=activation)(inputs)))


def the_second_of_two_outputs():
    inputs = keras.Input((8, 8, 3))
    network = ending(layers.Softmax())
    both = keras.Model(network.inputs, [network.layers[-2].output, network.output])
    return keras.Model(inputs, both(inputs)[1])


def the_second_of_two_calls():
    network, flatten = ending(), layers.Flatten()
    flatten(network.output)
    return keras.Model(network.inputs, flatten(layers.Softmax()(network.output)))


as_bfloat16 = lambda: keras.Sequential([ending(layers.Softmax()), layers.Activation("linear", dtype="bfloat16")])


@pytest.mark.parametrize(
    "model, logits",
    [
        (lambda: ending(), True),
        (lambda: ending(layers.Activation("linear"), layers.Flatten()), True),
        (lambda: ending(layers.Activation("log_softmax")), True),
        (lambda: ending(keras.ops.log_softmax), True),
        (lambda: ending(layers.Softmax()), False),
        (lambda: ending(layers.Activation("softmax")), False),
        (lambda: ending(keras.ops.softmax), False),
        (lambda: ending(layers.Dense(10, activation="softmax")), False),
        (lambda: ending(layers.Activation("sigmoid")), False),
        (lambda: ending(layers.Softmax(), layers.Reshape((10,)), layers.Identity()), False),
        (lambda: within(ending(layers.Softmax())), False),
        (lambda: within(within(ending())), True),
        (lambda: averaged(ending(layers.Softmax()), ending(layers.Softmax())), False),
        (lambda: by_positions("softmax"), False),
        (
            lambda: ending(layers.Softmax(), layers.Reshape((1, 1, 10)), layers.AveragePooling2D(1), layers.Flatten()),
            False,
        ),
        (lambda: by_positions(None), True),
        (the_second_of_two_outputs, False),
        (the_second_of_two_calls, False),
        (as_bfloat16, False),
        (lambda: fold(ending(layers.Dense(10, activation="softmax")), "bfloat16"), False),
    ],
)
def test_the_last_activation_is_looked_at(model, logits):
    assert evaluation.gives_logits(model()) is logits


@pytest.mark.parametrize(
    "model, ends",
    [
        (lambda: ending(layers.ReLU()), "relu"),
        (lambda: ending(layers.Activation("tanh")), "tanh"),
        (lambda: ending(layers.Softmax(), layers.Rescaling(2.0)), "rescaling"),
        (lambda: averaged(ending(), ending(layers.Softmax())), "linear and softmax"),
        (lambda: ending(classes=1), "one linear output; the softmax of one class is always 1"),
    ],
)
def test_a_network_that_ends_otherwise_is_refused(model, ends, tmp_path):
    with pytest.raises(serving.ExportError, match=f"(ends in {ends}; a classifier ends in|has {ends})"):
        serving.export(model(), tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "last, function",
    [([], tf.nn.softmax), ([layers.Activation("sigmoid")], tf.sigmoid), ([layers.Softmax()], tf.nn.softmax)],
    ids=["linear", "sigmoid", "softmax"],
)
def test_a_network_is_served_and_evaluated_as_it_predicts(last, function, tmp_path):
    """These logits are positive and add up to 1 for the first image, as probabilities do."""
    model = ending(*last)
    dense = next(layer for layer in model.layers if isinstance(layer, layers.Dense))
    dense.set_weights([np.full((3, 10), 1e-9), np.arange(10) / 45])
    images = pixels(4, 8, 8)
    expected = function(np.tile(np.arange(10) / 45, (4, 1)).astype("float32"))
    (answer,) = serve(serving.export(model, tmp_path / "m"), ("predict_uint8", images))
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros(4, "int64")))
    result = evaluation.evaluate(model, data, CLASSES, "single", verbose=0)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)


def test_logits_become_probabilities(tmp_path):
    model = trained(keras_resnet.CifarResNet(8, classifier_activation=None, normalization=(120.0, 60.0)))
    path = serving.export(model, tmp_path / "m")
    (answer,) = serve(path, ("predict_uint8", pixels()))
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(model(pixels())), atol=1e-5)
    assert answer["labels"][0, 0] == str(answer["classes"][0, 0]).encode()


@pytest.mark.parametrize("format", ["openvino", "onnx", "litert"])
def test_other_runtimes_give_the_same_numbers(format, small, tmp_path):
    for package in {"openvino": ["openvino"], "onnx": ["tf2onnx", "onnxruntime"], "litert": ["ai_edge_litert"]}[format]:
        pytest.importorskip(package)
    path = serving.export(small, tmp_path / "m", format=format)
    assert about(path)["largest_difference"] < 1e-5 and about(path)["checked_in"] == "float32"


@pytest.mark.slow
def test_openvinos_hint_makes_float32_of_it(cifar10_dir, tmp_path):
    """And what it computes without the hint, which depends on the processor: for docs/serving.md."""
    openvino = pytest.importorskip("openvino")
    network = keras_resnet.CifarResNet(20, weights="cifar10")
    file = os.path.join(serving.export(network, tmp_path / "m", format="openvino"), "model.xml")
    images = sources.load("cifar10", cifar10_dir).test.images[:2000].astype("float32")
    expected = network.predict(images, verbose=0)
    exact, free = (
        openvino.compile_model(file, "CPU", hint)(images)["probabilities"]
        for hint in ({"INFERENCE_PRECISION_HINT": "f32"}, {})
    )
    np.testing.assert_allclose(exact, expected, atol=2e-5)
    others = (free.argmax(1) != exact.argmax(1)).sum()
    print(f"without the hint {np.abs(free - exact).max():.3f}, {others} of {len(images)} other")


def onnx_names(path):
    import onnx

    graph = onnx.load(os.path.join(path, "model.onnx")).graph
    lengths = lambda tensor: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
    return {tensor.name: lengths(tensor) for tensor in (*graph.input, *graph.output)}


def openvino_names(path):
    import openvino

    model = openvino.Core().read_model(os.path.join(path, "model.xml"))
    return {name for port in model.inputs + model.outputs for name in port.names}


def litert_names(path):
    from ai_edge_litert.interpreter import Interpreter

    ((_, names),) = Interpreter(os.path.join(path, "model.tflite")).get_signature_list().items()
    return [*names["inputs"], *names["outputs"]]


def test_other_runtimes_have_the_names_of_the_saved_model(tmp_path):
    """For a network whose input has no name of its own, and axes of any length."""
    for package in ("openvino", "tf2onnx", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(package)
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(10, "softmax")(x))
    paths = {format: serving.export(model, tmp_path / format, format=format, crop=32) for format in formats.WRITERS}
    assert onnx_names(paths["onnx"]) == {"images": ["batch", "height", "width", 3], "probabilities": ["batch", 10]}
    assert openvino_names(paths["openvino"]) == {"images", "probabilities"}
    assert litert_names(paths["litert"]) == ["images", "probabilities"]


def test_int8_is_close(small, tmp_path):
    pytest.importorskip("nncf")
    images = tf.data.Dataset.from_tensor_slices(pixels(40))
    path = serving.export(small, tmp_path / "m", format="openvino", dtype="int8", calibration=images)
    with open(os.path.join(path, serving.ABOUT)) as file:
        assert 0 < json.load(file)["largest_difference"] < 0.05
    assert "FakeQuantize" in pathlib.Path(path, "model.xml").read_text()


def test_int8_is_fitted_to_300_images(small, tmp_path, monkeypatch):
    """The first 300; more take minutes without changing the result."""
    fitted = []
    monkeypatch.setitem(formats.WRITERS, "litert", lambda model, path, size, images: fitted.append(images))
    monkeypatch.setitem(formats.RUNNERS, "litert", lambda path, images: small(images).numpy())
    images = np.arange(310, dtype="uint8")[:, None, None, None] % 200 * np.ones((32, 32, 3), "uint8")
    data = tf.data.Dataset.from_tensor_slices(images)
    serving.export(small, tmp_path / "m", format="litert", dtype="int8", calibration=data)
    np.testing.assert_array_equal(fitted[0], images[:300])


def test_softmax_is_in_float32_whatever_the_policy(tmp_path):
    """In bfloat16 these probabilities would be rounded to 8 bits."""
    model = ending()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        path = serving.export(model, tmp_path / "m")
    finally:
        keras.config.set_dtype_policy(before)
    (answer,) = serve(path, ("predict_uint8", pixels(3, 8, 8)))
    expected = tf.nn.softmax(model(pixels(3, 8, 8).astype("float32")))
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)


def test_frozen_layers_have_parameters_too(small, tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "save", lambda *arguments: None)
    weights = sum(int(np.prod(variable.shape)) for variable in small.trainable_variables)
    frozen = keras.models.clone_model(small)
    frozen.trainable = False
    inputs = keras.Input((32, 32, 3))
    for model in (small, frozen, keras.Model(inputs, layers.Softmax()(frozen(inputs)))):
        assert about(serving.export(model, tmp_path / "m"))["parameters"] == weights


def test_a_folder_that_cannot_be_written_is_said(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(serving.ExportError, match="file/m cannot be written: .*Not a directory"):
        serving.export(small, tmp_path / "file" / "m")


def broken(small):
    model = keras.models.clone_model(small)
    model.get_layer("fc").bias.assign(np.full(10, np.nan))
    return model


@pytest.mark.parametrize(
    "model, options, message",
    [
        (lambda small: small, {"classes": ["cat", "dog"]}, "10 classes; found 2 class names"),
        (lambda small: small, {"dtype": "float16"}, "dtype is one of float32, bfloat16, int8; found 'float16'"),
        (lambda small: small, {"dtype": "int8"}, "for the formats openvino and litert; found saved_model"),
        (lambda small: small, {"dtype": "int8", "format": "litert"}, "int8 needs images for calibration"),
        (lambda small: small, {"dtype": "bfloat16", "format": "onnx"}, "bfloat16 is for saved_model"),
        (lambda small: small, {"version": 0}, "a version is a number from 1 to 9223372036854775807; found 0"),
        (lambda small: small, {"max_pixels": 0}, "max_pixels is positive; found 0"),
        (lambda small: small, {"keep": 0}, "keep is positive; found 0"),
        (lambda small: small, {"crop": 224}, "crop is 32, the size that cifar_resnet8 takes; found 224"),
        (lambda small: keras_resnet.CifarResNet(8, include_top=False), {}, "is not a classifier"),
        (broken, {}, "not finite"),
    ],
)
def test_what_cannot_be_exported_is_said(model, options, message, small, tmp_path):
    with pytest.raises(serving.ExportError, match=message):
        serving.export(model(small), tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


def program(*arguments):
    command = [sys.executable, str(ROOT / "train" / "export.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_program_exports_a_run(small, tmp_path):
    run = tmp_path / "runs" / "eight"
    run.mkdir(parents=True)
    small.save(run / "model.keras")
    for name, content in (
        ("args", {"depth": 8, "dataset": "cifar10", "image_size": 224}),
        ("classes", CLASSES),
        ("result", {"test_error": 0.125, "val_error": None}),
    ):
        (run / f"{name}.json").write_text(json.dumps(content))
    done = program(run, "--output", tmp_path / "models", "--top-k", "2")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "models" / "eight" / "1"
    assert str(path) in done.stdout and f"--model_base_path={path.parent}" in done.stdout
    about = json.loads((path / serving.ABOUT).read_text())
    assert (about["depth"], about["test_error"], about["source"]) == (8, 0.125, str(run))
    assert about["classes"] == list(CLASSES) and about["versions"]["keras"] == keras.__version__
    (answer,) = serve(str(path), ("predict_uint8", pixels()))
    np.testing.assert_allclose(answer["probabilities"], small.predict(pixels(), verbose=0), atol=1e-5)
    assert answer["scores"].shape == (3, 2)

    named = program(run, "--output", tmp_path / "models", "--name", "../eight")
    assert named.stderr == "export.py: --name is the name of a folder in --output, not a path; found '../eight'\n"
    failed = program(run.parent)
    assert failed.returncode == 1
    message = f"{run.parent} holds runs: eight; give one of these folders"
    assert failed.stderr == f"export.py: {message}\n"


def rounded(network):
    """What the second switch computes on a processor with AMX: products of bfloat16 factors."""
    to_bfloat16 = lambda x: keras.ops.cast(keras.ops.cast(x, "bfloat16"), "float32")
    multiplies = lambda layer: isinstance(layer, (layers.Conv2D, layers.Dense))
    call = lambda layer, *args: layer(*map(to_bfloat16, args) if multiplies(layer) else args)
    folded = fold(network)
    copy = keras.models.clone_model(folded, call_function=call)
    copy.set_weights(folded.get_weights())
    for layer in filter(multiplies, copy.layers):
        layer.kernel.assign(to_bfloat16(layer.kernel))
    return copy


def with_switches(network, requests, folder, monkeypatch, **options):
    """The probabilities (n, classes) of each arithmetic, float32 first."""
    paths = {
        "float32": serving.export(network, folder / "float32", **options),
        "bfloat16": serving.export(network, folder / "bfloat16", dtype="bfloat16", **options),
        "by hand": serving.export(rounded(network), folder / "by_hand", **options),
    }
    runs = [(name, switch) for name in ("float32", "bfloat16") for switch in SWITCHES] + [("by hand", "as it is")]
    for name, switch in runs:
        with monkeypatch.context() as patch:
            for variable, value in SWITCHES[switch].items():
                patch.setenv(variable, value)
            answers = serve(paths[name], *requests)
        yield name, switch, np.concatenate([answer["probabilities"] for answer in answers])


@pytest.mark.slow
def test_what_switches_cost_with_cifars_weights(cifar10_dir, tmp_path, monkeypatch):
    """The numbers of docs/serving.md for oneDNN's switches: 10,000 CIFAR-10 images, trained weights."""
    network = keras_resnet.from_weights(str(shared("weights") / "resnet20-12fca82f.th"))
    test = sources.load("cifar10", cifar10_dir).test
    requests = [("predict_uint8", test.images[i : i + 1000]) for i in range(0, 10_000, 1000)]
    exact = None
    for name, switch, found in with_switches(network, requests, tmp_path, monkeypatch):
        exact = found if exact is None else exact
        largest, other = np.abs(found - exact).max(), (found.argmax(1) != exact.argmax(1)).mean()
        error = (found.argmax(1) != test.labels).mean()
        print(f"{name}, {switch}: {largest:.1e}, {other:.2%} other, error {error:.2%}")
        if name == "float32" and "BF16" not in switch:
            assert largest < 1e-5 and round(error, 4) == 0.0827
        else:
            assert largest < 0.25 and other < 0.005 and error == pytest.approx(0.0827, abs=2e-3)


@pytest.mark.slow
def test_what_switches_cost_with_random_weights(photographs_dir, tmp_path, monkeypatch):
    """The same for ResNet-50 with random weights, which hardly distinguish 200 images: in shares of that."""
    files = [path.read_bytes() for path in sorted(pathlib.Path(photographs_dir).glob("*/*"))]
    requests = [("predict_bytes", strings(*files[i : i + 20])) for i in range(0, len(files), 20)]
    network, exact = trained(keras_resnet.ResNet50(normalization="torch"), gain=0.5), None
    for name, switch, found in with_switches(network, requests, tmp_path, monkeypatch, crop=224):
        exact = found if exact is None else exact
        share = np.sqrt(np.mean((found - exact) ** 2) / np.mean((exact - exact.mean(axis=0)) ** 2))
        print(f"{name}, {switch}: {share:.1e} of the photographs' differences")
        assert share < (1e-2 if name == "float32" and "BF16" not in switch else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, size",
    [
        (lambda: keras_resnet.CifarResNet(20, normalization=(120.0, 60.0)), 32),
        (lambda: keras_resnet.CifarPlainNet(20, normalization=(120.0, 60.0)), 32),
        (lambda: keras_resnet.PlainNet18(classes=10, normalization="torch"), 64),
        (lambda: keras_resnet.ResNet50(classes=10, normalization="caffe"), 64),
        (lambda: keras_resnet.CifarResNet(1202, normalization=(120.0, 60.0)), 32),
    ],
    ids=["20", "plain 20", "plain 18", "50", "1202"],
)
def test_every_network_serves_its_own_numbers(network, size, tmp_path):
    with recursion_limit(30_000):
        model = trained(network(), gain=0.1 if size == 32 else 0.5)
        path = serving.export(model, tmp_path / "m")
        images = pixels(2, size, size)
        expected = model.predict(images, verbose=0)
    (answer,) = serve(path, ("predict_uint8", images))
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
