"""The result of an evaluation: the probabilities of each example, the errors, and the confusion matrix."""

import typing

import numpy as np

from keras_resnet.files import ResNetError


class EvaluationError(ResNetError):
    """The evaluation is not possible."""


class Result(typing.NamedTuple):
    """The result of an evaluation.

    `protocol` describes the protocol by keyword; `classes` are the classes' names; `labels` int (n,); `probabilities`
    float32 (n, classes), row i for example i.
    """

    protocol: dict[str, str]
    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """The most probable class of each example, int (n,)."""
        return self.probabilities.argmax(axis=1)

    def error(self, k: int) -> float:
        """The fraction of examples, in [0, 1], whose label is not among the `k` most probable classes.

        Equal probabilities are ranked in the order of the classes.
        """
        of_label = np.take_along_axis(self.probabilities, self.labels[:, None], axis=1)
        earlier = np.arange(len(self.classes)) < self.labels[:, None]
        ahead = (self.probabilities > of_label) | ((self.probabilities == of_label) & earlier)
        return float((ahead.sum(axis=1) >= k).mean())

    def confusion(self) -> np.ndarray:
        """The number of examples of each class (row) predicted as each class (column): int (classes, classes)."""
        size = len(self.classes)
        return np.bincount(self.labels * size + self.predictions, minlength=size * size).reshape(size, size)

    def worst_mistakes(self, count: int) -> np.ndarray:
        """The indices of at most `count` misclassified examples, those with the most confident predictions first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        sureness = self.probabilities[wrong].max(axis=1)
        return wrong[np.argsort(-sureness, kind="stable")[:count]]

    def summary(self) -> dict:
        """The result without its arrays, for JSON; errors are in [0, 1]."""
        return {
            "examples": len(self.labels),
            "classes": len(self.classes),
            **{f"top{k}_error": self.error(k) for k in (1, 5) if k == 1 or k < len(self.classes)},
            "protocol": self.protocol,
        }
