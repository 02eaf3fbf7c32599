"""
---
title: The picture of the table
summary: One panel of bars for each row of the performance table.
---

# The picture of the table

Steps take from microseconds to half a second, so each row of the table has a panel with a scale of its own. Bars
are read from left to right: the shorter, the faster. The dashed line is the streaming limit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Blue, orange and grey: ours, torch's and others'. The colour-blind can tell them apart.
_OURS, _TORCH, _OTHERS = "#1f5fa8", "#e07b00", "#8c8c8c"


def plot(rows: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """## Draw the times, in microseconds by row and column, as a PNG"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(3, len(rows))
    down = -(-len(rows) // across)
    names = list(dict.fromkeys(name for times in rows.values() for name in times if name != "limit"))
    height = 0.9 + down * (0.9 + 0.3 * len(names))
    figure = Figure(figsize=(2.0 + 3.6 * across, height), dpi=150, layout="constrained")
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
