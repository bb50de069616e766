"""Runs a SavedModel through TensorFlow's C API, as a server does, without TensorFlow's Python.

    python c_api.py FOLDER_OF_TENSORFLOW SAVED_MODEL REQUEST.pickle ANSWER.pickle

A request is a list of (input tensor's name, array, {output: tensor's name}). The answer is a list of pairs: {output:
array} or the error's message, and the peak of memory until then, in MB.
"""

import ctypes
import pickle
import sys

import numpy as np

TYPES = {np.dtype("float32"): 1, np.dtype("int32"): 3, np.dtype("uint8"): 4, np.dtype("O"): 7}
STRING, STRING_SIZE = 7, 24


class Pointer(ctypes.c_void_p):
    """Unlike `c_void_p` itself, ctypes does not turn it into a number, which would be cut to 32 bits as an argument."""


RESULTS = {
    "Message": ctypes.c_char_p, "Dim": ctypes.c_int64, "StringGetSize": ctypes.c_size_t,
    "GetCode": ctypes.c_int, "TensorType": ctypes.c_int, "NumDims": ctypes.c_int,
}  # fmt: skip


class Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class TensorFlow:
    """The functions of libtensorflow_cc; all but a few return pointers."""

    def __init__(self, folder):
        self.library = ctypes.CDLL(f"{folder}/libtensorflow_cc.so.2")
        self.status = self("NewStatus")

    def __call__(self, name, *arguments):
        function = getattr(self.library, f"TF_{name}")
        function.restype = RESULTS.get(name, Pointer)
        return function(*arguments)

    def check(self):
        if self("GetCode", self.status):
            raise RuntimeError(self("Message", self.status).decode())

    def tensor(self, array):
        code, array = TYPES[array.dtype], np.ascontiguousarray(array)
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        size = array.size * STRING_SIZE if code == STRING else array.nbytes
        tensor = self("AllocateTensor", code, dims, array.ndim, ctypes.c_size_t(size))
        data = self("TensorData", tensor)
        if code != STRING:
            ctypes.memmove(data, array.ctypes.data, size)
            return tensor
        for i, value in enumerate(array.ravel()):
            string = Pointer(data.value + i * STRING_SIZE)
            self("StringInit", string)
            self("StringCopy", string, value, ctypes.c_size_t(len(value)))
        return tensor

    def array(self, tensor):
        code, data = self("TensorType", tensor), self("TensorData", tensor)
        shape = [self("Dim", tensor, i) for i in range(self("NumDims", tensor))]
        if code == STRING:
            strings = [Pointer(data.value + i * STRING_SIZE) for i in range(int(np.prod(shape)))]
            values = [
                ctypes.string_at(self("StringGetDataPointer", string), self("StringGetSize", string))
                for string in strings
            ]
            return np.array(values, "O").reshape(shape)
        (dtype,) = (dtype for dtype, number in TYPES.items() if number == code)
        array = np.empty(shape, dtype)
        ctypes.memmove(array.ctypes.data, data, array.nbytes)
        return array

    def load(self, path):
        self.graph, options = self("NewGraph"), self("NewSessionOptions")
        tags = (ctypes.c_char_p * 1)(b"serve")
        self.session = self(
            "LoadSessionFromSavedModel", options, None, path.encode(), tags, 1, self.graph, None, self.status
        )
        self.check()

    def output(self, name):
        operation, _, index = name.partition(":")
        return Output(self("GraphOperationByName", self.graph, operation.encode()), int(index or 0))

    def run(self, name, array, outputs):
        n = len(outputs)
        fetched = (Pointer * n)()
        self(
            "SessionRun", self.session, None, (Output * 1)(self.output(name)),
            (Pointer * 1)(self.tensor(array)), 1,
            (Output * n)(*map(self.output, outputs.values())), fetched, n, None, 0, None, self.status,
        )  # fmt: skip
        self.check()
        return dict(zip(outputs, map(self.array, fetched), strict=True))


def peak_memory():
    """In MB, of this program alone: getrusage's also counts the one that started it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith("VmHWM"))


def main(folder, path, request, answer):
    tensorflow = TensorFlow(folder)
    tensorflow.load(path)
    answers = []
    with open(request, "rb") as file:
        for name, array, outputs in pickle.load(file):
            try:
                found = tensorflow.run(name, array, outputs)
            except RuntimeError as error:
                found = str(error)
            answers.append((found, peak_memory()))
    assert "tensorflow" not in sys.modules
    with open(answer, "wb") as file:
        pickle.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
