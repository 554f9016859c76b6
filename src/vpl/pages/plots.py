"""Plots of ablations as PNG. The only module that knows matplotlib, the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from vpl.errors import ConfigError

_INK, _SOFT = "#1e2428", "#59636b"
_COLOURS = ("#0b6a72", "#b4552d", "#5b4a9c", "#3f7d2b", "#9c2f5f", "#7a6a12", "#2d6bb4")
_SIZE = (6.4, 4.0)
_DPI = 130


def _new(width: float = _SIZE[0], height: float = _SIZE[1]):
    """A figure without a window, and its axes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('no plot: matplotlib is not installed; pip install "vpl-seg[plots]".') from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    return figure, axes


def _png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _titled(figure, axes, title: str, under: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    figure.supxlabel(under, fontsize=8, color=_SOFT)


def lines(
    xs: Sequence[float],
    means: Mapping[str, Sequence[float]],
    spreads: Mapping[str, Sequence[float]],
    marks: Mapping[str, float],
    title: str,
    under: str,
    y_name: str,
) -> bytes:
    """One line with error bars per group over numbers; the axis is logarithmic when they span more than a factor of 20.

    Args:
        xs: ascending numbers.
        means, spreads: by group, one for each x.
        marks: name -> x of a dotted vertical line.

    Raises:
        ConfigError: matplotlib is not there.
    """
    figure, axes = _new()
    for number, (group, values) in enumerate(means.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.errorbar(xs, values, spreads[group], marker="o", markersize=4, capsize=3, color=colour, label=group)
    if min(xs) > 0 and max(xs) / min(xs) > 20:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    places: dict[float, list[str]] = {}
    for name, x in marks.items():
        places.setdefault(x, []).append(name)
    for x, names in places.items():
        axes.axvline(x, color=_SOFT, linestyle=":", linewidth=1)
        axes.annotate(
            " " + ", ".join(names), (x, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8, color=_SOFT
        )
    axes.set_ylabel(y_name)
    if len(means) > 1:
        axes.legend(frameon=False, fontsize=8)
    _titled(figure, axes, title, under)
    return _png(figure)


def bars(
    names: Sequence[str],
    means: Mapping[str, Sequence[float]],
    spreads: Mapping[str, Sequence[float]],
    title: str,
    under: str,
    x_name: str,
) -> bytes:
    """Horizontal bars with error bars, a bar per group for each name, first name on top.

    Raises:
        ConfigError: matplotlib is not there.
    """
    groups = len(means)
    figure, axes = _new(height=1.4 + 0.24 * len(names) * max(groups, 1.5))
    thick = 0.8 / groups
    for number, (group, values) in enumerate(means.items()):
        places = [place + (number - (groups - 1) / 2) * thick for place in range(len(names))]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.barh(places, values, thick * 0.92, xerr=spreads[group], color=colour, capsize=3, label=group)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(x_name)
    if groups > 1:
        axes.legend(frameon=False, fontsize=8)
    _titled(figure, axes, title, under)
    return _png(figure)


def heat_map(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str, name: str
) -> bytes:
    """Numbers over two axes, each written into its field.

    Raises:
        ConfigError: matplotlib is not there.
    """
    figure, axes = _new(2.2 + 0.62 * len(columns), 1.4 + 0.42 * len(rows))
    picture = axes.imshow(values, cmap="viridis", aspect="auto")
    low, high = picture.get_clim()
    for y, line in enumerate(values):
        for x, one in enumerate(line):
            dark = high == low or (one - low) / (high - low) < 0.6
            axes.text(x, y, f"{one:.1f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(picture, label=name)
    _titled(figure, axes, title, "")
    return _png(figure)
