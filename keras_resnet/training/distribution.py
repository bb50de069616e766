"""Multiple devices and machines: TensorFlow's `tf.distribute` with Keras' `fit`.

A batch is always the global one: each of k replicas sees a k-th of it, and their gradients are averaged, so that a step
is the same on any number of devices. Only the statistics of batch normalisation are separate for each replica, unless
they are synchronised. docs/distribution.md describes how to use it.
"""

import contextlib
import functools
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_resnet.data.parts import Parts
from keras_resnet.files import RunError
from keras_resnet.optimizers import sync_variables
from keras_resnet.training import precision
from keras_resnet.training.checkpoint import Stop
from keras_resnet.training.step import choose_threads, cores, moving_statistics

KERAS_VERSIONS = ("3.15.1",)  # versions whose `fit` was tested with `adapted_keras`
SLURM_PORT = 8888  # of the first task on each node


def strategy(name: str = "auto", parts: int = 1) -> tf.distribute.Strategy:
    """Chooses the devices to train on. Has to be called before TensorFlow computes anything.

    Args:
        name: "mirrored" for all GPUs of this machine or, if it has none, its logical CPUs; "multiworker" for all
            machines of the cluster that TF_CONFIG or SLURM describes; "none" for a single device; "auto" for
            multiworker if a cluster is described, otherwise mirrored if there are several GPUs, otherwise none.
        parts: the number of parts of a batch on all devices together, as in `TrainingModel`.

    Returns:
        A `tf.distribute.Strategy`. The model has to be built, compiled and fitted in its `scope()` and in
        `adapted_keras`.

    Raises:
        RunError: no cluster is described, its description is wrong, or this version of Keras has not been tested.
    """
    cluster = _cluster() if name in ("auto", "multiworker") else None
    choose_threads(parts if cluster is None else -(-parts // len(_addresses(cluster))))
    gpus = len(tf.config.list_physical_devices("GPU"))
    if cluster is None and name == "multiworker":
        raise RunError("--strategy multiworker finds no cluster: set TF_CONFIG, or start several tasks with srun")
    if cluster is None and (name == "none" or (name == "auto" and gpus < 2)):
        return tf.distribute.get_strategy()
    _check_keras()
    if cluster is None:
        return _mirrored("GPU" if gpus else "CPU")
    print(f"{cluster.task_type} {cluster.task_id} waits for the others of {_addresses(cluster)}", flush=True)
    try:
        return _MultiWorkerMirroredStrategy(cluster)
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise RunError(f"the cluster {_addresses(cluster)} cannot be joined: {error}") from error


def is_chief(name: str = "auto") -> bool:
    """Whether this process writes files with a `strategy` of this name: it is alone, or the first of its cluster."""
    cluster = _cluster() if name in ("auto", "multiworker") else None
    if cluster is None:
        return True
    first = "chief" if "chief" in cluster.cluster_spec().jobs else "worker"
    return (cluster.task_type, cluster.task_id) == (first, 0)


def devices() -> str:
    """The current strategy's devices, for messages: "2 cores of AMD EPYC", or "4 NVIDIA A100, 2 processes"."""
    gpus, replicas = tf.config.list_physical_devices("GPU"), tf.distribute.get_strategy().num_replicas_in_sync
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        found = f"{replicas} {name}"
    else:
        number = cores()
        found = f"{number} core{'s' * (number > 1)} of {precision.processor()['model name']}"
        if replicas > _workers():
            found += f" as {replicas // _workers()} devices"
    return found if _workers() == 1 else f"{found}, {_workers()} processes"


def device_names() -> list[str]:
    """The devices, for records: the names of the GPUs, or the number of available CPU cores."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    return names or [f"{cores()} CPU core{'s' * (cores() > 1)}"]


def unused_gpu() -> str | None:
    """Why TensorFlow does not use this machine's NVIDIA GPU, in its own words.

    Returns:
        None if it does, if there is none, or if CUDA_VISIBLE_DEVICES hides it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    there = glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi")
    if hidden or not there or tf.config.list_physical_devices("GPU"):
        return None
    if not tf.test.is_built_with_cuda():
        return f"TensorFlow {tf.__version__} is built without CUDA"
    # What TensorFlow logged when this process imported it is lost, so another process asks again, in some seconds.
    ask = [sys.executable, "-c", "import tensorflow; tensorflow.config.list_physical_devices('GPU')"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    return reason(subprocess.run(ask, capture_output=True, text=True, env=environment).stderr)


def reason(log: str) -> str:
    """The first of the most severe lines on GPUs in TensorFlow's log, without level, time and source line."""
    lines = re.findall(r"^([EWI])\d{4} .*?\] (.*(?:GPU|CUDA|cuda).*)$", log, re.MULTILINE)
    return min(lines, key=lambda line: "EWI".index(line[0]), default=("", "it does not say why"))[1]


@functools.cache
def _mirrored(kind):
    """The only MirroredStrategy of this process: a second one would disturb the first one's all-reduce."""
    return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])


def _cluster():
    """The resolver of the cluster that the environment describes; None if it describes no other process."""
    if "TF_CONFIG" in os.environ:
        try:
            cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
            json.loads(os.environ["TF_CONFIG"])["cluster"][cluster.task_type][cluster.task_id]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(
                'TF_CONFIG should be like {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", '
                f'"index": 0}}}}; found {os.environ["TF_CONFIG"]}: {error!r}'
            ) from error
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        cluster = _slurm()
    else:
        return None
    return cluster if len(_addresses(cluster)) > 1 else None


def _slurm():
    """The cluster of SLURM's tasks, from TensorFlow's resolver; this task's index and its GPUs come from SLURM."""
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=SLURM_PORT, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
    )
    spec = resolver.cluster_spec()
    # Not by rank: the resolver sorts the nodes by name, and SLURM may have another order.
    own = f"{os.environ['SLURMD_NODENAME']}:{SLURM_PORT + int(os.environ['SLURM_LOCALID'])}"
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec,
        task_type="worker",
        task_id=spec.job_tasks("worker").index(own),
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


def _addresses(cluster):
    return [address for addresses in cluster.cluster_spec().as_dict().values() for address in addresses]


def _check_keras():
    """RunError if `adapted_keras` was not tested with this version of Keras."""
    if keras.__version__ not in KERAS_VERSIONS:
        raise RunError(
            f"training on several devices was tested with Keras {', '.join(KERAS_VERSIONS)}, into whose inner parts it "
            f"reaches; found {keras.__version__}. Install keras=={KERAS_VERSIONS[-1]}, or train with --strategy none."
        )


@contextlib.contextmanager
def adapted_keras() -> Iterator[None]:
    """Inside this context, `fit` works under the current strategy, also with several workers and parts of unequal size.

    Two places in Keras do not: this context replaces one of them, `_MultiWorkerMirroredStrategy` repairs the other.
    """
    if not tf.distribute.has_strategy():
        yield
        return
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    kept = TensorFlowTrainer._maybe_symbolic_build
    TensorFlowTrainer._maybe_symbolic_build = _symbolic_build_from_one_replica
    try:
        yield
    finally:
        TensorFlowTrainer._maybe_symbolic_build = kept


def _symbolic_build_from_one_replica(model, iterator=None, data_batch=None):
    """Replaces Keras' own, which averages the first batch over all replicas just to know its shape."""
    if model._distribute_strategy is None:
        return
    if iterator is not None:
        _, _, batches = next(iter(iterator))
        local = model.distribute_strategy.experimental_local_results
        data_batch = tree.map_structure(lambda values: local(values)[0], next(batches))
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=data_batch)


class _MultiWorkerMirroredStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """Accepts that Keras asks for the mean of losses and metrics along axis 0, which scalars do not have."""

    def reduce(self, reduce_op, value, axis):
        numbers = all(local.shape.rank == 0 for local in self.experimental_local_results(value))
        return super().reduce(reduce_op, value, None if numbers else axis)


def _workers():
    """The number of processes that train together."""
    return getattr(tf.distribute.get_strategy().extended, "_num_workers", 1)


def datasets(batches: Callable[[Parts], tf.data.Dataset]) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Distributes batches over the replicas of the current strategy.

    Args:
        batches: a function from `data.parts.Parts` to a `tf.data.Dataset` of those parts of each batch. It is called
            once in each process.

    Returns:
        A distributed data set for `fit` and `evaluate`; a `tf.data.Dataset` if there is only one replica.
    """

    strategy = tf.distribute.get_strategy()
    here = strategy.num_replicas_in_sync // _workers()

    def own(context):
        first = context.input_pipeline_id * here
        return batches(Parts(strategy.num_replicas_in_sync, range(first, first + here)))

    distributed = strategy.distribute_datasets_from_function(own)
    if here > 1 and distributed.cardinality > 0:
        distributed._cardinality //= here  # Keras counts batches, TensorFlow their parts
    return distributed


def synchronize_batch_norm(model: keras.Model) -> None:
    """Makes batch normalisation use the statistics of the whole batch instead of each replica's part.

    Do not save this model: Keras loads its layers on TensorFlow only.
    """
    for layer in model.layers:
        if type(layer) is keras.layers.BatchNormalization:
            layer.synchronized = True


class AverageStatistics(keras.callbacks.Callback):
    """Averages the moving averages of batch normalisation over the replicas whenever they are used or saved.

    During training each replica updates its own. The update is linear, so averaging them now gives the same result as
    averaging the batch statistics at each step. `sync_variables` does this, too.
    """

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        variables = [variable.value for variable in moving_statistics(model)]
        if not variables:  # all are frozen
            return
        strategy = model.distribute_strategy

        def average():
            context = tf.distribute.get_replica_context()
            mean = context.all_reduce("MEAN", tf.concat([variable.read_value() for variable in variables], 0))
            for variable, part in zip(variables, tf.split(mean, [len(v) for v in variables]), strict=True):
                variable.assign(part)

        run = tf.function(lambda: strategy.run(average))
        model.sync_replicas = lambda: run()  # a lambda, because Keras tracks functions of TensorFlow

    def on_test_begin(self, logs=None):
        sync_variables(self.model)

    def on_train_end(self, logs=None):
        sync_variables(self.model)


def of_all_workers(number: int) -> list[int]:
    """The integers of all workers of the current strategy, in their order. All have to call this at the same time."""
    if _workers() == 1:
        return [number]
    strategy = tf.distribute.get_strategy()
    own = np.zeros(_workers(), "int64")
    own[strategy.extended._id_in_cluster] = number
    return strategy.reduce("SUM", tf.identity(own), None).numpy().tolist()


def check_same(value: object, message: str) -> None:
    """Raises RunError with `message` unless the `str` of `value` is the same on all workers."""
    if len(set(of_all_workers(zlib.crc32(str(value).encode())))) > 1:
        raise RunError(message)


class AgreedStop:
    """Stop signals to any of the workers. `received` is the same for all; all have to read it equally often.

    They communicate at every eighth reading only, because communication takes as long as a step of a small network.

    Args:
        stop: the `checkpoint.StopSignals` of this worker.
    """

    EVERY = 8

    def __init__(self, stop: Stop):
        self.stop = stop
        self.questions = 0

    @property
    def received(self) -> int | None:
        self.questions += 1
        if _workers() > 1 and self.questions % self.EVERY:
            return None
        return max(of_all_workers(self.stop.received or 0)) or None


@contextlib.contextmanager
def losses_explained() -> Iterator[None]:
    """Inside this context, an error caused by a lost worker becomes a RunError that says which worker it was."""
    try:
        yield
    except (
        tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError, tf.errors.InternalError,
    ) as error:  # fmt: skip
        if _workers() == 1:
            raise
        strategy = tf.distribute.get_strategy()
        own = (strategy.extended._task_type, str(strategy.extended._task_id))
        found = [task for task in re.findall(r"/job:(\w+)/replica:0/task:(\d+)", error.message) if task != own]
        lost = "another worker"
        if found:
            kind, number = found[0]
            address = strategy.cluster_resolver.cluster_spec().task_address(kind, int(number))
            lost = f"{kind} {number} at {address}"
        raise RunError(
            f"{lost} cannot be reached any more: it has died, or the network. Start all workers again with the same "
            "command, and the run goes on from its last checkpoint."
        ) from error
