"""The hardware of the machine."""

import functools
import io
import os
import platform
import re

import pytest
import tensorflow as tf

import keras_resnet
from keras_resnet.training import Settings, hardware, result


def test_a_gpu_that_tensorflow_does_not_use_is_told(monkeypatch):
    """Runs TensorFlow's check, with a fake nvidia-smi."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(hardware.shutil, "which", lambda program: None)
    assert hardware.unused_gpu() is None
    monkeypatch.setattr(hardware.shutil, "which", lambda program: f"/usr/bin/{program}")
    if tf.config.list_physical_devices("GPU"):
        assert hardware.unused_gpu() is None
        return
    if tf.test.is_built_with_cuda():
        assert re.search("(?i)cuda", hardware.unused_gpu()) and "\n" not in hardware.unused_gpu()
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: False)
    assert hardware.unused_gpu() == f"TensorFlow {tf.__version__} is built without CUDA"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert hardware.unused_gpu() is None


LOG = """
I0000 00:00:1.5 1 port.cc:153] oneDNN custom operations are on.
{}W0000 00:00:1.7 1 gpu_device.cc:2365] Cannot dlopen some GPU libraries. Please make sure that they are installed.
Skipping registering GPU devices...
"""
CUINIT = "E0000 00:00:1.6 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: UNKNOWN ERROR (303)\n"


@pytest.mark.parametrize(
    "log, told",
    [
        (LOG.format(""), "Cannot dlopen some GPU libraries. Please make sure that they are installed."),
        (LOG.format(CUINIT), "failed call to cuInit: INTERNAL: CUDA error: UNKNOWN ERROR (303)"),
        ("", "its log gives no reason"),
    ],
)
def test_the_reason_is_the_log_s_most_serious_line_about_gpus(log, told):
    assert hardware.reason(log) == told


def test_the_share_of_the_peak(monkeypatch):
    """An H100 at 100,000 images/s of ResNet-20: 41 million multiply-adds, three passes."""
    network, bfloat16 = keras_resnet.CifarResNet(20), Settings(mixed_precision="bfloat16")

    def share(settings, *many):
        return result._share_of_peak(settings, network, 100_000.0, [{"devices": devices} for devices in many])

    one = share(bfloat16, ["NVIDIA H100 80GB HBM3"])
    assert one == pytest.approx(100_000 * 6 * 40.8e6 / 989e12, abs=2e-4)
    assert share(bfloat16, ["NVIDIA H200"] * 2) == pytest.approx(one / 2, abs=2e-4)
    assert share(Settings(), ["NVIDIA H200"]) == pytest.approx(2 * one, abs=2e-4)
    assert share(bfloat16, ["2 CPU cores"]) is None
    assert share(bfloat16, ["NVIDIA H200"], ["NVIDIA H200"] * 2) is None  # it was moved


def test_the_name_of_a_processor_whose_description_has_none(monkeypatch):
    """As Linux describes ARM's."""
    monkeypatch.setattr("builtins.open", lambda path: io.StringIO("processor\t: 0\nBogoMIPS\t: 243.75\n\n"))
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    found = hardware.processor()
    assert (found["model name"], found["flags"]) == ("aarch64", "")


@pytest.mark.parametrize(
    "cores, parts, chosen, expected",
    [(2, 2, 0, (1, 2)), (8, 2, 0, (4, 2)), (2, 4, 0, (1, 2)), (3, 2, 0, (2, 2)), (8, 3, 0, (3, 3))]
    + [(2, 1, 0, None), (8, 2, 3, None)],
)
def test_threads(monkeypatch, cores, parts, chosen, expected):
    """One operation per ghost batch in parallel, each with a share of the cores; the user's choice is kept."""
    found = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    for name in ("intra", "inter"):
        monkeypatch.delenv(f"TF_NUM_{name.upper()}OP_THREADS", raising=False)
        function = f"{name}_op_parallelism_threads"
        monkeypatch.setattr(tf.config.threading, f"get_{function}", lambda: chosen)
        monkeypatch.setattr(tf.config.threading, f"set_{function}", functools.partial(found.__setitem__, name))
    hardware.choose_threads(parts)
    assert found == ({} if expected is None else dict(zip(("intra", "inter"), expected, strict=True)))
    found.clear()
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "2")
    hardware.choose_threads(parts)
    assert not found
