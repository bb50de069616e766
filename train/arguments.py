"""What the programs' command lines have in common."""

import argparse

import keras_resnet


def parser(description, **options):
    """An `ArgumentParser` whose help has the description as it is written, and which has --version."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    found.add_argument("--version", action="version", version=f"%(prog)s of keras_resnet {keras_resnet.__version__}")
    return found
