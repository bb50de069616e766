import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture
def cifar10_dir():
    """A folder in which tensorflow-datasets has prepared CIFAR-10."""
    folder = SHARED / "tensorflow_datasets"
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"CIFAR-10 as tensorflow-datasets prepares it is not in {folder}")
    return str(folder)


@pytest.fixture
def photographs_dir():
    """200 ImageNet photographs of original size, one folder a class."""
    folder = SHARED / "imagenet_sample"
    if not folder.is_dir():
        pytest.skip(f"there are no photographs in {folder}")
    return str(folder)


@pytest.fixture
def imagenette_dir():
    """Photographs of ten classes in train/ and val/."""
    folder = SHARED / "imagenette"
    if not folder.is_dir():
        pytest.skip(f"there are no photographs in {folder}")
    return str(folder)
