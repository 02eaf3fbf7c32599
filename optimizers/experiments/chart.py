"""
---
title: Pictures
summary: What all pictures share, and the bars of the performance table.
---

# Pictures

They are drawn without pyplot: no window, no global state, no choice of a backend. matplotlib is imported when the first
is drawn, so who draws none needs none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Blue, orange and grey: ours, torch's and others'. The colour-blind can tell them apart.
_OURS, _TORCH, _OTHERS = "#1f5fa8", "#e07b00", "#8c8c8c"


def check_png(path: Path) -> None:
    """## Refuse, before the work, a name under which no picture can be written after it"""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot writes a PNG, so the name must end in .png. Received: {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--plot {path}: there is no folder {path.parent}. Make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--plot {path}: this can't be written. Give the name of a file in a folder of yours")


def new_figure(width: float, height: float) -> Figure:
    """## An empty figure; its sides are in inches, of 150 pixels each"""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def tidy(axes: Axes) -> None:
    """## A faint grid, and a frame only on the left and below"""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def scale_by_decades(axes: Axes) -> None:
    """## A logarithmic y axis with plain numbers; losses of 0 leave the picture"""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def plot(rows: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """
    ## The picture of the performance table

    Times are in microseconds, by row and column. Steps take from microseconds to half a second, so each row of the
    table has a panel with a scale of its own. Bars are read from left to right: the shorter, the faster. The dashed
    line is the streaming limit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    across = min(3, len(rows))
    down = -(-len(rows) // across)
    names = list(dict.fromkeys(name for times in rows.values() for name in times if name != "limit"))
    height = 0.9 + down * (0.9 + 0.3 * len(names))
    figure = new_figure(2.0 + 3.6 * across, height)
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    for panel in panels.flat[len(rows) :]:
        panel.set_visible(False)
    for panel, (row, times) in zip(panels.flat, rows.items(), strict=False):
        _draw(panel, row, names, times)
    figure.suptitle(title)
    figure.savefig(path, format="png")


def _draw(axes: Axes, row: str, names: list[str], times: dict[str, float]) -> None:
    """### One row of the table"""
    values = [times.get(name, 0.0) for name in names]
    bars = axes.barh(names, values, color=[_colour(name) for name in names], height=0.72)
    axes.bar_label(bars, [_time(times[name]) if name in times else "none" for name in names], padding=4, fontsize=8)
    if "limit" in times:
        axes.axvline(times["limit"], color="black", linewidth=1.0, linestyle="--")
        limit = f"   limit {_time(times['limit'])}"
    else:
        limit = ""
    axes.set_title(row + limit, fontsize=10, loc="left")
    axes.set_xlim(0, 1.3 * max(values, default=1.0))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _colour(name: str) -> str:
    return {"ours": _OURS, "torch": _TORCH}.get(name.split()[0], _OTHERS)


def _time(microseconds: float) -> str:
    """### Three digits with a unit"""
    if microseconds < 1000:
        return f"{microseconds:.3g} µs" if microseconds < 100 else f"{microseconds:.0f} µs"
    return f"{microseconds / 1000:.3g} ms" if microseconds < 1e5 else f"{microseconds / 1000:.0f} ms"
