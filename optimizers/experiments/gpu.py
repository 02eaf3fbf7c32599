r"""
---
title: How fast a step is on a GPU
summary: Three clocks - what the device takes, what Python takes to ask for it, and what passes on the wall.
---

# How fast a step is on a GPU

    python -m optimizers.experiments.performance --device cuda

takes the same rows and columns to a GPU, and one row more: the shapes of GPT-2 with 1.5 billion parameters, for which
only the fused kernels take part. A step has three times there, each with a table of its own:

* **device**: from the first kernel to the last, by events in the stream. Before them the device is kept busy for
  long enough that Python has asked for the whole step when it begins, so none of its time is in this one. (The queue
  of a device has an end. A step of more than some thousand launches, as plain loops have, is timed at Python's pace.)
* **host**: how long `step()` takes to return, with nothing left to do on the device.
* **wall**: from the call until everything is done. It is what small models feel.

The limit is the time in which a plain copy moves as many bytes, measured in the same run: every rule reads the gradient
once, and reads and writes the parameter and each array of its state once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from optimizers.experiments.columns import Contest, Factory, count_arrays, make_columns
from optimizers.experiments.timing import Column, measure
from optimizers.experiments.workloads import Workload

#: From this number of elements on only fused kernels take part: others need memory for what is in between.
HUGE_ELEMENTS = 1_000_000_000

#: The bytes of the copy that the limit is taken from, and how often it is done.
COPY_BYTES, COPIES = 2**30, 20

#: The clocks, and what each is a table of.
CLOCKS = {
    "device": "Median microseconds of a step on the device. The limit is a copy of as many bytes.",
    "host": "Median microseconds until `step()` returns.",
    "wall": "Median microseconds until a step is done.",
}


def check_gpu() -> None:
    """## Refuse where there is no GPU"""
    if not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU, and this torch sees none. Without --device the CPU is measured")


def machine(bytes_per_second: float) -> list[str]:
    """## What was measured on"""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "is not installed"
    moved = f"a copy moves {bytes_per_second / 1e9:,.0f} GB/s, read and written"
    return [f"{torch.cuda.get_device_name()}: {moved}", f"torch {torch.__version__}, Triton {version}"]


def copy_speed(size: int = COPY_BYTES) -> float:
    """## Bytes per second that a copy on the device reads and writes"""
    source = torch.ones(size // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    seconds = [_on_device(lambda: target.copy_(source), 0.0) for _ in range(COPIES)]
    return 2 * size / median(seconds)


@dataclass
class GpuColumn(Column):
    """
    ## One way to step, by three clocks

    `step` waits until the step is done, `ask` does not.
    """

    ask: Callable[[], Any] = lambda: None
    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, column: Column) -> GpuColumn:
        """### A column, with clocks"""

        def step() -> None:
            column.step()
            torch.cuda.synchronize()

        return cls(column.name, step, column.renew, ask=column.step)

    def times(self) -> dict[str, float]:
        """### Medians in microseconds, by clock"""
        clocks = {"device": self.device, "host": self.host, "wall": self.seconds}
        return {name: 1e6 * median(seconds) for name, seconds in clocks.items()}


def turn(column: Column, grads: Iterator[Sequence[Tensor]]) -> None:
    """## A turn: some untimed steps, then some by the wall and the host, each followed by one by the device"""
    assert isinstance(column, GpuColumn)
    for _ in range(2):
        column.renew(next(grads))
        column.step()
    for _ in range(column.steps):
        column.renew(next(grads))
        torch.cuda.synchronize()
        begin = perf_counter()
        column.ask()
        asked = perf_counter()
        torch.cuda.synchronize()
        column.seconds.append(perf_counter() - begin)
        column.host.append(asked - begin)
        column.renew(next(grads))
        column.device.append(_on_device(column.ask, asked - begin))


def _on_device(work: Callable[[], Any], host: float) -> float:
    """The seconds that something takes on the device, where the host takes about `host` to ask for it."""
    event: Any = torch.cuda.Event
    keep_busy: Callable[[int], None] = torch.cuda._sleep
    start, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    # Cycles of about half a nanosecond: three times as long as asking takes, for it may be slower this time.
    keep_busy(min(int(6e9 * host) + 100_000, 2_000_000_000))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def time_row(
    contest: Contest, entrants: dict[str, Factory], row: Workload, seconds: float, bytes_per_second: float
) -> dict[str, dict[str, float]]:
    """## The times of a row by clock, and for each clock by column"""
    if row.elements >= HUGE_ELEMENTS:
        entrants = {name: make for name, make in entrants.items() if name.endswith("fused")}
    gradients = [row.draw(seed, scale=0.01, device="cuda") for seed in (2, 3)]
    columns = [GpuColumn.of(c) for c in make_columns(contest, entrants, row, gradients[0], "cuda")]
    measure(columns, gradients, seconds, turn)
    found = {column.name: column.times() for column in columns}
    times = {clock: {name: by_clock[clock] for name, by_clock in found.items()} for clock in CLOCKS}
    times["device"]["limit"] = 1e6 * step_bytes(contest, row) / bytes_per_second
    return times


def step_bytes(contest: Contest, row: Workload) -> int:
    """## How many bytes a step of float32 must read and write"""
    param = torch.zeros(1, requires_grad=True)
    param.grad = torch.ones(1)
    optimizer = contest.ours([param], **contest.options)
    optimizer.step()
    return 4 * row.elements * (1 + 2 * (1 + count_arrays(optimizer, param)))
