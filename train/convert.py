"""Converts trained weights from other projects to Keras, and networks of this package to PyTorch.

    python train/convert.py resnet50.pth r50.keras            torchvision, timm; also .safetensors
    python train/convert.py model.safetensors r50.keras       Hugging Face transformers, its config.json beside it
    python train/convert.py resnet50_weights.h5 r50.keras     keras.applications; also its whole models in .keras or .h5
    python train/convert.py resnet20.th r20.keras             akamaster's CIFAR networks
    python train/convert.py r50.keras r50.safetensors         back to PyTorch, with torchvision's names
    python train/convert.py runs/r50 r50/ --keras-hub         a preset of keras_hub; also from SOURCE.keras
    python train/convert.py cifar10-resnet-20 r20/            a folder for Hugging Face, with a model card
    python train/convert.py --list                            the networks in the package

The architecture is inferred from the tensors. OUT.keras takes RGB pixels in [0, 255], as from train/evaluate.py. If
tensors are missing, unexpected or of the wrong shape, the program ends with an error and writes nothing;
docs/weights.md lists the checks. PyTorch files of networks for small images often do not state how the input was
normalised; if so, give --normalization. The program runs on any Keras backend and does not need TensorFlow.

FOLDER/ holds model.keras, the same unzipped for load_model("hf://USER/NAME"), the names of the classes, and README.md,
the model card of the run that trained the network. keras_hub supports ResNet-18 to 152 with option B. Bottlenecks need
their stride in the 3x3; pre-activation needs bottlenecks.
"""

import argparse
import json
import os
import pathlib
import sys

import arguments

from keras_resnet import runs
from keras_resnet.choices import NORMALIZATIONS, WEIGHTS
from keras_resnet.files import ResNetError, WeightsError, whole, whole_folder


def table():
    """The networks in the package."""
    rows = [("name", "test error", "parameters", "size")]
    for name, error, parameters, size in runs.list_weights():
        rows.append((name, f"{error:.2%}", f"{parameters:,}", f"{size / 1e6:.1f} MB"))
    return "\n".join(f"{name:<20}{error:>12}{parameters:>12}{size:>10}" for name, error, parameters, size in rows)


class List(argparse.Action):
    """--list prints the networks in the package, and ends the program."""

    def __call__(self, parser, namespace, values, flag=None):
        print(table())
        parser.exit()


def parse(words=None):
    parser = arguments.parser(__doc__)
    weights = f"weights: {', '.join(WEIGHTS)}, the folder of a run, or a name of --list"
    parser.add_argument("source", metavar="SOURCE", help=weights)
    parser.add_argument("out", metavar="OUT", help=".keras, .safetensors with torchvision's names, or FOLDER/")
    listed = "print the networks in the package: name, test error, parameters, size"
    parser.add_argument("--list", action=List, nargs=0, help=listed)
    hub = "OUT becomes a preset of keras_hub: a folder for keras_hub.models.ImageClassifier.from_preset"
    parser.add_argument("--keras-hub", action="store_true", help=hub)
    parser.add_argument(
        "--normalization",
        default="auto",
        metavar="N",
        help=f"{', '.join(NORMALIZATIONS)}, none (normalise the input yourself), or mean and std of pixels in "
        "[0, 255], such as 125,123,114/63,62,67 (default: that of the source)",
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import backend

backend.choose(*backend.BACKENDS)  # first, before anything that imports Keras

# isort: split
import keras

import keras_resnet
from keras_resnet import analysis, normalization
from keras_resnet.experiments import cards
from keras_resnet.runs import CLASSES, MODEL, Run
from keras_resnet.weights import readers
from keras_resnet.weights.published import package


def check(options):
    """Raises an error if the arguments are wrong, before anything is read; parses OUT and --normalization."""
    if options.out.endswith((".keras", ".safetensors")) and options.keras_hub:
        raise WeightsError(
            f"--keras-hub writes a folder, so OUT does not end in .keras or .safetensors; found {options.out!r}"
        )
    if not (options.keras_hub or options.out.endswith((".keras", ".safetensors", os.sep))):
        raise WeightsError(f"OUT ends in .keras or .safetensors, or is FOLDER/; found {options.out!r}")
    options.out, options.folder = options.out.rstrip(os.sep), options.keras_hub or options.out.endswith(os.sep)
    if not os.path.isdir(os.path.dirname(options.out) or "."):
        raise WeightsError(f"{options.out} cannot be written: there is no folder {os.path.dirname(options.out)}")
    try:
        options.normalization = parse_normalization(options.normalization)
    except ValueError as error:
        names = ", ".join(normalization.NAMED)
        raise WeightsError(
            f"--normalization is {names}, none or R,G,B/R,G,B with a positive std; found {options.normalization!r}"
        ) from error


def parse_normalization(word):
    """`normalization` of `from_weights`; ValueError if the word is not valid."""
    if word in ("auto", "none", *normalization.NAMED):
        return None if word == "none" else word
    mean, std = ([float(number) for number in part.split(",")] for part in word.split("/"))
    normalization.mean_and_std((mean, std))
    return mean, std


def write_folder(options, model):
    """Writes a preset of keras_hub, or a folder for Keras, with the card of the run, which a preset may lack."""
    run, library = Run(options.source), "keras-hub" if options.keras_hub else "keras"
    if options.keras_hub:
        package("keras_hub", options.out)  # before the temporary folder is made
    with whole_folder(options.out) as folder:
        if run.result or not options.keras_hub:
            pathlib.Path(folder, "README.md").write_text(cards.card(options.source, model, library), encoding="utf-8")
            pathlib.Path(folder, CLASSES).write_text(json.dumps(run.classes))
        if options.keras_hub:
            keras_resnet.save_keras_hub(model, folder, run.crop)
        else:
            model.save(os.path.join(folder, MODEL))
            keras.saving.save_model(model, folder, zipped=False)  # what load_model("hf://...") looks for


def main():
    options = parse()
    try:
        check(options)
        source = readers.read(options.source)
        model = keras_resnet.from_weights(source, options.normalization)
        if options.folder:
            write_folder(options, model)
        elif options.out.endswith(".safetensors"):
            keras_resnet.save_torchvision(model, options.out)
        else:
            with whole(options.out) as path:
                model.save(path)
    except (ResNetError, ValueError, OSError) as error:
        sys.exit(f"convert.py: {error}")
    print(f"{source}\nis now {options.out}: {model.name}, {analysis.count_parameters(model):,} parameters")
    first = normalization.of(model)
    if options.keras_hub and (colors := normalization.for_size(first, (None, None))) is not first:
        print(f"its mean image became its mean colour, {normalization.described(colors)}: outputs differ slightly")
    else:
        described = normalization.described(first) if first else "none; normalise the input yourself"
        print(f"preprocessing layer: {described}")
    if stride_in := source.architecture.stride_in:
        print(f"stride of bottlenecks: in the {stride_in}; torchvision's is in the 3x3")


if __name__ == "__main__":
    main()
