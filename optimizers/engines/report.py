"""
---
title: The report
summary: What `optimizer.explain()` gives.
---

# The report
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optimizers.engines.shard import local


@dataclass(frozen=True)
class Entry:
    """
    ## One line: a launch of a kernel, or a cohort of another reader

    `groups` are the indices of the parameter groups in it, `steps` the counts of steps taken. `kernel` is the
    kernel's name and `reason` says why there is none; one of the two is empty.
    """

    reader: str
    groups: tuple[int, ...]
    steps: tuple[int, ...]
    cohorts: int
    tensors: int
    elements: int
    launches: int
    dtype: str
    kernel: str
    reason: str


@dataclass(frozen=True)
class Report:
    """## Which reader runs what, and why"""

    rule: str
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        head = ("reader", "groups", "steps", "cohorts", "tensors", "elements", "launches", "dtype", "kernel or reason")
        rows: list[tuple[str, ...]] = [head]
        for e in self.entries:
            numbers = (e.cohorts, e.tensors, e.elements, e.launches)
            rows.append((e.reader, _span(e.groups), _span(e.steps), *map(str, numbers), e.dtype, e.kernel or e.reason))
        if not self.entries:
            return f"{self.rule}: no parameter has a gradient"
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.rule, *lines])


def _span(numbers: Sequence[int]) -> str:
    if not numbers:
        return "-"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}..{numbers[-1]}"


def report_of(rule: str, jobs: Sequence[Any]) -> Report:
    """The report on the jobs of a plan."""
    entries = []
    for job in jobs:
        for launch in getattr(job, "launches", [None]):
            cohorts = job.cohorts if launch is None else launch.cohorts
            tensors = [p for cohort in cohorts for p in cohort.params]
            if not tensors:
                continue
            entries.append(
                Entry(
                    reader=job.reader,
                    groups=tuple(sorted({c.group for c in cohorts})),
                    steps=tuple(
                        sorted(
                            {n for c, n in zip(job.cohorts, job.counts(), strict=False) if any(c is x for x in cohorts)}
                        )
                    ),
                    cohorts=len(cohorts),
                    tensors=len(tensors),
                    elements=sum(local(t).numel() for t in tensors),
                    launches=0 if launch is None else launch.kernels,
                    dtype=str(tensors[0].dtype).removeprefix("torch."),
                    kernel="" if launch is None else launch.kernel_name,
                    reason="" if launch is not None else job.reason,
                )
            )
    return Report(rule, tuple(entries))
