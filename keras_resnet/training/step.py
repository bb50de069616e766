"""The training step, with separate forward and backward passes for the parts of a batch, which run in parallel.

P1 trained its CIFAR networks on two GPUs (4.2), so that batch normalisation saw 64 of the 128 images of a batch. Here
this number belongs to the recipe, not to the hardware: ghost batch normalisation (Hoffer et al., arXiv 1705.08741). On
a CPU the parts also keep several cores busy, one part on each. On a GPU they mean twice as many kernels of half the
size, and the whole batch at once is faster.
"""

import itertools
import os
import time

import keras
import tensorflow as tf


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_threads(parts: int) -> None:
    """Lets as many operations run in parallel as there are parts, with an equal share of the cores for each.

    Nothing changes if there is one part, if the user has chosen (`TF_NUM_INTRAOP_THREADS`, `TF_NUM_INTEROP_THREADS`,
    `tf.config.threading`), if there is a GPU, or if TensorFlow has already started its threads.
    """
    threading = tf.config.threading
    chosen = threading.get_intra_op_parallelism_threads() or threading.get_inter_op_parallelism_threads()
    if {"TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"} & os.environ.keys() or chosen:
        return
    if parts == 1 or tf.config.list_physical_devices("GPU"):
        return
    at_a_time = min(parts, cores())
    try:
        threading.set_inter_op_parallelism_threads(at_a_time)
        threading.set_intra_op_parallelism_threads(-(-cores() // at_a_time))
    except RuntimeError:  # TensorFlow has already started its threads
        return


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """The moving means and variances that training changes: those of batch normalisation that is not frozen."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            found += [layer.moving_mean, layer.moving_variance]
    return found


class TrainingModel(keras.Model):
    """A functional model that is trained on `parts` parts of each batch in parallel.

    A step computes the same as under `tf.distribute` with this number of replicas: loss and gradients are means over
    all images, batch normalisation sees one part, and its moving averages are updated with the mean over the parts, as
    in `distribution.AverageStatistics`.

    Args:
        inputs, outputs: as in `keras.Model`.
        parts: the number of parts. Their sizes differ by one at most.
        name: the model's name.
        jit_parts: whether XLA compiles the computation of each part, up to its gradients. Unlike `jit_compile` this
            works on several replicas, whose gradients are summed between the compiled function and the update.

    `waited` is the time in seconds that `fit` has waited for batches; None on several replicas, for which TensorFlow
    prefetches them.
    """

    def __init__(self, inputs, outputs, parts: int = 1, name: str | None = None, *, jit_parts: bool = False):
        super().__init__(inputs, outputs, name=name)
        self.parts = parts
        self.jit_parts = jit_parts
        self.waited = 0.0 if self.distribute_strategy.num_replicas_in_sync == 1 else None
        # A function, so that one part is traced for all of them.
        self.part_step = tf.function(self._part_step, autograph=False, jit_compile=jit_parts or None)
        self.part_outputs = tf.function(lambda images: self(images, training=False), autograph=False)

    @property
    def seeds(self) -> list[keras.Variable]:
        """The random states of dropout, which are passed on from part to part."""
        return [variable for variable in self.non_trainable_variables if "int" in variable.dtype]

    def _part_step(self, images, labels, share, seeds):
        with keras.StatelessScope(zip(self.seeds, seeds, strict=True)) as scope, tf.GradientTape() as tape:
            outputs = self(images, training=True)
            loss = self.compute_loss(images, labels, outputs)
            scaled = self.optimizer.scale_loss(share * loss)
        gradients = tape.gradient(scaled, self.trainable_weights)
        statistics = [scope.get_current_value(variable) for variable in moving_statistics(self)]
        means = share * tf.concat([loss[None], *statistics], 0)  # in one tensor: fewer operations to trace and to run
        return [means, *gradients], outputs, [scope.get_current_value(seed) for seed in self.seeds]

    def make_train_function(self, force=False):
        """As Keras' own, but takes the batch before the graph runs, so that the wait for it can be measured."""
        before = self.train_function
        super().make_train_function(force)
        if self.train_function is not before and self.waited is not None:
            step = self.train_function

            def timed(iterator):
                begin = time.perf_counter()
                batch = next(iterator)
                self.waited += time.perf_counter() - begin
                return step(iter([batch]))

            self.train_function = timed

    def train_step(self, data):
        if self.parts == 1 and not self.jit_parts:
            return super().train_step(data)
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if weights is not None:
            raise ValueError("sample weights are for one part; a batch that is cut into parts takes none")
        seeds = [seed.value for seed in self.seeds]
        sums, outputs, known = [], [], images.shape[0]  # with known, equal sizes the graph is smaller
        count = tf.shape(images)[0] if known is None or known % self.parts else known
        for part in range(self.parts):
            begin, end = (count * edge // self.parts for edge in (part, part + 1))
            share = tf.cast((end - begin) / count, keras.config.floatx())
            to_add, output, seeds = self.part_step(images[begin:end], labels[begin:end], share, seeds)
            sums.append(to_add)
            outputs.append(output)
        means, *gradients = (tf.add_n(values) for values in zip(*sums, strict=True))
        moving = moving_statistics(self)
        loss, *statistics = tf.split(means, [1, *(variable.shape[0] for variable in moving)])
        for variable, value in zip([*moving, *self.seeds], [*statistics, *seeds], strict=True):
            variable.assign(value)
        replicas = self.distribute_strategy.num_replicas_in_sync  # Keras divides the loss by this number
        self.metrics[0].update_state(loss[0] * replicas, sample_weight=count)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.compute_metrics(images, labels, tf.concat(outputs, 0))

    def test_step(self, data):
        """As Keras' own, but here, too, the parts of a batch run in parallel, so that all cores have work."""
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if self.parts == 1 or weights is not None:
            return super().test_step(data)
        count = tf.shape(images)[0]
        edges = [count * part // self.parts for part in range(self.parts + 1)]
        pairs = itertools.pairwise(edges)
        outputs = tf.concat([self.part_outputs(images[begin:end]) for begin, end in pairs], 0)
        loss = self.compute_loss(images, labels, outputs, training=False)
        self.metrics[0].update_state(loss, sample_weight=count)
        return self.compute_metrics(images, labels, outputs)
