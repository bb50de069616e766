"""TF Serving's two interfaces, gRPC and REST, on real sockets: a server for the tests of clients, not for production.

    python contract_server.py --model_name=NAME --model_base_path=FOLDER --port=8500 --rest_api_port=8501

takes these flags of `tensorflow_model_server`, and its --file_system_poll_wait_seconds, --max_num_load_retries,
--enable_batching and --batching_parameters_file. SavedModels are loaded and run by TensorFlow's C API; its Python API
is used only for messages. Interfaces, statuses and messages are those that TF Serving documents (gRPC
services, "RESTful API", "SavedModel Warmup", "Batching"); it was written without a server to compare it with.
"""

import argparse
import base64
import collections
import contextlib
import http.server
import json
import os
import pathlib
import queue
import re
import signal
import struct
import threading
import time
from concurrent import futures

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np
import tensorflow as tf
from c_api import Failed, Session
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, UNAVAILABLE = 3, 5, 9, 14  # gRPC's codes, and TensorFlow's
HTTP = {INVALID_ARGUMENT: 400, NOT_FOUND: 404, FAILED_PRECONDITION: 400, 8: 429, 12: 501, UNAVAILABLE: 503}
CODES = {code.value[0]: code for code in grpc.StatusCode}
NUMPY = {1: np.float32, 3: np.int32, 4: np.uint8, 7: object}  # by the number of a DataType
DEFAULT, CLASSIFY = "serving_default", "tensorflow/serving/classify"
WARMUP = "assets.extra/tf_serving_warmup_requests"
State = get_model_status_pb2.ModelVersionStatus.State


def signature_defs(path):
    """The signatures of a SavedModel by name."""
    saved = saved_model_pb2.SavedModel.FromString(pathlib.Path(path, "saved_model.pb").read_bytes())
    return {
        name: found for name, found in saved.meta_graphs[0].signature_def.items() if name != "__saved_model_init_op"
    }


class Version:
    """A version that is loaded and warmed up."""

    def __init__(self, path, batching):
        self.number, self.users = int(path.name), 0
        self.signatures = signature_defs(path)
        self.session = Session(os.path.dirname(tf.__file__), path)
        self.run_signature = Batches(self._run, batching).run if batching else self._run
        for log in warmup_requests(path / WARMUP):
            if log.HasField("predict_log"):
                self.predict(log.predict_log.request)
            else:
                self.classify(log.classify_log.request)

    def signature(self, name):
        if found := self.signatures.get(name or DEFAULT):
            return found
        raise Failed(FAILED_PRECONDITION, f'Serving signature key "{name or DEFAULT}" not found.')

    def predict(self, request):
        signature, inputs = self.signature(request.model_spec.signature_name), dict(request.inputs)
        if inputs.keys() != signature.inputs.keys():
            sent, known = (",".join(sorted(names)) for names in (inputs, signature.inputs))
            raise Failed(INVALID_ARGUMENT, f"inputs do not match the signature: sent {{{sent}}}, expected {{{known}}}")
        if unknown := set(request.output_filter) - signature.outputs.keys():
            raise Failed(INVALID_ARGUMENT, f"output tensor alias not found in signature: {sorted(unknown)[0]}")
        arrays = {}
        for name, tensor in inputs.items():
            expected = signature.inputs[name].dtype
            if tensor.dtype != expected:
                raise Failed(INVALID_ARGUMENT, f"{name} has type {tensor.dtype}; expected {expected}")
            try:
                arrays[name] = tf.make_ndarray(tensor)
            except (ValueError, TypeError) as error:
                raise Failed(INVALID_ARGUMENT, f"{name} is no tensor: {error}") from error
        found = self.run_signature(request.model_spec.signature_name or DEFAULT, arrays)
        names = request.output_filter or found
        return {name: found[name] for name in names}

    def classify(self, request):
        name = request.model_spec.signature_name or DEFAULT
        if self.signature(name).method_name != CLASSIFY:
            raise Failed(INVALID_ARGUMENT, f"{name} is no signature for Classify")
        examples = request.input.example_list.examples
        if not examples:
            raise Failed(INVALID_ARGUMENT, "Input is empty.")
        array = np.array([*(each.SerializeToString() for each in examples), None], "O")[:-1]
        found = self.run_signature(name, {"inputs": array})
        result = classification_pb2.ClassificationResult()
        for labels, scores in zip(found["classes"], found["scores"], strict=True):
            row = result.classifications.add()
            for label, score in zip(labels, scores, strict=True):
                row.classes.add(label=label.decode(), score=float(score))
        return result

    def _run(self, name, arrays):
        signature = self.signatures[name]
        inputs = {signature.inputs[key].name: array for key, array in arrays.items()}
        return self.session.run(inputs, {key: info.name for key, info in signature.outputs.items()})


def warmup_requests(path):
    """The records of a TFRecord file: each has 12 bytes before it and 4 behind it."""
    content = path.read_bytes() if path.exists() else b""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield prediction_log_pb2.PredictionLog.FromString(content[12 : 12 + length])
        content = content[16 + length :]


class Batches:
    """Joins requests to one signature: up to `max_batch_size` rows, or those within `batch_timeout_micros`."""

    Task = collections.namedtuple("Task", "arrays rows shape future")

    def __init__(self, run, settings):
        self.run_joined, self.most = run, settings["max_batch_size"]
        self.timeout, self.threads = settings["batch_timeout_micros"] / 1e6, settings["num_batch_threads"]
        self.enqueued = self.most * settings["max_enqueued_batches"]
        self.queues, self.lock = {}, threading.Lock()

    def run(self, name, arrays):
        (array,) = arrays.values()
        if not array.ndim or len(array) > self.most:
            raise Failed(INVALID_ARGUMENT, f"a request has 1 to {self.most} rows; found shape {array.shape}")
        task = self.Task(arrays, len(array), array.shape[1:], futures.Future())
        with self.lock:
            if name not in self.queues:
                self.queues[name] = queue.Queue(self.enqueued)
                threading.Thread(target=self._join, args=(name, self.queues[name]), daemon=True).start()
        try:
            self.queues[name].put_nowait(task)
        except queue.Full:
            raise Failed(UNAVAILABLE, "The batch scheduling queue is full") from None
        return task.future.result()

    def _join(self, name, tasks):
        pool, left_over = futures.ThreadPoolExecutor(self.threads), None
        while True:
            joined = [left_over or tasks.get()]
            left_over, end = None, time.monotonic() + self.timeout
            while (rows := sum(task.rows for task in joined)) < self.most:
                try:
                    task = tasks.get(timeout=max(0, end - time.monotonic()))
                except queue.Empty:
                    break
                if task.shape != joined[0].shape or rows + task.rows > self.most:
                    left_over = task
                    break
                joined.append(task)
            pool.submit(self._run_joined, name, joined)

    def _run_joined(self, name, joined):
        try:
            arrays = {key: np.concatenate([task.arrays[key] for task in joined]) for key in joined[0].arrays}
            found = self.run_joined(name, arrays)
        except Exception as error:  # which is every task's
            for task in joined:
                task.future.set_exception(error)
            return
        begin = 0
        for task in joined:
            task.future.set_result({key: array[begin : begin + task.rows] for key, array in found.items()})
            begin += task.rows


class Model:
    """The newest version in a folder, which is polled."""

    def __init__(self, name, folder, batching):
        self.name, self.folder, self.batching = name, pathlib.Path(folder), batching
        self.current, self.states, self.changed = None, {}, threading.Condition()

    def watch(self, seconds):
        while True:
            self.poll()
            time.sleep(seconds)

    def poll(self):
        numbers = [int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()]
        newest = max(numbers, default=None)
        if newest is None or newest in self.states:
            return
        self.states[newest] = (State.LOADING, "")
        try:
            new = Version(self.folder / str(newest), self.batching)
        except (OSError, Failed) as error:
            self.states[newest] = (State.END, str(error))
            return
        with self.changed:
            self.states[newest], old, self.current = (State.AVAILABLE, ""), self.current, new
            if old:  # what has begun with it ends with it
                self.states[old.number] = (State.UNLOADING, "")
                self.changed.wait_for(lambda: not old.users)
        if old:
            old.session.close()
            self.states[old.number] = (State.END, "")

    @contextlib.contextmanager
    def use(self, spec):
        asked = spec.version.value if spec.HasField("version") else None
        with self.changed:
            version = self.current
            if spec.name != self.name or version is None or asked not in (None, version.number):
                what = f"Latest({spec.name})" if asked is None else f"Specific({spec.name}, {asked})"
                raise Failed(NOT_FOUND, f"Servable not found for request: {what}")
            version.users += 1
        try:
            yield version
        finally:
            with self.changed:
                version.users -= 1
                self.changed.notify_all()

    def predict(self, request):
        response = predict_pb2.PredictResponse()
        with self.use(request.model_spec) as version:
            for name, array in version.predict(request).items():
                tensor = tf.make_tensor_proto(array)
                if tensor.tensor_content:  # TF Serving fills the fields that have a type
                    field = tensor.float_val if array.dtype == np.float32 else tensor.int_val
                    field.extend(array.ravel().tolist())
                    tensor.ClearField("tensor_content")
                response.outputs[name].CopyFrom(tensor)
            self._say_which(response, request, version)
        return response

    def classify(self, request):
        response = classification_pb2.ClassificationResponse()
        with self.use(request.model_spec) as version:
            response.result.CopyFrom(version.classify(request))
            self._say_which(response, request, version)
        return response

    def _say_which(self, response, request, version):
        response.model_spec.name, response.model_spec.version.value = self.name, version.number
        response.model_spec.signature_name = request.model_spec.signature_name or DEFAULT

    def metadata(self, request):
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self.use(request.model_spec) as version:
            found = get_model_metadata_pb2.SignatureDefMap(signature_def=version.signatures)
            response.metadata["signature_def"].Pack(found)
            response.model_spec.name, response.model_spec.version.value = self.name, version.number
        return response

    def status(self, request):
        spec, response = request.model_spec, get_model_status_pb2.GetModelStatusResponse()
        asked = spec.version.value if spec.HasField("version") else None
        states = {n: state for n, state in sorted(self.states.items(), reverse=True) if asked in (None, n)}
        if spec.name != self.name or (asked is not None and not states):
            version = "" if asked is None else f" with version {asked}"
            raise Failed(NOT_FOUND, f"Could not find any versions of model {spec.name}{version}")
        for number, (state, message) in states.items():
            row = response.model_version_status.add(version=number, state=state)
            row.status.error_code, row.status.error_message = (2 if message else 0), message
        return response


def answering(method):
    def answer(self, request, context):
        try:
            return method(self, request)
        except Failed as error:
            context.abort(CODES[error.code], str(error))

    return answer


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model):
        self.model = model

    Predict = answering(lambda self, request: self.model.predict(request))
    Classify = answering(lambda self, request: self.model.classify(request))
    GetModelMetadata = answering(lambda self, request: self.model.metadata(request))


class Statuses(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, model):
        self.model = model

    GetModelStatus = answering(lambda self, request: self.model.status(request))


# REST: JSON on either side of the same methods.


def value(json_value):
    """A value of a tensor or feature: {"b64": ...} and strings are bytes."""
    if isinstance(json_value, str):
        return json_value.encode()
    if isinstance(json_value, dict):
        if json_value.keys() != {"b64"} or not isinstance(json_value["b64"], str):
            raise Failed(
                INVALID_ARGUMENT, f"JSON Value: {json.dumps(json_value)} not formatted correctly for base64 data"
            )
        try:
            return base64.b64decode(json_value["b64"], validate=True)
        except ValueError:
            raise Failed(INVALID_ARGUMENT, "Unable to base64 decode") from None
    return json_value


def tensor(json_value, info):
    """A TensorProto from nested lists, with the type of the signature."""
    dtype, flat, kind = NUMPY[info.dtype], [], tf.dtypes.as_dtype(info.dtype).name

    def walk(part, level):
        if isinstance(part, list):
            lengths.setdefault(level, len(part))
            if len(part) != lengths[level]:
                raise Failed(INVALID_ARGUMENT, f"Encountered list at unexpected size: {len(part)} at level: {level}")
            for each in part:
                walk(each, level + 1)
            return
        found = value(part) if info.dtype == 7 else part
        fits = {1: (int, float), 7: bytes}.get(info.dtype, int)
        if not isinstance(found, fits) or isinstance(found, bool):
            raise Failed(INVALID_ARGUMENT, f"JSON Value: {json.dumps(part)} is not of expected type: {kind}")
        leaves.add(level)
        flat.append(found)

    lengths, leaves = {}, set()
    walk(json_value, 0)
    if len(leaves) > 1 or leaves and max(leaves) != len(lengths):
        raise Failed(INVALID_ARGUMENT, "JSON values are found at different levels of nesting")
    try:
        array = np.array([*flat, None], dtype)[:-1] if dtype is object else np.array(flat, dtype)
    except OverflowError as error:
        raise Failed(INVALID_ARGUMENT, f"JSON Value: {error}") from error
    return tf.make_tensor_proto(array.reshape([lengths[level] for level in sorted(lengths)]), info.dtype)


def predict_request(body, version):
    name = body.get("signature_name", DEFAULT)
    if name not in version.signatures:
        raise Failed(INVALID_ARGUMENT, f'Serving signature name: "{name}" not found in signature def')
    infos, rows = version.signatures[name].inputs, "instances" in body
    if rows == ("inputs" in body):
        raise Failed(INVALID_ARGUMENT, "a request has one of the keys instances and inputs")
    given = body["instances" if rows else "inputs"]
    if rows:
        if not isinstance(given, list) or not given:
            raise Failed(INVALID_ARGUMENT, "Expected 'instances' to be a list with at least one item")
        named = [isinstance(row, dict) and row.keys() != {"b64"} for row in given]
        if any(named):
            if not all(named) or any(row.keys() != infos.keys() for row in given):
                raise Failed(INVALID_ARGUMENT, f"each of 'instances' has the named inputs {', '.join(infos)}")
            given = {key: [row[key] for row in given] for key in infos}
    if not (isinstance(given, dict) and given.keys() != {"b64"}):
        if len(infos) != 1:
            raise Failed(INVALID_ARGUMENT, f"there are several named inputs: {', '.join(infos)}")
        given = {next(iter(infos)): given}
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = name
    for key, part in given.items():
        if key not in infos:
            raise Failed(INVALID_ARGUMENT, f"there is no named input {key}; there is {', '.join(infos)}")
        request.inputs[key].CopyFrom(tensor(part, infos[key]))
    return request, rows


def as_json(name, array):
    """Nested lists; strings are text, except for tensors whose names end with _bytes."""
    as_text = (lambda x: {"b64": base64.b64encode(x).decode()}) if name.endswith("_bytes") else lambda x: x.decode()
    convert = lambda x: [*map(convert, x)] if isinstance(x, list) else as_text(x) if isinstance(x, bytes) else x
    return convert(array.tolist())


def predict_answer(found, rows):
    columns = {name: as_json(name, array) for name, array in found.items()}
    one = next(iter(columns)) if len(columns) == 1 else None
    if not rows:
        return {"outputs": columns[one] if one else columns}
    if one:
        return {"predictions": columns[one]}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def classify_request(body):
    request, context = classification_pb2.ClassificationRequest(), body.get("context", {})
    request.model_spec.signature_name = body.get("signature_name", DEFAULT)
    if not isinstance(body.get("examples"), list):
        raise Failed(INVALID_ARGUMENT, "a request has the key examples, a list")
    for features in body["examples"]:
        example = request.input.example_list.examples.add()
        for key, given in {**context, **features}.items():
            values = [*map(value, given if isinstance(given, list) else [given])]
            kind = "bytes_list" if isinstance(values[0], bytes) else "int64_list"
            if any(isinstance(each, float) for each in values):
                kind = "float_list"
            getattr(example.features.feature[key], kind).value.extend(values)
    return request


class Rest(http.server.BaseHTTPRequestHandler):
    """`model` is its class's."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(?:/(metadata))?", self._get)

    def do_POST(self):
        self._answer(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:(classify|regress|predict)", self._post)

    def _answer(self, pattern, method):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            match = re.fullmatch(pattern, self.path)
            if not match:
                raise Failed(INVALID_ARGUMENT, f"Malformed request: {self.command} {self.path}")
            name, version, what = match.groups()
            spec = predict_pb2.PredictRequest().model_spec
            spec.name = name
            if version:
                spec.version.value = int(version)
            status, answer = 200, method(spec, what, content)
        except Failed as error:
            status, answer = HTTP.get(error.code, 500), {"error": str(error)}
        except Exception as error:
            status, answer = 500, {"error": repr(error)}
        content = json.dumps(answer).encode()
        with contextlib.suppress(ConnectionError):  # the client has hung up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _get(self, spec, what, _):
        options = {"always_print_fields_with_no_presence": True, "preserving_proto_field_name": True}
        if what is None:
            found = self.model.status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
            return json_format.MessageToDict(found, **options)
        found = self.model.metadata(get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec))
        signatures = get_model_metadata_pb2.SignatureDefMap()
        found.metadata["signature_def"].Unpack(signatures)
        return {
            "model_spec": json_format.MessageToDict(found.model_spec, **options),
            "metadata": {"signature_def": json_format.MessageToDict(signatures, **options)},
        }

    def _post(self, spec, what, content):
        try:
            body = json.loads(content)
        except ValueError as error:
            raise Failed(INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
        if not isinstance(body, dict) or not isinstance(body.get("signature_name", ""), str):
            raise Failed(INVALID_ARGUMENT, "a request is a JSON object, and its 'signature_name' a string")
        if what == "regress":
            raise Failed(INVALID_ARGUMENT, "there is no signature for Regress")
        with self.model.use(spec) as version:
            if what == "classify":
                found = version.classify(classify_request(body))
                rows = [[[each.label, each.score] for each in row.classes] for row in found.classifications]
                return {"results": rows}
            request, rows = predict_request(body, version)
            return predict_answer(version.predict(request), rows)


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("model_name", "model_base_path", "batching_parameters_file"):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--rest_api_port", type=int, default=8501)
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1)
    parser.add_argument("--max_num_load_retries", type=int, default=0)  # it never tries again
    parser.add_argument("--enable_batching", action="store_true")
    flags = parser.parse_args()
    batching = None
    if flags.enable_batching:
        text = pathlib.Path(flags.batching_parameters_file).read_text()
        batching = {name: int(number) for name, number in re.findall(r"(\w+) *{ *value: *(\d+) *}", text)}
    model = Rest.model = Model(flags.model_name, flags.model_base_path, batching)
    threading.Thread(target=model.watch, args=[flags.file_system_poll_wait_seconds], daemon=True).start()
    server = grpc.server(futures.ThreadPoolExecutor(32), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(model), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Statuses(model), server)
    server.add_insecure_port(f"localhost:{flags.port}")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Server(("localhost", flags.rest_api_port), Rest).serve_forever()


if __name__ == "__main__":
    main()
