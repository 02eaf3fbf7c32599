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

import ctypes
import os
from array import array
from collections.abc import Callable
from itertools import chain
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from optimizers.engines import compiler
from optimizers.engines.c_kernel import c_source
from optimizers.engines.cohort import Cohort, as_stored, states_of, wish
from optimizers.engines.look import expected, expected_state, gradient_looker, state_looker
from optimizers.engines.program import Node, Program, Unrecordable
from optimizers.engines.recorder import RecordedState, Tape
from optimizers.engines.shard import is_distributed, local
from optimizers.engines.state import compute_dtype, group_numbers, real_dtype
from optimizers.engines.traced import Untraceable, calculation

#: torch's `increment_version`, without the wrapper around it, which takes longer than the thing itself.
_increment_version: Callable[[Any], None] = torch._C._increment_version
#: Below this number of elements waking a second thread takes longer than it saves.
THREADING_ELEMENTS = 16384
#: From this number of cohorts on, tracing the numbers takes less time than reading the rule for each.
TRACED_COHORTS = 8

# The threads of a parent do not exist in its forked child, and an OpenMP runtime waits for them forever.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Arguments(ctypes.Structure):
    """The argument of a kernel, `launch` in [the C back end](c_kernel.html)."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tensors", "stride", "cohorts", "numbers", "counts", "threads")),
        *((name, ctypes.c_void_p) for name in ("tables", "offsets", "rows", "scalars", "cells", "before", "after")),
        *((name, ctypes.c_void_p) for name in ("parallel", "thread", "team")),
    )


class FusedJob:
    """
    ## The cohorts that kernels step

    Their states have the same names and dtypes. Making a job reads the rule and compiles what is needed: it
    raises `Unrecordable` or `NoCompiler` where that fails. A `dry` job is only looked at.
    """

    reader = "fused"

    def __init__(
        self, rule: Any, cohorts: list[Cohort], tapes: dict[Any, Tape], scale: float | None, dry: bool
    ) -> None:
        first = cohorts[0]
        leaves = ("param", "grad", *first.names)
        self.tape = tapes.setdefault(leaves, Tape(leaves))
        self.cohorts = cohorts
        self._group, self._wish = first.group, wish(rule, first)
        self._view = self.tape.state(first.others)
        self._names = tuple(first.scalars)
        self._traceable = len(cohorts) >= TRACED_COHORTS and self._names in ((), ("step",))
        self._only_count = self._names == ("step",)
        self._now = [c.scalars[name] for c in cohorts for name in self._names]
        nodes, numbers, _ = self._read(rule, scale)
        try:
            array("d", numbers)
        except (TypeError, ValueError, RuntimeError) as error:
            raise Unrecordable(f"a number of the rule is not one: {error}") from error
        # Cohorts whose readings agree share a launch, so they must lie side by side.
        order = sorted(range(len(cohorts)), key=lambda i: nodes.index(nodes[i]))
        self.cohorts = [cohorts[i] for i in order]
        self._now = [c.scalars[name] for c in self.cohorts for name in self._names]
        self.nodes = [nodes[i] for i in order]
        self.launches = []
        for node in dict.fromkeys(self.nodes):
            together = [c for c, n in zip(self.cohorts, self.nodes, strict=True) if n is node]
            self.launches.append(Launch(rule, self.tape.program(node), together, dry))
        self._grows = any(launch.program.new_state for launch in self.launches)

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

    def ready(self, rule: Any, scale: float | None, alone: bool) -> bool:
        """
        ### Prepare a step; False if something is not as it was. Nothing is written

        A job that steps `alone` leaves it to its kernel to look at the counts.
        """
        group, (foreach, fused) = rule.param_groups[self._group], self._wish
        if group["foreach"] is not foreach or group["fused"] is not fused:
            return False
        nodes, numbers, self._after = self._read(rule, scale)
        if nodes != self.nodes:
            return False
        known, launches = rule._state_is_known, self.launches
        if len(launches) == 1:
            return launches[0].ready(known, numbers, self._after, alone)
        at = row = 0
        for launch in launches:
            end, last = at + len(launch.cohorts) * launch.numbers, row + len(launch.cohorts) * len(self._names)
            if not launch.ready(known, numbers[at:end], self._after[row:last], False):
                return False
            at, row = end, last
        return True

    def run(self, rule: Any) -> bool:
        """### Step. False if the plan must be made anew, because the states have new entries"""
        for launch in self.launches:
            launch.run(rule._state_is_known)
        self._now = self._after
        if not self._grows:
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


class Changed(Exception):
    """A count is not what it was taken for; nothing was done."""


class Launch:
    """## One kernel, and the tensors that it is called for"""

    def __init__(self, rule: Any, program: Program, cohorts: list[Cohort], dry: bool) -> None:
        self.program, self.cohorts = program, cohorts
        self.params = [p for c in cohorts for p in c.params]
        self.states = [s for c in cohorts for s in c.states]
        self.names = program.leaves[2:]
        self.numbers = program.numbers
        self.elements = sum(map(_numel, self.params))
        title = type(rule).__name__
        self.source = source_of(title, program, cohorts[0])
        self.kernel = compiler.load(self.source)
        self.kernel_name = f"{title}_{compiler.short_name(self.source)}"
        if not dry:
            self._locate()

    def _locate(self) -> None:
        """### Note where everything lies, and lay out the arguments of the kernel"""
        program, n, rows = self.program, len(self.params), len(self.cohorts)
        self.new_state = {name: [_like(p) for p in self.params] for name in program.new_state}
        self.counts = tuple(self.cohorts[0].scalars)
        self.scalar_tensors = [s[name] for name in self.counts for s in self.states]
        # The cells are written through their addresses, so the memory must stay, whatever becomes of the tensors.
        self._storages = [t.untyped_storage() for t in self.scalar_tensors]
        self._look, self._rows = gradient_looker(self.params), [expected(p) for p in self.params]
        self._look_at_states = state_looker(self.names, self.counts, is_distributed(self.params[0]))
        self._state_rows = [expected_state(s, self.names, self.counts) for s in self.states]
        addresses = list(map(_address, self.params))
        for name in self.names:
            addresses += [_address(s[name]) for s in self.states]
        added = [list(map(_address, tensors)) for tensors in self.new_state.values()]
        self.table = array("Q", [*addresses[:n], *([0] * n), *addresses[n:], *chain.from_iterable(added)])
        self._put_grads = Struct(f"{n}Q").pack_into
        self._put_numbers = Struct(f"{rows * (self.numbers + len(self.counts))}d").pack_into
        self._tensors = [s[name] for name in self.names for s in self.states]
        self._written = [*self.params, *map(local, self.params)] if is_distributed(self.params[0]) else self.params
        self._lay_out(n, rows)

    def _lay_out(self, n: int, rows: int) -> None:
        offsets = array("q", [0])
        for param in self.params:
            offsets.append(offsets[-1] + _numel(param))
        of_tensor = array("i", [row for row, c in enumerate(self.cohorts) for _ in c.params])
        cells = array("Q", map(Tensor.data_ptr, self.scalar_tensors))
        before = [float(c.scalars[name]) for c in self.cohorts for name in self.counts]
        # The numbers of the rule, then the scalars after the step.
        self._numbers = array("d", [0.0] * rows * self.numbers + before)
        self._arrays = (offsets, of_tensor, cells, array("d", before))
        self.arguments = a = Arguments(n, n, rows, self.numbers, len(self.counts), 1)
        a.tables, a.offsets, a.rows, a.cells = map(_place, (self.table, offsets, of_tensor, cells))
        a.before, a.scalars = _place(self._arrays[-1]), _place(self._numbers)
        a.after = a.scalars + 8 * rows * self.numbers
        self._argument = ctypes.addressof(a)
        runtime = compiler.openmp()
        self.parallel = runtime is not None and self.elements >= THREADING_ELEMENTS
        if runtime is not None:
            a.parallel, a.thread, a.team = runtime

    def ready(self, state_is_known: bool, numbers: list[Any], after: list[float], alone: bool) -> bool:
        """
        ### Look whether all is as it was, and pass the kernel what is new: gradients and numbers

        States are looked at if somebody outside the engines may know them.
        """
        try:
            if state_is_known and not self._look_at_states(self._state_rows):
                return False
            grads = self._look(self._rows)
        except (AttributeError, KeyError, TypeError, RuntimeError):
            # A state or a gradient is missing, or a gradient is sparse, and has no strides.
            return False
        if grads is None:
            return False
        self._put_grads(self.table, 8 * len(grads), *grads)
        try:
            self._put_numbers(self._numbers, 0, *numbers, *after)
        except Exception as error:
            raise Unrecordable(f"a number of the rule is not one: {error}") from error
        if self.parallel:
            self.arguments.threads = 1 if _forked else torch.get_num_threads()
        return alone or self.kernel.check(self._argument) == 0

    def run(self, state_is_known: bool) -> None:
        """### Step, and tell autograd what was written, as far as anybody else can have used it"""
        if self.kernel.step(self._argument):
            raise Changed
        _increment_version(self._written)
        if state_is_known:
            _increment_version(self._tensors)

    def adopt(self, rule: Any) -> None:
        """### Put what the rule added to the states in its place"""
        for name, tensors in self.new_state.items():
            for param, state, tensor in zip(self.params, self.states, tensors, strict=True):
                state[name] = tensor
                states_of(rule)[param] = state


def _numel(tensor: Tensor) -> int:
    """The real numbers in a tensor, as far as it lies here."""
    return local(tensor).numel() * (2 if tensor.is_complex() else 1)


def _address(tensor: Tensor) -> int:
    return local(tensor).data_ptr()


def _like(param: Tensor) -> Tensor:
    return torch.empty_like(param, requires_grad=False)


def _place(numbers: array[Any]) -> int:
    return numbers.buffer_info()[0]


def source_of(title: str, program: Program, cohort: Cohort) -> str:
    """The C of a program, for the dtypes of a cohort."""
    slots, real = _slots(cohort, program), compute_dtype(cohort.params[0])
    return program.memo((real, *slots), lambda: c_source(title, program, real, slots))


def _slots(cohort: Cohort, program: Program) -> tuple[torch.dtype, ...]:
    """The dtypes in memory of the leaves, and of the new state, which has the dtype of the parameter."""
    param, state = cohort.params[0], cohort.states[0]
    grad = param if param.grad is None else param.grad
    leaves = (param.dtype, grad.dtype, *(state[name].dtype for name in program.leaves[2:]))
    return tuple(map(real_dtype, (*leaves, *(param.dtype for _ in program.new_state))))
