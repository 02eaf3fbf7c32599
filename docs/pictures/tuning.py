"""
---
title: The search for learning rates
summary: What found the learning rates of the pictures.
---

# The search for learning rates

    python -m docs.pictures.tuning [RULE ...]

tries rates from 0.0001 to 100, about three in a doubling, and prints the best for each rule and problem, as rows for
[`RATES`](rates.py). Best is what is lowest on average over the whole run and at its end, on a logarithmic scale. On
a surface a height of a ten-thousandth above the minimum is as good as none, and a path must not leave the picture.
Of rates that are about as good the lowest is taken.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from statistics import mean

from docs.pictures.entries import Entry, all_entries
from docs.pictures.losses import train
from docs.pictures.paths import walk
from docs.pictures.surfaces import SURFACES, Point, Surface

#: Two digits are enough to write a rate down.
_GRID = [digits * 10.0**power for power in range(-4, 2) for digits in (1, 1.5, 2, 3, 4, 5, 7)] + [100.0]

#: Heights above the minimum below which nothing is gained, and the difference of scores that is none.
_FLOOR, _AS_GOOD = 1e-4, 0.2


def best_rates(entry: Entry) -> tuple[float, ...]:
    """## The best rates of an entry"""
    walks = [walk(entry, [rate] * len(SURFACES)) for rate in _GRID]
    scores = [[path_score(surface, paths[index]) for paths in walks] for index, surface in enumerate(SURFACES)]
    scores.append([_score(losses) for losses in train([entry] * len(_GRID), _GRID)])
    return tuple(map(_lowest_of_the_best, scores))


def _lowest_of_the_best(scores: Sequence[float]) -> float:
    """### Of rates that are about as good the lowest, whose path is the calmest"""
    return next(rate for rate, score in zip(_GRID, scores, strict=True) if score <= min(scores) + _AS_GOOD)


def path_score(surface: Surface, path: Sequence[Point]) -> float:
    """## How good a path is, the lower the better"""
    least = min(surface.value(*minimum) for minimum in surface.minima)
    (left, right), (bottom, top) = surface.x, surface.y
    if not all(left <= x <= right and bottom <= y <= top for x, y in path):
        return math.inf
    return _score([surface.value(*point) - least + _FLOOR for point in path])


def _score(values: Sequence[float]) -> float:
    """### The mean logarithm over the whole run, plus that of its last tenth"""
    if not all(map(math.isfinite, values)):
        return math.inf
    logs = [math.log(max(value, 1e-12)) for value in values]
    return mean(logs) + mean(logs[-max(1, len(logs) // 10) :])


def main(names: Sequence[str]) -> None:
    """## Print the rows"""
    for name in names or all_entries():
        rates = ", ".join(f"{rate:g}" for rate in best_rates(all_entries()[name]))
        print(f'    "{name}": ({rates}),', flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
