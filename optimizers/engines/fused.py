"""
---
title: The fused reader
summary: The rule as one kernel over all tensors of an optimizer.
---

# The fused reader

A step looks whether anything has changed since the last one, reads the rule for each cohort, and calls one kernel
with the addresses of all tensors and a row of numbers for each cohort.

What may change under us: gradients are new tensors at every step, and may be sparse, of another dtype, or laid out
differently; parameters and states may have been replaced or have moved in memory; a count may have been written.
Whatever is not as expected makes `ready` return False, before anything is written. The stepper then looks at
everything anew.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from struct import Struct
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from optimizers.engines import compiler
from optimizers.engines.c_kernel import c_source
from optimizers.engines.cohort import Cohort, as_stored, wish
from optimizers.engines.recorder import Node, Program, Tape, Unrecordable
from optimizers.engines.state import compute_dtype, group_numbers, real_dtype

#: Below this number of elements waking a second thread takes longer than it saves.
THREADING_ELEMENTS = 16384

_data_ptr = Tensor.data_ptr

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
        *((name, ctypes.c_int64) for name in ("tensors", "stride", "numbers", "counts", "threads")),
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
        self.scalar_names = tuple(first.scalars)
        self._wish = wish(rule, first)
        self._view = self.tape.state(first.others)
        nodes, _, _ = self._read(rule, scale)
        # Cohorts whose readings agree share a launch, so they must lie side by side.
        order = sorted(range(len(cohorts)), key=lambda i: nodes.index(nodes[i]))
        self.cohorts = [cohorts[i] for i in order]
        self.nodes = [nodes[i] for i in order]
        self.launches = [
            Launch(
                rule,
                self.tape.program(node),
                [c for c, n in zip(self.cohorts, self.nodes, strict=True) if n is node],
                dry,
            )
            for node in dict.fromkeys(self.nodes)
        ]

    def _read(self, rule: Any, scale: float | None) -> tuple[list[Node], list[Any], list[float]]:
        """
        ### Read the rule for every cohort, with the numbers of this step

        Gives the ends of the readings, the numbers for the kernels, and the scalars of the states after the step.
        """
        tape, groups, names = self.tape, rule.param_groups, self.scalar_names
        update, param, grad = rule.update_param, tape.param, tape.grad
        view, counted, extra = self._view, "step" in names, len(names) > 1
        nodes: list[Node] = []
        numbers: list[Any] = []
        after: list[float] = []
        for cohort in self.cohorts:
            group = groups[cohort.group]
            if group["lr"].__class__ is not float or cohort.tensor_hypers:
                group = group_numbers(group)
            if view.written:
                view = self._view = tape.state(cohort.others)
            if extra or not counted:
                dict.update(view, cohort.scalars)
            if counted:
                dict.__setitem__(view, "step", cohort.scalars["step"] + 1)
            tape.rewind()
            update(view, group, grad if scale is None else grad.div(scale), param)
            nodes.append(tape.node)
            numbers += tape.scalars
            after += [view[name] for name in names]
        return nodes, numbers, after

    def ready(self, rule: Any, scale: float | None) -> bool:
        """### Prepare a step; False if something is not as it was. Nothing is written"""
        nodes, numbers, after = self._read(rule, scale)
        if nodes != self.nodes or wish(rule, self.cohorts[0]) != self._wish:
            return False
        at, counts = 0, len(self.scalar_names)
        row = 0
        for launch in self.launches:
            rows = len(launch.cohorts)
            size = rows * launch.numbers
            if not launch.ready(numbers[at : at + size], after[row * counts : (row + rows) * counts]):
                return False
            at, row = at + size, row + rows
        self._after = after
        return True

    def run(self, rule: Any) -> bool:
        """### Step. False if the plan must be made anew, because the states have new entries"""
        for launch in self.launches:
            launch.run()
        for k, name in enumerate(self.scalar_names):
            for cohort, value in zip(self.cohorts, self._after[k :: len(self.scalar_names)], strict=True):
                cohort.scalars[name] = as_stored(name, value)
        grown = [launch.adopt(rule) for launch in self.launches]
        return not any(grown)


class Launch:
    """## One kernel, and the tensors that it is called for"""

    def __init__(self, rule: Any, program: Program, cohorts: list[Cohort], dry: bool) -> None:
        self.program, self.cohorts = program, cohorts
        self.params = [p for c in cohorts for p in c.params]
        self.states = [s for c in cohorts for s in c.states]
        self.names = program.leaves[2:]
        self.numbers = program.numbers
        self.elements = sum(map(_numel, self.params))
        slots = _slots(cohorts[0], program)
        real = compute_dtype(self.params[0])
        title = type(rule).__name__
        self.source = program.memo((real, *slots), lambda: c_source(title, program, real, slots))
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
        self._look = _looker(self.names, self.counts, self.params[0].is_complex())
        self._rows = [self._row(p, s) for p, s in zip(self.params, self.states, strict=True)]
        addresses = list(map(_data_ptr, self.params))
        for name in self.names:
            addresses += map(_data_ptr, [s[name] for s in self.states])
        added = [list(map(_data_ptr, tensors)) for tensors in self.new_state.values()]
        self.table = array("Q", [*addresses[:n], *([0] * n), *addresses[n:], *chain.from_iterable(added)])
        self._put_grads = Struct(f"{n}Q").pack_into
        self._put_numbers = Struct(f"{rows * self.numbers}d").pack_into
        self._put_counts = Struct(f"{rows * len(self.counts)}d").pack_into
        written = [name for name in self.names if name in program.stores]
        self.written = [s[name] for name in written for s in self.states]
        if "param" in program.stores:
            self.written += self.params
        self._lay_out(n, rows)

    def _lay_out(self, n: int, rows: int) -> None:
        offsets = array("q", [0])
        for param in self.params:
            offsets.append(offsets[-1] + _numel(param))
        of_tensor = array("i", [row for row, c in enumerate(self.cohorts) for _ in c.params])
        cells = array("Q", map(_data_ptr, self.scalar_tensors))
        before = [float(c.scalars[name]) for c in self.cohorts for name in self.counts]
        self._numbers = array("d", [0.0]) * max(1, rows * self.numbers)
        self._before, self._after = array("d", before), array("d", before)
        self._arrays = (offsets, of_tensor, cells)
        self.arguments = a = Arguments(n, n, self.numbers, len(self.counts), 1)
        a.tables, a.offsets, a.rows, a.cells = map(_place, (self.table, offsets, of_tensor, cells))
        a.scalars, a.before, a.after = map(_place, (self._numbers, self._before, self._after))
        self._argument = ctypes.addressof(a)
        runtime = compiler.openmp()
        self.parallel = runtime is not None and self.elements >= THREADING_ELEMENTS
        if runtime is not None:
            a.parallel, a.thread, a.team = runtime

    def _row(self, param: Tensor, state: dict[str, Any]) -> tuple[Any, ...]:
        """What `_look` expects of one parameter."""
        grad: Any = param.grad
        tensors = (state[name].data_ptr() for name in self.names)
        return (
            param,
            state,
            grad.stride(),
            grad.dtype,
            param.data_ptr(),
            *tensors,
            *(state[name] for name in self.counts),
        )

    def ready(self, numbers: Sequence[Any], after: Sequence[float]) -> bool:
        """### Look whether all is as it was, and pass the kernel what is new: gradients and numbers"""
        try:
            grads = self._look(self._rows)
        except (AttributeError, KeyError, RuntimeError):
            # A state or a gradient is missing, or a gradient is sparse, and has no strides.
            return False
        if grads is None:
            return False
        self._put_grads(self.table, 8 * len(grads), *grads)
        try:
            self._put_numbers(self._numbers, 0, *numbers)
        except Exception as error:
            raise Unrecordable(f"a number of the rule is not one: {error}") from error
        self._put_counts(self._after, 0, *after)
        if self.parallel:
            self.arguments.threads = 1 if _forked else torch.get_num_threads()
        return self.kernel.check(self._argument) == 0

    def run(self) -> None:
        """### Step"""
        self.kernel.step(self._argument)
        increment_version(self.written)
        self._before[:] = self._after

    def adopt(self, rule: Any) -> bool:
        """### Put what the rule added to the states in its place, and say whether there was anything"""
        for name, tensors in self.new_state.items():
            for param, state, tensor in zip(self.params, self.states, tensors, strict=True):
                state[name] = tensor
                rule.state[param] = state
        return bool(self.new_state)


def _looker(names: tuple[str, ...], counts: tuple[str, ...], is_complex: bool) -> Callable[[Any], list[int] | None]:
    """
    ## The function that looks at every tensor at every step

    It gives the addresses of the gradients, or None if anything else than they has changed. Python's time per parameter
    decides the speed of small models, so it is written for the names at hand, without inner loops.
    """
    places = [f"at_{i}" for i in range(len(names))]
    cells = [f"cell_{i}" for i in range(len(counts))]
    changed = [f"state[{name!r}].data_ptr() != {place}" for name, place in zip(names, places, strict=True)]
    changed += [f"state[{name!r}] is not {cell}" for name, cell in zip(counts, cells, strict=True)]
    changed += ["grad.is_conj()"] if is_complex else []
    source = f"""
def look(rows):
    addresses = []
    append = addresses.append
    for {", ".join(["param", "state", "stride", "dtype", "at", *places, *cells])} in rows:
        grad = param.grad
        if {" or ".join(["grad.stride() != stride", "grad.dtype is not dtype", "param.data_ptr() != at", *changed])}:
            return None
        append(grad.data_ptr())
    return addresses
"""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace["look"]  # type: ignore[no-any-return]


def _numel(tensor: Tensor) -> int:
    """The real numbers in a tensor."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _like(param: Tensor) -> Tensor:
    return torch.empty_like(param, requires_grad=False)


def _place(numbers: array[Any]) -> int:
    return numbers.buffer_info()[0]


def _slots(cohort: Cohort, program: Program) -> tuple[torch.dtype, ...]:
    """The dtypes in memory of the leaves, and of the new state, which has the dtype of the parameter."""
    param, state = cohort.params[0], cohort.states[0]
    grad = param if param.grad is None else param.grad
    leaves = (param.dtype, grad.dtype, *(state[name].dtype for name in program.leaves[2:]))
    return tuple(map(real_dtype, (*leaves, *(param.dtype for _ in program.new_state))))
