"""
---
title: The fused reader
summary: The rule as one kernel over all tensors of an optimizer.
---

# The fused reader

A step looks whether anything has changed since the last one, reads the rule for each cohort, and calls one kernel
with the addresses of all tensors and a row of numbers for each cohort.

Whatever is [not as expected](look.html) makes `ready` return False, before anything is written. The stepper then
looks at everything anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor

from optimizers.engines.c_launch import CLaunch
from optimizers.engines.cohort import Cohort, as_stored, wish
from optimizers.engines.launch import Launch
from optimizers.engines.program import Node, Unrecordable
from optimizers.engines.recorder import RecordedState, Tape
from optimizers.engines.scaling import Scaling
from optimizers.engines.shard import local
from optimizers.engines.state import group_numbers
from optimizers.engines.traced import Untraceable, calculation
from optimizers.engines.triton_launch import TritonLaunch

#: From this number of cohorts on, tracing the numbers takes less time than reading the rule for each.
TRACED_COHORTS = 8

#: Who launches kernels, by the type of the device.
LAUNCHES: dict[str, type[Launch]] = {"cpu": CLaunch, "cuda": TritonLaunch}


def launcher(cohort: Cohort) -> type[Launch]:
    """Who launches the kernels of a cohort. Raises `Unrecordable`"""
    device = local(cohort.params[0]).device.type
    if device not in LAUNCHES:
        raise Unrecordable(f"there is no kernel for the device {device!r} yet")
    return LAUNCHES[device]


class FusedJob:
    """
    ## The cohorts that kernels step

    Their states have the same names and dtypes. Making a job reads the rule and compiles what is needed: it
    raises `Unrecordable` or `NoCompiler` where that fails. A `dry` job is only looked at.
    """

    reader = "fused"
    on_device = False

    def __init__(
        self, rule: Any, cohorts: list[Cohort], tapes: dict[Any, Tape], scale: float | None, dry: bool
    ) -> None:
        first = cohorts[0]
        leaves = ("param", "grad", *first.names)
        self.tape = tapes.setdefault(leaves, Tape(leaves))
        self._wish = wish(rule, first)
        self._view = self.tape.state(first.others)
        self._names = tuple(first.scalars)
        self._only_count = self._names == ("step",)
        stepping, waiting = ([c for c in cohorts if c.absent == absent] for absent in (False, True))
        self._take(stepping)
        nodes, numbers, _ = self._read(rule, scale)
        try:
            array("d", numbers)
        except (TypeError, ValueError, RuntimeError) as error:
            raise Unrecordable(f"a number of the rule is not one: {error}") from error
        # Cohorts whose readings agree share a launch.
        together: dict[Node, list[Cohort]] = {}
        for node, cohort in zip(nodes, stepping, strict=True):
            together.setdefault(node, []).append(cohort)
        make, absent_by_node = launcher(first), dict[Node, list[Cohort]]()
        for cohort in waiting if make.takes_absent else ():
            # What is wrong with one that doesn't step is nobody's concern yet.
            with suppress(Exception):
                self._take([cohort])
                (node,), numbers, _ = self._read(rule, scale)
                array("d", numbers)
                absent_by_node.setdefault(node, []).append(cohort)
        self.launches = [
            make(rule, self.tape.program(node), some, dry, absent_by_node.get(node, ()))
            for node, some in together.items()
        ]
        self._nodes = list(together)
        self._groups = sorted({c.group for node in together for c in (*together[node], *absent_by_node.get(node, ()))})
        self._take_launches()
        #: The cohorts whose numbers could be the device's.
        self.movable = self.cohorts if make.has_numbers else []
        self.grows = any(launch.program.new_state for launch in self.launches)

    def _take(self, cohorts: list[Cohort]) -> None:
        self.cohorts = cohorts
        self._traceable = len(cohorts) >= TRACED_COHORTS and self._names in ((), ("step",))
        self._now = [c.scalars[name] for c in cohorts for name in self._names]

    @property
    def params(self) -> list[Tensor]:
        """### The parameters that step, and those that will when they have gradients"""
        return [param for launch in self.launches for param in launch.params]

    def _take_launches(self) -> None:
        self._take([cohort for launch in self.launches for cohort in launch.cohorts])
        by_launch = zip(self._nodes, self.launches, strict=True)
        self.nodes = [node for node, launch in by_launch for _ in launch.cohorts]

    def _read(self, rule: Any, scale: float | None) -> tuple[list[Node], list[Any], list[float]]:
        """
        ### Read the rule for every cohort, with the numbers of this step

        Gives the ends of the readings, the numbers for the kernels, and the scalars of the states after the step.
        """
        if self._traceable:
            traced = self._read_traced(rule, scale)
            if traced is not None:
                return traced
            self._traceable = False
        groups, only_count = rule.param_groups, self._only_count
        if only_count and len(self.cohorts) == 1:
            # The commonest case, without the lists of the others.
            cohort, count = self.cohorts[0], self._now[0] + 1
            group = groups[cohort.group]
            if group["lr"].__class__ is not float or cohort.tensor_hypers:
                group = group_numbers(group)
            node, found = self._read_one(rule, scale, group, count)
            return [node], found, [count]
        nodes: list[Node] = []
        numbers: list[Any] = []
        after: list[float] = []
        for index, cohort in enumerate(self.cohorts):
            group = groups[cohort.group]
            if group["lr"].__class__ is not float or cohort.tensor_hypers:
                group = group_numbers(group)
            t = self._now[index] + 1 if only_count else self._set_scalars(index)
            node, found = self._read_one(rule, scale, group, t)
            nodes.append(node)
            numbers += found
            after += [self._now[index] + 1] if only_count else [as_stored(n, self._view[n]) for n in self._names]
        return nodes, numbers, after

    def _read_one(self, rule: Any, scale: float | None, group: dict[str, Any], t: Any) -> tuple[Node, list[Any]]:
        """### Read the rule for one cohort"""
        tape, view = self.tape, self._view
        values = tape.values
        if view.written:
            view = self._renew_view()
        if t is not None:
            dict.__setitem__(view, "step", t)
        # `tape.rewind()`, without the time of a call.
        tape.node, tape.scalars = tape.root, []
        for value, id in tape.starts:
            value.id = id
        rule.update_param(view, group, values[1] if scale is None else values[1].div(scale), values[0])
        return tape.node, tape.scalars

    def _read_traced(self, rule: Any, scale: float | None) -> tuple[list[Node], list[Any], list[float]] | None:
        """
        ### Read the rule for one cohort, and calculate the numbers of the others as it does

        None if that can't be done, or gives other numbers than reading does, for the first or the last cohort.
        """
        groups = [rule.param_groups[cohort.group] for cohort in self.cohorts]
        counts: list[Any] = [t + 1 for t in self._now] or [None] * len(groups)
        plain = [type(g["lr"]) is not float or c.tensor_hypers for g, c in zip(groups, self.cohorts, strict=True)]
        if plain[0]:
            return None
        node, numbers = self._read_one(rule, scale, groups[0], counts[0])

        def read(group: dict[str, Any], t: Any) -> list[Any]:
            end, traced = self._read_one(rule, scale, group, t)
            if end is not node:
                raise Untraceable("the rule does something else when its numbers are no floats")
            return traced

        try:
            calculate, calculate_all = calculation(groups[0], counts[0], read)
            if calculate(groups[0], counts[0]) != tuple(numbers):
                return None
        except Exception:
            # The plain reading went well, so it is the tracing that the rule can't take.
            return None
        nodes: list[Node] = []
        gathered: list[Any] = []
        together = None if any(plain) else _try(calculate_all, groups, counts)
        if together is not None:
            nodes, gathered = [node] * len(groups), together
        for group, t, apart in zip(groups, counts, plain, strict=True) if together is None else ():
            found = None if apart else _try(calculate, group, t)
            if found is None:
                end, found = self._read_one(rule, scale, group_numbers(group) if apart else group, t)
                nodes.append(end)
            else:
                nodes.append(node)
            gathered += found
        end, numbers = self._read_one(rule, scale, group_numbers(groups[-1]) if plain[-1] else groups[-1], counts[-1])
        if end is not nodes[-1] or numbers != gathered[len(gathered) - len(numbers) :]:
            return None
        return nodes, gathered, counts if self._names else []

    def _renew_view(self) -> RecordedState:
        kept = {name: self._view[name] for name in self._names if name in self._view}
        self._view = self.tape.state({**self.cohorts[0].others, **kept})
        return self._view

    def _set_scalars(self, index: int) -> float | None:
        """Set the scalars of a cohort in the state that is read, and give the count of this step, if there is one."""
        width = len(self._names)
        values = dict(zip(self._names, self._now[index * width : (index + 1) * width], strict=True))
        dict.update(self._view, values)
        return values["step"] + 1 if "step" in values else None

    def ready(self, rule: Any, scaling: Scaling | None) -> bool:
        """### Prepare a step; False if something is not as it was. Nothing is written"""
        groups, (foreach, fused) = rule.param_groups, self._wish
        for index in self._groups:
            group = groups[index]
            if group["foreach"] is not foreach or group["fused"] is not fused:
                return False
        known, launches, others_step = rule._state_is_known, self.launches, False
        for launch in launches:
            if known and launch.look.states_changed():
                return False
            if launch.look.gradients_changed():
                others_step = True
        if others_step:
            if not all(launch.regroup() for launch in launches):
                return False
            self._take_launches()
        nodes, numbers, self._after = self._read(rule, None if scaling is None else scaling.number)
        if nodes != self.nodes:
            return False
        if len(launches) == 1:
            return launches[0].ready(numbers, self._after)
        at = row = 0
        for launch in launches:
            end, last = at + len(launch.cohorts) * launch.numbers, row + len(launch.cohorts) * len(self._names)
            if not launch.ready(numbers[at:end], self._after[row:last]):
                return False
            at, row = end, last
        return True

    def run(self, rule: Any) -> bool:
        """### Step. False if the plan must be made anew, because the states have new entries"""
        for launch in self.launches:
            launch.run(rule._state_is_known)
        self._now = self._after
        if not self.grows:
            return True
        for launch in self.launches:
            launch.adopt(rule)
        return False

    def counts(self) -> list[int]:
        """### The steps that each cohort has taken"""
        return [int(t) for t in self._now[:: len(self._names)]] if "step" in self._names[:1] else []


def _try(calculate: Callable[[Any, Any], Any], of: Any, t: Any) -> Any:
    try:
        return calculate(of, t)
    except (ArithmeticError, LookupError, TypeError):
        # Reading the rule will say what is wrong.
        return None
