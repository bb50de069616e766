"""The common part of the programs' command lines."""

import argparse

import keras_resnet


def parser(description, **options):
    """An `ArgumentParser` with --version whose help prints the description without reformatting it."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    found.add_argument("--version", action="version", version=f"%(prog)s of keras_resnet {keras_resnet.__version__}")
    return found
