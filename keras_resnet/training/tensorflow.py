"""Training with TensorFlow, on one device or, with `tf.distribute`, on several.

P1 trained its CIFAR networks on two GPUs (4.2), so that batch normalisation saw 64 of the 128 images of a batch. Here
this number belongs to the recipe, not to the hardware: ghost batch normalisation (Hoffer et al., arXiv 1705.08741). On
a CPU the ghost batches also keep several cores busy, one on each. On a GPU they mean twice as many kernels of
half the size, and the whole batch at once is faster.
"""

import contextlib
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.analysis import logits
from keras_resnet.files import RunError
from keras_resnet.optimizers import SGD
from keras_resnet.training import distribution, fine_tuning, hardware, precision, recipes
from keras_resnet.training.checkpoint import variables_of
from keras_resnet.training.distribution import Devices
from keras_resnet.training.engine import batch_norm_notes
from keras_resnet.training.fused import fuse_batch_norm, fuse_update, graphs_as_traced
from keras_resnet.training.objective import measures
from keras_resnet.training.settings import Settings, ghost_batches
from keras_resnet.training.tasks import Task

IN_FLIGHT = 2  # steps by which the host may be ahead of the device

writes = distribution.is_chief


@contextlib.contextmanager
def devices(settings: Settings) -> Iterator[Devices]:
    """Inside this context, the process is set up for a run: the strategy and the graph optimizer.

    Settings that TensorFlow cannot undo remain: devices and threads, and deterministic operations if they were
    requested. Keras' random numbers are seeded.
    """
    beside = ghost_batches(settings.batch_in_memory, settings.bn_batch_size)
    strategy = distribution.strategy(settings.strategy, beside)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    with strategy.scope(), distribution.losses_explained(), graphs_as_traced():
        yield Devices(strategy, writes(settings.strategy))


class Step:
    """A step of SGD on a batch. Each replica computes a shard, in ghost batches that are normalised separately.

    Loss and gradients are means over all images, and the moving averages of batch normalisation are updated with the
    mean over all ghost batches. So one device with two ghost batches, in parallel or one after the other, computes the
    same as two devices with one each.

    Args:
        model: a network from pixels to logits.
        optimizer: one for its trainable variables.
        ghosts: the number of ghost batches that a replica computes in parallel, of equal size up to one image.
        replicas: the number of replicas.
        jit: whether XLA compiles the step; on several replicas, only each replica's gradients.
        synchronized: whether batch normalisation sees the whole batch.
    """

    def __init__(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer, ghosts: int = 1, *, replicas: int = 1,
        jit: bool = False, synchronized: bool = False,
    ):  # fmt: skip
        self.model = model
        self.optimizer = optimizer
        self.ghosts = ghosts
        self.replicas = replicas
        self.measures = measures(model)
        self.moving = moving_statistics(model)
        # The random states of dropout, which are passed on from one ghost batch to the next.
        self.seeds = [variable for variable in model.non_trainable_variables if "int" in variable.dtype]
        # A tf.function, so that all ghost batches share one trace; replicas cannot communicate inside it.
        self.one = self._one
        if not (synchronized and replicas > 1):
            self.one = tf.function(self._one, autograph=False, jit_compile=(jit and replicas > 1) or None)
        run = self._of_replica if replicas == 1 else self._of_all
        self.run = tf.function(run, autograph=False, jit_compile=(jit and replicas == 1) or None)

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Makes a step.

        Args:
            images: float32 (n, height, width, 3), a replica's shard of a batch, or (turns, n, height, width, 3) for
                micro-batches of it; with several replicas, one tensor for each.
            labels: int64 (n,) or (turns, n).

        Returns:
            float (measures,), the means over the batch.
        """
        return self.run(images, labels)

    def _of_all(self, images, labels):
        strategy = tf.distribute.get_strategy()
        return strategy.experimental_local_results(strategy.run(self._of_replica, (images, labels)))[0]

    def _of_replica(self, images, labels):
        seeds = [seed.value for seed in self.seeds]
        of = self._together if images.shape.rank == 4 else self._in_turn
        means, gradients, seeds = of(images, labels, seeds)
        if self.replicas > 1:
            means = tf.distribute.get_replica_context().all_reduce("SUM", means)
        shown, *statistics = tf.split(means, [len(self.measures), *(variable.shape[0] for variable in self.moving)])
        for variable, value in zip([*self.moving, *self.seeds], [*statistics, *seeds], strict=True):
            variable.assign(value)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return shown

    def _in_turn(self, images, labels, seeds):
        """The sums of `_together` over micro-batches, one at a time, so that memory holds the activations of one."""
        turns = images.shape[0]
        first = self._together(images[0], labels[0], seeds, turns)

        def add(turn, means, gradients, seeds):
            more, others, seeds = self._together(images[turn], labels[turn], seeds, turns)
            return turn + 1, means + more, [a + b for a, b in zip(gradients, others, strict=True)], seeds

        loop = (tf.constant(1), *first)
        return tf.while_loop(lambda turn, *_: turn < turns, add, loop, parallel_iterations=1)[1:]

    def _together(self, images, labels, seeds, turns=1):
        """What the ghost batches add to the means over the batch: of metrics, moving averages and gradients."""
        known = images.shape[0]  # with known, equal sizes the graph is smaller
        count = tf.shape(images)[0] if known is None or known % self.ghosts else known
        found = []
        for number in range(self.ghosts):
            begin, end = (count * edge // self.ghosts for edge in (number, number + 1))
            share = tf.cast((end - begin) / (count * turns * self.replicas), keras.config.floatx())
            means, gradients, seeds = self.one(images[begin:end], labels[begin:end], share, seeds)
            found.append([means, *gradients])
        means, *gradients = (tf.add_n(values) for values in zip(*found, strict=True))
        return means, gradients, seeds

    def _one(self, images, labels, share, seeds):
        with keras.StatelessScope(zip(self.seeds, seeds, strict=True)) as scope, tf.GradientTape() as tape:
            outputs = self.model(images, training=True)
            shown = [tf.cast(tf.reduce_mean(one(labels, outputs)), share.dtype) for one in self.measures.values()]
            scaled = self.optimizer.scale_loss(share * shown[0])
        gradients = tape.gradient(scaled, self.model.trainable_weights)
        statistics = [scope.get_current_value(variable) for variable in self.moving]
        means = share * tf.concat([tf.stack(shown), *statistics], 0)  # one tensor: fewer operations to trace and run
        return means, gradients, [scope.get_current_value(seed) for seed in self.seeds]


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """The moving means and variances that training changes: those of batch normalisation layers that are not frozen."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    return [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]


class Engine:
    """As `engine.Engine`."""

    def __init__(self, settings: Settings, task: Task, network: keras.Model, devices: Devices):
        self.task = task
        self.network = network
        self.devices = devices
        self.in_turn = settings.accumulate
        fine_tuning.freeze(network, settings.freeze_until)
        precision.set_precision(network, settings.mixed_precision)
        synchronized = settings.sync_bn and devices.count > 1
        if synchronized and (settings.jit or settings.accumulate > 1):
            flag = "jit" if settings.jit else "accumulate"
            raise RunError(
                f"--{flag} and --sync-bn do not go together on {devices.count} devices, which cannot communicate "
                "inside compiled code or a loop; give only one"
            )
        for layer in network.layers if synchronized else ():
            if type(layer) is keras.layers.BatchNormalization:
                layer.synchronized = True  # not in the saved network: Keras loads that setting on TensorFlow only
        fuse_batch_norm(network)
        model = logits(network)
        self.optimizer = optimizer_of(model, settings.lr, settings.weight_decay, settings.mixed_precision)
        in_memory = settings.batch_in_memory // devices.count
        self.ghosts = ghost_batches(in_memory, settings.bn_batch_size)
        self.together = settings.batch_in_memory if settings.sync_bn else -(-in_memory // self.ghosts)
        self.step = Step(
            model,
            self.optimizer,
            self.ghosts,
            replicas=devices.count,
            jit=settings.jit,
            synchronized=synchronized,
        )
        self.measures = tuple(self.step.measures)
        self.note = self._note(settings)
        self.waited = 0.0
        self.rate: float | None = None
        self.batches: Iterator | None = None
        self.next = 0
        self.testers: dict = {}  # by network
        self.held_out: dict = {}  # by split

    def _note(self, settings):
        """Remarks on how a run differs from what its user may expect."""
        lines = [f", {hardware.arithmetic(settings.mixed_precision, bool(hardware.gpu_names()))}"]
        if reason := hardware.unused_gpu():
            lines.append(f"TensorFlow does not use the NVIDIA GPU of this machine: {reason}")
        count = settings.accumulate * self.devices.count * self.ghosts
        return "\n".join(lines + batch_norm_notes(settings, self.together, count, self.devices.count))

    def variables(self) -> dict[str, keras.Variable]:
        return variables_of(self.step.model, self.optimizer)

    def run(self, first: int, rates: np.ndarray) -> np.ndarray:
        if self.batches is None or first != self.next:
            data = self.task.training(first, self.devices.shards(self.in_turn))
            if self.in_turn > 1:
                data = data.batch(self.in_turn, drop_remainder=True).prefetch(1)
            self.batches = iter(self.devices.distribute(data))
        self.next, found = first + len(rates), []
        for rate in rates:
            if rate != self.rate:
                self.optimizer.learning_rate = self.rate = rate
            begin = time.perf_counter()
            images, labels = next(self.batches)
            self.waited += time.perf_counter() - begin
            found.append(self.step(images, labels))
            if len(found) > IN_FLIGHT:
                found[-IN_FLIGHT - 1] = found[-IN_FLIGHT - 1].numpy()  # the host waits for the device here
        return np.stack([np.asarray(means) for means in found])

    def evaluate(self, network: keras.Model, split: str) -> dict[str, float]:
        if split not in self.held_out:
            self.held_out[split] = self.devices.distribute(self.task.held_out[split](self.devices.shards()))
        data = self.held_out[split]
        if network not in self.testers:
            self.testers[network] = self._tester(network, data.element_spec)
        *sums, count = sum(self.testers[network](*batch).numpy().astype("float64") for batch in data)
        return {name: float(total / count) for name, total in zip(self.measures, sums, strict=True)}

    def _tester(self, network, spec):
        """A function from a batch to the sums of the metrics over it, and the number of images, float32."""
        model = logits(network)
        outputs_of = tf.function(lambda images: model(images, training=False), autograph=False)

        def of_replica(images, labels):
            count = tf.shape(images)[0]
            edges = [count * i // self.ghosts for i in range(self.ghosts + 1)]  # so that all cores have work
            outputs = tf.concat([outputs_of(images[a:b]) for a, b in zip(edges, edges[1:], strict=False)], 0)
            sums = [tf.reduce_sum(measure(labels, outputs)) for measure in self.step.measures.values()]
            sums = tf.stack([tf.cast(x, "float32") for x in (*sums, count)])
            return sums if self.devices.count == 1 else tf.distribute.get_replica_context().all_reduce("SUM", sums)

        def of_all(images, labels):
            strategy = self.devices.strategy
            return strategy.experimental_local_results(strategy.run(of_replica, (images, labels)))[0]

        of = of_replica if self.devices.count == 1 else of_all
        # Traced now: TensorFlow warns of functions that are called once, as when a process trains many runs.
        return tf.function(of, autograph=False, input_signature=spec).get_concrete_function()

    @contextlib.contextmanager
    def profile(self, folder: str) -> Iterator[None]:
        tf.profiler.experimental.start(folder)
        try:
            yield
        finally:
            tf.profiler.experimental.stop()

    def close(self) -> None:
        self.batches = None


def optimizer_of(
    model: keras.Model, rate: float, weight_decay: float = recipes.WEIGHT_DECAY, mixed_precision: str | None = None,
) -> keras.optimizers.Optimizer:  # fmt: skip
    """The paper's optimizer for a model, built, with fused kernels and, for float16, loss scaling."""
    optimizer = SGD(rate, recipes.MOMENTUM, weight_decay)
    fuse_update(optimizer)
    if mixed_precision == "float16":
        optimizer = precision.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer
