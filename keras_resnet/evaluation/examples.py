"""The images on which models are evaluated: a split of the data, and the names of its classes."""

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.choices import SPLITS
from keras_resnet.data import imagenet, records, sources
from keras_resnet.evaluation.results import EvaluationError
from keras_resnet.files import Path
from keras_resnet.runs import Run


def check_classes(path: Path, classes: Iterable[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Finds the classes of the data among the classes of a model.

    Args:
        path: as in `runs.Run`.
        classes: the names of the data's classes; each must be one of the model's, in any order.

    Returns:
        The names of all classes of the model, a tuple, and the index there of each class of the data, int (classes,).
        If the model's folder does not state its classes, the data's are used.

    Raises:
        EvaluationError: a class of the data is not in the model, or is there twice.
        RunError: the model does not exist, or its classes.json is damaged.
    """
    trained, classes = Run(path).classes, tuple(classes)
    if trained in (None, classes):
        return classes, np.arange(len(classes))
    unknown = [name for name in classes if trained.count(name) != 1]
    if unknown:
        raise EvaluationError(
            f"{path} was trained on other classes: {len(trained)} there, {len(classes)} in the data; its "
            f"classes.json lacks {', '.join(unknown[:8])}, or has it twice. Test it on data with its own classes."
        )
    return trained, np.array([trained.index(name) for name in classes])


def load_data(
    dataset: str, data_dir: Path | None = None, *, split: str | None = None, models: Sequence[Path] = (),
    skipped: set[str] | None = None,
) -> tuple[tuple[str, ...], tf.data.Dataset, str]:  # fmt: skip
    """Loads the data on which models are evaluated.

    Args:
        dataset: one of `data.sources.DATASETS`; an image folder; a data set of TensorFlow Datasets.
        data_dir: as in `data.sources.load`.
        split: "test", "validation" or, for an image folder without splits, "all". None takes the first of these that
            exists. If one of `models` was trained on such a folder, "validation" is the images that its run set aside.
        models: paths as in `runs.Run`. Their folders state the training data, and the names and the order of the
            classes; if they do not, the data's classes are used.
        skipped: as in `data.imagenet.examples`.

    Returns:
        The names of the classes, examples for `evaluate`, and a description of the images.

    Raises:
        EvaluationError: the split does not exist, or the data have classes that the models lack.
        RunError: the data have changed since a run set images aside, or the files of a run are damaged.
        DataError: the data cannot be loaded.
    """
    if dataset in sources.DATASETS:
        classes, data, which = _small_images(dataset, data_dir, split or "test", models)
        examples = tf.data.Dataset.from_tensor_slices(tuple(data))
    else:
        classes, data, which = _imagenet_style(dataset, data_dir, split, models)
        examples = imagenet.examples(data, skipped)
    known = [check_classes(path, classes) for path in models] or [(classes, np.arange(len(classes)))]
    if len({names for names, _ in known}) > 1:
        raise EvaluationError(
            f"{' and '.join(map(str, models))} were trained on different classes, so they cannot form an ensemble"
        )
    names, indices = known[0]
    return names, examples.map(lambda image, label: (image, tf.gather(indices, label))), which


def _small_images(dataset, data_dir, split, models):
    """The classes, the `data.sources.Split` and its description."""
    if split == "all":
        raise EvaluationError(f"{dataset} has splits; choose its test or validation images")
    if split == "validation":
        for path in models:
            if Run(path).settings.get("train_on_all"):
                raise EvaluationError(f"{path} was trained on the validation images too; test it on the test images")
    source = sources.load(dataset, data_dir)
    return source.classes, getattr(source, split), f"{split} images"


def _imagenet_style(dataset, data_dir, split, models):
    """The classes, the `data.folders.Files` or `data.records.Records` and their description."""
    for name in SPLITS[:2]:
        if split in (None, name) and (found := records.load_split(dataset, name, data_dir)):
            return *found, f"{name} images"
    if split in (None, "validation"):
        runs = {path: Run(path) for path in models}
        aside = {path: held_out for path, run in runs.items() if (held_out := run.held_out(dataset, data_dir))}
        seeds = {runs[path].settings["seed"] for path in aside}
        if len(seeds) > 1:
            raise EvaluationError(
                f"different images of {dataset} were set aside, by different seeds: {', '.join(map(str, aside))}. "
                "Test each separately, or on other data."
            )
        others = [
            f"{path} was trained on {run.settings['dataset']}"
            for path, run in runs.items()
            if path not in aside and run.imagenet_style
        ]
        for data in aside.values():
            which = f"validation images, set aside in training by seed {seeds.pop()}"
            return data.classes, data.validation, "; ".join([which, *others])
    if split in (None, "all") and (found := records.load_split(dataset, "all", data_dir)):
        return *found, "all images"
    raise EvaluationError(f"{dataset} has no {split or 'test or validation'} images, or their classes are unknown")
