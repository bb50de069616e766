"""The hardware of the machine: cores, 16-bit units and GPUs; and how TensorFlow's threads use the cores."""

import collections
import glob
import os
import platform
import re
import shutil
import subprocess
import sys

BFLOAT16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # of processors, by Linux's names of the CPU flags
# Operations/s of dense matrices in 16 bits, from NVIDIA's data sheets; half of that in TF32, which float32 uses there.
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "A100": 312e12}


def peak(device: str, precision: str) -> float | None:
    """The largest number of operations/s of a device in "float32", "bfloat16" or "float16"; None if unknown."""
    found = next((value for name, value in PEAKS.items() if name in device), None)
    return found and (found / 2 if precision == "float32" else found)


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_in_words() -> str:
    """For example "2 CPU cores"."""
    number = cores()
    return f"{number} CPU core{'s' * (number > 1)}"


def processor() -> dict[str, str]:
    """Linux's description of the first processor, "model name" and "flags"; elsewhere the name alone."""
    found: dict[str, str] = collections.defaultdict(str)
    try:
        with open("/proc/cpuinfo") as file:
            rows = (line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines())
            found.update((name.strip(), value.strip()) for name, value in rows)
    except (OSError, ValueError):
        pass  # another system
    found["model name"] = found["model name"] or platform.processor() or platform.machine()  # ARM's has no such row
    return found


def devices_in_words(count: int, processes: int, accelerator: str | None) -> str:
    """For example "2 cores of AMD EPYC", or "4 NVIDIA A100, 2 processes"."""
    found = f"{count} {accelerator}"
    if not accelerator:
        here = count // processes
        found = f"{cores_in_words().replace(' CPU', '')} of {processor()['model name']}"
        found += f" as {here} devices" * (here > 1)
    return f"{found}, {processes} processes" if processes > 1 else found


def arithmetic(precision: str | None, gpu: bool) -> str:
    """The precision of a run, for messages, and whether another one would be faster on this processor."""
    named = precision or "float32"
    if gpu:
        return named
    units = [name for flag, name in BFLOAT16_UNITS.items() if flag in processor()["flags"].split()]
    if units and named != "bfloat16":
        return f"{named}; --mixed-precision bfloat16 is faster on this processor, which has {' and '.join(units)}"
    if precision and not units:
        return f"{named}; float32 is faster on this processor, which has neither AMX nor AVX512-BF16"
    return named


def choose_threads(ghosts: int) -> None:
    """Sets TensorFlow's threads to run one operation per ghost batch in parallel, and divides the cores among them.

    Nothing changes with a single ghost batch or a GPU, if the user has set the threads (`TF_NUM_INTRAOP_THREADS`,
    `TF_NUM_INTEROP_THREADS`, `tf.config.threading`), or if TensorFlow has already started them.
    """
    import tensorflow as tf

    threading = tf.config.threading
    chosen = threading.get_intra_op_parallelism_threads() or threading.get_inter_op_parallelism_threads()
    if {"TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"} & os.environ.keys() or chosen:
        return
    if ghosts == 1 or tf.config.list_physical_devices("GPU"):
        return
    at_a_time = min(ghosts, cores())
    try:
        threading.set_inter_op_parallelism_threads(at_a_time)
        threading.set_intra_op_parallelism_threads(-(-cores() // at_a_time))
    except RuntimeError:  # TensorFlow has already started its threads
        return


def gpu_names() -> list[str]:
    """The names of the GPUs that TensorFlow uses."""
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [detail.get("device_name", "GPU") for detail in details]


def unused_gpu() -> str | None:
    """Why TensorFlow does not use this machine's NVIDIA GPU, as its log says.

    Returns:
        None if it uses the GPU, if the machine has no GPU, or if CUDA_VISIBLE_DEVICES hides it.
    """
    import tensorflow as tf

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    there = glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi")
    if hidden or not there or tf.config.list_physical_devices("GPU"):
        return None
    if not tf.test.is_built_with_cuda():
        return f"TensorFlow {tf.__version__} is built without CUDA"
    # What TensorFlow logged at import is lost, so a new process repeats the check, which takes seconds.
    ask = [sys.executable, "-c", "import tensorflow; tensorflow.config.list_physical_devices('GPU')"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    return reason(subprocess.run(ask, capture_output=True, text=True, env=environment).stderr)


def reason(log: str) -> str:
    """The first of the most severe lines about GPUs in TensorFlow's log, without level, time and source line."""
    lines = re.findall(r"^([EWI])\d{4} .*?\] (.*(?:GPU|CUDA|cuda).*)$", log, re.MULTILINE)
    return min(lines, key=lambda line: "EWI".index(line[0]), default=("", "its log gives no reason"))[1]
