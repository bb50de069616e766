"""Training with JAX, on one or several GPUs, TPUs or machines. Small images need no TensorFlow.

Small images are kept and augmented in the devices' memory. A span of steps is one computation, in which the device does
not wait for the host; on a CPU each step is one. Images in files come from the same `tf.data` pipeline as with
TensorFlow. The random numbers differ from TensorFlow's, so the same settings give another run.

Ghost batches, which are normalised separately, are sharded over the devices. So one device with two ghost batches
computes the same as two devices with one each. (`keras.distribution.DataParallel` instead normalises the whole batch
together.)
"""

import contextlib
import functools
import time
from collections.abc import Iterator

import jax
import keras
import numpy as np
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from keras_resnet.analysis import logits
from keras_resnet.data.shards import Shards, ranges
from keras_resnet.data.sources import Split
from keras_resnet.files import RunError
from keras_resnet.optimizers import SGD
from keras_resnet.training import fine_tuning, hardware, mesh, precision, recipes
from keras_resnet.training.checkpoint import variables_of
from keras_resnet.training.engine import batch_norm_notes
from keras_resnet.training.jax_images import augment, draws_of
from keras_resnet.training.mesh import AXIS, Devices
from keras_resnet.training.objective import measures
from keras_resnet.training.settings import Settings, ghost_batches
from keras_resnet.training.tasks import Task

TEST_BATCH = 500  # small images
IN_FLIGHT = 2  # batches of ImageNet-style images in transfer to the devices

devices, writes = mesh.devices, mesh.writes


class Step:
    """A step of SGD on a batch, split into ghost batches of the same size that are normalised separately.

    Loss and gradients are means over all images; the moving averages are updated with the mean over the ghost batches.

    Args:
        model: a network from pixels to logits.
        optimizer: an `SGD` for it that has been built.
        ghosts: the number of ghost batches computed in parallel, a multiple of the number of devices.
        in_turn: the number of micro-batches of so many ghost batches, computed one after the other.
        devices: the `Devices`.
    """

    def __init__(self, model: keras.Model, optimizer: SGD, ghosts: int, in_turn: int, devices: Devices):
        self.model, self.optimizer, self.ghosts, self.in_turn, self.devices = model, optimizer, ghosts, in_turn, devices
        self.measures = measures(model)
        # The moving averages that a step updates: not those of frozen layers.
        moving = {id(v) for layer in model.layers if layer.trainable for v in layer.non_trainable_variables}
        self.moves = [id(variable) in moving for variable in model.non_trainable_variables]
        self.groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables
        self.rate = [variable.name for variable in optimizer.variables].index("learning_rate")

    def state(self) -> list[list[jax.Array]]:
        """The values of the variables that a step changes, on the devices."""
        return [[self.devices.copied(variable.value) for variable in group] for group in self.groups]

    def assign(self, state: list[list[jax.Array]]) -> None:
        """Assigns these values to the variables."""
        for group, values in zip(self.groups, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)

    def __call__(self, state: list, images: jax.Array, labels: jax.Array, rate: jax.Array) -> tuple[list, jax.Array]:
        """The state after a step, and the means over the batch, float32 (measures,).

        `images`, float32 (batch, height, width, 3), and `labels`, int (batch,), are sharded over the devices.
        """
        trainable, others, optimizer = state
        turns = [self._in_turns(x) for x in (images, labels)]
        if self.in_turn == 1:
            found = self._together(trainable, others, *(x[0] for x in turns))
        else:
            add = lambda sums, turn: (jax.tree.map(jnp.add, sums, self._together(trainable, others, *turn)), None)
            shapes = jax.eval_shape(self._together, trainable, others, *(x[0] for x in turns))
            zeros = jax.tree.map(jnp.zeros_like, shapes)
            # On CPUs convolutions are thirty times as slow inside an XLA loop.
            unroll = self.in_turn if self.devices.on_cpu else 1
            sums, _ = jax.lax.scan(add, zeros, tuple(turns), unroll=unroll)
            found = jax.tree.map(lambda x: x / self.in_turn, sums)
        means, changed, gradients = found
        changed = iter(changed)
        others = [next(changed) if moves else old for moves, old in zip(self.moves, others, strict=True)]
        optimizer = [rate if i == self.rate else old for i, old in enumerate(optimizer)]
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        return [trainable, others, optimizer], means

    def _in_turns(self, x):
        """Reshapes (batch, ...) to (turns, ghosts, images, ...); each device has consecutive examples of the batch."""
        devices = self.devices.count
        x = x.reshape(devices, self.in_turn, self.ghosts // devices, -1, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(self.in_turn, self.ghosts, *x.shape[3:])
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.devices.mesh, PartitionSpec(None, AXIS)))

    def _together(self, trainable, others, images, labels):
        """The means over the ghost batches: of the metrics, of the moving averages, and of the gradients."""

        def loss_of(trainable):
            def one(images, labels):
                outputs, changed = self.model.stateless_call(trainable, others, images, training=True)
                means = jnp.stack([measure(labels, outputs).mean() for measure in self.measures.values()])
                return means, [new for new, moves in zip(changed, self.moves, strict=True) if moves]

            # The weights are shared, so each convolution still runs once for the whole batch.
            means, changed = jax.tree.map(lambda x: x.mean(0), jax.vmap(one)(images, labels))
            return means[0], (means, changed)

        (_, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        return *found, gradients


class Engine:
    """As `engine.Engine`. After an error the network is unusable: a step donates its variables' memory."""

    def __init__(self, settings: Settings, task: Task, network: keras.Model, devices: Devices):
        self.settings, self.task, self.network, self.devices = settings, task, network, devices
        fine_tuning.freeze(network, settings.freeze_until)
        precision.set_precision(network, settings.mixed_precision)
        model = logits(network)
        optimizer = SGD(settings.lr, recipes.MOMENTUM, settings.weight_decay)
        optimizer.build(model.trainable_variables)
        self.step = Step(model, optimizer, self._ghosts(), settings.accumulate, devices)
        self.measures = tuple(self.step.measures)
        self.together = settings.batch_in_memory // self.step.ghosts
        self.note = self._note()
        # Compiled for this object, so that its data are freed with it.
        compiled = functools.partial(jax.jit, donate_argnums=0, out_shardings=devices.replicated)
        self.one, self.several, self.batch = map(compiled, (self._step, self._several, self.step.__call__))
        self.testers: dict = {}
        self.waited: float | None = None
        self.epoch = -1
        if task.in_memory:
            source, mean = task.in_memory
            split = (source.train.images, source.train.labels.astype("int32"), mean)
            self.data = [devices.copied(x) for x in split]
        else:
            self.waited = 0.0
            self.close()

    def _ghosts(self):
        """The number of ghost batches in memory at a time, on all devices."""
        settings, devices = self.settings, self.devices
        images = settings.batch_in_memory // devices.count
        each = ghost_batches(images, settings.bn_batch_size)
        if not settings.imagenet_style and devices.count > 1 and images < settings.bn_batch_size:
            fitting = settings.batch_in_memory // settings.bn_batch_size
            raise RunError(
                f"{settings.batch_size} images in ghost batches of {settings.bn_batch_size} are enough for "
                f"{fitting} device{'s' * (fitting > 1)}, and there are {devices.count}. Train one --seed on each "
                "(CUDA_VISIBLE_DEVICES=0 selects the first), or give --strategy none"
            )
        if settings.batch_in_memory % (devices.count * each):
            raise RunError(
                f"--batch-size {settings.batch_size} with --bn-batch-size {settings.bn_batch_size} is split into "
                f"{settings.accumulate * devices.count * each} ghost batches of the same size on JAX; choose a multiple"
            )
        return devices.count * each

    def _note(self):
        settings = self.settings
        count = settings.accumulate * self.step.ghosts
        lines = [f", {hardware.arithmetic(settings.mixed_precision, True)}"]
        return "\n".join(lines + batch_norm_notes(settings, self.together, count, self.devices.count))

    def variables(self) -> dict[str, keras.Variable]:
        return variables_of(self.step.model, self.step.optimizer)

    def run(self, first: int, rates: np.ndarray) -> np.ndarray:
        state = self.step.state()
        state, found = (self._in_memory if self.task.in_memory else self._from_files)(state, first, rates)
        self.step.assign(state)
        return np.asarray(found)[: len(rates)]

    def _in_memory(self, state, first, rates):
        """Steps of one epoch."""
        length, size = self.task.examples // self.settings.batch_size, self.settings.batch_size
        epoch, begin = divmod(first, length)
        if epoch != self.epoch:
            order, draws = draws_of(self.settings.seed, epoch, self.task.examples)
            order = order[: length * size].reshape(length, size)
            self.epoch, self.draws = epoch, [self.devices.copied(x) for x in (order, draws)]
        data = [*self.data, *self.draws]
        if self.devices.on_cpu:
            found = []
            for number, rate in enumerate(rates, begin):
                state, means = self.one(state, np.int32(number), rate, data)
                found.append(means)
            return state, np.stack([np.asarray(means) for means in found])
        every = np.zeros(length, "float32")  # of fixed size, so that all spans share one program
        every[: len(rates)] = rates
        return self.several(state, np.int32(begin), np.int32(len(rates)), every, data)

    def _step(self, state, number, rate, data):
        images, labels, mean, order, draws = data
        batch = jax.lax.with_sharding_constraint(order[number], self.devices.sharded)
        return self.step(state, augment(images[batch], mean, draws[batch]), labels[batch], rate)

    def _several(self, state, begin, count, rates, data):
        def one(i, carried):
            state, found = carried
            state, means = self._step(state, begin + i, rates[i], data)
            return state, found.at[i].set(means)

        return jax.lax.fori_loop(0, count, one, (state, jnp.zeros((len(rates), len(self.measures)))))

    def _from_files(self, state, first, rates):
        if first != self.next:
            data = self.task.training(first, self.devices.shards())
            self.batches = data.batch(self.devices.here, drop_remainder=True).prefetch(1).as_numpy_iterator()
        self.next, found = first + len(rates), []
        for rate in rates:
            begin = time.perf_counter()
            batch = [x.reshape(-1, *x.shape[2:]) for x in next(self.batches)]
            self.waited += time.perf_counter() - begin
            images, labels = map(self.devices.shared, batch)
            state, means = self.batch(state, images, labels.astype("int32"), rate)
            found.append(means)
            if len(found) > IN_FLIGHT:
                found[-IN_FLIGHT - 1].block_until_ready()
        return state, np.stack([np.asarray(means) for means in found])

    def evaluate(self, network: keras.Model, split: str) -> dict[str, float]:
        if network not in self.testers:
            self.testers[network] = jax.jit(self._tester(logits(network)))
        groups = network.trainable_variables, network.non_trainable_variables
        weights = [[self.devices.copied(variable.value) for variable in group] for group in groups]
        shards = Shards(self.devices.processes, range(self.devices.process, self.devices.process + 1))
        sums, here = np.zeros(len(self.measures) + 1), self.devices.here
        size = -(-self._largest(split) // here) * here  # of every batch, in every process
        for images, labels in self._held_out(split, shards):
            labels = labels.astype("int32")
            if lacking := size - len(labels):
                images = np.pad(images, [(0, lacking), *[(0, 0)] * 3])
                labels = np.pad(labels, (0, lacking), constant_values=-1)
            sums += np.asarray(self.testers[network](*weights, *map(self.devices.shared, (images, labels))))
        return dict(zip(self.measures, (sums[:-1] / sums[-1]).tolist(), strict=True))

    def _largest(self, split):
        """The number of images in the largest batch of `_held_out`, in any process."""
        if not self.task.in_memory:
            from keras_resnet.data import imagenet  # here, because it needs TensorFlow

            return imagenet.TEST_BATCH
        return min(TEST_BATCH, -(-len(getattr(self.task.in_memory[0], split).labels) // self.devices.processes))

    def _held_out(self, split, shards):
        if not self.task.in_memory:
            yield from self.task.held_out[split](shards).as_numpy_iterator()
            return
        held: Split = getattr(self.task.in_memory[0], split)
        for begin, end in ranges(len(held.labels), TEST_BATCH, shards):
            yield held.images[begin:end], held.labels[begin:end]

    def _tester(self, model):
        """A function from weights and a batch to the sums of the metrics, and the number of images."""

        def sums(trainable, others, images, labels):
            with jax.default_matmul_precision("highest"):  # GPUs and TPUs otherwise round float32 factors
                outputs, _ = model.stateless_call(trainable, others, images, training=False)
            counts = labels >= 0
            found = [measure(jnp.maximum(labels, 0), outputs) for measure in self.step.measures.values()]
            return jnp.stack([jnp.where(counts, x, 0).sum() for x in (*found, jnp.ones(len(labels)))])

        return sums

    @contextlib.contextmanager
    def profile(self, folder: str) -> Iterator[None]:
        with jax.profiler.trace(folder):
            yield

    def close(self) -> None:
        self.next, self.batches = -1, iter(())
