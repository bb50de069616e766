"""What the site shows and other places know: figures, records, networks, the walkthrough as it was last run.

Everything is written below docs/made, which git ignores, before Sphinx reads the pages.
"""

import pathlib

from keras_resnet.experiments import EXPERIMENTS, load, report


def write(folder: pathlib.Path) -> None:
    (folder / "static").mkdir(parents=True, exist_ok=True)
