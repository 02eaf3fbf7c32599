r"""
---
title: Pictures of schedules
summary: Learning rates by step, as the rules themselves tell them, and the rectification term of RAdam.
---

# Pictures of schedules

    python -m optimizers.experiments.schedules --plot schedules.png

draws the learning rates of [Noam](../noam.html), [the warm-up](../adam_warmup.html) and
[the cosine](../adam_warmup_cosine_decay.html), and below them the factor $r_t$ of [RAdam](../radam.html).

No formula is repeated here: a rule knows its learning rate at step $t$, and is asked for every step that is drawn. So
any rule can be drawn, also one that you wrote a minute ago:

    schedules = schedule_curves({"mine": MyRule([torch.zeros(1)], lr=1e-3)}, steps=1000)
    draw_schedules(schedules).savefig("mine.png")
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optimizers import AdamWarmup, AdamWarmupCosineDecay, GenericAdaptiveOptimizer, Noam, RAdam
from optimizers.experiments.chart import check_png, new_figure, tidy
from optimizers.experiments.curves import Curve, draw_curves, name_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How many points a curve has, about.
_POINTS = 1000

#: The title of the known schedules.
_KNOWN = "Learning rates, with $w$ = 4000, $d_{model}$ = 512 and $T$ = 20000 where no other is named"


# ## The curves


def schedule_curves(rules: Mapping[str, GenericAdaptiveOptimizer], steps: int) -> list[Curve]:
    """### The learning rates of optimizers, each by its first group, under the names given"""
    shown = sorted({max(1, steps * point // _POINTS) for point in range(_POINTS + 1)})
    return [
        Curve(name, shown, [float(rule.get_lr({"step": step}, rule.param_groups[0])) for step in shown])
        for name, rule in rules.items()
    ]


def known_schedules() -> list[Curve]:
    """### Those of the package, in settings that compare"""
    params = [torch.zeros(1)]
    rules = {
        "Noam": Noam(params, warmup=4000, d_model=512),
        "Noam, $w$ = 8000": Noam(params, warmup=8000, d_model=512),
        "Noam, $d_{model}$ = 1024": Noam(params, warmup=4000, d_model=1024),
        "AdamWarmup": AdamWarmup(params, lr=6e-4, warmup=4000),
        "AdamWarmupCosineDecay": AdamWarmupCosineDecay(params, lr=6e-4, warmup=4000, total_steps=20_000),
    }
    return schedule_curves(rules, steps=24_000)


def rectification_curves(betas2: Sequence[float] = (0.9, 0.99, 0.999, 0.9999), steps: int = 10_000) -> list[Curve]:
    r"""### The term $r_t$ for each $\beta_2$, with a gap where there is none. Points are even on a logarithmic scale"""
    shown = sorted({round(steps ** (point / _POINTS)) for point in range(_POINTS + 1)})
    return [Curve(rf"$\beta_2$ = {beta2}", shown, [_rectification(beta2, step) for step in shown]) for beta2 in betas2]


def _rectification(beta2: float, step: int) -> float:
    term = RAdam.calc_rectification_term(beta2, step)
    return math.nan if term is None else term


# ## The pictures


def draw_schedules(curves: Sequence[Curve] | None = None) -> Figure:
    """### The learning rates by step; those of the package, if no others are given"""
    figure = new_figure(8.0, 3.8)
    axes = figure.add_subplot()
    if curves is None:
        _draw_schedules(axes, known_schedules(), _KNOWN)
    else:
        _draw_schedules(axes, curves, "Learning rates")
    return figure


def draw_rectification(curves: Sequence[Curve] | None = None) -> Figure:
    """### The rectification term by step"""
    figure = new_figure(8.0, 3.8)
    _draw_rectification(figure.add_subplot(), rectification_curves() if curves is None else curves)
    return figure


def draw_both() -> Figure:
    """### One above the other"""
    figure = new_figure(8.0, 7.6)
    above, below = figure.subplots(2)
    _draw_schedules(above, known_schedules(), _KNOWN)
    _draw_rectification(below, rectification_curves())
    return figure


def _draw_schedules(axes: Axes, curves: Sequence[Curve], title: str) -> None:
    draw_curves(axes, curves)
    axes.set(xlabel="step $t$", ylabel=r"learning rate $\alpha_t$", xlim=(0, curves[0].x[-1]))
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")
    tidy(axes)
    name_curves(axes, curves)


def _draw_rectification(axes: Axes, curves: Sequence[Curve]) -> None:
    draw_curves(axes, curves)
    axes.set(xlabel="step $t$", ylabel="rectification term $r_t$", xlim=(1, curves[0].x[-1]), ylim=(0, 1.02))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("Share of its step that RAdam takes; before a curve begins, momentum alone", fontsize=10, loc="left")
    tidy(axes)
    name_curves(axes, curves)


# ## The command line


def main(argv: Sequence[str] | None = None) -> int:
    """### Draw; the result is the exit code"""
    parser = argparse.ArgumentParser(
        prog="python -m optimizers.experiments.schedules",
        description="Draw learning rates by step, and the rectification term of RAdam.",
    )
    default = Path("schedules.png")
    parser.add_argument("--plot", type=Path, default=default, metavar="FILE.png", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        check_png(args.plot)
    except ValueError as error:
        parser.error(str(error))
    draw_both().savefig(args.plot)
    print(f"schedules: {args.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
