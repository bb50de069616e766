"""Exports a classifier for TF Serving, OpenVINO, ONNX Runtime, LiteRT or a browser.

    python train/export.py runs/cifar10-resnet-20                  saved_models/cifar10-resnet-20/1/, the next time 2/
    python train/export.py model.keras --classes classes.json      a JSON list of names, in the order of the outputs
    python train/export.py runs/r50 --format openvino              saved_models/r50-openvino/1/model.xml
    python train/export.py runs/r50 --format openvino --dtype int8 --calibrate FOLDER
                                                                   saved_models/r50-openvino-int8/1/; FOLDER holds
                                                                   {train,val}/CLASS/ or CLASS/
    python train/export.py runs/cifar10-resnet-20 --format web     a page to open with a double click, index.html

MODEL is a .keras file whose input is RGB pixels in [0, 255], or the folder of a finished run. A version is written
atomically and never overwritten. docs/serving.md shows how to serve it.
"""

import argparse
import json
import os
import pathlib
import sys

import arguments

from keras_resnet.choices import DTYPES, FORMATS, MAX_PIXELS, TOP_K
from keras_resnet.data import sources
from keras_resnet.files import ResNetError, is_name


class Version(argparse.Action):
    """--version N sets the version of the export; --version alone prints the program's, as in the other programs."""

    def __call__(self, parser, namespace, number, flag=None):
        if number is None:
            print(arguments.version(parser))
            parser.exit()
        namespace.version = number


def parse(words=None):
    parser = arguments.parser(__doc__, conflict_handler="resolve")
    add = parser.add_argument
    add("model", metavar="MODEL", help=".keras file, folder of a run, or a name of convert.py --list")
    add("--output", default="saved_models", metavar="DIR", help="folder of models (default saved_models)")
    add("--name", help="name of the model (default: of the run or file, and -FORMAT, -DTYPE but for the defaults)")
    help_of_version = "version of the export, 1 to 2^63 - 1 (default the next one); without N print the program's"
    add("--version", type=int, nargs="?", action=Version, metavar="N", help=help_of_version)
    add("--format", default="saved_model", choices=FORMATS, help="default saved_model")
    add("--no-fold", action="store_true", help="keep batch normalisation as layers")
    add("--dtype", default="float32", choices=DTYPES, help="of weights and arithmetic (default float32)")
    add("--calibrate", metavar="DATA", help="int8: 300 images of an image folder, or of cifar10, cifar100, shapes")
    add("--data-dir", metavar="DIR", help="for --calibrate cifar10: a copy, as for fit.py (default: download)")
    add("--classes", metavar="FILE", help="a JSON list of names (default classes.json beside the model)")
    add("--top-k", type=int, default=TOP_K, help=f"classes in a response (default {TOP_K})")
    add("--max-pixels", type=int, default=MAX_PIXELS, help=f"largest image file, in pixels (default {MAX_PIXELS:,})")
    add("--no-range-check", action="store_true", help="accept pixels outside [0, 255], for other networks")
    add("--crop", type=int, help="size of crops of image files (default the network's, or the run's)")
    add("--keep", type=int, metavar="N", help="remove all but the newest N versions (default: keep all)")
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import backend

backend.choose("tensorflow")  # first, before anything that imports Keras

# isort: split
import interrupted
import numpy as np
import tensorflow as tf

from keras_resnet import evaluation, serving
from keras_resnet.data import folders, imagenet


def model_name(options):
    """The name of the folder that holds the versions: one component of a path."""
    if options.name is None:
        path = os.path.abspath(options.model)
        name = os.path.basename(path if os.path.isdir(path) else os.path.splitext(path)[0])
        kind = [word for word in (options.format, options.dtype) if word not in ("saved_model", "float32")]
        return "-".join([name, *kind])  # a server would take another kind for the next version
    if not is_name(options.name):
        raise serving.ExportError(f"--name is the name of a folder in --output, not a path; found {options.name!r}")
    return options.name


def check(options):
    """Raises an error if the arguments are wrong, before any data are read."""
    evaluation.model_file(options.model)
    for flag, found, usual in (("--top-k", options.top_k, TOP_K), ("--max-pixels", options.max_pixels, MAX_PIXELS)):
        if options.format != "saved_model" and found != usual:
            raise serving.ExportError(f"{flag} is for --format saved_model; found --format {options.format} as well")
    if options.data_dir and not options.calibrate:
        raise serving.ExportError(f"--data-dir {options.data_dir} is for --calibrate, which is not given")
    if (options.dtype == "int8") != (options.calibrate is not None):
        raise serving.ExportError(
            "--dtype int8 is calibrated on images like those of the training: give --calibrate DATA, an image folder, "
            f"or {', '.join(sources.DATASETS)}; found {'--calibrate' if options.calibrate else '--dtype int8'} alone"
        )


def read_classes(path):
    """The list of names in a JSON file."""
    try:
        classes = json.loads(pathlib.Path(path).read_bytes())  # UTF-8 on every system
    except (OSError, ValueError) as error:
        raise serving.ExportError(f"--classes {path} cannot be read: {error}") from error
    if not isinstance(classes, list):
        raise serving.ExportError(f'--classes {path} should hold a list like ["cat", "dog"]; found {classes!r:.40}')
    return classes


def calibration(options):
    """Images of the training data, drawn from all classes."""
    if options.calibrate in sources.DATASETS:
        images = sources.load(options.calibrate, options.data_dir).train.images
        return tf.data.Dataset.from_tensor_slices(images[: serving.CALIBRATION_IMAGES])
    files = folders.load(options.calibrate).train
    chosen = np.random.default_rng(0).permutation(len(files))[: serving.CALIBRATION_IMAGES]
    return imagenet.examples(files.subset(chosen)).map(lambda image, label: image)


def main():
    options = parse()
    try:
        name = model_name(options)
        check(options)
        path = serving.export_run(
            options.model,
            os.path.join(options.output, name),
            classes=options.classes and read_classes(options.classes),
            version=options.version,
            format=options.format,
            batch_norm="keep" if options.no_fold else "fold",
            dtype=options.dtype,
            calibration=options.calibrate and calibration(options),
            top_k=options.top_k,
            crop=options.crop,
            max_pixels=options.max_pixels,
            range_check=not options.no_range_check,
            keep=options.keep,
        )
        with open(os.path.join(path, serving.ABOUT)) as file:
            about = json.load(file)
        print(f"in {path}: {', '.join(sorted(os.listdir(path)))}")
        print(
            f"{about['model']}, {about['parameters']:,} parameters, {len(about['classes'])} classes, {about['dtype']}"
        )
        if about["classes"] == [str(i) for i in range(len(about["classes"]))]:
            print("the classes have no names; give --classes FILE to name them")
        if options.format == "saved_model":
            print(f"tensorflow_model_server --model_name={name} --model_base_path={os.path.dirname(path)}")
        if options.format == "web":
            print(f"open {os.path.join(path, 'index.html')} in a browser")
    except (ResNetError, OSError) as error:
        interrupted.insist()
        sys.exit(f"export.py: {error}")


if __name__ == "__main__":
    main()
