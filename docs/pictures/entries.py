"""
---
title: Who is drawn, beside whom
summary: The rules of the package as entries of a race, with their learning rates and their companions.
---

# Who is drawn, beside whom

An entry is a rule with its options. All rules of the package are found, so a new one joins by its row in the
[learning rates](rates.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from docs.pictures.rates import RATES
from optimizers import GenericAdaptiveOptimizer, Rprop
from optimizers.experiments.recipes import default_options, rules

#: The problems, in the order of the columns of the rates.
PROBLEMS = ("valley", "banana", "saddle", "digits")

MOMENTUM = "Momentum"


@dataclass(frozen=True)
class Entry:
    """## A rule under the name that is drawn"""

    name: str
    rule: type[GenericAdaptiveOptimizer]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """### The name of its page, which is that of its module"""
        return self.rule.__module__.rpartition(".")[2]

    def optimizer(self, params: Iterable[list[Tensor]], rates: Iterable[float], options: dict[str, Any]) -> Any:
        """### Its optimizer, with a rate for each list of parameters. The plain reader starts soonest"""
        groups = [{"params": own, "lr": rate} for own, rate in zip(params, rates, strict=True)]
        make: Callable[..., Any] = self.rule
        return make(groups, foreach=False, fused=False, **options)

    def run_options(self, problem: str, steps: int) -> dict[str, Any]:
        """### What else suits a run of so many steps. What Rprop needs on mini-batches it doesn't on a surface"""
        exact = self.rule is Rprop and problem != "digits"
        return {**self.options, **({} if exact else default_options(self.rule, steps))}

    def call(self, problem: str, steps: int) -> str:
        """### How it is made, as code"""
        options = {"lr": rate(self.name, problem), **self.run_options(problem, steps)}
        return f"{self.rule.__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"


@cache
def all_entries() -> dict[str, Entry]:
    """## All rules, and SGD a second time, with momentum"""
    found = {name: Entry(name, rule, _for_short_runs(rule)) for name, rule in sorted(rules().items())}
    return {**found, MOMENTUM: Entry(MOMENTUM, found["SGD"].rule, {"momentum": 0.9})}


def _for_short_runs(rule: Callable[..., GenericAdaptiveOptimizer]) -> dict[str, Any]:
    """### Averages over the last 1000 steps or more are of 100 here: the runs are no longer"""
    defaults = rule([torch.zeros(1, 1)]).defaults
    short: dict[str, Any] = {}
    if defaults.get("betas") == (0.9, 0.999):
        short["betas"] = (0.9, 0.99)
    if "beta3" in defaults:
        short["beta3"] = 0.99
    return short


def rate(name: str, problem: str) -> float:
    """## The learning rate of an entry for a problem"""
    if name not in RATES:
        raise KeyError(
            f"No learning rates for {name}: add what `python -m docs.pictures.tuning {name}` prints to RATES"
        )
    return RATES[name][PROBLEMS.index(problem)]


def companions(name: str) -> tuple[str, ...]:
    """## Beside whom a rule is drawn: SGD and Adam; these have others, so that nobody is beside himself"""
    return {"SGD": (MOMENTUM, "Adam"), "Adam": ("SGD", "RMSprop")}.get(name, ("SGD", "Adam"))


def series(name: str, page_of: str) -> int:
    """## The look of an entry: the page's own rule is the first, and others look alike on all pages"""
    return 1 if name == page_of else {"SGD": 2, "Adam": 3}.get(name, 4)


def listed(names: Iterable[str]) -> str:
    """## Some names in a sentence"""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
