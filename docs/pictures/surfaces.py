r"""
---
title: Surfaces
summary: Three functions of two numbers, each with one difficulty of real losses.
---

# Surfaces

Each is a sum of few terms, so its gradient and curvature are written beside it and no tape is needed. One is badly
scaled, one bends, one has a point where the gradient vanishes and that is no minimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Surface:
    """
    ## A function of two numbers

    `curvature` is the diagonal of the Hessian, which [Sophia](../../optimizers/sophia.py) asks for. `levels` are the
    heights of the contour lines, `x` and `y` the part of the plane that is drawn, which is 5 wide and 3 high.
    """

    name: str
    title: str
    formula: str
    lesson: str
    value: Callable[[float, float], float]
    gradient: Callable[[float, float], Point]
    curvature: Callable[[float, float], Point]
    start: Point
    minima: tuple[Point, ...]
    x: Point
    y: Point
    levels: tuple[float, ...]

    def distance(self, point: Point) -> float:
        """### How far it is to the nearest minimum"""
        return min(math.dist(point, minimum) for minimum in self.minima)


VALLEY = Surface(
    name="valley",
    title="A long valley",
    formula=r"$\tfrac12 (x^2 + 40 y^2)$",
    lesson="The walls are 40 times as steep as the floor.",
    value=lambda x, y: 0.5 * (x * x + 40 * y * y),
    gradient=lambda x, y: (x, 40 * y),
    curvature=lambda x, y: (1.0, 40.0),
    start=(-3.0, 0.8),
    minima=((0.0, 0.0),),
    x=(-3.5, 1.0),
    y=(-1.35, 1.35),
    levels=(0.05, 0.3, 1.0, 2.5, 5.0, 9.0, 15.0, 23.0, 33.0),
)

BANANA = Surface(
    name="banana",
    title="Rosenbrock’s banana",
    formula=r"$(1 - x)^2 + 10 (y - x^2)^2$",
    lesson="The way along the floor bends, so directions that were right turn wrong.",
    value=lambda x, y: (1 - x) ** 2 + 10 * (y - x * x) ** 2,
    gradient=lambda x, y: (2 * (x - 1) - 40 * x * (y - x * x), 20 * (y - x * x)),
    curvature=lambda x, y: (2 - 40 * (y - x * x) + 80 * x * x, 20.0),
    start=(-1.0, 1.6),
    minima=((1.0, 1.0),),
    x=(-1.9, 1.9),
    y=(-0.4, 1.88),
    levels=(0.25, 1.0, 2.5, 5.5, 11.0, 20.0, 35.0, 60.0),
)

SADDLE = Surface(
    name="saddle",
    title="A saddle",
    formula=r"$\tfrac14 x^4 - \tfrac12 x^2 + \tfrac{15}{2} y^2$",
    lesson="The start is a hundredth beside the ridge between two minima, where almost nothing pulls to either side.",
    value=lambda x, y: 0.25 * x * x * x * x - 0.5 * x * x + 7.5 * y * y,
    gradient=lambda x, y: (x * x * x - x, 15 * y),
    curvature=lambda x, y: (3 * x * x - 1, 15.0),
    start=(0.01, 0.8),
    minima=((-1.0, 0.0), (1.0, 0.0)),
    x=(-1.6, 1.6),
    y=(-0.86, 1.06),
    levels=(-0.22, -0.12, 0.0, 0.2, 0.6, 1.3, 2.4, 4.0, 6.0),
)

SURFACES = (VALLEY, BANANA, SADDLE)
