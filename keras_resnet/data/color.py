"""The colour noise of AlexNet, which P1 3.4 uses, along the principal components of the training data's colours.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385); AlexNet is Krizhevsky, Sutskever and Hinton,
"ImageNet classification with deep convolutional neural networks" (2012), section 4.1.
"""

import os
import typing

import numpy as np

from keras_resnet.files import DataError, Path, read_arrays
from keras_resnet.normalization import TORCH_MEAN, Tensor

STANDARD_DEVIATION = 0.1  # of the random factors, AlexNet 4.1


class Components(typing.NamedTuple):
    """Eigenvalues, float32 (3,), and eigenvectors, the columns of float32 (3, 3), of the covariance of RGB in [0, 1].

    The unit matters: AlexNet multiplies by the eigenvalue, not by its root, so the noise does not scale with the unit.
    """

    values: np.ndarray
    vectors: np.ndarray


class Statistics(typing.NamedTuple):
    """The mean and the principal components of images.

    `mean` is an image, float32 (height, width, 3), or three numbers, RGB in [0, 255]; `components` a `Components`.
    """

    mean: np.ndarray
    components: Components

    @property
    def channel_means(self) -> np.ndarray:
        """The mean of each channel, float32 (3,)."""
        return self.mean.reshape(-1, 3).mean(0)

    def save(self, file: Path | typing.BinaryIO) -> None:
        """Writes a .npz file, given as a path or an open file, which `load` reads."""
        np.savez_compressed(
            file, mean=self.mean, eigenvalues=self.components.values, eigenvectors=self.components.vectors
        )


# ImageNet's, as published with fb.resnet.torch, datasets/imagenet.lua.
IMAGENET = Components(
    np.array([0.2175, 0.0188, 0.0045], "float32"),
    np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], "float32"),
)


# torchvision's networks subtract these means.
IMAGENET_STATISTICS = Statistics(np.array(TORCH_MEAN, "float32"), IMAGENET)


def load(path: Path) -> Statistics:
    """Loads the `Statistics` that `Statistics.save` wrote; DataError if the file is missing or damaged."""
    try:
        arrays = read_arrays(path)
        mean, values, vectors = (arrays[name] for name in ("mean", "eigenvalues", "eigenvectors"))
        if not (values.shape == (3,) and vectors.shape == (3, 3) and mean.shape[-1:] == (3,) and mean.ndim in (1, 3)):
            raise ValueError(f"its arrays have the shapes {mean.shape}, {values.shape} and {vectors.shape}")
        if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in (mean, values, vectors)):
            raise ValueError("its arrays have other values than finite floats")
    except (OSError, ValueError, KeyError) as error:
        found = "damaged, or of another kind" if os.path.exists(path) else "not there"
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"{path} should hold colour statistics, as train/colors.py writes them; it is {found}: {reason}"
        ) from error
    return Statistics(mean, Components(values, vectors))


def principal_components(covariance: np.ndarray) -> Components:
    """The `Components` of a covariance matrix (3, 3) of RGB in [0, 255], the largest first."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, "float64") / 255**2)
    return Components(values[::-1].astype("float32"), vectors[:, ::-1].astype("float32"))


def shifts(components: Components, normal: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """The colour noise of each image, which is added to all its pixels.

    Args:
        components: a `Components`.
        normal: float32 (n, 3), drawn from the standard normal distribution.

    Returns:
        float32 (n, 3), RGB on the scale of pixels in [0, 255].
    """
    scale = 255 * STANDARD_DEVIATION * components.values
    return (normal * scale) @ components.vectors.T
