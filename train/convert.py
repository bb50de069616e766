"""Converts trained weights of others to Keras, and networks of this package to PyTorch.

    python train/convert.py resnet50.pth r50.keras            torchvision, timm; also .safetensors
    python train/convert.py model.safetensors r50.keras       Hugging Face transformers, its config.json beside it
    python train/convert.py resnet50_weights.h5 r50.keras     keras.applications; also its whole models in .keras or .h5
    python train/convert.py resnet20.th r20.keras             akamaster's CIFAR networks
    python train/convert.py r50.keras r50.safetensors         the way back, under torchvision's names

The architecture is inferred from the tensors. OUT.keras takes RGB pixels in [0, 255], as from train/evaluate.py. If
tensors are missing, left over or misshapen, the program ends with an error and writes nothing. docs/weights.md lists
the checks. PyTorch files of networks for small images often do not state how the input was normalised; then give
--normalization. The program runs on any Keras backend and does not need TensorFlow.
"""

import os
import sys

import any_backend  # noqa: F401, first, before Keras

# isort: split
import arguments
import keras

import keras_resnet
from keras_resnet import normalization
from keras_resnet.files import RunError, whole
from keras_resnet.weights import readers


def parse(words=None):
    parser = arguments.parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", help=f"weights: {', '.join(readers.READERS)}")
    parser.add_argument("out", metavar="OUT", help=".keras, or .safetensors with torchvision's names")
    parser.add_argument(
        "--normalization",
        default="auto",
        metavar="N",
        help=f"{', '.join(normalization.NAMED)}, none (the input is normalised outside), or mean and std of pixels in "
        "[0, 255], such as 125,123,114/63,62,67 (default: that of the source)",
    )
    return parser.parse_args(words)


def check(options):
    """What is wrong with the arguments, before anything is read; None if nothing is."""
    if not options.out.endswith((".keras", ".safetensors")):
        return f"OUT ends in .keras or .safetensors; found {options.out!r}"
    if not os.path.isdir(os.path.dirname(options.out) or "."):
        return f"{options.out} cannot be written: there is no folder {os.path.dirname(options.out)}"
    try:
        options.normalization = parse_normalization(options.normalization)
    except ValueError:
        names = ", ".join(normalization.NAMED)
        return f"--normalization is {names}, none or R,G,B/R,G,B with a positive std; found {options.normalization!r}"
    return None


def parse_normalization(word):
    """`normalization` of `from_weights`; ValueError if the word is not valid."""
    if word in ("auto", "none", *normalization.NAMED):
        return None if word == "none" else word
    mean, std = ([float(number) for number in part.split(",")] for part in word.split("/"))
    normalization.mean_and_std((mean, std))
    return mean, std


def main():
    options = parse()
    wrong = check(options)
    if wrong:
        sys.exit(f"convert.py: {wrong}")
    try:
        source = readers.read(options.source)
        model = keras_resnet.from_weights(source, options.normalization)
        save = keras.Model.save if options.out.endswith(".keras") else keras_resnet.save_torchvision
        with whole(options.out) as path:
            save(model, path)
    except (ValueError, RunError, OSError) as error:
        sys.exit(f"convert.py: {error}")
    print(f"{source}\nis now {options.out}: {model.name}, {model.count_params():,} parameters")
    first = normalization.of(model)
    print(f"first layer: {normalization.described(first) if first else 'none, its input is to be normalised outside'}")
    if source.stride_in:
        print(f"stride of bottlenecks: in the {source.stride_in}; torchvision's is in the 3x3")


if __name__ == "__main__":
    main()
