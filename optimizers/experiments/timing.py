"""
---
title: Timing
summary: Steps of several optimizers timed in turns, so that whatever else the machine does meets them alike.
---

# Timing

Times of different minutes can't be compared on a machine with other work, or with a processor that slows down when
hot. So the columns of a row take turns, many times, forwards and backwards. A turn is some untimed steps, until caches
and threads are its own again, and then some timed ones. What counts is the median over all timed steps.

Before each step, outside of the timed region, every gradient is replaced by a new tensor, as `backward` makes them
after `zero_grad(set_to_none=True)`. To fill them anew would take longer than the steps, so a new gradient is a new
tensor on one of two sets of values, in turns.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Any

from torch import Tensor

#: Each column first takes so many untimed steps, for at least so many seconds.
WARM_STEPS, WARM_SECONDS = 2, 0.02

#: A turn begins with untimed steps for so long, and at least one. An idle thread of OpenMP spins for about this time.
SETTLE_SECONDS = 0.003

#: A step as slow as this needs no untimed ones before it: nothing that another has left behind lasts so long.
SLOW_SECONDS = 0.2

MIN_ROUNDS, MAX_ROUNDS = 5, 100
MAX_STEPS = 1000


@dataclass
class Column:
    """
    ## One way to step

    `renew` takes the gradients of the next step and `step` takes it. `seconds` are the timed steps. `pace` is about
    how long a step and its new gradients take, and `steps` how many of them a turn has.
    """

    name: str
    step: Callable[[], Any]
    renew: Callable[[Sequence[Tensor]], None]
    seconds: list[float] = field(default_factory=list)
    pace: float = math.inf
    steps: int = 1

    @property
    def microseconds(self) -> float:
        """### The median of the timed steps"""
        return 1e6 * median(self.seconds)

    @property
    def settling(self) -> float:
        """### How long the untimed steps of a turn take"""
        return 0.0 if self.pace >= SLOW_SECONDS else max(self.pace, SETTLE_SECONDS)


def measure(
    columns: Sequence[Column],
    gradients: Sequence[Sequence[Tensor]],
    seconds: float,
    take_turn: Callable[[Column, Iterator[Sequence[Tensor]]], None] | None = None,
) -> None:
    """
    ## Time the columns in turns, for about `seconds` in all

    Slow steps are timed less often, but in five rounds at least. `take_turn` is how a column takes a turn.
    """
    take_turn, grads = take_turn or _turn, cycle(gradients)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for column in columns:
            _warm(column, grads)
        for turn in range(_plan(columns, seconds)):
            for column in columns if turn % 2 == 0 else reversed(columns):
                take_turn(column, grads)
    finally:
        if was_enabled:
            gc.enable()


def _warm(column: Column, grads: Iterator[Sequence[Tensor]]) -> None:
    start, steps = perf_counter(), 0
    while steps < WARM_STEPS or perf_counter() - start < WARM_SECONDS:
        begin = perf_counter()
        column.renew(next(grads))
        column.step()
        column.pace = min(column.pace, perf_counter() - begin)
        steps += 1


def _plan(columns: Sequence[Column], seconds: float) -> int:
    """### How many rounds there are; fast columns take more steps in each"""
    round_seconds = sum(column.settling + column.pace for column in columns)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / round_seconds)))
    for column in columns:
        timed = seconds / rounds / len(columns) - column.settling
        column.steps = min(MAX_STEPS, max(1, int(timed / column.pace)))
    return rounds


def _turn(column: Column, grads: Iterator[Sequence[Tensor]]) -> None:
    step, renew, settled = column.step, column.renew, perf_counter() + SETTLE_SECONDS
    untimed = column.settling > 0
    while untimed:
        renew(next(grads))
        step()
        untimed = perf_counter() < settled
    for _ in range(column.steps):
        renew(next(grads))
        begin = perf_counter()
        step()
        column.seconds.append(perf_counter() - begin)
