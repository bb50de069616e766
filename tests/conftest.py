import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def shared(*path):
    """A folder of data beside the project, or a skipped test."""
    folder = SHARED.joinpath(*path)
    if not folder.is_dir():
        pytest.skip(f"the data of this test are not in {folder}")
    return folder


@pytest.fixture
def cifar10_dir():
    """A folder in which tensorflow-datasets has prepared CIFAR-10."""
    return str(shared("tensorflow_datasets", "cifar10").parent)


@pytest.fixture
def photographs_dir():
    """200 ImageNet photographs of original size, one folder a class."""
    return str(shared("imagenet_sample"))


@pytest.fixture
def imagenette_dir():
    """Photographs of ten classes in train/ and val/."""
    return str(shared("imagenette"))
