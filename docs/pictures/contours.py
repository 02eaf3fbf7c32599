"""
---
title: Contours
summary: The contour lines of a surface.
---

# Contours

contourpy, which finds those of matplotlib's pictures too, finds them here.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from contourpy import contour_generator

from docs.pictures.surfaces import Point, Surface

#: Points of the grid along x and y. Lines between them are straight, and this fine nobody sees it.
_GRID = (101, 61)


@cache
def contours(surface: Surface) -> tuple[tuple[Point, ...], ...]:
    """## The lines of all levels, as points"""
    across, up = (np.linspace(*side, count) for side, count in zip((surface.x, surface.y), _GRID, strict=True))
    heights = [[surface.value(x, y) for x in across.tolist()] for y in up.tolist()]
    generator = contour_generator(across, up, np.asarray(heights))
    lines = [np.asarray(line).tolist() for level in surface.levels for line in generator.lines(level)]
    return tuple(tuple((x, y) for x, y in line) for line in lines)
