r"""
---
title: How fast a step is
summary: Every reader timed against torch, other libraries and the limit of the memory, in one table.
---

# How fast a step is

    python -m optimizers.experiments.performance

prints a table of the median time of a step, in microseconds, for [six workloads](workloads.html). It takes about three
minutes and 9 GB of memory (11 GB with the other libraries), most of both for GPT-2. [The columns](columns.html) are

* torch's optimizer of the same name, as a loop, over lists, and with its fused kernel (which not every rule has);
* `DeepSpeedCPUAdam` and labml's annotated Adam, where those are installed;
* our rule, run by each reader;
* the [streaming limit](streaming.html), which reads and writes the same arrays and computes next to nothing.

The ratios at the end say how many times faster our fused reader is than torch's fused kernel, or than the fastest that
torch has where there is none, and how near it comes to the limit: at 1 it is as fast as the memory.

All columns of a row [take turns](timing.html), warm, with new gradients at every step. Slow steps are timed less often:
`--seconds` is the time for a row, but each column gets five rounds at least. Other ways to run it:

* `--optimizer SGD --kwargs momentum=0.9` takes another rule. It must be one that torch has too.
* `--rows MLP GPT` takes only rows with these words in their names; `--threads N` sets the number of threads.
* `--device cuda` measures [a GPU](gpu.html) instead.
* `--plot speed.png` draws the table.
* `--page docs/performance.md` writes [a page](page.html) on several rules, with their first steps.
* `--first-step` measures something else: [the first steps](first_step.html), compiling included.
"""

from __future__ import annotations

import argparse
import ast
import gc
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from optimizers.experiments import gpu
from optimizers.experiments.chart import check_png, plot
from optimizers.experiments.columns import Contest, Factory, make_columns, pairs
from optimizers.experiments.first_step import first_steps
from optimizers.experiments.page import RULES, Section, check_page, page_text
from optimizers.experiments.timing import measure
from optimizers.experiments.workloads import Workload, workloads

#: The times of a row, by column. A column that couldn't take part isn't there.
Times = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """## Measure and print; the result is the exit code"""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    rules = RULES if args.page else [(args.optimizer or "Adam", args.kwargs)]
    try:
        check_options(args)
        contests, rows = [make_contest(*rule) for rule in rules], choose_rows(args.rows, args.device)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    if args.device == "cuda":
        tables = gpu_tables(contests[0], rows, args.seconds)
        if args.plot:
            plot(tables["wall"].rows, f"{heading(contests[0])}: median time of a step", args.plot)
            print(f"picture: {args.plot}")
        return 0
    about, load = machine(), os.getloadavg()[0] / (os.cpu_count() or 1)
    print("\n".join([*about, ""]), flush=True)
    if args.first_step:
        print("\n".join(first_steps(contests[0].name, contests[0].options)))
        return 0
    measured = [make_table(contest, rows, args.seconds) for contest in contests]
    if args.plot:
        plot(measured[0].rows, title(contests[0]), args.plot)
        print(f"picture: {args.plot}")
    if args.page:
        pages = zip(contests, measured, strict=True)
        sections = [Section(heading(c), table.lines, [*table.spread(), *c.notes]) for c, table in pages]
        first = first_steps(contests[0].name, contests[0].options)
        text = page_text(command(argv), about, load, args.seconds, rows, sections, first)
        args.page.write_text(text, encoding="utf-8")
        print(f"page: {args.page}")
    return 0


def make_table(contest: Contest, rows: list[Workload], seconds: float) -> Table:
    """## Measure a rule, and print its table row by row"""
    entrants = contest.entrants()
    table = Table([*entrants, "limit"])
    print("\n".join(table.head(contest.name)), flush=True)
    for row, times in time_rows(contest, entrants, rows, seconds):
        print(table.line(row.name, times), flush=True)
    print("\n".join(["", "Median microseconds of a step.", *contest.notes]))
    return table


def gpu_tables(contest: Contest, rows: list[Workload], seconds: float) -> dict[str, Table]:
    """## Measure a rule on a GPU, and print a table for each clock"""
    speed = gpu.copy_speed()
    print("\n".join([*gpu.machine(speed), ""]), flush=True)
    entrants = contest.entrants("cuda")
    tables = {clock: Table([*entrants, *(["limit"] if clock == "device" else [])]) for clock in gpu.CLOCKS}
    heads = {clock: table.head(contest.name) for clock, table in tables.items()}
    print("\n".join(heads["device"]), flush=True)
    for row in rows:
        times = gpu.time_row(contest, entrants, row, seconds, speed)
        lines = {clock: table.line(row.name, times[clock]) for clock, table in tables.items()}
        print(lines["device"], flush=True)
        torch.cuda.empty_cache()
    print(f"\n{gpu.CLOCKS['device']}")
    for clock in ("host", "wall"):
        print("\n".join(["", *tables[clock].lines, "", gpu.CLOCKS[clock]]))
    print("\n".join(contest.notes))
    return tables


def time_rows(
    contest: Contest, entrants: dict[str, Factory], rows: list[Workload], seconds: float
) -> Iterator[tuple[Workload, Times]]:
    """## Measure one row after another"""
    for row in rows:
        gradients = [row.draw(seed, scale=0.01) for seed in (2, 3)]
        columns = make_columns(contest, entrants, row, gradients[0])
        measure(columns, gradients, seconds)
        yield row, {column.name: column.microseconds for column in columns}
        # Optimizers lie in cycles, and the next row needs their memory.
        del columns, gradients
        gc.collect()


# ## The table


class Table:
    """### A table in Markdown, row by row, with the ratios at the end"""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.rows: dict[str, Times] = {}
        self.lines: list[str] = []
        self.rival = "torch fused" if "torch fused" in names else "torch best"
        rivals = [self.rival, *(name for name in ("DeepSpeedCPUAdam",) if name in names)]
        self.ratios = [*(f"vs {name}" for name in rivals), "of limit"]

    def head(self, rule: str) -> list[str]:
        """### The names of the columns"""
        widths = self._widths
        self.lines = [
            self._join([rule, *self.names, *self.ratios]),
            self._join(["-" * widths[0], *map(_rule, widths[1:])]),
        ]
        return self.lines[:]

    def line(self, row: str, times: Times) -> str:
        """### A row of the table"""
        self.rows[row] = times
        cells = [f"{times[name]:,.{1 if times[name] < 100 else 0}f}" if name in times else "-" for name in self.names]
        self.lines.append(self._join([row, *cells, *self._ratios(times)]))
        return self.lines[-1]

    def spread(self) -> list[str]:
        """### The smallest and the largest of each ratio, and of which rows"""
        told = []
        for index, name in enumerate(self.ratios):
            found = {row: self._ratios(times)[index] for row, times in self.rows.items()}
            found = {row: ratio for row, ratio in found.items() if ratio != "-"}
            if found:
                low, high = (pick(found, key=lambda row: float(found[row].rstrip("x"))) for pick in (min, max))
                told.append(f"`{name}`: from {found[low]} ({low}) to {found[high]} ({high})")
        return told

    def _ratios(self, times: Times) -> list[str]:
        ours, limit = times.get("ours fused"), times.get("limit")
        theirs = {
            **times,
            "torch best": min((t for name, t in times.items() if name.startswith("torch")), default=None),
        }
        rivals = [theirs.get(name.removeprefix("vs ")) for name in self.ratios[:-1]]
        shown = [f"{rival / ours:.2f}x" if rival and ours else "-" for rival in rivals]
        return [*shown, f"{limit / ours:.2f}" if limit and ours else "-"]

    @property
    def _widths(self) -> list[int]:
        return [14, *(max(8, len(name)) for name in [*self.names, *self.ratios])]

    def _join(self, cells: list[str]) -> str:
        first, *others = zip(cells, self._widths, strict=True)
        return f"| {first[0]:{first[1]}} | " + " | ".join(f"{cell:>{width}}" for cell, width in others) + " |"


def _rule(width: int) -> str:
    return "-" * (width - 1) + ":"


def machine() -> list[str]:
    """### What was measured on"""
    capability = torch.backends.cpu.get_cpu_capability()
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return [
        f"{_processor()}: {cores} cores, {threads} threads, {'with' if 'AVX512' in capability else 'without'} AVX-512",
        f"torch {torch.__version__}, Python {sys.version.split()[0]}; load {os.getloadavg()[0]:.1f} at the start",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "processor")


# ## The command line


def heading(contest: Contest) -> str:
    """### A rule with its options"""
    options = ", ".join(f"{name}={value}" for name, value in contest.options.items())
    return f"{contest.name} ({options})" if options else contest.name


def title(contest: Contest) -> str:
    """### What the picture shows"""
    return f"{heading(contest)}: median time of a step on {torch.get_num_threads()} threads"


def command(argv: Sequence[str] | None) -> str:
    """### What was typed"""
    return shlex.join(["python", "-m", "optimizers.experiments.performance", *(sys.argv[1:] if argv is None else argv)])


def check_options(args: argparse.Namespace) -> None:
    """### Refuse what can't be done before anything is measured"""
    if args.plot:
        check_png(args.plot)
    if args.device == "cuda":
        if args.page or args.first_step or args.threads:
            raise ValueError("--device cuda takes no --page, --first-step or --threads")
        gpu.check_gpu()
    if args.page:
        check_page(args.page)
        if args.optimizer or args.kwargs or args.plot or args.first_step:
            raise ValueError("--page has rules of its own, and takes no --optimizer, --kwargs, --plot or --first-step")


def make_contest(name: str, texts: Sequence[str]) -> Contest:
    """### The rule and its options. Raises `ValueError` or `TypeError` where they are wrong"""
    if name not in pairs():
        raise ValueError(
            f"--optimizer must be a rule that torch.optim has too: one of {', '.join(pairs())}. Received: {name}"
        )
    ours, twin = pairs()[name]
    contest = Contest(ours, twin, parse_options(texts))
    for cls in (ours, twin):
        cls([torch.zeros(1, requires_grad=True)], **contest.options)
    return contest


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """### `momentum=0.9` as a keyword argument"""
    options = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ValueError(f"--kwargs takes NAME=VALUE with a Python number or the like. Received: {text}") from None
    return options


def choose_rows(words: Sequence[str], device: str = "cpu") -> list[Workload]:
    """### The rows with one of the words in their name; all, if there are no words"""
    rows = workloads(device)
    chosen = [row for row in rows if not words or any(word.lower() in row.name.lower() for word in words)]
    if not chosen:
        raise ValueError(f"--rows: no row has {' or '.join(words)} in {', '.join(row.name for row in rows)}")
    return chosen


def make_parser() -> argparse.ArgumentParser:
    """### The arguments"""
    parser = argparse.ArgumentParser(prog="python -m optimizers.experiments.performance", description="Time the steps.")
    add = parser.add_argument
    add("--optimizer", metavar="NAME", help=f"{', '.join(pairs())} (default: Adam)")
    add("--kwargs", nargs="+", default=[], metavar="NAME=VALUE", help="options of the optimizer, such as momentum=0.9")
    add("--rows", nargs="+", default=[], metavar="WORD", help="only rows with one of these words in their name")
    add("--seconds", type=_positive(float), default=20.0, help="for each row, about (default: 20)")
    add("--threads", type=_positive(int), metavar="N", help="threads (default: torch's)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="what is measured (default: cpu)")
    add("--plot", type=Path, metavar="FILE.png", help="draw the table")
    add("--page", type=Path, metavar="FILE.md", help="write the page on performance, of several rules")
    add("--first-step", action="store_true", help="time the first steps in new processes, and nothing else")
    return parser


def _positive(kind: type[int] | type[float]) -> Any:
    def positive(text: str) -> float:
        number = kind(text)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"must be positive. Received: {text}")
        return number

    return positive


if __name__ == "__main__":
    sys.exit(main())
