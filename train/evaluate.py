"""Evaluates one classifier, or several as an ensemble, as in the paper.

    python train/evaluate.py runs/cifar10-resnet-20                     a run of fit.py, on the test images of its data
    python train/evaluate.py model.keras --data FOLDER             center crop, from a shorter side of 256
    python train/evaluate.py model.keras --data FOLDER --protocol 10-crop
    python train/evaluate.py a.keras b.keras --data FOLDER --protocol multi-scale      an ensemble
    python train/evaluate.py model.keras --data imagenet2012 --data-dir ~/tensorflow_datasets
    python train/evaluate.py vgg.keras --data FOLDER --preprocess vgg16      a model of keras.applications

A model is any classifier in a .keras file, or a folder of runs/. For a run the data, the crop size and the names of
classes are by default those of its training. FOLDER is an image folder, FOLDER/{test,val}/CLASS/FILE or
FOLDER/CLASS/FILE; its classes are the sorted names of the folders CLASS. imagenet2012 stands for any image
classification data set of TensorFlow Datasets. The default is the test images, if their classes are known, otherwise
the validation images; for data without splits these are the images that a run set aside. Protocols:

    single        the image as it is, as for CIFAR (P1 4.2)
    center        shorter side 256, 224x224 center crop
    10-crop       shorter side 256, crops of the four corners and the center, and their mirror images
    multi-scale   whole images and their mirror images, shorter side 224, 256, 384, 480 and 640 (P1 3.4)

The probabilities are averaged over views and models. Every image counts once. --output DIR draws the confusion matrix
and the most confident mistakes: DIR/confusion.png, DIR/mistakes.png. Words replace WordNet IDs of classes there if
keras.applications has downloaded ImageNet's names, as decode_predictions does once.
"""

import json
import os
import sys

import arguments

from keras_resnet import environment
from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.choices import PROTOCOLS, SPLITS
from keras_resnet.data import sources
from keras_resnet.files import DataError, ResNetError, listed, make_folder, write_whole

MISTAKES = 24
WATCHED = sys.stdout.isatty()  # a progress bar is for a terminal


def parse(words=None):
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    model = ".keras file, folder of a run, or a name of convert.py --list; several are an ensemble"
    add("models", nargs="+", metavar="MODEL", help=model)
    add("--data", help="cifar10, cifar100, shapes, an image folder, imagenet2012 etc. (default: the run's)")
    add("--data-dir", metavar="DIR", help="copies of data sets, as for fit.py (default: download)")
    add("--split", choices=SPLITS, help="of the data (default: the first that exists)")
    add("--skip-damaged", action="store_true", help="skip images that cannot be decoded, and list them")
    add("--protocol", choices=PROTOCOLS, help="(default: center for ImageNet-style images, single for small ones)")
    add(
        "--crop",
        type=int,
        help=f"size of crops; images are resized in proportion (default: the run's, or {IMAGE_SIZE})",
    )
    add("--batch-size", type=int, default=32, help="views in a forward pass (default 32)")
    add("--preprocess", metavar="NAME", help="preprocess_input of this module of keras.applications (default: none)")
    add("--json", metavar="FILE", help="write the result to this file (default: only print it)")
    add("--output", metavar="DIR", help="draw confusion matrix and mistakes there (default: do not draw)")
    bar = "0 only the result, 1 also a progress bar (default 1 at a terminal, otherwise 0)"
    add("--verbose", type=int, default=int(WATCHED), choices=(0, 1), help=bar)
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import backend

backend.choose("tensorflow")  # first, before anything that imports Keras

# isort: split
import keras

from keras_resnet import evaluation
from keras_resnet.data import imagenet
from keras_resnet.evaluation import EvaluationError, views


def check(options):
    """Raises an error if the arguments are wrong, before any data are read; fills in the data and the protocol."""
    for path in options.models:
        evaluation.model_file(path)
    settings = evaluation.run_settings(options.models[0])
    if options.data is None:
        if "dataset" not in settings:
            raise EvaluationError(f"{options.models[0]} does not belong to a run that states its data; give --data")
        options.data, options.data_dir = settings["dataset"], options.data_dir or settings.get("data_dir")
    trained = [path for path in options.models if evaluation.run_settings(path)]
    if options.preprocess and trained:
        raise EvaluationError(
            f"{trained[0]} takes pixels, as in training; --preprocess is for networks of keras.applications"
        )
    small = options.data in sources.DATASETS
    options.protocol = options.protocol or ("single" if small else "center")
    if small and options.protocol != "single":
        raise EvaluationError(
            f"{options.data} is tested with --protocol single (P1 4.2): its images are 32x32; found {options.protocol}"
        )
    if options.protocol == "single" and options.crop is not None:
        raise EvaluationError("--crop has no meaning with --protocol single, which takes the images as they are")
    for flag in ("crop", "batch_size"):
        if getattr(options, flag) is not None and getattr(options, flag) < 1:
            raise EvaluationError(f"--{flag.replace('_', '-')} is positive; found {getattr(options, flag)}")
    modules = [
        name for name in dir(keras.applications) if hasattr(getattr(keras.applications, name), "preprocess_input")
    ]
    if options.preprocess not in (None, *modules):
        raise EvaluationError(f"--preprocess is one of {', '.join(modules)}; found {options.preprocess!r}")
    if options.output and (lacking := environment.needed("matplotlib")):
        raise EvaluationError(f"--output {lacking}")
    if options.json and not os.path.isdir(os.path.dirname(options.json) or "."):
        raise EvaluationError(
            f"--json {options.json} cannot be written: there is no folder {os.path.dirname(options.json)}"
        )


def table(result, split, skipped, options):
    """The result as a table."""
    title = (
        f"{' + '.join(options.models)} on {options.data}, {len(result.labels):,} images, {len(result.classes)} classes"
    )
    rows = [("images", split), *([("damaged, skipped", len(skipped))] if skipped else [])]
    rows += [(f"top-{k} error", f"{result.error(k):.2%}") for k in (1, 5) if k < len(result.classes)]
    rows += [(f"protocol: {key}" if key == "name" else f"  {key}", words) for key, words in result.protocol.items()]
    lines = [title, "-" * len(title), *(f"{name:<18}{value}" for name, value in rows)]
    if skipped:
        lines += ["skipped:", listed(skipped)]
    return "\n".join(lines)


def draw(result, examples, options):
    """Draws the figures; returns their names."""
    from keras_resnet.evaluation import pictures  # here, because it needs matplotlib

    (first, *others), data = options.models, os.path.basename(os.path.abspath(options.data))
    name = f"{len(others) + 1} models on {data}" if others else f"{os.path.basename(os.path.abspath(first))} on {data}"
    title = f"{name}, {result.protocol['name']}, top-1 error {result.error(1):.2%}"
    classes = pictures.in_words(result.classes)
    write_whole(
        f"{options.output}/confusion.png",
        lambda file: pictures.draw_confusion(result.confusion(), classes, title, file),
    )
    worst = result.worst_mistakes(MISTAKES)
    if not len(worst):
        return "confusion.png; there are no mistakes"
    images, predictions = views.pick(examples, worst), result.predictions[worst]
    sureness = result.probabilities[worst, predictions]
    title = f"{name}, {result.protocol['name']}: the most confident mistakes\nblue: true class; red: predicted class"
    shown = images, result.labels[worst], predictions, sureness, classes, title
    write_whole(f"{options.output}/mistakes.png", lambda file: pictures.draw_mistakes(*shown, file))
    return "confusion.png, mistakes.png"


def main():
    options = parse()
    given = options.data
    try:
        check(options)
        if options.output:
            make_folder(options.output)
        skipped = set() if options.skip_damaged else None
        try:
            classes, examples, split = evaluation.load_data(
                options.data, options.data_dir, split=options.split, models=options.models, skipped=skipped
            )
        except DataError as error:
            if given is not None:
                raise
            message = f"{options.models[0]} was trained on {options.data}; if that is elsewhere, give --data"
            raise EvaluationError(f"{error}. {message}") from error
        classifiers = [evaluation.load_model(path) for path in options.models]
        with imagenet.errors_named():
            result = evaluation.evaluate(
                classifiers,
                examples,
                classes,
                options.protocol,
                crop=options.crop or evaluation.default_crop(options.models, classifiers),
                batch_size=options.batch_size,
                preprocess=options.preprocess and getattr(keras.applications, options.preprocess).preprocess_input,
                verbose=options.verbose,
            )
        print(table(result, split, skipped, options))
        if options.json:
            inputs = {name: getattr(options, name) for name in ("models", "data", "preprocess")} | {"split": split}
            inputs["damaged"] = sorted(skipped or ())
            text = json.dumps({**inputs, **result.summary()}, indent=2)
            write_whole(options.json, lambda file: file.write(text.encode()))
        if options.output:
            print(f"in {options.output}: {draw(result, examples, options)}")
    except (ResNetError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")


if __name__ == "__main__":
    main()
