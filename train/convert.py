"""Converts trained weights of others to Keras, and networks of this package to PyTorch.

    python train/convert.py resnet50.pth r50.keras            torchvision, timm; also .safetensors
    python train/convert.py model.safetensors r50.keras       Hugging Face transformers, its config.json beside it
    python train/convert.py resnet50_weights.h5 r50.keras     keras.applications; also its whole models in .keras or .h5
    python train/convert.py resnet20.th r20.keras             akamaster's CIFAR networks
    python train/convert.py r50.keras r50.safetensors         the way back, under torchvision's names
    python train/convert.py runs/r50 r50/ --keras-hub         a preset of keras_hub; also of SOURCE.keras
    python train/convert.py cifar10-resnet-20 r20/            model.keras and its card, as Hugging Face wants it

The architecture is inferred from the tensors. OUT.keras takes RGB pixels in [0, 255], as from train/evaluate.py. If
tensors are missing, left over or misshapen, the program ends with an error and writes nothing. docs/weights.md lists
the checks. PyTorch files of networks for small images often do not state how the input was normalised; then give
--normalization. The program runs on any Keras backend and does not need TensorFlow.

In a folder, README.md is the model card of the run that trained the network. keras_hub can express ResNet-18 to 152
with option B. Bottlenecks need their stride in the 3x3; pre-activation is possible with bottlenecks only.
"""

import os
import pathlib
import shutil
import sys

import arguments

from keras_resnet.choices import NORMALIZATIONS, WEIGHTS
from keras_resnet.files import RunError, whole, whole_folder


def parse(words=None):
    parser = arguments.parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", help=f"weights: {', '.join(WEIGHTS)}")
    parser.add_argument("out", metavar="OUT", help=".keras, .safetensors with torchvision's names, or FOLDER/")
    hub = "OUT becomes a preset of keras_hub: a folder for keras_hub.models.ImageClassifier.from_preset"
    parser.add_argument("--keras-hub", action="store_true", help=hub)
    parser.add_argument(
        "--normalization",
        default="auto",
        metavar="N",
        help=f"{', '.join(NORMALIZATIONS)}, none (the input is normalised outside), or mean and std of pixels in "
        "[0, 255], such as 125,123,114/63,62,67 (default: that of the source)",
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import any_backend  # noqa: F401, first, before Keras

# isort: split
import keras

import keras_resnet
from keras_resnet import normalization
from keras_resnet.weights import cards, readers
from keras_resnet.weights.published import find


def check(options):
    """What is wrong with the arguments, before anything is read; None if nothing is."""
    if options.out.endswith((".keras", ".safetensors")) and options.keras_hub:
        return f"--keras-hub writes a folder, so OUT does not end in .keras or .safetensors; found {options.out!r}"
    if not (options.keras_hub or options.out.endswith((".keras", ".safetensors", os.sep))):
        return f"OUT ends in .keras or .safetensors, or is FOLDER/; found {options.out!r}"
    options.out, options.folder = options.out.rstrip(os.sep), options.keras_hub or options.out.endswith(os.sep)
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


def write_folder(options, model):
    """A preset of keras_hub, or model.keras; and the card of the run that trained it, which a preset may lack."""
    run = find(options.source)
    run = os.path.dirname(run) if os.path.basename(run) == "model.keras" else run
    library = "keras-hub" if options.keras_hub else "keras"
    with whole_folder(options.out) as folder:
        recorded = os.path.isfile(os.path.join(run, "result.json"))
        if recorded or not options.keras_hub:
            pathlib.Path(folder, "README.md").write_text(cards.card(run, model, library))
            shutil.copy(os.path.join(run, "classes.json"), folder)
        if options.keras_hub:
            size = cards.result_of(run)["settings"]["image_size"] if recorded else None
            keras_resnet.save_keras_hub(model, folder, size)
        else:
            model.save(os.path.join(folder, "model.keras"))


def main():
    options = parse()
    wrong = check(options)
    if wrong:
        sys.exit(f"convert.py: {wrong}")
    try:
        source = readers.read(options.source)
        model = keras_resnet.from_weights(source, options.normalization)
        if options.folder:
            write_folder(options, model)
        else:
            save = keras.Model.save if options.out.endswith(".keras") else keras_resnet.save_torchvision
            with whole(options.out) as path:
                save(model, path)
    except (ValueError, RunError, OSError) as error:
        sys.exit(f"convert.py: {error}")
    print(f"{source}\nis now {options.out}: {model.name}, {model.count_params():,} parameters")
    first = normalization.of(model)
    if options.keras_hub and (colors := normalization.for_size(first, (None, None))) is not first:
        print(f"its mean image became its mean colour, {normalization.described(colors)}: answers differ a little")
    else:
        described = normalization.described(first) if first else "none, its input is to be normalised outside"
        print(f"first layer: {described}")
    if stride_in := source.architecture.stride_in:
        print(f"stride of bottlenecks: in the {stride_in}; torchvision's is in the 3x3")


if __name__ == "__main__":
    main()
