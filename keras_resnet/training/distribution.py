"""The devices of TensorFlow: one, several of a machine, or those of several machines, with `tf.distribute`.

Every replica trains on its shard of each batch, and their gradients are averaged, so a step gives the same result on
any number of devices. docs/distribution.md describes how to use it.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_resnet.data.shards import Shards
from keras_resnet.files import RunError
from keras_resnet.training import hardware

SLURM_PORT = 8888  # of the first task on each node


def strategy(name: str = "auto", ghosts: int = 1) -> tf.distribute.Strategy:
    """Chooses the devices to train on. Must be called before TensorFlow computes anything.

    Args:
        name: "mirrored" for all GPUs of this machine or, if it has none, its logical CPUs; "multiworker" for all
            machines of the cluster that TF_CONFIG or SLURM describes; "none" for a single device; "auto" for
            multiworker if a cluster is described, otherwise mirrored if there are several GPUs, otherwise none.
        ghosts: the number of ghost batches computed in parallel, on all devices together.

    Returns:
        A `tf.distribute.Strategy`. The model must be built in its `scope()`.

    Raises:
        RunError: no cluster is described, or its description is wrong.
    """
    cluster = _cluster() if name in ("auto", "multiworker") else None
    hardware.choose_threads(ghosts if cluster is None else -(-ghosts // len(_addresses(cluster))))
    gpus = len(tf.config.list_physical_devices("GPU"))
    if cluster is None and name == "multiworker":
        raise RunError("--strategy multiworker finds no cluster: set TF_CONFIG, or start several tasks with srun")
    if cluster is None and (name == "none" or (name == "auto" and gpus < 2)):
        return tf.distribute.get_strategy()
    if cluster is None:
        return _mirrored("GPU" if gpus else "CPU")
    print(f"{cluster.task_type} {cluster.task_id} waits for the other workers of {_addresses(cluster)}", flush=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster)
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise RunError(f"the cluster {_addresses(cluster)} cannot be joined: {error}") from error


def is_chief(name: str = "auto") -> bool:
    """Whether this process writes files with a `strategy` of this name: alone, or as the first of its cluster."""
    cluster = _cluster() if name in ("auto", "multiworker") else None
    if cluster is None:
        return True
    first = "chief" if "chief" in cluster.cluster_spec().jobs else "worker"
    return (cluster.task_type, cluster.task_id) == (first, 0)


class Devices:
    """The replicas of a strategy, as `engine.Devices`. `here` is the number of replicas in this process."""

    def __init__(self, strategy: tf.distribute.Strategy, writes: bool = True):
        self.strategy = strategy
        self.count = strategy.num_replicas_in_sync
        self.processes = _workers(strategy)
        self.here = self.count // self.processes
        self.writes = writes
        self.names = (hardware.gpu_names()[: self.here] or [hardware.cores_in_words()]) * self.processes

    def __str__(self) -> str:
        return hardware.devices_in_words(self.count, self.processes, next(iter(hardware.gpu_names()), None))

    def exchange(self, *numbers: int) -> np.ndarray:
        if self.processes == 1:
            return np.array([numbers])
        own = np.zeros((self.processes, len(numbers)), "int64")
        own[self.strategy.extended._id_in_cluster] = numbers
        return self.strategy.reduce("SUM", tf.identity(own), None).numpy()

    def shards(self, each: int = 1) -> Shards:
        """The `Shards` of a batch that this process computes, `each` of them per replica."""
        first = self.strategy.extended._id_in_cluster * self.here if self.processes > 1 else 0
        return Shards(self.count * each, range(first * each, (first + self.here) * each))

    def distribute(self, data: tf.data.Dataset) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """Distributes a data set over this process's replicas; its elements are their shards, one after the other."""
        return data if self.count == 1 else self.strategy.distribute_datasets_from_function(lambda context: data)


def _workers(strategy):
    """The number of processes that train together."""
    return getattr(strategy.extended, "_num_workers", 1)


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
    # Not by rank: the resolver sorts the nodes by name, and SLURM may order them differently.
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


@contextlib.contextmanager
def losses_explained() -> Iterator[None]:
    """Inside this context, an error caused by a lost worker becomes a RunError that names the worker."""
    try:
        yield
    except (
        tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError, tf.errors.InternalError,
    ) as error:  # fmt: skip
        strategy = tf.distribute.get_strategy()
        if _workers(strategy) == 1:
            raise
        own = (strategy.extended._task_type, str(strategy.extended._task_id))
        found = [task for task in re.findall(r"/job:(\w+)/replica:0/task:(\d+)", error.message) if task != own]
        lost = "another worker"
        if found:
            kind, number = found[0]
            address = strategy.cluster_resolver.cluster_spec().task_address(kind, int(number))
            lost = f"{kind} {number} at {address}"
        raise RunError(
            f"{lost} cannot be reached any more: the worker or the network failed. Start all workers again with the "
            "same command; the run resumes from its last checkpoint."
        ) from error
