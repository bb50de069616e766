"""Brings trained weights here, and takes networks of this package to PyTorch.

    python train/convert.py resnet50.pth r50.keras            torchvision, timm; also .safetensors
    python train/convert.py model.safetensors r50.keras       Hugging Face transformers, its config.json beside it
    python train/convert.py resnet50_weights.h5 r50.keras     keras.applications; also a whole .keras or .h5 of it
    python train/convert.py resnet20.th r20.keras             akamaster's CIFAR networks
    python train/convert.py r50.keras r50.safetensors         the way back, by torchvision's names

The network follows from the tensors. OUT.keras takes RGB pixels in [0, 255], as train/evaluate.py gives them. A tensor
too many, too few or of another shape is an error, and then nothing is written. docs/weights.md has what is checked.
Files of PyTorch networks for small images often do not say how the input was normalised; then --normalization does.
It runs on any backend of Keras, without TensorFlow too.
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
        "[0, 255], as 125,123,114/63,62,67. Default: what the source says",
    )
    return parser.parse_args(words)


def check(options):
    """What can be said to be wrong before anything is read."""
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
    """`normalization` of `from_weights`; ValueError where the word says none."""
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
