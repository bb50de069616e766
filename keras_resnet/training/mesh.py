"""The devices of JAX: one, all of a machine, or those of several machines; ghost batches are sharded over them.

docs/distribution.md describes how to use it.
"""

import contextlib
import os
import typing
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_resnet.data.shards import Shards
from keras_resnet.files import RunError
from keras_resnet.training import hardware
from keras_resnet.training.settings import Settings

AXIS = "batch"
# Variables of JAX and Kubeflow's runtime for it: address of process 0, number of processes, index of this one.
OWN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Launchers that JAX detects: variables with the number of processes and the index of this one.
LAUNCHERS = {
    "slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "ompi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}


def cluster() -> tuple[int, dict[str, typing.Any]] | None:
    """The cluster that the environment describes: this process's number, and the arguments of `initialize`.

    Returns:
        None if it describes no other process.

    Raises:
        RunError: the description is wrong.
    """
    if {*OWN} & os.environ.keys():
        try:
            address, count, number = (os.environ[name] for name in OWN)
            arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(number)}
            if ":" not in address or not 0 <= int(number) < int(count):
                raise ValueError("the address is HOST:PORT, and the processes are counted from 0")
        except (KeyError, ValueError) as error:
            found = " ".join(f"{name}={os.environ[name]}" for name in OWN if name in os.environ)
            raise RunError(
                f"{', '.join(OWN)} should be like 10.0.0.1:1234, 2 and 0, the number of this process; found {found}: "
                f"{error!r}"
            ) from error
        return (int(number), arguments) if int(count) > 1 else None
    for launcher, (size, rank) in LAUNCHERS.items():
        if int(os.environ.get(size, 1)) > 1:
            return int(os.environ[rank]), {"cluster_detection_method": launcher}
    return None


def writes(strategy: str = "auto") -> bool:
    """Whether this process writes files: alone, or as the first of its cluster."""
    found = cluster() if strategy in ("auto", "multiworker") else None
    return found is None or found[0] == 0


def join(strategy: str) -> None:
    """Joins the cluster, if one is described. Must be called before JAX computes anything.

    Raises:
        RunError: there is no cluster, or it cannot be joined.
    """
    found = cluster() if strategy in ("auto", "multiworker") else None
    if found is None and strategy == "multiworker":
        raise RunError(
            f"--strategy multiworker finds no cluster: set {', '.join(OWN)}, or start several tasks with srun or mpirun"
        )
    if found is None or jax.distributed.is_initialized():
        return
    print(f"process {found[0]} waits for the other processes", flush=True)
    try:
        jax.distributed.initialize(**found[1])
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the cluster of {found[1]} cannot be joined: {error}") from error


class Devices:
    """Devices that train together, as `engine.Devices`, and arrays on them."""

    def __init__(self, devices: Sequence[jax.Device], writes: bool = True):
        self.mesh = Mesh(np.array(devices), (AXIS,))
        self.count = len(devices)
        self.processes = len({device.process_index for device in devices})
        self.here = self.count // self.processes
        self.writes = writes
        self.on_cpu = devices[0].platform == "cpu"
        self.names = [device.device_kind for device in devices]
        if self.on_cpu:
            self.names = [hardware.cores_in_words()] * self.processes
        self.replicated, self.sharded = (NamedSharding(self.mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    def __str__(self) -> str:
        return hardware.devices_in_words(self.count, self.processes, None if self.on_cpu else self.names[0])

    def exchange(self, *numbers: int) -> np.ndarray:
        own = np.array(numbers, "uint32")
        if self.processes == 1:
            return own[None]
        return np.asarray(multihost_utils.process_allgather(own)).reshape(self.processes, -1)

    @property
    def process(self) -> int:
        """The number of this process."""
        return jax.process_index() if self.processes > 1 else 0

    def shards(self) -> Shards:
        """The `Shards` of a batch that this process computes, one per device."""
        return Shards(self.count, range(self.process * self.here, (self.process + 1) * self.here))

    def copied(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Replicates an array, the same in all processes, on all devices, unless it already is."""
        if isinstance(x, jax.Array) and x.sharding == self.replicated:
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, self.replicated, lambda index: x[index])

    def shared(self, x: np.ndarray) -> jax.Array:
        """An array whose first axis is sharded over the devices, from the rows for the devices of this process."""
        return jax.make_array_from_process_local_data(self.sharded, x)


@contextlib.contextmanager
def devices(settings: Settings) -> Iterator[Devices]:
    """The devices of a run. Inside this context, JAX computes in 32 bits, whatever the environment says.

    The processes of a cluster stay joined afterwards.
    """
    join(settings.strategy)
    try:
        found = jax.local_devices()[:1] if settings.strategy == "none" else jax.devices()
    except (AssertionError, RuntimeError) as error:
        raise RunError(
            "JAX finds no device"
            + f" ({error})" * bool(str(error))
            + '. Unset JAX_PLATFORMS, or install what the device needs, such as pip install "jax[cuda13]"'
        ) from error
    if settings.strategy == "auto" and jax.process_count() == 1 and not settings.imagenet_style:
        most = min(len(found), max(1, settings.batch_in_memory // settings.bn_batch_size))
        fitting = max(n for n in range(1, most + 1) if settings.batch_in_memory % n == 0)
        if fitting < len(found):
            together = f"at least a ghost batch of {settings.bn_batch_size} for each"
            print(f"uses {fitting} of {len(found)} devices: equal shards of the batch, {together}")
        found = found[:fitting]
    with jax.enable_x64(False):
        yield Devices(found, writes(settings.strategy))
