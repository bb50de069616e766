"""Brings trained weights here, and takes networks of this package to PyTorch.

    python train/convert.py resnet50.pth r50.keras            torchvision, timm; also .safetensors
    python train/convert.py model.safetensors r50.keras       Hugging Face transformers, its config.json beside it
    python train/convert.py resnet50_weights.h5 r50.keras     keras.applications; also a whole .keras or .h5 of it
    python train/convert.py resnet20.th r20.keras             akamaster's CIFAR networks
    python train/convert.py r50.keras r50.safetensors         the way back, by torchvision's names

The network follows from the tensors. OUT.keras takes RGB pixels in [0, 255], as train/evaluate.py gives them. A tensor
too many, too few or of another shape is an error, and then nothing is written. docs/weights.md has what is checked.
"""

import argparse
import os
import sys

import quiet  # noqa: F401, first, before anything that imports TensorFlow

# isort: split
import keras

import keras_resnet
from keras_resnet import normalization, readers
from keras_resnet.training.checkpoint import RunError, whole


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help=f"weights: {', '.join(readers.READERS)}")
    parser.add_argument("out", metavar="OUT", help=".keras, or .safetensors with torchvision's names")
    return parser.parse_args(arguments)


def check(options):
    """What can be said to be wrong before anything is read."""
    if not options.out.endswith((".keras", ".safetensors")):
        return f"OUT ends in .keras or .safetensors; found {options.out!r}"
    if not os.path.isdir(os.path.dirname(options.out) or "."):
        return f"{options.out} cannot be written: there is no folder {os.path.dirname(options.out)}"
    return None


def main():
    options = parse()
    wrong = check(options)
    if wrong:
        sys.exit(f"convert.py: {wrong}")
    try:
        source = readers.read(options.source)
        model = keras_resnet.from_weights(source)
        save = keras.Model.save if options.out.endswith(".keras") else keras_resnet.save_torchvision
        with whole(options.out) as path:
            save(model, path)
    except (ValueError, RunError, OSError) as error:
        sys.exit(f"convert.py: {error}")
    print(f"{source}\nis now {options.out}: {model.name}, {model.count_params():,} parameters")
    first = normalization.of(model)
    print(f"first layer: {normalization.words(first) if first else 'none, its input is to be normalised outside'}")
    if source.stride_in:
        print(f"stride of bottlenecks: in the {source.stride_in}; torchvision's is in the 3x3")


if __name__ == "__main__":
    main()
