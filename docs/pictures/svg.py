"""
---
title: Line charts as SVG
summary: A chart with a legend above it, coloured by the style sheet.
---

# Line charts as SVG

matplotlib's import takes as long as the whole site, and its colours can't follow the reader's theme. Lines are few
here, so they are written down directly. All looks are classes, which [pictures.css](../static/pictures.css) defines
for light and dark: a chart has no colour of its own.

The legend stands above the plot, in as many rows as it needs, so nothing in it overlaps wherever the lines run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from docs.pictures.axes import Axis, written
from docs.pictures.markup import number, set_maths, width
from docs.pictures.strokes import Point, placed, strokes

#: Sizes of text, and the height of a row of the legend.
_TITLE, _NAME, _TICK, _ROW = 14, 13, 12, 20

#: The length of line that stands before a name, and the space between names.
_SWATCH, _BETWEEN = 26, 16

#: What may stand out over the plot's edge: half a line or a dot.
_BLEED = 5


@dataclass(frozen=True)
class Line:
    """## A line, its name and its look. Where y is NaN there is a gap. Every so many points there may be a dot"""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    series: int
    dots_every: int = 0


@dataclass(frozen=True)
class Chart:
    """
    ## A chart

    `name` makes its ids, which must be unique on a page. `contours` are drawn under the lines; `starts` and `goals`
    are points marked with a ring and with a cross. `size` is that of the plot, without what stands around it.
    """

    name: str
    title: str
    alt: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    size: Point = (278.0, 166.8)
    contours: tuple[tuple[Point, ...], ...] = ()
    starts: Sequence[Point] = ()
    goals: Sequence[Point] = ()
    grid: bool = True
    ticks: tuple[int, int] = (6, 6)

    def svg(self) -> str:
        """### The chart as an element"""
        left, right, across, down = self._left(), self._right(), *self.size
        total = left + across + right
        legend = list(self._legend(total))
        top = 26.0 + _ROW * (1 + max(row for row, _, _ in legend)) + 4
        bottom = top + down
        height = bottom + 20 + (18 if self.x.label else 0)
        ids = f"{self.name}-title {self.name}-alt"
        return "\n".join(
            [
                f'<svg class="picture" role="img" aria-labelledby="{ids}" xmlns="http://www.w3.org/2000/svg" '
                f'viewBox="0 0 {number(total)} {number(height)}" width="{number(total)}" height="{number(height)}">',
                f'<title id="{self.name}-title">{escape(self.title)}</title>',
                f'<desc id="{self.name}-alt">{escape(self.alt)}</desc>',
                f'<text class="picture-title" x="0" y="15">{set_maths(self.title)}</text>',
                *(self._entry(line, 26.0 + _ROW * (row + 0.5), x) for row, x, line in legend),
                *self._scales(left, top, bottom),
                *self._plot(left, top),
                "</svg>",
            ]
        )

    # ### Around the plot

    def _left(self) -> float:
        """The space for the ticks and the label of the y axis, so much that small charts are alike"""
        widest = max(width(written(tick), _TICK) for tick in self.y.ticks(self.ticks[1]))
        return max(42.0, round(widest + 8 + (18 if self.y.label else 0)))

    def _right(self) -> float:
        """The space for the part of the last tick that stands out"""
        last = self.x.ticks(self.ticks[0])[-1]
        return round(max(10.0, 4 + width(written(last), _TICK) / 2 - self.size[0] * (1 - self.x.place(last))))

    def _legend(self, total: float) -> Iterator[tuple[int, float, Line]]:
        """The row and the place of each name: a new row where no room is left"""
        row, x = 0, 0.0
        for line in self.lines:
            needs = _SWATCH + 6 + width(line.name, _NAME)
            if x > 0 and x + needs > total:
                row, x = row + 1, 0.0
            yield row, x, line
            x += needs + _BETWEEN

    def _entry(self, line: Line, y: float, x: float) -> str:
        ends = f'x1="{number(x)}" x2="{number(x + _SWATCH)}" y1="{number(y)}" y2="{number(y)}"'
        text = f'<text class="picture-name" x="{number(x + _SWATCH + 6)}" y="{number(y + 4.5)}">{set_maths(line.name)}'
        return f'<line class="series-{line.series}" {ends}/>{text}</text>'

    def _scales(self, left: float, top: float, bottom: float) -> Iterator[str]:
        """Ticks with their lines, and labels"""
        across, down = self.size
        xs = [(left + across * self.x.place(tick), tick) for tick in self.x.ticks(self.ticks[0])]
        ys = [(bottom - down * self.y.place(tick), tick) for tick in self.y.ticks(self.ticks[1])]
        if self.grid:
            rules = [f"M{number(x)} {number(top)}v{number(down)}" for x, _ in xs]
            rules += [f"M{number(left)} {number(y)}h{number(across)}" for y, _ in ys]
            yield f'<path class="picture-grid" d="{"".join(rules)}"/>'
        yield f'<path class="picture-axis" d="M{number(left)} {number(top)}v{number(down)}h{number(across)}"/>'
        for x, tick in xs:
            yield _text("tick", x, bottom + 15, written(tick), "middle")
        for y, tick in ys:
            yield _text("tick", left - 6, y + 4, written(tick), "end")
        if self.x.label:
            yield _text("tick", left + across / 2, bottom + 33, self.x.label, "middle")
        if self.y.label:
            middle = (top + bottom) / 2
            turn = f' transform="rotate(-90 12 {number(middle)})"'
            yield _text("tick", 12, middle, self.y.label, "middle", turn)

    # ### Within the plot

    def _plot(self, left: float, top: float) -> Iterator[str]:
        """
        A picture in the picture, which cuts what leaves it

        The first line is drawn first and is the thickest, so those that run on top of it are seen beside it.
        """
        across, down = self.size
        box = (-_BLEED, -_BLEED, across + 2 * _BLEED, down + 2 * _BLEED)
        place = f'x="{number(left - _BLEED)}" y="{number(top - _BLEED)}"'
        yield (
            f'<svg {place} width="{number(box[2])}" height="{number(box[3])}" viewBox="{" ".join(map(number, box))}">'
        )
        if self.contours:
            yield f'<path class="picture-contour" d="{strokes(self.contours, self.x, self.y, self.size)}"/>'
        for line in self.lines:
            points = tuple(zip(line.x, line.y, strict=True))
            yield f'<path class="series-{line.series}" d="{strokes((points,), self.x, self.y, self.size)}"/>'
        for line in self.lines:
            yield from self._dots(line)
        for point in self.goals:
            x, y = self._place(*point)
            yield f'<path class="picture-goal" d="M{number(x - 5)} {number(y)}h10m-5-5v10"/>'
        for point in self.starts:
            x, y = self._place(*point)
            yield f'<circle class="picture-start" cx="{number(x)}" cy="{number(y)}" r="5"/>'
        yield "</svg>"

    def _place(self, x: float, y: float) -> Point:
        return placed((x, y), self.x, self.y, self.size)

    def _dots(self, line: Line) -> Iterator[str]:
        """Small ones on the way and a large one at the end. Those of the first line are seen under others too"""
        if not line.dots_every:
            return
        last = len(line.x) - 1
        for index in [*range(line.dots_every, last, line.dots_every), last]:
            x, y = self._place(line.x[index], line.y[index])
            if math.isfinite(x) and math.isfinite(y):
                radius = (4 if index == last else 2.2) * (1.5 if line is self.lines[0] else 1)
                dot = f'cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"'
                yield f'<circle class="dot-{line.series}" {dot}/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"{more}'
    return f'<text class="picture-{kind}" {place}>{set_maths(text)}</text>'
