"""Trains a network of the paper: on CIFAR-10, CIFAR-100, a built-in data set or image folders.

    python train/fit.py --dataset shapes --steps 300     a minute or two, no data needed
    python train/fit.py                                  ResNet-20 on CIFAR-10, as in the paper
    python train/fit.py --depth 110                      the same with 110 layers and their warm-up
    python train/fit.py --depth 56 --plain               without shortcuts
    python train/fit.py --depth 20 --steps 8000          an eighth of the schedule
    python train/fit.py --dataset IMAGENET --depth 50 --accumulate 8
                                                         an image folder, IMAGENET/{train,val}/CLASS/, 32 at a time
    python train/fit.py --dataset IMAGENET --depth 50 --epochs 90 --boundaries 30 60
                                                         the same, in epochs
    python train/fit.py --dataset imagenet2012 --depth 50 --accumulate 8
                                                         ImageNet from TensorFlow Datasets
    python train/fit.py --dataset FLOWERS --depth 50 --init-from imagenet --freeze-until conv3 --steps 2000
                                                         fine-tunes trained weights on other images
    KERAS_BACKEND=jax python train/fit.py --depth 110    with JAX, which needs no TensorFlow for small images

All output goes to OUTPUT/NAME/: args.json, classes.json, history.csv, curves.png, tensorboard/, checkpoint/ and, at the
end, result.json and model.keras. A run that was stopped (Ctrl-C, SIGTERM, a crash) resumes when the same command is
run again. The test set is used once, at the end; with image folders only the validation images are used.
"""

import os

import arguments

from keras_resnet.training.command_line import add_settings, errors_told
from keras_resnet.training.settings import Settings

OWN = ("verbose", "profile", "export")  # flags of this program, which are not settings


def parse(words=None):
    parser = arguments.parser(__doc__)
    run = add_settings(parser)
    run.add_argument("--export", action="store_true", help="export to saved_models/NAME/ at the end, as export.py does")
    traced = "number of steps to trace, after the first ten, for TensorBoard (pip install xprof)"
    run.add_argument("--profile", type=int, default=0, metavar="STEPS", help=traced)
    return parser.parse_args(words)


def settings(options):
    """The `Settings` of the flags; the program ends with a message if they are wrong."""
    with errors_told("fit.py"):
        return Settings(**{name: value for name, value in vars(options).items() if name not in OWN})


if __name__ == "__main__":
    settings(parse())  # now: what follows takes seconds to import

import backend

backend.choose("tensorflow", "jax")  # first, before anything that imports Keras

# isort: split
from keras_resnet.files import RunError
from keras_resnet.training import engine, loop
from keras_resnet.training.result import summary


def main():
    options = parse()
    run = settings(options)
    with errors_told("fit.py"):
        if options.export and os.environ["KERAS_BACKEND"] != "tensorflow":
            raise RunError("--export needs TensorFlow; python train/export.py exports the run once it is trained")
        print(summary(run, loop.train(run, options.verbose, options.profile)))
        if options.export and engine.writes(run):
            from keras_resnet import serving  # here, because it needs TensorFlow, and JAX does not

            folder = os.path.join("saved_models", os.path.basename(run.folder))
            print(f"exported to {serving.export_run(run.folder, folder)}")


if __name__ == "__main__":
    main()
