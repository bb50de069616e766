"""ResNet-50 under load: images/s and latencies of 1, 4 and 16 clients, each with one request at a time.

The server is that of the tests, `tests/serving/contract_server.py`: TensorFlow's C API behind gRPC in Python.
It measures the network and the batching of requests on this machine, not TF Serving itself.
"""

import concurrent.futures
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

import grpc
import numpy as np
import tensorflow as tf
from benchmarks.serve import FROZEN, HEIGHT, SIZE, WIDTH
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import keras_resnet
from keras_resnet import serving

ROOT = pathlib.Path(__file__).parents[2]
SERVER = ROOT / "tests" / "serving" / "contract_server.py"
CLIENTS = (1, 4, 16)
START = 120  # seconds, at most
BATCHING = re.compile(r"^max_batch_size .*?(?=^```)", re.M | re.S)  # in docs/serving.md


def measure(options):
    """Prints a line for each number of clients, without and with batching; each takes `--seconds`."""
    noise = np.random.default_rng(0).uniform(0, 255, (30, 40, 3))
    file = tf.io.encode_jpeg(tf.cast(tf.image.resize(noise, (HEIGHT, WIDTH)), "uint8")).numpy()
    request = predict_pb2.PredictRequest(inputs={"image_bytes": tf.make_tensor_proto([file])})
    request.model_spec.name, request.model_spec.signature_name = "resnet50", "predict_bytes"
    with tempfile.TemporaryDirectory() as folder:
        serving.export(keras_resnet.ResNet50(input_shape=(SIZE, SIZE, 3)), f"{folder}/resnet50")
        parameters = pathlib.Path(folder, "batching.config")
        parameters.write_text(BATCHING.search((ROOT / "docs" / "serving.md").read_text())[0])
        print(f"ResNet-50, float32, frozen weights, files of {HEIGHT}x{WIDTH}, {os.cpu_count()} cores")
        print(f"{'':<20}{'clients':>8}{'images/s':>10}{'ms, median':>12}{'95 %':>8}{'99 %':>8}")
        for name, flags in (
            ("one by one", ()),
            ("batching", ("--enable_batching", f"--batching_parameters_file={parameters}")),
        ):
            with _Server(f"{folder}/resnet50", flags) as predict:
                for clients in CLIENTS:
                    seconds, whole = _turn(lambda: predict(request, timeout=60), clients, options.seconds)
                    rate = len(seconds) / whole
                    median, most, worst = 1000 * np.percentile(seconds, (50, 95, 99))
                    print(f"{name:<20}{clients:>8}{rate:>10.1f}{median:>12.0f}{most:>8.0f}{worst:>8.0f}", flush=True)


class _Server:
    """A context that starts the server, returns its `Predict`, and ends it."""

    def __init__(self, folder, flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable, str(SERVER), "--model_name=resnet50", f"--model_base_path={folder}",
            f"--port={port}", "--rest_api_port=0", *flags,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | FROZEN)
        self.channel = grpc.insecure_channel(f"localhost:{port}")

    def __enter__(self):
        predict = prediction_service_pb2_grpc.PredictionServiceStub(self.channel).Predict
        end = time.monotonic() + START
        while True:
            try:
                predict(predict_pb2.PredictRequest(model_spec={"name": "resnet50"}), timeout=5, wait_for_ready=True)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.INVALID_ARGUMENT:  # the model is loaded, and the input is missing
                    return predict
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise SystemExit("benchmark.py: the server of the tests did not start")
            time.sleep(0.2)

    def __exit__(self, *_):
        self.channel.close()
        self.process.kill()
        self.process.wait()


def _turn(ask, clients, seconds):
    """The time of each request that began within `seconds`, after a first one per client, and the time in all."""

    def client(_):
        taken = []
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            ask()
            taken.append(time.perf_counter() - begin)
        return taken

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for _ in pool.map(lambda _: ask(), range(clients)):
            pass
        begin = time.perf_counter()
        taken = [each for taken in pool.map(client, range(clients)) for each in taken]
        return taken, time.perf_counter() - begin
