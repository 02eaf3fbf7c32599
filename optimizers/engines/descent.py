r"""
---
title: Calling the loop
summary: Loops that are kept for a class, and the memory in which they run.
---

# Calling the loop

[A loop](loop.html) takes some dozens of microseconds, so that what is around it counts: to make an optimizer and to
read a rule takes longer. So three things are kept with the class of the rule, until [it changes](watch.html): for the
arguments of a call, the numbers that they are; for what these have in common, the rule as it was read; and kernels with
the memory that they ran in.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from struct import Struct
from time import perf_counter
from typing import Any

import numpy as np
import torch

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.engines import compiler, fused
from optimizers.engines.gradient import Recording
from optimizers.engines.loop import BLOCK, LANES, LoopRule
from optimizers.engines.program import Unrecordable
from optimizers.engines.state import group_numbers, new_state
from optimizers.engines.symbolic import Subject, exact
from optimizers.engines.watch import Watch, is_plain

#: What a launch ends with.
GOES_ON, CONVERGED, NOT_FINITE, DIFFERS = range(4)

#: How many sets of arguments are kept for a class, and memory of up to how many bytes.
KEPT, KEPT_BYTES = 256, 1 << 20
#: How near a gradient must come to what Python says it is, as a part of its largest element.
CLOSENESS = {"d": 1e-9, "f": 1e-4}
#: After about this time Python has a look whether somebody wants to stop.
SECONDS = 0.1


# ## Rules that are ready


@dataclass
class Ready:
    """
    ### A rule with its numbers

    Where it can't be put into a loop, `reason` says why.
    """

    rule: LoopRule | None
    numbers: list[float]
    reason: str = ""


class _Kept:
    """What is kept with a class."""

    def __init__(self, cls: type) -> None:
        self.watch = Watch(cls, GenericAdaptiveOptimizer, _ROOTS)
        self.ready: dict[Any, Ready] = {}
        self.rules: dict[Any, LoopRule | Unrecordable] = {}


#: The methods that say how a parameter moves.
_ROOTS = ("__init__", "check_group", "init_state", "update_param", "scalar_state", "lazy_state")


def prepare(rule: Any, options: dict[str, Any]) -> Ready:
    """## A rule and its options. Raises what the rule raises on options that it can't take"""
    kept = vars(rule).get("_loops") if isinstance(rule, type) else None
    if kept is not None and kept.watch.is_unchanged():
        try:
            return kept.ready[tuple(options.items())]  # type: ignore[no-any-return]
        except (KeyError, TypeError):
            pass
    made = rule([torch.arange(1.0, 5.0, dtype=torch.float64).reshape(2, 2).requires_grad_()], **options)
    if not isinstance(made, GenericAdaptiveOptimizer):
        return Ready(None, [], f"{type(made).__name__} is no rule of this package")
    kept = _kept(type(made))
    ready = _make(made, kept)
    if rule is type(made) and kept.watch.is_settled and all(map(is_plain, options.values())) and not _own(made):
        if len(kept.ready) >= KEPT:
            kept.ready.clear()
        kept.ready[tuple(options.items())] = ready
    return ready


def _kept(cls: type) -> _Kept:
    kept = vars(cls).get("_loops")
    if not isinstance(kept, _Kept) or not kept.watch.is_unchanged():
        # An attribute of the class goes when the class goes. It is there before the members are noted.
        cls._loops = None  # type: ignore[attr-defined]
        kept = _Kept(cls)
        cls._loops = kept  # type: ignore[attr-defined]
    return kept


def _own(made: GenericAdaptiveOptimizer) -> dict[str, Any]:
    """What an optimizer has besides what the base gives it."""
    base = GenericAdaptiveOptimizer([torch.zeros(1)], {}, lr=1.0)
    return {name: value for name, value in vars(made).items() if name not in vars(base)}


def _make(made: GenericAdaptiveOptimizer, kept: _Kept) -> Ready:
    group = made.param_groups[0]
    unsuitable = [f"{name}={group[name]}" for name in ("fused", "foreach", "differentiable") if _excludes(group, name)]
    if unsuitable:
        return Ready(None, [], f"{unsuitable[0]} asks for another reader")
    try:
        subject = Subject(made, (), ())
        _check_initial(subject, made)
        key = _structure(subject)
        rule = kept.rules.get(key) if kept.watch.is_settled and not _own(made) else None
        if rule is None:
            rule = LoopRule.read(subject)
            kept.rules[key] = rule
    except Unrecordable as error:
        return Ready(None, [], str(error))
    if isinstance(rule, Unrecordable):
        return Ready(None, [], str(rule))
    return Ready(rule, [float(value) for value in subject.values.values()])


def _excludes(group: Mapping[str, Any], option: str) -> bool:
    return group[option] is False if option == "fused" else bool(group[option])


def _structure(subject: Subject) -> Any:
    """What a reading depends on."""
    return repr(
        (
            [(name, symbol, sorted(symbol.assumptions0.items())) for name, symbol in subject.symbols.items()],
            list(subject.group.items()),
            list(subject.initial.items()),
            subject.leaves,
            list(subject.others.items()),
        )
    )


def _check_initial(subject: Subject, made: GenericAdaptiveOptimizer) -> None:
    """See that a state begins as the formulas say for another parameter too."""
    param = torch.tensor([0.75, -3.0, 2.5], dtype=torch.float64)
    state = new_state(made, {**made.param_groups[0]}, param)
    for name, formula in subject.initial.items():
        if formula is None:
            continue
        value = param if formula == subject.symbols["param"] else float(formula.xreplace(_exact(subject)))
        if not torch.allclose(state[name].double(), torch.as_tensor(value, dtype=torch.float64), rtol=1e-6):
            raise Unrecordable(f"state[{name!r}] begins with values that depend on the parameter")


def _exact(subject: Subject) -> dict[Any, Any]:
    return {symbol: exact(value) for symbol, value in subject.values.items()}
