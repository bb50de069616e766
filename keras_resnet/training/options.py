"""Settings of a run, each declared once as a dataclass field, from which its flag and its checks are derived."""

import dataclasses
import math
import numbers
import os
import shlex
import typing
from collections.abc import Callable, Mapping

from keras_resnet.files import RunError, is_name

SEEDS = 2**31  # the number of seeds that the random numbers of the input pipeline allow

# Valid values of a setting: the predicate in error messages, and a check.
Range: typing.TypeAlias = tuple[str, Callable[[typing.Any], bool]]
POSITIVE: Range = ("is positive", lambda value: 0 < value < math.inf)
NOT_NEGATIVE: Range = ("is 0 or positive", lambda value: 0 <= value < math.inf)
SEED: Range = (f"is 0 to {SEEDS - 1}", lambda value: 0 <= value < SEEDS)
ONE_FOLDER: Range = ("is the name of a folder in --output, not a path", is_name)
TYPES: dict[type, typing.Any] = {int: numbers.Integral, float: numbers.Real, str: (str, os.PathLike), bool: bool}


@dataclasses.dataclass(frozen=True)
class Option:
    """The declaration of a setting.

    `data` is the only kind of data that it applies to, or None. `decides`: whether it can change the result.
    `not_on_jax` maps the values that are not supported on JAX to the reasons.
    """

    group: str
    help: str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    range: Range | None = None
    data: str | None = None
    decides: bool = True
    not_on_jax: Mapping[object, str] = dataclasses.field(default_factory=dict)


def option(default: typing.Any, group: str, help: str, **details: typing.Any) -> typing.Any:
    """A field of a dataclass of settings; `details` as in `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(group, help, **details)})


def options(settings: typing.Any) -> dict[str, Option]:
    """The `Option` of each field of a dataclass."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(settings)}


def flag(name: str) -> str:
    """The flag of a setting: "--batch-size"."""
    return f"--{name.replace('_', '-')}"


def flags(values: Mapping[str, object]) -> str:
    """Settings as a command line: {"depth": 56, "plain": True} is "--depth 56 --plain"."""
    arguments = []
    for name, value in values.items():
        if isinstance(value, bool):
            arguments.append(flag(name) if value else flag(f"no_{name}"))
        else:
            arguments += [flag(name), *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(arguments)


def command(values: Mapping[str, object], backend: str | None = None, program: str = "fit.py") -> str:
    """The command that trains with these settings on this backend (default TensorFlow), with a program of train/."""
    return f"{f'KERAS_BACKEND={backend} ' * (backend == 'jax')}python train/{program} {flags(values)}"


def type_of(field: dataclasses.Field) -> tuple[type, bool]:
    """The type of a field, and whether it holds several: (int, True) of tuple[int, ...], (str, False) of str | None."""
    found = [one for one in typing.get_args(field.type) if one not in (type(None), ...)] or [field.type]
    return found[0], typing.get_origin(field.type) is tuple


def typed(settings: typing.Any) -> dict[str, typing.Any]:
    """The values of the settings as Python's own types, which JSON supports, and lists as tuples. None: the default.

    Raises:
        RunError: a value has the wrong type, or is not one of the choices.
    """
    found = {}
    for field in dataclasses.fields(settings):
        (kind, several), value = type_of(field), getattr(settings, field.name)
        choices = field.metadata["option"].choices
        if several and not isinstance(value, (tuple, list)):
            raise RunError(f"{flag(field.name)} is a list; found {value!r}")
        for one in value if several else [] if value is None and field.default is None else [value]:
            if not isinstance(one, TYPES[kind]) or (isinstance(one, bool) and kind is not bool):
                raise RunError(f"{flag(field.name)} is of the type {kind.__name__}; found {one!r}")
            if choices and one not in choices:
                raise RunError(f"{flag(field.name)} is one of {', '.join(choices)}; found {one!r}")
        own = os.fspath if kind is str else kind
        found[field.name] = tuple(map(own, value)) if several else None if value is None else own(value)
    return found


def check_ranges(settings: typing.Any) -> None:
    """RunError if the value of a setting is out of its range."""
    for name, one in options(settings).items():
        value = getattr(settings, name)
        if one.range and value is not None and not one.range[1](value):
            raise RunError(f"{flag(name)} {one.range[0]}; found {value!r}")
