"""The clients of docs/serving.md against a server's interfaces: `contract_server.py`, and TF Serving if installed."""

import base64
import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, WITHOUT_TENSORFLOW, blocks, free_ports
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from test_exporting import CLASSES, pixels, png
from test_graphs import trained

import keras_resnet
from keras_resnet import serving
from keras_resnet.serving import exporting

NAME = "cifar10-resnet-20"  # as the page calls it
PAGE = ROOT / "docs" / "serving.md"
_, PROGRAM, *FLAGS = shlex.split(blocks(PAGE, "## A server")["sh"][0])  # python, the program, and flags
SERVERS = {
    "contract": [sys.executable, str(ROOT / PROGRAM), *FLAGS],
    "tensorflow": ["tensorflow_model_server"],
}
START = 60  # seconds


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


class Server:
    """A server of the versions in `folder`."""

    def __init__(self, kind, folder, *flags):
        self.folder, (self.grpc_port, self.rest_port) = folder, free_ports(2)
        self.url = f"http://localhost:{self.rest_port}/v1/models/{NAME}"
        command = [
            *SERVERS[kind], f"--model_name={NAME}", f"--model_base_path={folder}", f"--port={self.grpc_port}",
            f"--rest_api_port={self.rest_port}", "--file_system_poll_wait_seconds=1",
            "--max_num_load_retries=0", *flags,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def states(self):
        with urllib.request.urlopen(self.url, timeout=5) as reply:
            return {row["version"]: row for row in json.load(reply)["model_version_status"]}

    def wait(self, version, state="AVAILABLE"):
        end = time.monotonic() + START
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if self.states().get(version, {}).get("state") == state:
                    return
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.1)
        pytest.fail(f"version {version} is not {state} within {START} seconds")

    def post(self, verb, body, url=None):
        """The status and the response; `body` is JSON, or bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(url or f"{self.url}:{verb}", content, timeout=30) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    @contextlib.contextmanager
    def stubs(self):
        with grpc.insecure_channel(f"localhost:{self.grpc_port}") as channel:
            predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            yield predictions, model_service_pb2_grpc.ModelServiceStub(channel)


@contextlib.contextmanager
def serving_of(kind, folder, *flags):
    if not shutil.which(SERVERS[kind][0]):
        pytest.skip("tensorflow_model_server is not on PATH")
    server = Server(kind, folder, *flags)
    try:
        server.wait("1")
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return trained(keras_resnet.CifarResNet(8, normalization=(120.0, 60.0)))


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    return serving.export(small, tmp_path_factory.mktemp("models") / NAME, classes=CLASSES, top_k=3)


@pytest.fixture(scope="module", params=SERVERS)
def server(request, exported):
    with serving_of(request.param, os.path.dirname(exported)) as found:
        yield found


@pytest.fixture(scope="module")
def expected(small):
    return small.predict(pixels(), verbose=0)


def about(path):
    return json.loads(pathlib.Path(path, exporting.ABOUT).read_text())


# What the page says.


@pytest.mark.parametrize("language, index", [("sh", 0), ("sh", 1), ("python", 0), ("python", 1), ("python", 2)])
def test_the_pages_clients(language, index, server, small, tmp_path):
    """Unchanged except for the ports; clients that do not need TensorFlow run without it."""
    program = blocks(PAGE, "## Clients")[language][index]
    (image,) = pixels(1, seed=5)
    (tmp_path / "cat.jpg").write_bytes(png(image))  # a PNG, which nobody cares about: JPEG would change its pixels
    (tmp_path / "predict.proto").write_text(blocks(PAGE, "## Clients")["proto"][0])
    program = program.replace("8500", str(server.grpc_port)).replace("8501", str(server.rest_port))
    command = ["bash", "-c", program]
    if language == "python":
        (tmp_path / "client.py").write_text(program if "tensorflow" in program else WITHOUT_TENSORFLOW + program)
        command = [sys.executable, "client.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    probabilities = small.predict(image[None], verbose=0)[0]
    best = np.argsort(-probabilities)[:3]
    if language == "python":
        assert done.stdout == "".join(f"{CLASSES[i]:<12} {probabilities[i]:.1%}\n" for i in best)
    elif ":classify" in program:
        (answer,) = json.loads(done.stdout)["results"]
        assert [label for label, _ in answer] == [CLASSES[i] for i in best]
        np.testing.assert_allclose([score for _, score in answer], probabilities[best], atol=1e-5)
    else:
        (answer,) = json.loads(done.stdout)["predictions"]
        assert answer["labels"] == [CLASSES[i] for i in best] and answer["classes"] == best.tolist()
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)


def test_the_pages_messages_are_those_of_tf_serving(tmp_path):
    from google.protobuf import descriptor_pb2

    (tmp_path / "predict.proto").write_text(blocks(PAGE, "## Clients")["proto"][0])
    out = tmp_path / "descriptors"
    compile = [sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path}", f"--descriptor_set_out={out}"]
    subprocess.run([*compile, "predict.proto"], check=True)  # a process of its own: TensorFlow has another protobuf
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    assert file.package == predict_pb2.DESCRIPTOR.package == "tensorflow.serving"
    request, response = predict_pb2.PredictRequest.DESCRIPTOR, predict_pb2.PredictResponse.DESCRIPTOR
    tensor = request.fields_by_name["inputs"].message_type.fields_by_name["value"].message_type
    shape = tensor.fields_by_name["tensor_shape"].message_type
    theirs = {
        "PredictRequest": request, "PredictResponse": response, "Tensor": tensor, "Shape": shape,
        "ModelSpec": request.fields_by_name["model_spec"].message_type,
    }  # fmt: skip
    assert {message.name for message in file.message_type} == theirs.keys()
    (dim,) = (message for message in file.message_type if message.name == "Shape")
    pairs = [(message, theirs[message.name]) for message in file.message_type]
    pairs.append((dim.nested_type[0], shape.fields_by_name["dim"].message_type))
    enum, integer = descriptor_pb2.FieldDescriptorProto.TYPE_ENUM, descriptor_pb2.FieldDescriptorProto.TYPE_INT32
    for ours, original in pairs:
        for field in ours.field:
            found = original.fields_by_name[field.name]
            kind = integer if found.type == enum else found.type  # the same bytes
            repeated = field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
            assert (field.number, field.type, repeated) == (found.number, kind, found.is_repeated), field.name


def test_the_page_says_what_about_json_holds(exported, small, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    small.save(run / "model.keras")
    paths = [exported, serving.export_run(run, tmp_path / "m", format="openvino")]
    keys = set().union(*map(about, paths))
    rows = PAGE.read_text().partition("`about.json` lies beside")[2].split("\n\n")[1].splitlines()[2:]
    said = [name for row in rows for name in row.split("|")[1].replace("`", "").replace(" ", "").split(",")]
    assert sorted(said) == sorted(keys)


def test_about_json_is_enough_for_a_client(exported, server, expected):
    found = about(exported)
    name, asked = next((k, v) for k, v in found["signatures"].items() if next(iter(v["inputs"])) == "image_bytes")
    assert asked["inputs"] == {"image_bytes": {"dtype": "string", "shape": [None]}}
    assert asked["outputs"]["probabilities"] == {"dtype": "float32", "shape": [None, len(found["classes"])]}
    assert found["signatures"]["predict_uint8"]["inputs"]["images"] == {"dtype": "uint8", "shape": [None, 32, 32, 3]}
    assert found["signatures"].keys() == {"serving_default", "predict_uint8", "predict_bytes", "classify"}
    files = [b64(png(image)) for image in pixels()]
    _, answer = server.post("predict", {"signature_name": name, "instances": files})
    np.testing.assert_allclose([row["probabilities"] for row in answer["predictions"]], expected, atol=1e-5)


# REST, as TF Serving's page "RESTful API" describes it.


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("signature", [None, "predict_uint8", "predict_bytes"])
def test_rest_in_rows_and_in_columns(signature, named, rows, server, expected):
    images = pixels()
    column = [b64(png(image)) for image in images] if signature == "predict_bytes" else images.tolist()
    key = "image_bytes" if signature == "predict_bytes" else "images"
    given = ([{key: row} for row in column] if rows else {key: column}) if named else column
    body = {"instances" if rows else "inputs": given} | ({"signature_name": signature} if signature else {})
    status, answer = server.post("predict", body)
    assert status == 200 and answer.keys() == {"predictions" if rows else "outputs"}
    if rows:
        answer = {key: [row[key] for row in answer["predictions"]] for key in answer["predictions"][0]}
    else:
        answer = answer["outputs"]
    assert answer.keys() == {"probabilities", "classes", "scores", "labels"}
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    best = np.argsort(-expected, axis=1)[:, :3]
    assert answer["classes"] == best.tolist()
    assert answer["labels"] == [[CLASSES[i] for i in row] for row in best]


def test_rest_classify(server, expected):
    examples = [{"image/encoded": b64(png(image))} for image in pixels()]
    status, answer = server.post("classify", {"signature_name": "classify", "examples": examples})
    assert status == 200 and answer.keys() == {"results"}, answer
    for row, probabilities in zip(answer["results"], expected, strict=True):
        best = np.argsort(-probabilities)[:3]
        assert [label for label, _ in row] == [CLASSES[i] for i in best]
        np.testing.assert_allclose([score for _, score in row], probabilities[best], atol=1e-5)


def test_rest_status_and_metadata(server):
    (row,) = server.states().values()
    assert row == {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    with urllib.request.urlopen(f"{server.url}/versions/1/metadata", timeout=5) as reply:
        found = json.load(reply)
    assert (found["model_spec"]["name"], found["model_spec"]["version"]) == (NAME, "1")
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert signatures["predict_bytes"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
    dims = signatures["predict_uint8"]["inputs"]["images"]["tensor_shape"]["dim"]
    assert [dim["size"] for dim in dims] == ["-1", "32", "32", "3"]


SMALL = pixels(1)[:, :4].tolist()


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"{", 400, "JSON"),
        ([1], 400, ""),
        ({"signature_name": "predict_bytes"}, 400, "inputs"),  # neither instances nor inputs
        ({"instances": [1], "inputs": [1]}, 400, ""),
        ({"signature_name": "predict_file", "instances": [1]}, 400, '"predict_file" not found'),
        ({"signature_name": "predict_bytes", "instances": [{"b64": "data:image/png;base64,AAAA"}]}, 400, "base64"),
        ({"signature_name": "predict_bytes", "instances": [b64(b"no image")]}, 400, "not a JPEG or PNG image"),
        ({"signature_name": "predict_bytes", "instances": pixels(1).tolist()}, 400, "expected"),
        ({"instances": [b64(png(pixels(1)[0]))]}, 400, "expected type: float"),
        ({"signature_name": "predict_uint8", "instances": (pixels(1) / 2).tolist()}, 400, "expected type: uint8"),
        ({"instances": SMALL}, 400, ""),
        ({"instances": (pixels(2) / 255).tolist()}, 400, "in [0, 255]"),
        ({"instances": [[[[1.0, 2.0]], [[3.0]]]]}, 400, "size"),
        ({"instances": [[[[1e300, 1, 1]] * 32] * 32]}, 400, ""),
        ({"inputs": {"image": pixels(1).tolist()}}, 400, "image"),
    ],
)
def test_rest_errors(body, status, message, server):
    found, answer = server.post("predict", body)
    assert found == status and answer.keys() == {"error"} and message in answer["error"], answer


def test_rest_names_that_are_not_there(server):
    body = {"instances": pixels(1).tolist()}
    for url in (f"{server.url}s:predict", f"{server.url}/versions/7:predict"):
        status, answer = server.post("predict", body, url)
        assert status == 404 and "Servable not found for request: " in answer["error"]
    status, answer = server.post("predict", body, f"{server.url}:guess")
    assert status == 400 and "Malformed request: POST" in answer["error"]


# gRPC.


def request_for(images, signature="predict_uint8", key="images", **options):
    request = predict_pb2.PredictRequest(inputs={key: tf.make_tensor_proto(images)}, **options)
    request.model_spec.name, request.model_spec.signature_name = NAME, signature
    return request


def test_grpc_predict(server, expected):
    with server.stubs() as (predictions, _):
        answer = predictions.Predict(request_for(pixels()), timeout=30)
        filtered = predictions.Predict(request_for(pixels(), output_filter=["labels"]), timeout=30)
    assert (answer.model_spec.name, answer.model_spec.version.value) == (NAME, 1)
    found = {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    assert found.keys() == {"probabilities", "classes", "scores", "labels"}
    assert not answer.outputs["scores"].tensor_content  # the page's client reads float_val
    assert list(filtered.outputs) == ["labels"]
    best = np.argsort(-expected, axis=1)[:, :3]
    assert tf.make_ndarray(filtered.outputs["labels"]).tolist() == [[CLASSES[i].encode() for i in row] for row in best]


def test_grpc_classify_metadata_and_status(server, expected):
    request = classification_pb2.ClassificationRequest(model_spec={"name": NAME, "signature_name": "classify"})
    for image in pixels():
        example = request.input.example_list.examples.add()
        example.features.feature["image/encoded"].bytes_list.value.append(png(image))
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": NAME})
    metadata.metadata_field.append("signature_def")
    with server.stubs() as (predictions, models):
        answer = predictions.Classify(request, timeout=30).result
        found = predictions.GetModelMetadata(metadata, timeout=30).metadata["signature_def"]
        status = models.GetModelStatus(get_model_status_pb2.GetModelStatusRequest(model_spec={"name": NAME}))
    for row, probabilities in zip(answer.classifications, expected, strict=True):
        best = np.argsort(-probabilities)[:3]
        assert [each.label for each in row.classes] == [CLASSES[i] for i in best]
        np.testing.assert_allclose([each.score for each in row.classes], probabilities[best], atol=1e-5)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert found.Unpack(signatures) and {"predict_bytes", "classify"} < set(signatures.signature_def)
    (row,) = status.model_version_status
    assert (row.version, row.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)


@pytest.mark.parametrize(
    "change, code, message",
    [
        ({"signature": "predict_file"}, "FAILED_PRECONDITION", "predict_file"),
        ({"key": "image"}, "INVALID_ARGUMENT", "image"),
        ({"images": pixels().astype("float32")}, "INVALID_ARGUMENT", ""),
        ({"images": pixels()[:, :16]}, "INVALID_ARGUMENT", ""),
        (
            {"images": [b"no image"], "signature": "predict_bytes", "key": "image_bytes"},
            "INVALID_ARGUMENT",
            "not a JPEG",
        ),
        ({"output_filter": ["colour"]}, "INVALID_ARGUMENT", "colour"),
        ({"name": "other"}, "NOT_FOUND", "Servable not found for request: Latest(other)"),
        ({"version": 9}, "NOT_FOUND", f"Specific({NAME}, 9)"),
    ],
)
def test_grpc_errors(change, code, message, server):
    given = dict(change)
    name, version = given.pop("name", NAME), given.pop("version", None)
    request = request_for(given.pop("images", pixels()), **given)
    request.model_spec.name = name
    if version:
        request.model_spec.version.value = version
    with server.stubs() as (predictions, _), pytest.raises(grpc.RpcError, match=".") as found:
        predictions.Predict(request, timeout=30)
    assert found.value.code().name == code and message in found.value.details()


# What happens to a server.


def test_a_client_that_hangs_up_harms_nobody(server, expected):
    body = json.dumps({"instances": pixels().tolist()}).encode()
    head = f"POST /v1/models/{NAME}:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for sent in (head, head + body[:1000], head + body):
        with socket.create_connection(("localhost", server.rest_port)) as hung:
            hung.sendall(sent)
            hung.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, at once
    with server.stubs() as (predictions, _):
        predictions.Predict.future(request_for(pixels()), timeout=30).cancel()
    with contextlib.closing(http.client.HTTPConnection("localhost", server.rest_port, timeout=30)) as connection:
        for _ in range(2):  # over one connection
            connection.request("POST", f"/v1/models/{NAME}:predict", body)
            rows = json.load(connection.getresponse())["predictions"]
            np.testing.assert_allclose([row["probabilities"] for row in rows], expected, atol=1e-5)


@pytest.mark.parametrize("kind", SERVERS)
def test_joined_requests(kind, exported, small, tmp_path):
    """With the page's parameters, except that the server waits until a batch is full."""
    (parameters,) = (text for text in blocks(PAGE, "## Batching")[""] if "max_batch_size" in text)
    assert "batch_timeout_micros { value: 2000 }" in parameters
    (tmp_path / "batching.config").write_text(parameters.replace("2000", "5000000"))
    flags = "--enable_batching", f"--batching_parameters_file={tmp_path / 'batching.config'}"
    images, wrong = pixels(8, seed=3), b64(b"no image")
    files = [b64(png(image)) for image in images]
    with serving_of(kind, os.path.dirname(exported), *flags) as server:
        ask = lambda file: server.post("predict", {"signature_name": "predict_bytes", "instances": [file]})
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            begin = time.monotonic()
            answers = [*pool.map(ask, files)]
            assert time.monotonic() - begin < 4  # nobody waited for the end of the five seconds
            spoiled = [*pool.map(ask, [*files[:3], wrong, *files[4:]])]
    rows = [row for status, answer in answers for row in answer["predictions"]]
    np.testing.assert_allclose([row["probabilities"] for row in rows], small.predict(images, verbose=0), atol=1e-5)
    assert {status for status, _ in spoiled} == {400}
    (message,) = {
        answer["error"].partition("by index in this batch")[2] for _, answer in spoiled
    }  # the index in the joined batch
    assert message


@pytest.mark.parametrize("kind", SERVERS)
def test_a_version_whose_warmup_fails_is_not_served(kind, exported, small, tmp_path):
    folder = tmp_path / NAME
    shutil.copytree(exported, folder / "1")
    with serving_of(kind, folder) as server:
        requests = [*tf.data.TFRecordDataset(folder / "1" / exporting.WARMUP).as_numpy_iterator()]
        log = prediction_log_pb2.PredictionLog.FromString(requests[-1])
        log.classify_log.request.model_spec.signature_name = "nobody's"
        hidden = tmp_path / "unfinished"
        shutil.copytree(exported, hidden)
        with tf.io.TFRecordWriter(str(hidden / exporting.WARMUP)) as file:
            for record in (*requests[:-1], log.SerializeToString()):
                file.write(record)
        hidden.rename(folder / "2")
        server.wait("2", "END")
        assert "nobody's" in server.states()["2"]["status"]["error_message"]
        assert server.states()["1"]["state"] == "AVAILABLE"
        assert server.post("predict", {"instances": pixels().tolist()})[0] == 200


@pytest.mark.parametrize("kind", SERVERS)
def test_a_version_is_swapped_under_load(kind, small, expected, tmp_path):
    """gRPC and REST; no request may fail while version 2 replaces version 1."""
    folder = tmp_path / NAME
    serving.export(small, folder, classes=CLASSES)
    files = [b64(png(image)) for image in pixels()]
    versions, failures, stop = [], [], threading.Event()

    def load(ask):
        while not stop.is_set():
            try:
                ask()
            except Exception as error:  # whatever fails is what the test is about
                failures.append(error)

    with serving_of(kind, folder) as server, server.stubs() as (predictions, _):

        def by_rest():
            status, answer = server.post("predict", {"signature_name": "predict_bytes", "instances": files})
            assert status == 200, answer
            found = [row["probabilities"] for row in answer["predictions"]]
            np.testing.assert_allclose(found, expected, atol=1e-4)

        def by_grpc():
            answer = predictions.Predict(request_for(pixels()), timeout=30)
            versions.append(answer.model_spec.version.value)
            np.testing.assert_allclose(tf.make_ndarray(answer.outputs["probabilities"]), expected, atol=1e-4)

        clients = [threading.Thread(target=load, args=[ask]) for ask in (by_rest, by_grpc)]
        for client in clients:
            client.start()
        time.sleep(1)
        serving.export(small, folder, classes=CLASSES, keep=1)
        server.wait("2")
        time.sleep(1)
        stop.set()
        for client in clients:
            client.join()
    assert not failures, failures[0]
    assert set(versions) == {1, 2} and versions == sorted(versions)


@pytest.mark.skipif(not importlib.util.find_spec("kserve"), reason="kserve is not installed")
def test_kserve_serves_an_openvino_export(small, expected, tmp_path):
    """The page's server, unchanged, over the Open Inference Protocol."""
    serving.export(small, tmp_path / "saved_models" / NAME, classes=CLASSES, format="openvino")
    (program,) = blocks(PAGE, "## Other servers")["python"]
    (tmp_path / "server.py").write_text(program)
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, "server.py", f"--http_port={port}"], cwd=tmp_path) as process:
        try:
            url = f"http://localhost:{port}/v2/models/{NAME}"
            end = time.monotonic() + START
            while True:
                try:
                    with urllib.request.urlopen(f"{url}/ready", timeout=5):
                        break
                except OSError:
                    assert process.poll() is None and time.monotonic() < end
                    time.sleep(0.2)
            images = pixels().astype("float32")
            tensor = {"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
            request = urllib.request.Request(
                f"{url}/infer", json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as reply:
                (output,) = json.load(reply)["outputs"]
        finally:
            process.terminate()
    assert output["datatype"] == "FP32"
    found = np.reshape(output["data"], output["shape"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
