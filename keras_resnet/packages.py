"""Packages that only some uses need: which are missing, and how to install them."""

import importlib.util

# Distributions whose names are not those of their packages, with hyphens.
DISTRIBUTIONS = {"tensorflow_serving": "tensorflow-serving-api"}


def missing(*names: str) -> list[str]:
    """Those of these packages that are not installed."""
    return [name for name in names if not importlib.util.find_spec(name)]


def install(*names: str) -> str:
    """The words for how to get packages: "matplotlib: pip install matplotlib"."""
    distributions = [DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names]
    return f"{' and '.join(names)}: pip install {' '.join(distributions)}"


def lacks(name: str, what: str) -> bool:
    """Whether a package is missing that `what` needs, with a line that says so and that the rest goes on without."""
    if absent := missing(name):
        print(f"no {what}, which needs the package {install(*absent)}", flush=True)
    return bool(absent)


def needed(*names: str) -> str | None:
    """What to say if some of these packages are not installed, as the end of "X needs the package"; None if all are."""
    absent = missing(*names)
    return f"needs the package{'s' * (len(absent) > 1)} {install(*absent)}" if absent else None
