r"""
---
title: The sweep
summary: Many rules on the same digits, from the same start, in one table and one picture.
---

# The sweep

    python -m optimizers.experiments.mnist --sweep --plot sweep.png

trains a network with each rule of the package: from copies of one model, on the same mini-batches, in turns. After
`--sweep` there may be names, then it is only those; the first is the one that the times are compared with.

It says which rules train *this* network at *these* learning rates, and what a step costs. It doesn't say which rule is
best: on another problem, or with its learning rate tuned, the order is another.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from optimizers.experiments.chart import new_figure, scale_by_decades, tidy
from optimizers.experiments.curves import Curve, draw_curves, name_curves
from optimizers.experiments.training import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ranked(runs: list[Run]) -> list[Run]:
    """## The runs, lowest final loss first, those that diverged last"""
    return sorted(runs, key=lambda run: (not math.isfinite(run.mean_losses[-1]), run.mean_losses[-1]))


def table(runs: list[Run]) -> list[str]:
    """## The table: the loss of the last epoch, the accuracy on rows not seen, and the time of a step"""
    first, width = runs[0], max(len(run.name) for run in runs)
    lines = [f"{'rule':{width}}  {'lr':>7}  {'loss':>9}  {'accuracy':>9}  {'step, us':>8}  {'ratio':>6}"]
    for run in ranked(runs):
        lr, step = run.optimizer.param_groups[0]["lr"], median(run.step_seconds)
        lines.append(
            f"{run.name:{width}}  {lr:7.2g}  {run.mean_losses[-1]:9.4g}  {100 * run.valid_accuracies[-1]:7.2f} %  "
            f"{1e6 * step:8.1f}  {step / median(first.step_seconds):6.2f}"
        )
    return [
        *lines,
        "",
        "loss: mean of the last epoch's mini-batches; accuracy: on the rows not trained on;",
        f"step: median time; ratio: to {first.name}, above 1 takes longer",
    ]


# ## The picture


def plot(runs: list[Run], title: str, path: Path) -> None:
    """### Write it as a PNG"""
    draw(runs, title).savefig(path, format="png")


def draw(runs: list[Run], title: str) -> Figure:
    """### One curve for each run, the names ordered by the final loss"""
    curves = [loss_curve(run) for run in ranked(runs)]
    figure = new_figure(8.0, 2.6 + 0.19 * max(10, len(runs)))
    axes = figure.add_subplot()
    draw_curves(axes, curves)
    axes.set(title=title, xlabel="step (mini-batches seen)", ylabel="training loss (cross entropy, nats)")
    axes.set_xlim(0, curves[0].x[-1])
    scale_by_decades(axes)
    # All start from the same loss. Who goes far above it leaves the picture.
    lowest = min(y for curve in curves for y in curve.y if math.isfinite(y))
    axes.set_ylim(lowest / 1.5, 2 * runs[0].losses[0][0])
    tidy(axes)
    name_curves(axes, curves)
    return figure


def loss_curve(run: Run) -> Curve:
    """
    ### The loss by step, smoothed twice

    First by the mean of the latest mini-batches: of half of all so far, so that the fall at the start stays steep, but
    of no more than an epoch. So the curve ends at the loss in the table. Then as the eye would, along the logarithmic
    scale, by the mean of what is around: of less and less towards both ends, so that those stay.
    """
    losses, epoch = list(chain(*run.losses)), len(run.losses[-1])
    steps = len(losses)
    spans = [(max(step - epoch, step // 2), step) for step in range(1, steps + 1)]
    logs = [_log(sum(losses[start:end]) / (end - start)) for start, end in spans]
    shown = sorted({0, *range(steps - 1, 0, -max(1, steps // 300))})
    around = [min(index, steps - 1 - index, steps // 30) for index in shown]
    means = [sum(logs[i - n : i + n + 1]) / (2 * n + 1) for i, n in zip(shown, around, strict=True)]
    name = run.name if math.isfinite(run.mean_losses[-1]) else f"{run.name} (diverged)"
    return Curve(name, [index + 1 for index in shown], [math.exp(mean) for mean in means])


def _log(loss: float) -> float:
    """The logarithm, also of a loss that was rounded to 0; NaN where there is none."""
    return math.log(max(loss, 1e-9)) if loss < math.inf else math.nan
