"""
---
title: Many curves in one picture
summary: Twenty curves that can be told apart, each with its name at its end.
---

# Many curves in one picture

With twenty curves nobody finds a name in a legend. So each name stands at the right, at the height where its curve
ends, and a line that looks like the curve leads to it.

Curves are told apart by colour and by stroke: seven colours, then the same ones dashed, then dotted. The order of the
curves decides, so give them by their ends, and neighbours differ in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The palette of Okabe and Ito, made for the colour-blind, less yellow, which is lost on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")

#: Solid, dashed, dotted: the lengths of line and gap.
_STROKES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))

#: Of the names, in points.
_FONT_SIZE = 9.0


@dataclass(frozen=True)
class Curve:
    """## A curve and its name; where y is NaN there is a gap"""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """## Draw curves"""
    for index, curve in enumerate(curves):
        # A point alone has no line.
        marker = "o" if sum(map(math.isfinite, curve.y)) == 1 else ""
        axes.plot(curve.x, curve.y, label=curve.name, linewidth=1.6, marker=marker, **_look(index))


def name_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """
    ## Write each name beside the end of its curve, when the axes have their scales and limits

    Where a curve broke off, the name stands at the top: what is lost is a loss that rose without end.
    """
    right, (bottom, top) = axes.get_xlim()[1], axes.get_ylim()
    ends = [min(max(bottom, curve.y[-1]), top) if math.isfinite(curve.y[-1]) else top for curve in curves]
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((right, end))[1]) for end in ends]
    line_height = 1.45 * _FONT_SIZE / 72 * axes.figure.dpi / axes.bbox.height
    for index, height in enumerate(spread(heights, line_height)):
        axes.annotate(
            curves[index].name,
            xy=(right, ends[index]),
            xytext=(1.08, height),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=_FONT_SIZE,
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0},
                **{"linewidth": 1.4, **_look(index)},
            },
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    r"""
    ## Heights moved apart, as little as can be, to be `gap` from each other, and within 0 and 1 while there is room

    Let $z_i = h_i - i \cdot gap$ for the heights in rising order. Moved heights are far enough apart if their $z_i$
    never fall. Nearest to that, in squares, are the means of the $z_i$ over each stretch in which they do.
    """
    # Of equals, to the eye, the first is the highest.
    order = sorted(range(len(heights)), key=lambda index: (round(heights[index], 4), -index))
    blocks: list[list[float]] = []
    for place, index in enumerate(order):
        blocks.append([heights[index] - place * gap])
        while len(blocks) > 1 and mean(blocks[-2]) >= mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    room = max(0.0, 1 - gap * (len(heights) - 1))
    level = [min(max(mean(block), 0.0), room) for block in blocks for _ in block]
    moved = {index: level[place] + place * gap for place, index in enumerate(order)}
    return [moved[index] for index in range(len(heights))]


def _look(index: int) -> dict[str, Any]:
    turn, colour = divmod(index, len(_COLOURS))
    return {"color": _COLOURS[colour], "linestyle": _STROKES[turn % len(_STROKES)]}
