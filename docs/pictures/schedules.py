r"""
---
title: Schedules and rectification
summary: The learning rates of the schedules by step, and the rectification term of RAdam.
---

# Schedules and rectification

The curves are those of [the experiments](../../optimizers/experiments/schedules.py), which ask the rules for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from docs.pictures.axes import Axis
from docs.pictures.markup import plain, spoken
from docs.pictures.picture import Picture
from docs.pictures.svg import Chart, Line
from optimizers.experiments.curves import Curve
from optimizers.experiments.schedules import known_schedules, rectification_curves

#: Wider than a panel, but still to be read on a narrow screen.
_SIZE = (400.0, 220.0)


def schedules_picture() -> Picture:
    """## The learning rates by step"""
    curves = known_schedules()
    alt = " ".join(["Learning rates by step.", *map(_peak, curves)])
    chart = Chart(
        name="schedules",
        title="Learning rate by step",
        alt=alt,
        x=Axis(0, curves[0].x[-1], "step"),
        y=Axis(0, 1.05 * max(max(curve.y) for curve in curves)),
        lines=_lines(curves),
        size=_SIZE,
    )
    caption = "$w$ is 4000 and $d_{model}$ 512 where no other is named. The cosine is one of 20 000 steps."
    return Picture("schedules", chart.svg(), alt, caption)


def rectification_picture() -> Picture:
    r"""## The rectification term by step"""
    curves = rectification_curves()
    alt = " ".join(["The rectification term by step, on a logarithmic scale.", *map(_beginning, curves)])
    chart = Chart(
        name="rectification",
        title="Rectification term $r_t$ by step",
        alt=alt,
        x=Axis(1, curves[0].x[-1], "step", log=True),
        y=Axis(0, 1.02),
        lines=_lines(curves),
        size=_SIZE,
    )
    caption = "The share of its step that RAdam takes. Before a curve begins there is momentum alone."
    return Picture("rectification", chart.svg(), alt, caption)


def _lines(curves: Sequence[Curve]) -> list[Line]:
    return [Line(curve.name, curve.x, curve.y, index) for index, curve in enumerate(curves, start=1)]


def _peak(curve: Curve) -> str:
    """### Where a schedule is highest, and where it ends"""
    most = max(curve.y)
    # Not every step is drawn.
    step = round(curve.x[list(curve.y).index(most)], -2)
    rest = "and stays there" if curve.y[-1] == most else f"and ends at {plain(curve.y[-1])}"
    return f"{spoken(curve.name)} rises to {plain(most)} near step {step:g} {rest}."


def _beginning(curve: Curve) -> str:
    """### From where on there is a term, and how far it gets"""
    there = [step for step, term in zip(curve.x, curve.y, strict=True) if math.isfinite(term)]
    if not there:
        return f"For {spoken(curve.name)} there is none."
    return f"For {spoken(curve.name)} it begins at step {there[0]:g} and reaches {curve.y[-1]:.2f}."
