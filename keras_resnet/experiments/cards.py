"""Model cards of networks that this project's runs trained, in the format of Hugging Face: a README.md."""

import json
import os
import pathlib

import keras

from keras_resnet.files import RunError
from keras_resnet.runs import CLASSES, RESULT, SHIPPED, Run
from keras_resnet.training.options import command
from keras_resnet.training.settings import changes, network_name
from keras_resnet.weights.published import weights_sha256

DATASETS = {"cifar10": ("uoft-cs/cifar10", "CIFAR-10"), "cifar100": ("uoft-cs/cifar100", "CIFAR-100")}
# Of the networks in the package. A paragraph is one line, because Hugging Face's page breaks lines where the text does.
INEXACT = """
93 of the 60,000 images (73 of training, 20 of test) in the copy of CIFAR-10 that was used are decoded from JPEG \
copies and differ from the originals by about 8/255 (RMSE). The error is that of one run after its last step; no \
choice was based on the test images. docs/weights.md of the project states how many seeds were trained, and their \
spread. The weights have the project's licence, Apache 2.0. CIFAR-10 comes without a licence, for research.
"""
OPENED = {
    "keras": """import keras

# Or load_model("hf://USER/NAME"), with the user and the name on Hugging Face.
model = keras.saving.load_model("model.keras")  # RGB pixels in [0, 255], {shape}
""",
    "keras-hub": """import keras_hub

model = keras_hub.models.ImageClassifier.from_preset(".")  # RGB pixels in [0, 255] of any size
""",
}


def card(path: str | os.PathLike, model: keras.Model, library: str = "keras") -> str:
    """The text of a network's README.md: its data, recipe, command, error and licence.

    Args:
        path: as in `runs.Run`, of a finished run.
        model: its network.
        library: the library that opens the files: "keras" or "keras-hub".

    Returns:
        Markdown with YAML in front, as https://huggingface.co/docs/hub/model-cards describes it. A licence is stated
        only for networks in the package.

    Raises:
        RunError: `path` is not the folder of a finished run, or its files are damaged.
    """
    run = Run(path)
    result, classes = run.result, run.classes
    if not (result and classes):
        raise RunError(f"a card is written for a finished run, with {RESULT} and {CLASSES}, which {path} does not have")
    settings, segments, folder = result["settings"], result.get("segments", []), pathlib.Path(run.folder).resolve()
    name, ours = folder.name, folder.parent == SHIPPED.resolve()
    identifier, title = DATASETS.get(settings["dataset"], (None, _data(settings)))
    split = "validation" if result["test_error"] is None else "test"
    error = result["val_error"] if result["test_error"] is None else result["test_error"]
    metrics = [
        {"type": "accuracy", "name": f"{split} accuracy", "value": round(1 - error, 5)},
        {"type": "error", "name": f"{split} error", "value": error},
    ]
    task, dataset = {"type": "image-classification"}, {"type": identifier, "name": title, "split": split}
    front: dict = {
        **({"license": "apache-2.0"} if ours else {}),
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["resnet", "arxiv:1512.03385"],
        "metrics": ["accuracy"],
    }
    if identifier:  # a result needs the data set's name on Hugging Face
        front["datasets"] = [identifier]
        front["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    images = "all training images" if settings["train_on_all"] else "training images without those for validation"
    rows = {
        "network": f"{network_name(settings)}, {result['parameters']:,} parameters",
        "data": f"{title}, {images}",
        "classes": ", ".join(classes),
        "command": f"`{_command(run, segments)}`",
        f"{split} error": f"{error:.2%}",
        "the paper's test error": f"{paper:.2%}" if (paper := result.get("paper_test_error")) else "–",
        "training error, last epoch": f"{result['train_error']:.2%}",
        "trained on": "; then ".join(map(_where, segments)) or "unknown (older version)",
        "SHA-256 of the weights": weights_sha256(model),
    }
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())  # which is YAML, too
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    opened = OPENED[library].format(shape=model.input_shape)
    return (
        f"---\n{yaml}\n---\n\n# {name}\n\n"
        "A network of [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), trained by "
        f"keras_resnet.\n\n| | |\n|---|---|\n{table}\n{INEXACT if ours else ''}\n```python\n{opened}```\n"
    )


def _command(run, segments):
    """The command that trains the network again, with the settings that affect the result and are not the defaults.

    Like the records, it names an image folder without its path.
    """
    settings = run.result["settings"]
    kept = {"depth": settings["depth"], **changes(settings), "dataset": _data(settings)}
    kept |= {name: os.path.basename(kept[name]) for name in ("init_from", "colors") if name in kept}
    return command(kept, segments[0]["backend"] if segments else None)


def _where(segment):
    """Backend, devices and code of a segment of a run."""
    versions = f"{segment['backend']} {segment[segment['backend']]}, keras_resnet {segment['commit'] or 'not in git'}"
    together = f"{segment['normalized_together']} images normalised together"
    return f"steps {segment['from']} to {segment['to']} on {', '.join(segment['devices'])}: {versions}, {together}"


def _data(settings):
    """The name of the data set."""
    return os.path.basename(os.path.normpath(settings["dataset"]))
