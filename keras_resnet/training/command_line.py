"""The command lines of programs that train: a flag for each of the `Settings`, and how errors are reported."""

import argparse
import contextlib
import dataclasses
import sys
import typing
from collections.abc import Iterator, Sequence

from keras_resnet.files import ResNetError
from keras_resnet.training import recipes
from keras_resnet.training.options import flag, type_of
from keras_resnet.training.settings import LARGE, Settings
from keras_resnet.training.signals import Stopped


def add_settings(parser: argparse.ArgumentParser, left_out: Sequence[str] = ()) -> typing.Any:
    """Adds a flag for each of the `Settings` that is not in `left_out`, and --verbose.

    Returns:
        The group "run", to which a program can add its own flags.
    """
    groups: dict = {}
    for field in dataclasses.fields(Settings):
        if field.name in left_out:
            continue
        one, default = field.metadata["option"], field.default
        if one.group not in groups:
            groups[one.group] = parser.add_argument_group(one.group)
        kind, several = type_of(field)
        details: dict = {"choices": one.choices, "metavar": one.metavar, "type": kind}
        if kind is bool:
            details = {"action": argparse.BooleanOptionalAction if default is None else "store_true"}
        if several:
            details["nargs"] = "+"
        shown = "" if default in (None, False, ()) else f" (default {default})"
        if field.name in recipes.CIFAR:
            shown = f" (default {recipes.CIFAR[field.name]}; ImageNet {recipes.IMAGENET[field.name]})"
        only = "ImageNet: " * (one.data == LARGE)
        groups[one.group].add_argument(flag(field.name), default=default, help=f"{only}{one.help}{shown}", **details)
    run = groups["run"] if "run" in groups else parser.add_argument_group("run")
    verbose = "0 silent, 1 progress bar, 2 a line per epoch and every 10 minutes (default 1 at a terminal, otherwise 2)"
    watched = sys.stdout.isatty()
    run.add_argument("--verbose", type=int, default=1 if watched else 2, choices=(0, 1, 2), help=verbose)
    return run


@contextlib.contextmanager
def errors_told(program: str) -> Iterator[None]:
    """Inside this context, an error exits `program` with a message, and a signal with the exit status of shells."""
    try:
        yield
    except (ResNetError, OSError) as error:
        sys.exit(f"{program}: {error}")
    except Stopped as stopped:
        print(f"{stopped}; run the same command again to resume", file=sys.stderr)
        sys.exit(stopped.exit_status)
