"""
---
title: Axes
summary: Where a value stands along an axis, and which round values are written beside it.
---

# Axes
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """## The range of an axis, what stands beside it, and whether its scale is logarithmic"""

    low: float
    high: float
    label: str = ""
    log: bool = False

    def place(self, value: float) -> float:
        """### How far along it a value is: 0 at the low end and 1 at the high one, NaN where it has no place"""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if not value > 0:
            return math.nan
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self, most: int) -> list[float]:
        """### Round values within the range, no more than `most`"""
        return self._decades(most) if self.log else self._even(most)

    def _even(self, most: int) -> list[float]:
        step = 10 ** math.floor(math.log10((self.high - self.low) / most))
        for factor in (1, 2, 5, 10, 20, 50):
            first, last = math.ceil(self.low / (step * factor) - 1e-9), math.floor(self.high / (step * factor) + 1e-9)
            if last - first < most:
                break
        return [index * step * factor for index in range(first, last + 1)]

    def _decades(self, most: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for mantissas in ((1, 2, 5), (1, 3), (1,)):
            values = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
            inside = [value for value in values if self.low / 1.0001 <= value <= self.high * 1.0001]
            if len(inside) <= most:
                break
        # Of too many decades, every second, third and so on.
        return inside[:: -(-len(inside) // most)] if inside else []


def written(value: float) -> str:
    """## A tick as text: few digits, a true minus, thousands apart"""
    text = f"{value:,.10g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
    return text.replace(",", "\u202f").replace("-", "−")
