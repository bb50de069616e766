"""Trains a CIFAR network of the paper with JAX, on one GPU or TPU, without TensorFlow.

    python train/fit_jax.py --depth 110                       as train/fit.py, with the data in the GPU's memory
    python train/fit_jax.py --dataset shapes --steps 300      no data needed
    python train/fit_jax.py --dataset cifar100 --init-from cifar10-resnet-20 --steps 2000      fine-tuning
    python train/fit_jax.py --data-dir DIR                    DIR contains the authors' cifar-10-batches-py

Needs Keras and JAX, and Matplotlib for curves.png: pip install . matplotlib "jax[cuda13]". The flags are some of
fit.py's, and the output, OUTPUT/NAME/, is the same but for tensorboard/; what the help says of other flags and of
photographs is for fit.py. A run that was stopped goes on when the same command is given again. It is saved, and stops
after Ctrl-C or SIGTERM, at the end of an epoch; --checkpoint-every is rounded up to whole epochs.
"""

import arguments

from keras_resnet.training.command_line import add_settings, errors_told
from keras_resnet.training.settings import NOT_ON_JAX, OF_PHOTOGRAPHS, Settings


def parse(words=None):
    parser = arguments.parser(__doc__)
    add_settings(parser, (*NOT_ON_JAX, *OF_PHOTOGRAPHS))
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import jax_backend  # noqa: F401, first, before anything that imports Keras

# isort: split
from keras_resnet.training import on_jax
from keras_resnet.training.folder import summary


def main():
    options = vars(parse())
    verbose = options.pop("verbose")
    with errors_told("fit_jax.py"):
        settings = Settings(**options)
        print(summary(settings, on_jax.train(settings, verbose)))


if __name__ == "__main__":
    main()
