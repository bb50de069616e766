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
