"""The colour noise of AlexNet, which P1 3.4 uses: along the principal components of the training data's colours.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385); AlexNet is Krizhevsky, Sutskever and Hinton,
"ImageNet classification with deep convolutional neural networks" (2012), section 4.1.
"""

import typing

import numpy as np

STANDARD_DEVIATION = 0.1  # of the random factors, AlexNet 4.1


class Components(typing.NamedTuple):
    """Eigenvalues, float32 (3,), and eigenvectors, the columns of float32 (3, 3), of the covariance of RGB in [0, 1].

    The unit matters: AlexNet multiplies by the eigenvalue and not by its root, so the noise is not in proportion to it.
    """

    values: np.ndarray
    vectors: np.ndarray


# ImageNet's, as published with fb.resnet.torch, datasets/imagenet.lua.
IMAGENET = Components(
    np.array([0.2175, 0.0188, 0.0045], "float32"),
    np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], "float32"),
)


def principal_components(covariance):
    """The `Components` of a covariance (3, 3) of RGB in [0, 255], the largest first."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, "float64") / 255**2)
    return Components(values[::-1].astype("float32"), vectors[:, ::-1].astype("float32"))


def shifts(components, normal):
    """What is added to all pixels of each image.

    Args:
        components: a `Components`.
        normal: float32 (n, 3), drawn from the standard normal distribution.

    Returns:
        float32 (n, 3), RGB in the unit of pixels in [0, 255].
    """
    scale = 255 * STANDARD_DEVIATION * components.values
    return (normal * scale) @ components.vectors.T
