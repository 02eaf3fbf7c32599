r"""
---
title: The page of figures
summary: What the tables of performance become in the documentation; no number of it is typed.
---

# The page of figures

    python -m optimizers.experiments.performance --seconds 14 --page docs/performance.md

measures and writes the page on performance: the tables, how they came about and how to read them, the first steps, and
the command itself. Here is its text. All numbers are put in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizers.experiments.timing import MIN_ROUNDS
from optimizers.experiments.workloads import Workload

#: The rules of the page, with their options: one with two moments, one with one, one with a momentum.
RULES = (("Adam", ()), ("RMSprop", ()), ("SGD", ("momentum=0.9",)))

#: From this load on, for each core, something else takes so much time that the figures mean little.
BUSY = 0.25

_WARNING = """
**It was busy with something else**, so these figures mean little. Run the command again when it is quiet.
"""

_TEXT = """\
---
title: Performance
summary: The time of a step, beside torch, other libraries and the limit of the memory. Measured, not typed.
---

# Performance

How long does a step take? Here are the steps of three rules, run by each reader of this library, by torch in each of
its ways, and by other libraries. The yardstick is `limit`, a kernel that only reads and writes the same arrays. This
page is written by a command, numbers and all:

```sh
{command}
```

The machine that it ran on:

{machine}
{warning}
## How it is measured

- **All columns of a row take turns**, many times, forwards and backwards. So whatever else the machine does meets them
  alike. Compare within a row; two rows were measured at different times.
- **Warm.** Each turn begins with untimed steps, until caches and threads are its own again.
- **New gradients at every step**: each is a new tensor, as `backward` makes them after
  `zero_grad(set_to_none=True)`. This is not timed.
- What counts is the **median** over all timed steps. A row takes about {seconds:g} seconds, and each column has at
  least {rounds} rounds.

A step sees of a model only the shapes of its parameters, so [the rows](../optimizers/experiments/workloads.py) are
lists of shapes:

| row | tensors | elements |
|---|---:|---:|
{workloads}

{tables}

## How to read it

- `ours fused` is what you get if you ask for nothing, `ours foreach` and `ours single` are
  [the other readers](readers.md). `torch for-loop` is what torch takes by itself on a CPU.
- **`vs`** says how many times faster `ours fused` is than that column; `torch best` is the fastest of torch's, for a
  rule that torch has no fused kernel for.
- **`of limit`** is the time of `limit` over that of `ours fused`: at 1 a step is as fast as the memory. As both are
  measured, it can be a little above.
- With few elements a row shows what a step costs before it does anything, which is Python's time, for each
  tensor and each group. With many it shows memory. Whoever goes through that only once is near the limit, ours or
  not, and the ratio between two of them is near 1.
- A `-` is a column that could not take part.

## The first step

The first step of a rule compiles its kernel, once for each user and machine. A process with an empty cache, and
then another one that finds what the first has left:

```text
{first}
```

## Measure it yourself

The first line is this page, the others are smaller: a rule of your choice on two rows, and the first steps alone.

```sh
{command}
python -m optimizers.experiments.performance --optimizer AdamW --kwargs weight_decay=0.1 --rows MLP ResNet
python -m optimizers.experiments.performance --optimizer NAdam --first-step
```

DeepSpeed's and labml's Adam take part where `deepspeed` and `labml_nn` are installed.
"""


@dataclass
class Section:
    """## A table of the page: its heading, its lines, and what is to be said below it"""

    heading: str
    table: Sequence[str]
    notes: Sequence[str]

    def __str__(self) -> str:
        below = [f"- {note}" for note in self.notes]
        return "\n".join([f"## {self.heading}\n", "Median microseconds of a step:\n", *self.table, "", *below]).strip()


def page_text(
    command: str,
    machine: Sequence[str],
    load: float,
    seconds: float,
    rows: Sequence[Workload],
    sections: Sequence[Section],
    first: Sequence[str],
) -> str:
    """## The page, of all that was measured. `load` is that of each core at the start"""
    return _TEXT.format(
        command=command,
        machine="\n".join(f"- {line}" for line in machine),
        warning=_WARNING if load >= BUSY else "",
        seconds=seconds,
        rounds=MIN_ROUNDS,
        workloads="\n".join(f"| {row.name} | {len(row.shapes):,} | {row.elements:,} |" for row in rows),
        tables="\n\n".join(map(str, sections)),
        first="\n".join(first),
    )


def check_page(path: Path) -> None:
    """## Refuse, before the work, a name under which no page can be written after it"""
    if path.suffix != ".md":
        raise ValueError(f"--page writes Markdown, so the name must end in .md. Received: {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--page {path}: there is no folder {path.parent}. Make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--page {path}: this can't be written. Give the name of a file in a folder of yours")
