"""
---
title: The report
summary: What a run came to, in a few lines of text and a picture.
---

# The report

Text for the terminal, and [a picture](chart.html) if one is asked for.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from optimizers.experiments.chart import new_figure, scale_by_decades, tidy
from optimizers.experiments.console import is_shown
from optimizers.experiments.data import Dataset
from optimizers.experiments.training import Run, evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Ours and the other, for training and for validation: blue and orange, which the colour-blind can tell apart.
_COLOURS = (("#1f5fa8", "#9cc3ea"), ("#e07b00", "#8a5a1c"))

#: Two curves that are equal can both be seen: ours is broad, the other thin, dashed and on top.
_BELOW = {"linewidth": 4.0}
_ABOVE = {"linewidth": 1.6, "linestyle": "--", "zorder": 3}


def result(run: Run, data: Dataset) -> list[str]:
    """## What one run came to: accuracies, and where the time went"""
    _, train_accuracy = evaluate(run.model, data.train_images, data.train_labels)
    return [
        f"training accuracy    {100 * train_accuracy:6.2f} %",
        f"validation accuracy  {100 * run.valid_accuracies[-1]:6.2f} %",
        f"time of training     {sum(run.epoch_seconds):6.2f} s, of which {100 * run.step_share:.1f} % in step()",
    ]


def comparison(ours: Run, theirs: Run) -> list[str]:
    """
    ## Two runs from one start: their losses, the largest difference, and the time of a step

    The difference is the largest over all mini-batches, not over the means in the table.
    """
    return [
        *_loss_table(ours, theirs),
        f"largest difference of the losses of a mini-batch: {largest_difference(ours, theirs):.3g}",
        "",
        *_side_by_side(
            ours,
            theirs,
            {
                "median step, us": (1e6 * median(ours.step_seconds), 1e6 * median(theirs.step_seconds)),
                "median epoch, ms": (1e3 * median(ours.epoch_seconds), 1e3 * median(theirs.epoch_seconds)),
            },
        ),
        "",
    ]


def epoch_times(ours: Run, theirs: Run) -> list[str]:
    """## The time of an epoch and of a step, side by side"""
    return _side_by_side(
        ours,
        theirs,
        {
            "median epoch, s": (median(ours.epoch_seconds), median(theirs.epoch_seconds)),
            "fastest epoch, s": (min(ours.epoch_seconds), min(theirs.epoch_seconds)),
            "median step, us": (1e6 * median(ours.step_seconds), 1e6 * median(theirs.step_seconds)),
        },
    )


def largest_difference(ours: Run, theirs: Run) -> float:
    """### The largest difference of two losses of the same mini-batch; NaN if any is"""
    pairs = zip(chain(*ours.losses), chain(*theirs.losses), strict=True)
    differences = [abs(a - b) if a != b else 0.0 for a, b in pairs]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _loss_table(ours: Run, theirs: Run) -> list[str]:
    width = max(10, len(ours.name), len(theirs.name))
    lines = ["mean training loss", f"epoch  {ours.name:>{width}}  {theirs.name:>{width}}  difference"]
    epochs = len(ours.losses)
    for epoch, (a, b) in enumerate(zip(ours.mean_losses, theirs.mean_losses, strict=True), start=1):
        if is_shown(epoch, epochs):
            lines.append(f"{epoch:5}  {a:{width}.6f}  {b:{width}.6f}  {abs(a - b):10.2g}")
    return lines


def _side_by_side(ours: Run, theirs: Run, rows: dict[str, tuple[float, float]]) -> list[str]:
    """### Times with the ratio ours : theirs; below 1 ours is the faster"""
    width = max(10, len(ours.name), len(theirs.name))
    lines = [f"{'':16}  {ours.name:>{width}}  {theirs.name:>{width}}  ratio"]
    lines += [f"{label:16}  {a:{width}.3f}  {b:{width}.3f}  {a / b:5.2f}" for label, (a, b) in rows.items()]
    return [*lines, f"(ratio: {ours.name} / {theirs.name}; below 1, ours takes less time)"]


# ## The picture


def plot(runs: list[Run], title: str, path: Path) -> None:
    """### The loss curves, training and validation, as a PNG"""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.5, 4.6)
    axes = figure.add_subplot()
    _draw(axes, runs)
    axes.set(title=title, xlabel="epoch", ylabel="mean cross entropy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if all(0 < loss < math.inf for run in runs for loss in run.mean_losses + run.valid_losses):
        scale_by_decades(axes)
    tidy(axes)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")


def _draw(axes: Axes, runs: list[Run]) -> None:
    """### Two curves for each run"""
    for index, run in enumerate(runs):
        dark, light = _COLOURS[index]
        style: dict[str, Any] = _BELOW if index == 0 and len(runs) > 1 else _ABOVE if index else {}
        marker = "o" if len(run.losses) == 1 else ""
        epochs = range(1, len(run.losses) + 1)
        axes.plot(epochs, run.mean_losses, marker=marker, color=dark, label=f"{run.name}, training", **style)
        axes.plot(epochs, run.valid_losses, marker=marker, color=light, label=f"{run.name}, validation", **style)
