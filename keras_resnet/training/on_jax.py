"""Training on small images with JAX, on one GPU or TPU, without TensorFlow.

The training images lie in the device's memory and are augmented there. Up to an epoch of steps is one computation, in
which the device does not wait for the host; on a CPU each step is one. A run is saved, and stops after a signal, at the
end of an epoch. Everything else is as in `run`: the settings, the recipe, the folder of the run and its files, but for
tensorboard/. The random numbers differ from those with TensorFlow, so the same settings give another run.
"""

import itertools
import os

import jax
import keras
import numpy as np
from jax import numpy as jnp

from keras_resnet import environment
from keras_resnet.data import sources
from keras_resnet.data.sources import PADDING
from keras_resnet.files import RunError, own_line, whole
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit
from keras_resnet.optimizers import SGD, StepSchedule
from keras_resnet.training import fine_tuning, precision, recipes
from keras_resnet.training.checkpoint import Checkpoint, StopSignals
from keras_resnet.training.folder import (
    CHECKPOINT,
    check_data,
    finished,
    open_folder,
    own_folder,
    write_classes,
    write_result,
)
from keras_resnet.training.history import History, Progress
from keras_resnet.training.objective import errors, schedule_of
from keras_resnet.training.settings import NOT_ON_JAX, Settings, parts_of

TEST_BATCH = 500  # images


def augment(images: jax.Array, mean: jax.Array, draws: jax.Array) -> jax.Array:
    """Random crops of padded and flipped images, as `data.cifar.augment`.

    Args:
        images: uint8 (batch, height, width, 3).
        mean: float32 (height, width, 3), which fills the padding.
        draws: int32 (batch, 3): the crop's corner, (dy, dx) in [0, 8], and whether to flip horizontally, 0 or 1.

    Returns:
        float32 (batch, height, width, 3).
    """

    def one(image, draw):
        dy, dx, flip = draw
        margins = ((PADDING, PADDING), (PADDING, PADDING), (0, 0))
        inside = jnp.ones((*image.shape[:2], 1), bool)
        crops = (jax.lax.dynamic_slice(jnp.pad(x, margins), (dy, dx, 0), x.shape) for x in (image, inside))
        crop, inside = (jnp.where(flip, x[:, ::-1], x) for x in crops)
        return jnp.where(inside, crop.astype("float32"), mean)

    return jax.vmap(one)(images, draws)


def draws_of(seed: int, epoch: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """The random numbers of an epoch: the order of the examples, int32 (examples,), and draws for `augment`.

    Row i of the draws, int32 (examples, 3), belongs to example i.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(examples)
    draws = generator.integers(0, [2 * PADDING + 1, 2 * PADDING + 1, 2], (examples, 3))
    return order.astype("int32"), draws.astype("int32")


class Trainer:
    """Steps of SGD that are computed together.

    Args:
        model: a network from pixels to logits, compiled with an `SGD` that has been built.
        parts: parts of a batch that batch normalisation sees separately, as in `step.TrainingModel`; all have the same
            size. Loss and gradients are means over all images, and the moving averages are updated with the mean over
            the parts.
        split: the training data.
        mean: float32 (height, width, 3), which fills the padding of the images.
    """

    def __init__(self, model: keras.Model, parts: int, split: sources.Split, mean: np.ndarray):
        self.model = model
        self.parts = parts
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.errors = errors(model.output.shape[-1])
        self.images, self.labels = jnp.asarray(split.images), jnp.asarray(split.labels, "int32")
        self.mean = jnp.asarray(mean)
        # The averages that a step updates; in frozen layers they stay.
        self.moving = {id(v) for layer in model.layers if layer.trainable for v in layer.non_trainable_variables}
        # Of this object, so that its data are freed with it.
        self.step, self.steps = jax.jit(self._step, donate_argnums=1), jax.jit(self._steps, donate_argnums=1)

    def variables(self) -> list[list[keras.Variable]]:
        """Those that a step changes: the weights, the moving averages, and the optimizer's variables."""
        return [self.model.trainable_variables, self.model.non_trainable_variables, self.model.optimizer.variables]

    def run(self, order: np.ndarray, draws: np.ndarray, rates: np.ndarray, count: int) -> dict[str, float]:
        """Trains on the first `count` batches of an epoch.

        Args:
            order: int32 (batches, batch size), the examples of each batch of the epoch.
            draws: int32 (n, 3), one row for each example, as in `augment`.
            rates: float32 (batches,), the learning rates.
            count: a number of batches. With another one nothing is compiled anew.

        Returns:
            The means of the loss and the errors, by their names. After an error the model cannot be used any more.
        """
        carried = (
            [[variable.value for variable in group] for group in self.variables()],
            jnp.zeros(len(self.errors) + 1),
        )
        data = self.images, self.labels, self.mean, *map(jnp.asarray, (order, draws, rates))
        if jax.default_backend() == "cpu":  # whose convolutions are thirty times as slow inside a loop of XLA
            for number in range(count):
                carried = self.step(number, carried, data)
        else:
            carried = self.steps(count, carried, data)
        state, sums = carried
        for group, values in zip(self.variables(), state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return _means(self.errors, np.asarray(sums, "float64"), count)

    def _steps(self, count, carried, data):
        return jax.lax.fori_loop(0, count, lambda number, carried: self._step(number, carried, data), carried)

    def _step(self, number, carried, data):
        (trainable, others, optimizer), sums = carried
        images, labels, mean, order, draws, rates = data
        batch = order[number]
        images, labels = augment(images[batch], mean, draws[batch]), labels[batch]

        def loss_of(trainable):
            def part(images, labels):
                logits, changed = self.model.stateless_call(trainable, others, images, training=True)
                return self.loss(labels, logits), logits, changed

            # All parts have the same weights, so each convolution is still one for the whole batch.
            losses, logits, changed = jax.vmap(part)(*(_split(x, self.parts) for x in (images, labels)))
            return losses.mean(), (logits.reshape(len(labels), -1), changed)

        (loss, (logits, changed)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        _, non_trainable, of_optimizer = self.variables()
        others = [
            values.mean(0) if id(variable) in self.moving else old
            for variable, old, values in zip(non_trainable, others, changed, strict=True)
        ]
        optimizer = [
            rates[number] if variable.name == "learning_rate" else old
            for variable, old in zip(of_optimizer, optimizer, strict=True)
        ]
        trainable, optimizer = self.model.optimizer.stateless_apply(optimizer, gradients, trainable)
        found = [*(one(labels, logits).mean() for one in self.errors), loss]
        return [trainable, others, optimizer], sums + jnp.stack(found)


def _means(errors, sums, count):
    """Sums of the errors and the loss as means, by their names."""
    return dict(zip([*(one.__name__ for one in errors), "loss"], (sums / count).tolist(), strict=True))


def _split(x, parts):
    return x.reshape(parts, len(x) // parts, *x.shape[1:])


class Evaluator:
    """The mean loss and errors of a model of logits on a split, with the weights that it has when it is called."""

    def __init__(self, model: keras.Model):
        self.model = model
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        self.errors = errors(model.output.shape[-1])
        self.sums = jax.jit(self._sums)

    def __call__(self, split: sources.Split) -> dict[str, float]:
        groups = self.model.trainable_variables, self.model.non_trainable_variables
        weights = [[variable.value for variable in group] for group in groups]
        edges = [*range(0, len(split.labels), TEST_BATCH), len(split.labels)]
        sums = np.zeros(len(self.errors) + 1)
        for begin, end in itertools.pairwise(edges):
            sums += np.asarray(self.sums(*weights, *(x[begin:end] for x in split)))
        return _means(self.errors, sums, len(split.labels))

    def _sums(self, trainable, others, images, labels):
        with jax.default_matmul_precision("highest"):  # GPUs and TPUs otherwise shorten the factors in float32
            logits, _ = self.model.stateless_call(trainable, others, images, training=False)
        return jnp.stack([*(one(labels, logits).sum() for one in self.errors), self.loss(labels, logits)])


def check(settings: Settings) -> None:
    """RunError if this module does not support a setting."""
    default = lambda name: (getattr(Settings, name), recipes.SMALL_IMAGES.get(name))
    changed = [name for name in NOT_ON_JAX if getattr(settings, name) not in default(name)]
    if settings.photographs:
        raise RunError(
            f"this program trains on {', '.join(sources.DATASETS)}; photographs, here {settings.dataset}, need fit.py"
        )
    if changed:
        raise RunError(f"--{changed[0].replace('_', '-')} needs fit.py")
    if settings.mixed_precision == "float16":
        raise RunError("--mixed-precision float16 needs fit.py, which scales the loss; bfloat16 needs no scaling")
    if settings.shortcut_variant == "dropout":
        raise RunError("--shortcut-variant dropout needs fit.py, which draws other numbers for each part of a batch")
    parts = parts_of(settings.batch_size, settings.bn_batch_size)
    if settings.batch_size % parts:
        raise RunError(
            f"--batch-size {settings.batch_size} with --bn-batch-size {settings.bn_batch_size} is cut into {parts} "
            f"parts of the same size here; choose a multiple of {parts}, or use fit.py"
        )


def train(settings: Settings, verbose: int = 1) -> dict:
    """Trains on one device, or continues where an earlier call with the same settings was stopped; tests at the end.

    Arguments, returned value, files and errors are those of `run.train`, without `profile` and tensorboard/.
    """
    check(settings)
    with environment.as_shipped(), own_folder(settings):
        return _train(settings, verbose)


def _train(settings, verbose):
    open_folder(settings)
    if (result := finished(settings)) is not None:
        return result
    made = environment.circumstances([device.device_kind for device in jax.devices()[:1]])
    with fine_tuning.errors_named():
        begun = fine_tuning.read(settings)  # first, so that a mistyped path is noticed before data are downloaded
    source = sources.load(settings.dataset, settings.data_dir, settings.train_on_all)
    examples, mean = len(source.train.labels), sources.per_pixel_mean(source.train.images)
    steps_per_epoch = settings.steps_per_epoch(examples)
    check_data(settings, sources.describe(source))
    options = {"input_shape": mean.shape, "classes": len(source.classes)}
    with fine_tuning.errors_named():
        network = fine_tuning.build(begun, settings, normalization=begun.normalization or (mean, 1.0), **options)
    fine_tuning.freeze(network, settings.freeze_until)
    write_classes(settings, source.classes)
    if settings.mixed_precision:
        precision.set_precision(network, settings.mixed_precision)
    with recursion_limit(LOADING_DEPTH):
        model = keras.Model(network.input, network.get_layer("fc").output, name=network.name)
    schedule = schedule_of(settings, examples)
    model.compile(SGD(schedule.rate(0), recipes.MOMENTUM, settings.weight_decay))
    model.optimizer.build(model.trainable_variables)
    parts = parts_of(settings.batch_size, settings.bn_batch_size)
    history = History(settings.folder, f"{settings.network} on {settings.data}")
    with StopSignals() as stop:
        saver = Checkpoint(
            os.path.join(settings.folder, CHECKPOINT),
            model,
            every=settings.checkpoint_every,
            steps_per_epoch=steps_per_epoch,
            steps=settings.length(examples),
            callbacks=[schedule, history],
            stop=stop,
        )
        history.batches = saver.restore()
        begin = f"resuming from step {saver.step}" if saver.step else f"{settings.network}, {saver.steps} steps"
        named = settings.mixed_precision or "float32"
        where = f"{examples} images of {settings.data} on {made['devices'][0]}, {named}"
        print(f"{begin}, in {settings.folder}: {where}", flush=True)
        if saver.step:
            history.write()
        with own_line(verbose):
            try:
                trainer = Trainer(model, parts, source.train, mean)
                fit(trainer, settings, source.validation, schedule, history, saver, verbose)
            finally:
                saver.wait()

    saved = fine_tuning.build(begun, settings, normalization=begun.normalization or (mean, 1.0), **options)
    saved.set_weights(network.get_weights())
    with whole(os.path.join(settings.folder, "model.keras")) as path:
        saved.save(path)
    with recursion_limit(LOADING_DEPTH):
        evaluated = Evaluator(keras.Model(saved.input, saved.get_layer("fc").output))(source.test)
    together = settings.batch_size // parts
    return write_result(settings, saved, evaluated, schedule, history, together=together, made=made)


def fit(
    trainer: Trainer, settings: Settings, validation: sources.Split | None, schedule: StepSchedule, history: History,
    saver: Checkpoint, verbose: int,
) -> None:  # fmt: skip
    """Trains from the saver's step to its last one, and calls the callbacks as `keras.Model.fit` does."""
    model, examples, steps_per_epoch = trainer.model, len(trainer.labels), saver.steps_per_epoch
    evaluate = Evaluator(model)
    progress = Progress(history, saver.steps, steps_per_epoch)
    callbacks: list[keras.callbacks.Callback] = [schedule, history, progress, saver]
    for callback in callbacks:
        callback.set_model(model)
        callback.set_params({"verbose": verbose, "steps": steps_per_epoch})
        callback.on_train_begin()
    while saver.step < saver.steps:
        epoch = saver.step // steps_per_epoch  # a run is saved at the end of an epoch
        schedule.current_rate = None  # the steps have set the rates themselves
        count = min(steps_per_epoch, saver.steps - saver.step)
        order, draws = draws_of(settings.seed, epoch, examples)
        order = order[: steps_per_epoch * settings.batch_size].reshape(steps_per_epoch, settings.batch_size)
        for callback in callbacks:
            callback.set_params({"verbose": verbose, "steps": count})
            callback.on_epoch_begin(epoch)
            callback.on_train_batch_begin(0)
        rates = [schedule.rate(epoch * steps_per_epoch + number) for number in range(steps_per_epoch)]
        logs = trainer.run(order, draws, np.array(rates, "float32"), count)
        for callback in (history, progress, saver):  # not the schedule, which has already given all rates
            callback.on_train_batch_end(count - 1, logs)
        if validation is not None:
            logs |= {f"val_{name}": value for name, value in evaluate(validation).items()}
        for callback in callbacks:
            callback.on_epoch_end(epoch, logs)
    for callback in callbacks:
        callback.on_train_end()
