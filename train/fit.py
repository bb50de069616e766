"""Trains a network of the paper: on CIFAR-10, CIFAR-100, a built-in data set or photographs.

    python train/fit.py --dataset shapes --steps 300     one minute on a laptop, no data needed
    python train/fit.py                                  ResNet-20 on CIFAR-10, as in the paper
    python train/fit.py --depth 110                      the same with 110 layers and their warm-up
    python train/fit.py --depth 56 --plain               what happens without shortcuts
    python train/fit.py --depth 20 --steps 8000          an eighth of the schedule
    python train/fit.py --dataset IMAGENET --depth 50 --accumulate 8
                                                         photographs in IMAGENET/{train,val}/CLASS/, 32 at a time
    python train/fit.py --dataset IMAGENET --depth 50 --epochs 90 --boundaries 30 60
                                                         the same, in epochs
    python train/fit.py --dataset imagenet2012 --depth 50 --accumulate 8
                                                         photographs from TensorFlow Datasets
    python train/fit.py --dataset FLOWERS --depth 50 --init-from imagenet --freeze-until conv3 --steps 2000
                                                         fine-tunes trained weights to other photographs

Everything goes to OUTPUT/NAME/: args.json, classes.json, history.csv, curves.png, tensorboard/, checkpoint/ and, at the
end, result.json and model.keras. A run that was stopped (Ctrl-C, SIGTERM, a crash) goes on when the same command is
given again. The test set is touched once, at the end; of photographs only the validation images are looked at.
"""

import argparse
import os
import sys

import quiet  # noqa: F401, first, before anything that imports TensorFlow

# isort: split
import arguments

from keras_resnet import serving
from keras_resnet.blocks import ORDERS, SHORTCUT_VARIANTS
from keras_resnet.data.sources import DataError
from keras_resnet.files import RunError
from keras_resnet.training import distribution, recipes
from keras_resnet.training.checkpoint import Stopped
from keras_resnet.training.distribution import STRATEGIES
from keras_resnet.training.precision import PRECISIONS
from keras_resnet.training.run import train
from keras_resnet.training.settings import PREPARATIONS, Settings

TOP5 = {"training": "train_top5_error", "validation": "val_top5_error", "test": "test_top5_error"}
EXIT_STATUS = 128  # plus the number of the signal, as shells do


def add_settings(parser, left_out=()):
    """Adds a flag for each of the `Settings`, but for those whose names are left out; reproduce.py takes most, too."""
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
    add(network, "--stride-in", "photographs: which convolution of a bottleneck strides", choices=("1x1", "3x3"))
    add(network, "--activation-order", "of P2 Fig. 4; P2's own networks: full_preactivation", choices=ORDERS)
    add(network, "--shortcut-variant", "CIFAR: a shortcut of P2 Table 1", choices=SHORTCUT_VARIANTS)
    add(network, "--init-from", "trained weights, all but the last layer's: a file, or imagenet", metavar="SOURCE")
    add(network, "--freeze-until", "with --init-from: leaves the stages conv1 to this as they are", metavar="STAGE")
    add(data, "--dataset", "cifar10, cifar100, shapes (no data needed); photographs: a folder, or imagenet2012 etc.")
    add(
        data,
        "--data-dir",
        "copies of tensorflow-datasets, or cifar-10-batches-py (default: download)",
        metavar="DIR",
    )
    add(data, "--train-on-all", "no validation: train on all 50k images, as the paper's results", **flag)
    add(data, "--image-size", "photographs: size of the crops; the sizes they are cut from follow", type=int)
    kinds = ", ".join(PREPARATIONS)
    add(data, "--without", f"photographs: leave out some of {kinds}", nargs="+", choices=PREPARATIONS, metavar="WHICH")
    add(data, "--colors", "photographs: a file of train/colors.py, or imagenet (default: measured)", metavar="FILE")
    add(data, "--skip-damaged", "photographs: leave out files that cannot be read, and count them", **flag)
    add(data, "--data-changed", "go on with a run although its data are not what they were", **flag)
    add(recipe, "--steps", "iterations; with --schedule plateau at most", type=int)
    add(recipe, "--epochs", "the length in epochs, in place of --steps", type=int)
    unit = (
        "where the rate is divided by 10, in epochs with --epochs and in steps with --steps (default 1/2 and 3/4 of it)"
    )
    add(recipe, "--boundaries", unit, type=int, nargs="+", metavar="WHEN")
    add(recipe, "--batch-size", "images in a step", type=int)
    together = f"default {recipes.BN_BATCH_SIZE}, as on the paper's two GPUs; photographs and --sync-bn: all"
    add(recipe, "--bn-batch-size", f"images that are normalised together ({together})", type=int, metavar="IMAGES")
    add(recipe, "--accumulate", "parts of a batch that are in memory one after the other", type=int, metavar="PARTS")
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
    gradual = "for larger batches: the rate grows from that for the paper's batch to --lr over so many epochs"
    add(recipe, "--warmup-epochs", gradual, type=int, metavar="EPOCHS")
    add(recipe, "--seed", "of weights, order and augmentation", type=int)
    add(recipe, "--deterministic", "the same weights to the last bit each time, if slower", **flag)
    add(
        devices,
        "--strategy",
        "all GPUs, all machines of TF_CONFIG or SLURM, or one device; auto: the first that there are several of",
        choices=STRATEGIES,
    )
    add(devices, "--sync-bn", "batch normalisation over the whole batch, not each device's part", **flag)
    add(devices, "--mixed-precision", "of all layers but the last (default float32)", choices=PRECISIONS)
    add(devices, "--jit", "compile the step with XLA", **flag)
    add(run, "--name", "of the run (default DATASET-NETWORK)")
    add(run, "--output", "folder of runs", metavar="DIR")
    add(run, "--checkpoint-every", "steps from one checkpoint to the next", type=int, metavar="STEPS")
    verbose = "0 silent, 1 a bar, 2 a line an epoch and every ten minutes of it (default 1 at a terminal, otherwise 2)"
    watched = sys.stdout.isatty()
    run.add_argument("--verbose", type=int, default=1 if watched else 2, choices=(0, 1, 2), help=verbose)
    return run


def parse(words=None):
    parser = arguments.parser(__doc__)
    run = add_settings(parser)
    run.add_argument("--export", action="store_true", help="at the end, to saved_models/NAME/, as export.py does")
    traced = "leaves a trace of so many batches, after the first ten, for TensorBoard (pip install xprof)"
    run.add_argument("--profile", type=int, default=0, metavar="STEPS", help=traced)
    return parser.parse_args(words)


def table(settings, result):
    """The result as people read it."""
    percent = lambda value: "-" if value is None else f"{value:.2%}"
    paper, damaged = result["paper_test_error"], result["damaged_files"]
    minutes, seconds = divmod(round(result["seconds"]), 60)
    rows = [
        ("training error, last epoch", percent(result["train_error"])),
        ("validation error", percent(result["val_error"])),
        ("test error", percent(result["test_error"])),
        *((f"{part} error, top 5", percent(result[key])) for part, key in TOP5.items() if result.get(key) is not None),
        ("images/s while training", f"{result['images_per_second']:.0f}"),
        ("waiting for data, of the time of the steps", percent(result.get("waiting"))),
        ("wall time", f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"),
    ]
    if paper:
        rows.insert(3, ("the paper's test error, 64k steps on all 50k", percent(paper)))
    if damaged:
        rows.append(("damaged files that were skipped", str(damaged)))
    steps = result.get("steps", settings.steps)  # which results of older versions have not
    title = f"{settings.network} on {settings.data}, {steps} steps, {result['parameters']:,} parameters"
    lines = [title, "-" * len(title), *(f"{name:<46}{value:>10}" for name, value in rows)]
    return "\n".join([*lines, f"in {settings.folder}: " + ", ".join(sorted(os.listdir(settings.folder)))])


def main():
    arguments = vars(parse())
    verbose, profile, to_export = (arguments.pop(name) for name in ("verbose", "profile", "export"))
    try:
        settings = Settings(**arguments)
        print(table(settings, train(settings, verbose, profile)))
        if to_export and distribution.is_chief(settings.strategy):
            folder = os.path.join("saved_models", os.path.basename(settings.folder))
            print(f"exported to {serving.export_run(settings.folder, folder)}")
    except (RunError, DataError, serving.ExportError) as error:
        sys.exit(f"fit.py: {error}")
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        sys.exit(EXIT_STATUS + stopped.signal_number)


if __name__ == "__main__":
    main()
