"""Model cards of networks that this project's runs trained, in the format of Hugging Face: a README.md."""

import json
import os
import pathlib

import keras

from keras_resnet.origin import WITHOUT_EFFECT, flags, program
from keras_resnet.weights.published import SHIPPED, WeightsError, find, weights_sha256

DATASETS = {"cifar10": ("uoft-cs/cifar10", "CIFAR-10"), "cifar100": ("uoft-cs/cifar100", "CIFAR-100")}
# Of the networks in the package.
INEXACT = """
93 of the 60,000 images (73 of training, 20 of test) in the copy of CIFAR-10 that was used are decoded from JPEG copies
and differ from the originals by about 8/255 (RMSE). The error is that of one run after its last step; nothing was
chosen on the test images. docs/weights.md of the project says how many seeds
were trained, and their spread. The
weights have the project's licence, Apache 2.0. CIFAR-10 comes without a licence, for research.
"""
OPENED = {
    "keras": """import keras

model = keras.saving.load_model("model.keras")  # RGB pixels in [0, 255], {shape}
""",
    "keras-hub": """import keras_hub

model = keras_hub.models.ImageClassifier.from_preset(".")  # RGB pixels in [0, 255] of any size
""",
}


def card(path: str | os.PathLike, model: keras.Model, library: str = "keras") -> str:
    """What to write into the README.md beside a network: its data, recipe, command, error and licence.

    Args:
        path: the folder of a finished run, or the name of a network in the package.
        model: its network.
        library: what opens the files: "keras" or "keras-hub".

    Returns:
        Markdown with YAML in front, as https://huggingface.co/docs/hub/model-cards describes it. A licence is stated
        of networks in the package alone.

    Raises:
        WeightsError: `path` is no such folder.
    """
    folder = pathlib.Path(find(path)).resolve()
    result, classes = result_of(folder), _read(folder, "classes.json")
    settings = result["settings"]
    ours = folder.parent == SHIPPED.resolve()
    name, data = folder.name, os.path.basename(os.path.normpath(settings["dataset"]))
    identifier, title = DATASETS.get(data, (data, data))
    split = "validation" if result["test_error"] is None else "test"
    error = result["val_error"] if result["test_error"] is None else result["test_error"]
    metrics = [
        {"type": "accuracy", "name": f"{split} accuracy", "value": round(1 - error, 5)},
        {"type": "error", "name": f"{split} error", "value": error},
    ]
    task, dataset = {"type": "image-classification"}, {"type": identifier, "name": title, "split": split}
    front = {
        **({"license": "apache-2.0"} if ours else {}),
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["resnet", "arxiv:1512.03385"],
        **({"datasets": [identifier]} if data in DATASETS else {}),
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}],
    }
    network = f"{'plain' if settings['plain'] else 'ResNet'}-{settings['depth']}"
    images = "all training images" if settings["train_on_all"] else "training images without those for validation"
    rows = {
        "network": f"{network}, {result['parameters']:,} parameters",
        "data": f"{title}, {images}",
        "classes": ", ".join(classes),
        "command": f"`{_command(result)}`",
        f"{split} error": f"{error:.2%}",
        "the paper's test error": f"{paper:.2%}" if (paper := result.get("paper_test_error")) else "–",
        "training error, last epoch": f"{result['train_error']:.2%}",
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


def result_of(folder: str | os.PathLike) -> dict:
    """The result of a finished run with its settings, from its folder's result.json; errors as of `card`."""
    return _read(pathlib.Path(folder), "result.json")


def _read(folder, name):
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"a model card is written for the folder of a finished run, with result.json and classes.json: {error}"
        ) from error


def _command(result):
    """What trains it again, with all settings that decide, so that it stays right where the defaults change."""
    kept = {
        name: value
        for name, value in result["settings"].items()
        if name not in WITHOUT_EFFECT and value not in (None, []) and (value is not False or name == "warmup")
    }
    return f"python train/{program(result.get('made'))} {flags(kept)}"
