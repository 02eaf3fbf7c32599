"""
---
title: Strokes
summary: Lines as the data of a path, without the points that nobody would miss.
---

# Strokes

Points are thinned by the method of Ramer and of Douglas and Peucker: between two points that are kept, the one farthest
from the straight line between them is kept too, unless it is so near to the line that no eye tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from docs.pictures.axes import Axis
from docs.pictures.markup import number

Point = tuple[float, float]


def placed(point: Point, x: Axis, y: Axis, size: Point) -> Point:
    """## Where a point stands in a plot, from its upper left corner"""
    return size[0] * x.place(point[0]), size[1] * (1 - y.place(point[1]))


@cache
def strokes(lines: tuple[tuple[Point, ...], ...], x: Axis, y: Axis, size: Point) -> str:
    """## Lines as data of a path, one stroke for each stretch without gap. Kept, as many charts have the same"""
    stretches: list[list[Point]] = []
    for line in lines:
        stretches.append([])
        for point in line:
            place = placed(point, x, y, size)
            if all(map(math.isfinite, place)):
                stretches[-1].append(place)
            elif stretches[-1]:
                stretches.append([])
    return "".join("M" + " ".join(map(_pair, thinned(stretch))) for stretch in stretches if stretch)


def _pair(point: Point) -> str:
    return f"{number(point[0])} {number(point[1])}"


def thinned(points: Sequence[Point], tolerance: float = 0.15) -> list[Point]:
    """## The points without those that are within `tolerance` of the line through the others"""
    kept, spans = {0, len(points) - 1}, [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        distance, farthest = max(
            ((_from_segment(points[index], points[first], points[last]), index) for index in range(first + 1, last)),
            default=(0.0, first),
        )
        if distance > tolerance:
            kept.add(farthest)
            spans += [(first, farthest), (farthest, last)]
    return [points[index] for index in sorted(kept)]


def _from_segment(point: Point, start: Point, end: Point) -> float:
    """How far a point is from a line with two ends"""
    (x, y), (x1, y1), (x2, y2) = point, start, end
    across, down = x2 - x1, y2 - y1
    length = across * across + down * down
    along = ((x - x1) * across + (y - y1) * down) / length if length else 0.0
    along = min(max(along, 0.0), 1.0)
    return math.hypot(x - x1 - along * across, y - y1 - along * down)
