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


class Failed(RuntimeError):
    """TensorFlow's message, and its `code`, one of gRPC's."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Pointer(ctypes.c_void_p):
    """Unlike `c_void_p` itself, ctypes does not make it a number, which would be cut to 32 bits as an argument."""


RESULTS = {
    "Message": ctypes.c_char_p, "Dim": ctypes.c_int64, "StringGetSize": ctypes.c_size_t,
    "GetCode": ctypes.c_int, "TensorType": ctypes.c_int, "NumDims": ctypes.c_int,
}  # fmt: skip


class Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Session:
    """A SavedModel, loaded by libtensorflow_cc; several threads may run it at a time."""

    def __init__(self, tensorflow, path):
        self.library = ctypes.CDLL(f"{tensorflow}/libtensorflow_cc.so.2")
        self.graph, options = self._call("NewGraph"), self._call("NewSessionOptions")
        tags = (ctypes.c_char_p * 1)(b"serve")
        self.session = self._checked(
            "LoadSessionFromSavedModel", options, None, str(path).encode(), tags, 1, self.graph, None
        )
        self._call("DeleteSessionOptions", options)

    def run(self, inputs, outputs):
        """The arrays of the tensors in `outputs`, {anything: tensor's name}, for `inputs`, {tensor's name: array}."""
        fed = (Pointer * len(inputs))(*map(self._tensor, inputs.values()))
        fetched = (Pointer * len(outputs))()
        try:
            self._checked(
                "SessionRun", self.session, None, (Output * len(fed))(*map(self._output, inputs)), fed, len(fed),
                (Output * len(fetched))(*map(self._output, outputs.values())), fetched, len(fetched), None, 0, None,
            )  # fmt: skip
            return dict(zip(outputs, map(self._array, fetched), strict=True))
        finally:
            for tensor in (*fed, *filter(None, fetched)):
                self._call("DeleteTensor", tensor)

    def close(self):
        self._checked("CloseSession", self.session)
        self._checked("DeleteSession", self.session)
        self._call("DeleteGraph", self.graph)

    def _call(self, name, *arguments):
        function = getattr(self.library, f"TF_{name}")
        function.restype = RESULTS.get(name, Pointer)
        return function(*arguments)

    def _checked(self, name, *arguments):
        """Calls a function whose last argument is a status, and raises its error."""
        status = self._call("NewStatus")
        try:
            result = self._call(name, *arguments, status)
            if code := self._call("GetCode", status):
                raise Failed(code, self._call("Message", status).decode(errors="replace"))
            return result
        finally:
            self._call("DeleteStatus", status)

    def _tensor(self, array):
        code, array = TYPES[array.dtype], np.ascontiguousarray(array)
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        size = array.size * STRING_SIZE if code == STRING else array.nbytes
        tensor = self._call("AllocateTensor", code, dims, array.ndim, ctypes.c_size_t(size))
        data = self._call("TensorData", tensor)
        if code != STRING:
            ctypes.memmove(data, array.ctypes.data, size)
            return tensor
        for i, value in enumerate(array.ravel()):
            string = Pointer(data.value + i * STRING_SIZE)
            self._call("StringInit", string)
            self._call("StringCopy", string, value, ctypes.c_size_t(len(value)))
        return tensor

    def _array(self, tensor):
        code, data = self._call("TensorType", tensor), self._call("TensorData", tensor)
        shape = [self._call("Dim", tensor, i) for i in range(self._call("NumDims", tensor))]
        if code == STRING:
            strings = [Pointer(data.value + i * STRING_SIZE) for i in range(int(np.prod(shape)))]
            values = [
                ctypes.string_at(self._call("StringGetDataPointer", string), self._call("StringGetSize", string))
                for string in strings
            ]
            return np.array([*values, None], "O")[:-1].reshape(shape)
        (dtype,) = (dtype for dtype, number in TYPES.items() if number == code)
        array = np.empty(shape, dtype)
        ctypes.memmove(array.ctypes.data, data, array.nbytes)
        return array

    def _output(self, name):
        operation, _, index = name.partition(":")
        return Output(self._call("GraphOperationByName", self.graph, operation.encode()), int(index or 0))


def peak_memory():
    """In MB, of this program alone: getrusage also counts the parent process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith("VmHWM"))


def main(folder, path, request, answer):
    session = Session(folder, path)
    answers = []
    with open(request, "rb") as file:
        for name, array, outputs in pickle.load(file):
            try:
                found = session.run({name: array}, outputs)
            except Failed as error:
                found = str(error)
            answers.append((found, peak_memory()))
    assert "tensorflow" not in sys.modules
    with open(answer, "wb") as file:
        pickle.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
