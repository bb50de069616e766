"""The command lines of train/fit.py and fit_jax.py: a flag for each of the `Settings`, and how they end.

`flags` writes the flags.
"""

import argparse
import contextlib
import sys
import typing
from collections.abc import Iterator, Sequence

from keras_resnet.architecture import ORDERS, VARIANTS
from keras_resnet.files import ResNetError
from keras_resnet.training import recipes
from keras_resnet.training.settings import PRECISIONS, PREPARATIONS, STRATEGIES, Settings


def add_settings(parser: argparse.ArgumentParser, left_out: Sequence[str] = ()) -> typing.Any:
    """Adds a flag for each of the `Settings` that is not in `left_out`, and --verbose.

    Returns:
        The group "run", to which a program can add its own flags.
    """
    network = parser.add_argument_group("network")
    data = parser.add_argument_group("data")
    recipe = parser.add_argument_group("recipe")
    devices = parser.add_argument_group("devices")
    run = parser.add_argument_group("run")

    def add(group, flag, help, **options):
        name = flag[2:].replace("-", "_")
        if name in left_out:
            return
        default = getattr(Settings, name)
        shown = "" if default in (None, False, ()) else f" (default {default})"
        if name in recipes.SMALL_IMAGES:
            shown = f" (default {recipes.SMALL_IMAGES[name]}; photographs {recipes.PHOTOGRAPHS[name]})"
        group.add_argument(flag, default=default, help=help + shown, **options)

    flag = {"action": "store_true"}
    add(network, "--depth", "6n+2, bottlenecks 9n+2; photographs 18, 34, 50, 101, 152, pre-activated 200", type=int)
    add(network, "--plain", "without shortcuts", **flag)
    add(network, "--shortcut", "where the shape changes: A zeros, B projection; C projection everywhere", choices="ABC")
    add(network, "--block", "CIFAR: two 3x3 convolutions, or 1x1, 3x3, 1x1", choices=("basic", "bottleneck"))
    add(network, "--stride-in", "photographs: the convolution of a bottleneck with the stride", choices=("1x1", "3x3"))
    add(network, "--activation-order", "of P2 Fig. 4; P2's own networks: full_preactivation", choices=ORDERS)
    add(network, "--shortcut-variant", "CIFAR: a shortcut of P2 Table 1", choices=VARIANTS)
    source = "trained weights for all but the last layer: a run, a file, imagenet, or a name of convert.py --list"
    add(network, "--init-from", source, metavar="SOURCE")
    add(network, "--freeze-until", "with --init-from: freeze the stages from conv1 to this one", metavar="STAGE")
    add(data, "--dataset", "cifar10, cifar100, shapes (no data needed); photographs: a folder, or imagenet2012 etc.")
    add(
        data,
        "--data-dir",
        "copies of tensorflow-datasets, or cifar-10-batches-py (default: download)",
        metavar="DIR",
    )
    add(data, "--train-on-all", "no validation: train on all 50k images, as for the paper's results", **flag)
    add(data, "--image-size", "photographs: size of the crops; the scales follow in proportion", type=int)
    kinds = ", ".join(PREPARATIONS)
    add(data, "--without", f"photographs: leave out some of {kinds}", nargs="+", choices=PREPARATIONS, metavar="WHICH")
    add(data, "--colors", "photographs: a file of train/colors.py, or imagenet (default: measured)", metavar="FILE")
    add(data, "--skip-damaged", "photographs: leave out files that cannot be read, and count them", **flag)
    add(data, "--data-changed", "continue a run although its data have changed", **flag)
    add(recipe, "--steps", "iterations; with --schedule plateau the maximum", type=int)
    add(recipe, "--epochs", "the length in epochs, in place of --steps", type=int)
    unit = (
        "where the rate is divided by 10, in epochs with --epochs and in steps with --steps (default 1/2 and 3/4 of it)"
    )
    add(recipe, "--boundaries", unit, type=int, nargs="+", metavar="WHEN")
    add(recipe, "--batch-size", "images in a step", type=int)
    together = f"default {recipes.BN_BATCH_SIZE}, as on the paper's two GPUs; photographs and --sync-bn: all"
    add(recipe, "--bn-batch-size", f"images that are normalised together ({together})", type=int, metavar="IMAGES")
    add(recipe, "--accumulate", "parts of a batch whose gradients are accumulated", type=int, metavar="PARTS")
    rates = f"{recipes.LEARNING_RATE}; with --init-from {recipes.FINE_TUNING_RATE}"
    add(recipe, "--lr", f"learning rate at the start (default {rates})", type=float)
    add(
        recipe,
        "--schedule",
        "divide the rate by 10 at the --boundaries, or when the validation error plateaus; "
        "the third plateau ends the run",
        choices=("steps", "plateau"),
    )
    add(recipe, "--patience", "epochs without a better validation error are a plateau", type=int, metavar="EPOCHS")
    add(recipe, "--weight-decay", "L2 penalty in the gradient, not in the loss that is shown", type=float)
    add(
        recipe,
        "--warmup",
        "rate .01 until an epoch's training error is below 80 %% (default: CIFAR from depth 110 on)",
        action=argparse.BooleanOptionalAction,
    )
    gradual = "for larger batches: epochs in which the rate grows from that for the paper's batch to --lr"
    add(recipe, "--warmup-epochs", gradual, type=int, metavar="EPOCHS")
    add(recipe, "--seed", "of weights, order and augmentation", type=int)
    add(recipe, "--deterministic", "the same weights each time, bit for bit, but slower", **flag)
    add(
        devices,
        "--strategy",
        "mirrored: all GPUs; multiworker: all machines of TF_CONFIG or SLURM; none: one device; "
        "auto: multiworker, mirrored or none, as available",
        choices=STRATEGIES,
    )
    add(devices, "--sync-bn", "batch normalisation over the whole batch, not each device's part", **flag)
    add(devices, "--mixed-precision", "of all layers but the last (default float32)", choices=PRECISIONS)
    add(devices, "--jit", "compile the step with XLA", **flag)
    add(run, "--name", "of the run (default DATASET-NETWORK)")
    add(run, "--output", "folder of runs", metavar="DIR")
    add(run, "--checkpoint-every", "steps from one checkpoint to the next", type=int, metavar="STEPS")
    verbose = "0 silent, 1 progress bar, 2 a line per epoch and per ten minutes (default 1 at a terminal, otherwise 2)"
    watched = sys.stdout.isatty()
    run.add_argument("--verbose", type=int, default=1 if watched else 2, choices=(0, 1, 2), help=verbose)
    return run


@contextlib.contextmanager
def errors_told(program: str) -> Iterator[None]:
    """Inside this context, what ends a run ends `program` with a message, and a signal with its status in shells."""
    from keras_resnet.training.checkpoint import Stopped  # here: flags are read before Keras is imported

    try:
        yield
    except ResNetError as error:
        sys.exit(f"{program}: {error}")
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        sys.exit(stopped.exit_status)
