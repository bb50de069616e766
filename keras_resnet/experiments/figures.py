"""The papers' figures, drawn from results.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import contextlib
import typing

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_resnet.lettering import lettering

GAP = 0.055  # between two labels, as a part of the axis
HEADROOM = 2  # the vertical axis ends at so many times the largest error at the end, as in P1 Fig. 6


class Theme(typing.NamedTuple):
    """Colours. `lines` are Okabe and Ito's, which the colour-blind can tell apart, with 3:1 against the background."""

    text: str
    muted: str
    grid: str
    lines: tuple


LIGHT = Theme("#1f2328", "#59636e", "#d8dce1", ("#0072B2", "#D55E00", "#009E73", "#C0629A", "#A67400", "#4D4D4D"))
DARK = Theme("#e6e8eb", "#9aa4af", "#3b424a", ("#56B4E9", "#F0803C", "#2FC298", "#E6A3CB", "#E6B422", "#C4C4C4"))


class Curve(typing.NamedTuple):
    """A network's training: `color` is an index of a theme's lines, `steps` and the errors in [0, 1] are of its epochs.

    `validation` is None where all images were trained on.
    """

    name: str
    color: int
    steps: np.ndarray
    training: np.ndarray
    validation: np.ndarray | None


class Responses(typing.NamedTuple):
    """A network's `analysis.response_std`, in the order of the layers."""

    name: str
    color: int
    plain: bool
    std: np.ndarray


@contextlib.contextmanager
def _drawn(theme, note):
    """Within it, what is drawn has the theme's colours and no background. Yields the note as it is to be drawn."""
    style = {
        "text.color": theme.text,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.muted,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "grid.color": theme.grid,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
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


def draw_curves(panels, note, theme=LIGHT):
    """Error against iterations, as P1 Fig. 4 and 6: training dashed, validation bold.

    Args:
        panels: a list of pairs, a title and a list of `Curve`, drawn side by side with the same axes.
        note: text about all of them.
        theme: a `Theme`.

    Returns:
        A matplotlib figure.
    """
    with _drawn(theme, note) as note:
        figure = Figure(figsize=(1.5 + 4 * len(panels), 4), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
        every = [curve for _, curves in panels for curve in curves]
        top = min(100, HEADROOM * max(100 * _bold(curve)[-1] for curve in every)) or 1
        last = max(curve.steps[-1] for curve in every) / 1000
        for axes, (title, curves) in zip(grid, panels, strict=True):
            for curve in curves:
                thousands, marker = curve.steps / 1000, "." if len(curve.steps) < 10 else ""
                style = {"color": theme.lines[curve.color % len(theme.lines)], "marker": marker}
                axes.plot(thousands, 100 * curve.training, "--", linewidth=1, **style)
                if curve.validation is not None:
                    axes.plot(thousands, 100 * curve.validation, linewidth=2.2, **style)
            axes.set(title=title, xlabel="iterations (thousands)", xlim=(0, last), ylim=(0, top))
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 4, 5, 10)))
            _label(axes, curves, top, theme)
        grid[0].set_ylabel("error (%)")
        figure.suptitle(note, fontsize=10, color=theme.muted, x=0.01, ha="left")
        return figure


def _bold(curve):
    return curve.training if curve.validation is None else curve.validation


def _label(axes, curves, top, theme):
    """The curves' names at their ends, moved apart where they would lie on each other."""
    ends = sorted(((min(100 * _bold(curve)[-1], top), curve) for curve in curves), key=lambda end: end[0])
    heights, gap = [end for end, _ in ends], GAP * top
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    excess = max(0, sum(heights) - sum(end for end, _ in ends)) / len(ends)  # up and down alike
    lowered = [height - excess for height in heights]
    lowered = [height + max(0, gap / 2 - lowered[0]) for height in lowered]
    for height, (end, curve) in zip(lowered, ends, strict=True):
        color = theme.lines[curve.color % len(theme.lines)]
        axes.annotate(
            curve.name,
            (curve.steps[-1] / 1000, end),
            (1.04, height / top),
            textcoords="axes fraction",
            va="center",
            fontsize=10,
            arrowprops={"arrowstyle": "-", "color": color, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0},
            annotation_clip=False,
        )


def draw_responses(networks, note, theme=LIGHT):
    """Standard deviations of layer responses, as P1 Fig. 7: plain networks dashed.

    Args:
        networks: a list of `Responses`.
        note, theme: as in `draw_curves`.

    Returns:
        A matplotlib figure.
    """
    with _drawn(theme, note) as note:
        figure = Figure(figsize=(7.5, 6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
        for network in networks:
            color, style = theme.lines[network.color % len(theme.lines)], "--" if network.plain else "-"
            for axes, std in ((upper, network.std), (lower, np.sort(network.std)[::-1])):
                axes.plot(range(1, len(std) + 1), std, style, color=color, linewidth=1.6, label=network.name)
        upper.set(title="Layers in their order", ylabel="standard deviation", xlim=(0, None), ylim=(0, None))
        lower.set(title="Layers sorted by magnitude", ylabel="standard deviation", xlabel="3x3 layer")
        upper.legend(loc="upper left", bbox_to_anchor=(1, 1))
        figure.suptitle(note, fontsize=10, color=theme.muted, x=0.01, ha="left")
        return figure
