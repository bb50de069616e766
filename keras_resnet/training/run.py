"""A training run, from settings to a trained model in a folder."""

import contextlib
import os
import typing
import warnings
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras import ops

from keras_resnet import environment, files
from keras_resnet.data import imagenet
from keras_resnet.files import RunError, own_line
from keras_resnet.graphs import LOADING_DEPTH, recursion_limit
from keras_resnet.optimizers import SGD, PlateauSchedule, StepSchedule
from keras_resnet.training import distribution, fine_tuning, precision, recipes, tasks
from keras_resnet.training.checkpoint import Checkpoint, StopSignals
from keras_resnet.training.folder import CHECKPOINT, finished, open_folder, own_folder, write_classes, write_result
from keras_resnet.training.fused import fuse_batch_norm, fuse_update, graphs_as_traced
from keras_resnet.training.history import History, Progress
from keras_resnet.training.objective import objective, schedule_of
from keras_resnet.training.settings import WITHOUT_EFFECT, Settings, parts_of
from keras_resnet.training.step import TrainingModel

SKIPPED = 10  # batches before those that are profiled, because graphs are traced in the first ones


def compile_for_training(
    model: keras.Model, learning_rate: float = recipes.LEARNING_RATE, weight_decay: float = recipes.WEIGHT_DECAY,
    accumulate: int = 1, mixed_precision: str | None = None, jit: bool = False,
) -> None:  # fmt: skip
    """Compiles a network that ends with logits, with the paper's optimizer, the cross-entropy and the error rate.

    The gradients of `accumulate` batches are averaged for each step of the optimizer. `mixed_precision` is None,
    "float16" or "bfloat16" for all but the last layer; `jit` compiles the step with XLA.
    """
    accumulation: dict = {"gradient_accumulation_steps": accumulate} if accumulate > 1 else {}
    optimizer = SGD(learning_rate, recipes.MOMENTUM, weight_decay, **accumulation)
    fuse_update(optimizer)
    if mixed_precision:
        precision.set_precision(model, mixed_precision)
    if mixed_precision == "float16":
        optimizer = precision.LossScaleOptimizer(optimizer)
    model.compile(optimizer, **objective(model.output.shape[-1]), jit_compile=jit)  # on CPUs XLA trains more slowly
    # Creates the variables of optimizer and metrics now, so that a checkpoint has them and the step is traced once.
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(None, ops.zeros((1,), "int32"), ops.zeros((1, model.output.shape[-1])))
    model.reset_metrics()


def train(settings: Settings, verbose: int = 1, profile: int = 0) -> dict:
    """Trains, or continues where an earlier call with the same settings was stopped, and tests at the end.

    Has to be called before TensorFlow computes anything. `process` documents what this changes in the current process,
    and which changes remain.

    Args:
        settings: a `Settings`.
        verbose: 1 for a progress bar, 2 for a line per epoch and per ten minutes, 0 for silence.
        profile: 0, or the number of batches, after the first ones, that are traced for TensorBoard's page "Profile".

    Returns:
        The result as a dictionary, which is also in result.json; errors are in [0, 1]. The run's folder contains
        args.json, history.csv, curves.png, checkpoint/, tensorboard/ and model.keras, which takes RGB pixels in
        [0, 255] and returns probabilities.

    Raises:
        RunError: settings that are out of range or differ from the folder's, a folder that cannot be written, another
            process that trains this run, a damaged checkpoint, divergence, a lost worker.
        DataError: the data set cannot be loaded.
        Stopped: the run received SIGINT or SIGTERM and has been saved.
    """
    if profile < 0:
        raise RunError(f"--profile is a number of steps; found {profile}")
    with process(settings) as replicas, own_folder(settings):
        return _train(settings, replicas, verbose if files.writes else 0, profile)


@contextlib.contextmanager
def process(settings: Settings) -> Iterator[int]:
    """The changes of a run to its process while it lasts.

    They are who writes files, the graph optimizer, one method of Keras, and Keras' values, which are its own.

    Settings that TensorFlow cannot undo remain: devices and threads, and deterministic operations if they were
    requested. Keras' random numbers are seeded.

    Yields:
        The number of replicas.
    """
    strategy = distribution.strategy(settings.strategy, parts_of(settings.batch_in_memory, settings.bn_batch_size))
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    with (
        environment.as_shipped(),
        strategy.scope(),
        distribution.losses_explained(),
        distribution.adapted_keras(),
        files.written_if(distribution.is_chief(settings.strategy)),
        graphs_as_traced(),
    ):
        yield strategy.num_replicas_in_sync


def _check_replicas(settings, replicas):
    alike = {name: value for name, value in settings.as_json().items() if name not in WITHOUT_EFFECT}
    distribution.check_same(alike, "the workers have different settings; start all with the same command")
    if replicas > 1 and settings.accumulate > 1:
        raise RunError(f"--accumulate is for one device; there are {replicas}, or one with --strategy none")
    if replicas > 1 and settings.jit and settings.sync_bn:
        raise RunError(
            f"--jit and --sync-bn do not go together on {replicas} devices: XLA compiles what each computes by itself"
        )
    if settings.batch_size % replicas:
        raise RunError(
            f"--batch-size is a multiple of the number of devices, {replicas}, each of which takes its part; "
            f"found {settings.batch_size}"
        )


def _train(settings, replicas, verbose, profile):
    _check_replicas(settings, replicas)
    open_folder(settings)
    distribution.of_all_workers(0)  # waits until the chief has removed files
    folder = settings.folder
    if (result := finished(settings)) is not None:
        return result

    made = environment.circumstances(distribution.device_names())  # now: later commits are not the code that trains
    with fine_tuning.errors_named():
        task = tasks.photographs(settings, verbose) if settings.photographs else tasks.small_images(settings)
        network = task.build()
    write_classes(settings, task.classes)
    trained = training_model(settings, network, replicas)
    schedule = schedule_of(settings, task.examples)
    compile_for_training(
        trained,
        schedule.rate(0),
        settings.weight_decay,
        settings.accumulate,
        settings.mixed_precision,
        settings.jit and replicas == 1,
    )

    # From here on a step is one forward and backward pass; `accumulate` of them are one step of the optimizer.
    steps = settings.length(task.examples) * settings.accumulate
    steps_per_epoch = settings.steps_per_epoch(task.examples) * settings.accumulate
    history = History(folder, f"{settings.network} on {settings.data}", settings.accumulate)
    with StopSignals() as stop, imagenet.errors_named():
        saver = Checkpoint(
            os.path.join(folder, CHECKPOINT),
            trained,
            every=settings.checkpoint_every * settings.accumulate,
            steps_per_epoch=steps_per_epoch,
            steps=steps,
            callbacks=[schedule, history],
            stop=distribution.AgreedStop(stop),
        )
        step = history.batches = saver.restore()
        distribution.check_same(
            step, f"the workers find different checkpoints, this one that of step {step}; they have to share {folder}"
        )
        if profile and steps - step <= SKIPPED:
            raise RunError(f"--profile leaves out the first {SKIPPED} batches, and {steps - step} are left to train on")
        if step:
            print(f"resuming from step {step // settings.accumulate}")
            history.write()
        else:
            print(f"{settings.network}, {settings.length(task.examples)} steps, in {folder}")
        if verbose:
            _describe(settings, task, replicas)
        callbacks = [schedule, history, Progress(history, steps, steps_per_epoch), saver]
        if files.writes and not environment.lacks("tensorboard", "tensorboard/"):
            board, traced = os.path.join(folder, "tensorboard"), (SKIPPED + 1, SKIPPED + profile) if profile else 0
            callbacks.insert(2, keras.callbacks.TensorBoard(board, write_graph=False, profile_batch=traced))
        if replicas > 1:
            callbacks.insert(0, distribution.AverageStatistics())
        with own_line(verbose):
            try:
                fit(
                    trained,
                    task.batches,
                    first_step=step,
                    steps=steps,
                    steps_per_epoch=steps_per_epoch,
                    validation_data=task.validation,
                    callbacks=callbacks,
                    verbose=verbose,
                )
            finally:
                saver.wait()

    saved = task.build()  # the network of the recipe, without the changes for training
    saved.set_weights(network.get_weights())
    if files.writes:
        with files.whole(os.path.join(folder, "model.keras")) as path:
            saved.save(path)
    return finish(settings, task, saved, trained.parts, schedule, history, _together(settings, replicas), made)


def training_model(settings: Settings, network: keras.Model, replicas: int) -> TrainingModel:
    """The network up to its logits for training: with frozen stages, 16 bits, parts and fused kernels."""
    fine_tuning.freeze(network, settings.freeze_until)
    if settings.mixed_precision:
        precision.set_precision(network, settings.mixed_precision)
    if settings.sync_bn and replicas > 1:
        distribution.synchronize_batch_norm(network)
    fuse_batch_norm(network)
    parts = parts_of(settings.batch_in_memory // replicas, settings.bn_batch_size)
    with recursion_limit(LOADING_DEPTH):
        return TrainingModel(
            network.input,
            network.get_layer("fc").output,
            parts,
            network.name,
            jit_parts=settings.jit and replicas > 1,
        )


def _together(settings, replicas):
    """The number of images that batch normalisation sees together, at most `settings.bn_batch_size`."""
    if settings.sync_bn:
        return settings.batch_in_memory
    images = settings.batch_in_memory // replicas
    return -(-images // parts_of(images, settings.bn_batch_size))


def _describe(settings, task, replicas):
    """Prints the data and devices of a run, and where it differs from its settings."""
    arithmetic = precision.described(settings.mixed_precision)
    print(f"{task.examples} images of {settings.data} on {distribution.devices()}, {arithmetic}", flush=True)
    if reason := distribution.unused_gpu():
        print(f"there is an NVIDIA GPU that TensorFlow does not use: {reason}")
    together = _together(settings, replicas)
    if together != settings.bn_batch_size:
        parts = settings.accumulate * replicas * parts_of(settings.batch_in_memory // replicas, together)
        why = [f"--accumulate {settings.accumulate}"] * (settings.accumulate > 1)
        why += [f"{replicas} devices"] * (replicas > 1)
        print(
            f"batch normalisation sees {together} images together, not {settings.bn_batch_size}: "
            f"{settings.batch_size} are in {parts} parts" + f", because of {' and '.join(why)}" * bool(why)
        )


def fit(
    model: keras.Model, batches: tasks.Batches, *, first_step: int, steps: int, steps_per_epoch: int,
    callbacks: list[keras.callbacks.Callback], **options: typing.Any,
) -> None:  # fmt: skip
    """`model.fit` from step `first_step` to step `steps`, either of which may be inside an epoch.

    Keras' epochs all have the same length, so part of an epoch needs a call of its own. `batches(step)` is an endless
    `tf.data.Dataset` from that step on.
    """
    options.update(callbacks=callbacks, shuffle=False)
    step = first_step
    while step < steps:
        epoch, done = divmod(step, steps_per_epoch)
        epochs, length = (steps - step) // steps_per_epoch, steps_per_epoch
        if done or not epochs:
            epochs, length = 1, min(steps_per_epoch - done, steps - step)
        with warnings.catch_warnings():
            # So says Keras when it evaluates data a second time whose number of batches it does not know.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            model.fit(batches(step), initial_epoch=epoch, epochs=epoch + epochs, steps_per_epoch=length, **options)
        if model.stop_training:
            return
        step += epochs * length


def finish(
    settings: Settings, task: tasks.Task, saved: keras.Model, parts: int, schedule: StepSchedule | PlateauSchedule,
    history: History, together: int, made: dict,
) -> dict:  # fmt: skip
    """Evaluates the saved network on the test set, once, and writes the result."""
    evaluated = {}
    if task.test is not None:
        with recursion_limit(LOADING_DEPTH):
            tested = TrainingModel(saved.input, saved.get_layer("fc").output, parts)
        tested.compile(**objective(len(task.classes)), jit_compile=False)
        evaluated = tested.evaluate(task.test, verbose=0, return_dict=True)
    damaged = len(task.damaged)
    result = write_result(settings, saved, evaluated, schedule, history, together=together, damaged=damaged, made=made)
    distribution.of_all_workers(0)  # waits for the chief
    return result
