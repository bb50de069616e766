"""Figures of an evaluation: the confusion matrix and the worst mistakes, as PNG."""

import json
import pathlib
import typing
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from keras_resnet import environment
from keras_resnet.files import Path
from keras_resnet.lettering import lettering

LABELLED = 40  # classes; with more, cells are drawn as dots, and the most frequent confusions are listed
NUMBERED = 20  # classes; with more, the numbers do not fit into the cells
DOT = 400  # points squared, the scale of a dot's area
LISTED = 30  # confusions in the list
LISTED_AT = (0, 0.25, 0.65)  # positions of the list's columns
COLUMNS = 6  # of the contact sheet
RIGHT, WRONG = "Blues", "Reds"


def in_words(classes: Sequence[str]) -> list[str]:
    """The classes' names, with WordNet IDs replaced by words where ImageNet's table of names has them.

    keras.applications downloads this table once, for `decode_predictions`. Without it the names stay as they are.
    """
    path = pathlib.Path(environment.keras_home(), "models", "imagenet_class_index.json")
    try:
        words = dict(json.loads(path.read_bytes()).values())
    except (OSError, ValueError):
        return list(classes)
    return [words[name].replace("_", " ") if name in words else name for name in classes]


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], title: str, file: Path | typing.BinaryIO) -> None:
    """Draws a confusion matrix, normalised by row: correct predictions in blue, wrong ones in red.

    Args:
        matrix: int (classes, classes), the number of examples of each class (row) predicted as each class (column).
        classes: the classes' names.
        title: the figure's title.
        file: a path or binary file for the PNG.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    draw = _draw_cells if len(classes) <= LABELLED else _draw_dots
    with lettering(title, *classes) as drawn:
        figure = draw(matrix, shares, [drawn(name) for name in classes])
        figure.suptitle(drawn(title))
        figure.savefig(file, format="png", dpi=120)


def _draw_cells(matrix, shares, classes):
    """Draws every cell, the classes' names and, if they fit, the numbers."""
    n = len(classes)
    names = [_short(name) for name in classes]
    inches = max(5.5, 1.5 + 0.42 * n) if n <= NUMBERED else 2 + 0.24 * n
    figure = Figure(figsize=(inches + 0.6, inches), layout="constrained")
    axes = figure.subplots()
    right = np.eye(n, dtype="bool")
    for where, colors in ((right, RIGHT), (~right, WRONG)):
        axes.imshow(np.ma.masked_where(~where | (matrix == 0), shares), colors, PowerNorm(0.5, 0, 1.2))
    size = 9 if n <= NUMBERED else 7
    axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    if n <= NUMBERED:
        for row, column in np.argwhere(matrix):
            color = "white" if shares[row, column] > 0.45 else "0.15"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=8)
    return figure


def _draw_dots(matrix, shares, classes):
    """Draws a dot for every nonempty cell, its area the root of its share; lists the most frequent confusions."""
    n = len(classes)
    figure = Figure(figsize=(13.5, 8.4))
    axes, beside = figure.add_axes((0.06, 0.07, 0.54, 0.868)), figure.add_axes((0.63, 0.07, 0.36, 0.868))
    rows, columns = np.nonzero(matrix)
    right = rows == columns
    area = DOT * np.sqrt(shares[rows, columns] / n)
    for where, color, label in ((right, "C0", "right"), (~right, "C3", "wrong")):
        axes.scatter(columns[where], rows[where], area[where], color=color, alpha=0.6, linewidth=0, label=label)
    axes.set(xlim=(-1, n), ylim=(n, -1), xlabel="predicted class", ylabel="true class")
    axes.grid(alpha=0.3)
    wrong = np.where(np.eye(n, dtype="bool"), 0, matrix)
    most = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    lines = [
        (row, column) for row, column in zip(*np.unravel_index(most, wrong.shape), strict=True) if wrong[row, column]
    ]
    beside.axis("off")
    beside.set(xlim=(0, 1), ylim=(LISTED + 1, -1))
    for x, heading in zip(LISTED_AT, ("most frequent", "true", "predicted"), strict=True):
        beside.text(x, 0, heading, color="0.4", fontsize=9)
    for y, (row, column) in enumerate(lines, 1):
        texts = f"{wrong[row, column]} of {matrix[row].sum()}", _short(classes[row]), _short(classes[column])
        for x, text in zip(LISTED_AT, texts, strict=True):
            beside.text(x, y, text, fontsize=9)
    return figure


def draw_mistakes(
    images: Sequence[np.ndarray], labels: np.ndarray, predictions: np.ndarray, sureness: np.ndarray,
    classes: Sequence[str], title: str, file: Path | typing.BinaryIO,
) -> None:  # fmt: skip
    """Draws a contact sheet of images with their true and their predicted classes.

    Args:
        images: a list of (height, width, 3), RGB in [0, 255], of any sizes.
        labels, predictions: int, the true and the predicted class of each image.
        sureness: the probability of each predicted class, in [0, 1].
        classes: the classes' names.
        title: the figure's title.
        file: a path or binary file for the PNG.
    """
    with lettering(title, *classes) as drawn:
        figure = _draw_sheet(images, labels, predictions, sureness, [drawn(name) for name in classes])
        figure.suptitle(drawn(title))
        figure.savefig(file, format="png", dpi=120)


def _draw_sheet(images, labels, predictions, sureness, classes):
    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(2 * COLUMNS, 2.55 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, label, prediction, probability in zip(grid, images, labels, predictions, sureness, strict=False):
        axes.imshow(np.asarray(image).astype("uint8"), interpolation="antialiased")
        longer = max(image.shape[:2])
        axes.set(xlim=(-0.5, longer - 0.5), ylim=(longer - 0.5, -0.5))  # a square, the image at its upper left
        predicted = f"{_short(classes[prediction], 18)}  {probability:.0%}"
        for points, text, color in ((16, _short(classes[label], 18), "C0"), (4, predicted, "C3")):
            axes.annotate(
                text, (0, 1), (0, points), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=color
            )
    return figure


def _short(name, length=22):
    return name if len(name) <= length else name[: length - 1] + "…"
