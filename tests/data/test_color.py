import numpy as np
import pytest

from keras_resnet.data import color
from keras_resnet.files import DataError


def test_principal_components_against_numpy():
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1000, 3)) @ rng.normal(size=(3, 3)) * 40 + 120
    covariance = np.cov(pixels.T)
    values, vectors = color.principal_components(covariance)
    assert values.dtype == vectors.dtype == np.float32
    assert (np.diff(values) < 0).all()
    assert np.allclose(values, np.linalg.svd((pixels - pixels.mean(0)) / 255, compute_uv=False) ** 2 / 999, rtol=1e-5)
    for value, vector in zip(values, vectors.T, strict=True):
        assert np.isclose(np.linalg.norm(vector), 1)
        assert np.allclose(covariance / 255**2 @ vector, value * vector, atol=1e-6)


def test_published_components_are_eigenvectors():
    assert np.allclose(color.IMAGENET.vectors.T @ color.IMAGENET.vectors, np.eye(3), atol=1e-3)


def test_shifts_are_alexnets_formula():
    """[p1, p2, p3][a1 l1, a2 l2, a3 l3], a with standard deviation .1, for pixels in [0, 1]; ours are in [0, 255]."""
    normal = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    values, vectors = color.IMAGENET
    for row, shift in zip(normal, color.shifts(color.IMAGENET, normal), strict=True):
        alpha = 0.1 * row
        expected = sum(alpha[i] * values[i] * vectors[:, i] for i in range(3))
        assert np.allclose(shift, 255 * expected, atol=1e-5)


def test_covariance_of_the_shifts():
    normal = np.random.default_rng(0).normal(size=(200_000, 3)).astype("float32")
    values, vectors = color.IMAGENET
    expected = vectors @ np.diag((25.5 * values) ** 2) @ vectors.T
    assert np.allclose(np.cov(color.shifts(color.IMAGENET, normal).T), expected, rtol=0.02)


def test_files_that_hold_no_colours(tmp_path):
    path = tmp_path / "colors.npz"
    with pytest.raises(DataError, match="colors.npz should hold colour statistics.* it is not there"):
        color.load(path)
    color.IMAGENET_STATISTICS.save(path)
    assert np.array_equal(color.load(path).mean, color.IMAGENET_STATISTICS.mean)
    good = path.read_bytes()
    arrays = {"mean": np.zeros(3), "eigenvalues": np.zeros(3), "eigenvectors": np.eye(3)}
    others = [
        {"mean": np.zeros(3)},
        {**arrays, "eigenvalues": np.zeros(4)},
        {**arrays, "mean": np.zeros((5, 5))},
        {**arrays, "eigenvectors": np.eye(2)},
        {**arrays, "mean": np.array(["1", "2", "3"])},
        {**arrays, "eigenvalues": np.array([1, np.nan, 1])},
        {**arrays, "mean": np.array([{}, {}, {}])},
    ]
    contents = [b"", b"text", good[: len(good) // 2]]
    for other in others:
        np.savez(tmp_path / "other.npz", **other)
        contents.append((tmp_path / "other.npz").read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(DataError, match="it is damaged, or of another kind") as error:
            color.load(path)
        assert "pickle" not in str(error.value) and "\n" not in str(error.value)
    np.savez(path, **arrays)
    assert color.load(path).mean.shape == (3,)
