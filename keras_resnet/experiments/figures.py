"""The papers' figures, drawn from results.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import contextlib
import io
import textwrap
import typing
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from keras_resnet.files import Path, write_whole
from keras_resnet.lettering import lettering
from keras_resnet.training.history import iterations

GAP = 0.055  # between two labels, as a fraction of the axis
FEW = 10  # with fewer epochs, each is drawn as a point
EDGE = 1.02  # of an axis, so that points at its end are not cut off
CHARACTERS = 13  # of a note, per inch
DECADES = 10**1.5  # between the ends of a logarithmic axis; a longer one has ticks at powers of 10 alone
HEADROOM = 2  # the end of the vertical axis, as a multiple of the largest final error, as in P1 Fig. 6


TEXT, MUTED, GRID = "#1f2328", "#59636e", "#d8dce1"
# Okabe and Ito's colours, which the colour-blind can distinguish; some are darkened to a contrast of 3:1 against white.
LINES = ("#0072B2", "#D55E00", "#009E73", "#C0629A", "#A67400", "#4D4D4D")


class Curve(typing.NamedTuple):
    """A network's training: `color` is an index into LINES; `steps` and the errors, in [0, 1], are those of its epochs.

    `validation` is None if all images were used for training; then `test`, the final error, is drawn as a point.
    """

    name: str
    color: int
    steps: np.ndarray
    training: np.ndarray
    validation: np.ndarray | None
    test: float


class Responses(typing.NamedTuple):
    """A network's `analysis.response_std`, in the order of the layers."""

    name: str
    color: int
    plain: bool
    std: np.ndarray


class Seeds(typing.NamedTuple):
    """The test errors of a network's runs in %; half the interval of their mean and the paper's error, nan for none."""

    name: str
    errors: Sequence[float]
    plain: bool
    half_width: float
    paper: float


class Trial(typing.NamedTuple):
    """A trial of a search: `values` are its settings by name, and `error` is in [0, 1]."""

    values: dict
    epochs: int
    error: float


@contextlib.contextmanager
def _drawn(note):
    """Inside this context, figures have a common style. Yields the note as text that can be drawn."""
    style = {
        "text.color": TEXT,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "font.size": 11,
        "legend.frameon": False,
        "svg.hashsalt": "figure",  # the same figure is the same file
    }
    with matplotlib.rc_context(style), lettering(note) as drawn:
        yield drawn(note)


def write_png(figure: Figure, path: Path) -> None:
    """Writes a figure to a file, atomically; errors as in `files.write_whole`."""
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=150))


def svg(figure: Figure) -> bytes:
    """A figure as SVG: the same figure gives the same bytes."""
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()


def draw_curves(panels: Sequence[tuple[str, Sequence[Curve]]], note: str) -> Figure:
    """Error against iterations, as in P1 Fig. 4 and 6: training dashed; validation bold, or the test error as a point.

    Args:
        panels: a list of pairs, a title and a list of `Curve`, drawn side by side with the same axes.
        note: text about all panels.
    """
    with _drawn(note) as note:
        figure = Figure(figsize=(1.5 + 4 * len(panels), 4), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
        every = [curve for _, curves in panels for curve in curves]
        top = min(100, HEADROOM * max(100 * max(_end(curve), curve.training[-1]) for curve in every)) or 1
        highest = 100 * max(np.max(line) for curve in every for line in _lines(curve))
        if max(len(curve.steps) for curve in every) < FEW:
            top = max(top, highest)  # here each epoch is a point, and none may be left out
        elif highest > top:
            note += f"\nerrors above {top:.0f} % are off the axis, as the paper's"
        last = max(curve.steps[-1] for curve in every)
        unit, label = iterations(last)
        for axes, (title, curves) in zip(grid, panels, strict=True):
            for curve in curves:
                steps, marker = curve.steps / unit, "." if len(curve.steps) < FEW else ""
                style = {"color": LINES[curve.color % len(LINES)], "marker": marker}
                axes.plot(steps, 100 * curve.training, "--", linewidth=1, **style)
                if curve.validation is not None:
                    axes.plot(steps, 100 * curve.validation, linewidth=2.2, **style)
                else:
                    axes.plot(steps[-1], 100 * curve.test, clip_on=False, zorder=3, **{**style, "marker": "o"})
            axes.set(title=title, xlabel=label, xlim=(0, last / unit * EDGE), ylim=(top * (1 - EDGE), top * EDGE))
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 4, 5, 10)))
            _label(axes, curves, top, unit)
        grid[0].set_ylabel("error (%)")
        _entitle(figure, note)
        return figure


def _entitle(figure, note):
    """Writes the note above the figure, wrapped to its width."""
    width = int(CHARACTERS * figure.get_figwidth())
    lines = [part for line in note.splitlines() for part in textwrap.wrap(line, width)]
    figure.suptitle("\n".join(lines), fontsize=10, color=MUTED, x=0.01, ha="left")


def _lines(curve):
    """The errors of a curve that are drawn as lines."""
    return [curve.training] if curve.validation is None else [curve.training, curve.validation]


def _end(curve):
    """The final error of a curve, to which its name is attached."""
    return curve.test if curve.validation is None else curve.validation[-1]


def _label(axes, curves, top, unit):
    """Writes the curves' names at their ends, moved apart where they would overlap."""
    ends = sorted(((min(100 * _end(curve), top), curve) for curve in curves), key=lambda end: end[0])
    heights, gap = [end for end, _ in ends], GAP * top
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    excess = max(0, sum(heights) - sum(end for end, _ in ends)) / len(ends)  # so that names move up and down equally
    lowered = [height - excess for height in heights]
    lowered = [height + max(0, gap / 2 - lowered[0]) for height in lowered]
    for height, (end, curve) in zip(lowered, ends, strict=True):
        color = LINES[curve.color % len(LINES)]
        axes.annotate(
            curve.name,
            (curve.steps[-1] / unit, end),
            (1.04, (height / top - 1 + EDGE) / (2 * EDGE - 1)),
            textcoords="axes fraction",
            va="center",
            fontsize=10,
            arrowprops={"arrowstyle": "-", "color": color, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0},
            annotation_clip=False,
        )


def draw_responses(networks: Sequence[Responses], note: str) -> Figure:
    """Standard deviations of layer responses, as in P1 Fig. 7: plain networks dashed.

    Args:
        networks: a list of `Responses`.
        note: as in `draw_curves`.
    """
    with _drawn(note) as note:
        figure = Figure(figsize=(7.5, 6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
        for network in networks:
            color, style = LINES[network.color % len(LINES)], "--" if network.plain else "-"
            for axes, std in ((upper, network.std), (lower, np.sort(network.std)[::-1])):
                axes.plot(range(1, len(std) + 1), std, style, color=color, linewidth=1.6, label=network.name)
        upper.set(title="Layers in their order", ylabel="standard deviation", xlim=(0, None), ylim=(0, None))
        lower.set(title="Layers sorted by magnitude", ylabel="standard deviation", xlabel="3x3 layer")
        upper.legend(loc="upper left", bbox_to_anchor=(1, 1))
        _entitle(figure, note)
        return figure


def draw_seeds(networks: Sequence[Seeds], note: str) -> Figure:
    """The test error of each run as a point, a row for each network; plain networks are hollow.

    Args:
        networks: a list of `Seeds`, from top to bottom.
        note: as in `draw_curves`.
    """
    with _drawn(note) as note:
        figure = Figure(figsize=(8, 1.5 + 0.36 * len(networks)), layout="constrained")
        axes = figure.subplots()
        for row, network in enumerate(networks):
            color = LINES[1] if network.plain else LINES[0]
            style: dict = {"color": color, "markerfacecolor": "white" if network.plain else color}
            axes.plot(network.errors, [row] * len(network.errors), "o", zorder=3, **style)
            if not np.isnan(network.half_width):
                axes.errorbar(np.mean(network.errors), row, xerr=network.half_width, fmt="d", capsize=4, **style)
            axes.plot(network.paper, row, "|", color=TEXT, markersize=16, markeredgewidth=2)
        axes.set(
            yticks=range(len(networks)), yticklabels=[network.name for network in networks], xlabel="test error (%)"
        )
        axes.set_ylim(len(networks) - 0.5, -0.5)
        _entitle(figure, note)
        return figure


def draw_search(trials: Sequence[Trial], note: str) -> Figure:
    """The error of each trial of a search against each setting; trials with more epochs are darker.

    Args:
        trials: a list of `Trial` with the same settings. Positive floats are drawn on a logarithmic axis, other
            values as categories. The best trial has a ring.
        note: as in `draw_curves`.

    Returns:
        A matplotlib figure.
    """
    with _drawn(note) as note:
        names = list(trials[0].values)
        figure = Figure(figsize=(1.5 + 2.4 * len(names), 4), layout="constrained")
        grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        rungs = sorted({trial.epochs for trial in trials})
        shades = dict(zip(rungs, matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1, len(rungs))), strict=True))
        best = min(trials, key=lambda trial: trial.error)
        for axes, name in zip(grid, names, strict=True):
            values = [trial.values[name] for trial in trials]
            continuous = all(isinstance(value, float) and value > 0 for value in values)
            choices = sorted(set(values), key=lambda value: (str(type(value)), value))
            at = {value: value if continuous else choices.index(value) for value in choices}
            for epochs in rungs:
                shown = [trial for trial in trials if trial.epochs == epochs]
                x, y = [at[trial.values[name]] for trial in shown], [100 * trial.error for trial in shown]
                label = f"{epochs} epoch{'s' * (epochs > 1)}"
                axes.plot(x, y, "o", color=shades[epochs], alpha=0.8, markersize=5, label=label)
            axes.plot(at[best.values[name]], 100 * best.error, "o", markersize=12, fillstyle="none", color=LINES[1])
            axes.set(xlabel=name, ylim=(0, 102))
            if continuous:
                axes.set_xscale("log")
                within = max(values) < DECADES * min(values)
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if within else (1,), numticks=4))
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # Matplotlib's own writes formulas
                axes.xaxis.set_minor_formatter(NullFormatter())
            else:
                labels = [("no", "yes")[value] if isinstance(value, bool) else str(value) for value in choices]
                axes.set(xticks=range(len(choices)), xticklabels=labels, xlim=(-0.5, len(choices) - 0.5))
        grid[0].set_ylabel("validation error (%)")
        grid[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
        _entitle(figure, note)
        return figure
