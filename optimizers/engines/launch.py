"""
---
title: A launch
summary: One kernel, and the tensors that it is called for.
---

# A launch

A kernel is called with the addresses of all its tensors and a row of numbers for each cohort. They are laid out once.
At each step it is [looked](look.html) whether all is where it was, and what is new is put in its place: the addresses
of the gradients and the numbers. What is not as expected is found out before anything is written.

On the CPU parameters are laid out too that have no gradient at the moment. When others have gradients than at the last
step, which is common where parts of a network take turns, `regroup` makes new cohorts of them, and all else stays.

How the kernel is called is up to the device: [by its address](c_launch.html) on the CPU, and [in the stream of
the device](triton_launch.html) on a GPU.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from copy import copy
from itertools import accumulate
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from optimizers.engines import compiler
from optimizers.engines.cohort import Cohort, as_number, states_of
from optimizers.engines.look import Unseen, look_at
from optimizers.engines.program import Program, Unrecordable
from optimizers.engines.shard import local
from optimizers.engines.state import compute_dtype, real_dtype


class Arguments(ctypes.Structure):
    """The argument of a kernel, `launch` in [the C back end](c_kernel.html)."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tensors", "stride", "cohorts", "numbers", "counts", "threads")),
        *((name, ctypes.c_void_p) for name in ("tables", "offsets", "rows", "scalars", "cells", "before", "after")),
        *((name, ctypes.c_void_p) for name in ("parallel", "thread", "team")),
    )


class Launch:
    """
    ## The tensors of some cohorts, and the kernel that steps them

    Making one compiles what is needed, and raises `NoCompiler` where that fails. A `dry` one is only looked at.
    """

    #: Whether the numbers of a step may be the device's, so that the host need not know them.
    has_numbers = False

    #: How many kernels there are: one moves all tensors, and another may calculate before it.
    kernels = 1

    #: Whether parameters may be laid out that have no gradient at the moment.
    takes_absent = False

    #: A function `check` that looks at the counts, and a function `step` that advances them, of the address of the
    #: arguments.
    kernel: compiler.Kernel

    def __init__(
        self, rule: Any, program: Program, cohorts: list[Cohort], dry: bool, absent: Sequence[Cohort] = ()
    ) -> None:
        self.program, self.cohorts = program, cohorts
        self.params = [p for c in cohorts for p in c.params]
        # What is added to a state is added to those that step.
        self._absent = list(absent) if self.takes_absent and not program.new_state else []
        self._names, self.numbers = program.leaves[2:], program.numbers
        title = type(rule).__name__
        self.source = self._print(title)
        self.kernel_name = f"{title}_{compiler.short_name(self.source)}"
        self._load()
        if not dry:
            self._locate()

    def _print(self, title: str) -> str:
        """### The source of the kernel"""
        return self.source_of(title, self.program, self.cohorts[0])

    @classmethod
    def source_of(cls, title: str, program: Program, cohort: Cohort) -> str:
        """### The source of a program, for the dtypes of a cohort"""
        slots, real = slots_of(cohort, program), compute_dtype(cohort.params[0])
        return program.memo((cls, real, *slots), lambda: cls.printed(title, program, real, slots))

    @staticmethod
    def printed(title: str, program: Program, real: torch.dtype, slots: Sequence[torch.dtype]) -> str:
        """### The source, for a dtype of the arithmetic and the dtypes in memory"""
        raise NotImplementedError

    def _load(self) -> None:
        """### Compile the source"""
        raise NotImplementedError

    def _locate(self) -> None:
        """### Note where everything lies, and lay out the arguments of the kernel"""
        self._homes = [c for c in (*self.cohorts, *self._absent) for _ in c.params]
        self.params = params = [p for c in (*self.cohorts, *self._absent) for p in c.params]
        self.states = states = [s for c in (*self.cohorts, *self._absent) for s in c.states]
        self.sizes, names = list(map(numel, params)), self._names
        self.new_state = {name: [_like(p) for p in params] for name in self.program.new_state}
        self.counts = tuple(self.cohorts[0].scalars)
        self.scalar_tensors = [s[name] for name in self.counts for s in states]
        # The cells are written through their addresses, so the memory must stay, whatever becomes of the tensors.
        self._storages = [t.untyped_storage() for t in self.scalar_tensors]
        #: Addresses by slot; those of the gradients are yet to come.
        self.addresses = [list(map(address, params)), [0] * len(params)]
        self.addresses += [[address(s[name]) for s in states] for name in names]
        self.addresses += [list(map(address, tensors)) for tensors in self.new_state.values()]
        #: The addresses, of which those of the gradients are put in their place at each step.
        self.table = array("Q", [at for slot in self.addresses for at in slot])
        #: The row of numbers of each tensor; a negative number if it doesn't step.
        self.of_tensor = array("i", [row for row, c in enumerate(self.cohorts) for _ in c.params])
        self.of_tensor.extend([-1] * (len(params) - len(self.of_tensor)))
        self._lay_out()
        try:
            self.look = look_at(params, states, names, self.counts, self.table, self.of_tensor)
        except Unseen:
            self._absent = []
            self._locate()

    def _lay_out(self) -> None:
        """### The arguments of the kernel"""
        n = len(self.params)
        self._offsets, self._cells = array("q", bytes(8 * n + 8)), array("Q", map(Tensor.data_ptr, self.scalar_tensors))
        self.arguments = Arguments(n, n, 0, self.numbers, len(self.counts), 1)
        arrays = (self.table, self._offsets, self.of_tensor, self._cells)
        for name, numbers in zip(("tables", "offsets", "rows", "cells"), arrays, strict=True):
            setattr(self.arguments, name, place(numbers))
        self.argument = ctypes.addressof(self.arguments)
        self._arrange(self.cohorts)

    def _arrange(self, cohorts: list[Cohort]) -> None:
        """### The rows of numbers, and the sizes of the tensors that step"""
        rows, before = len(cohorts), [float(c.scalars[name]) for c in cohorts for name in self.counts]
        sizes = (size if row >= 0 else 0 for size, row in zip(self.sizes, self.of_tensor, strict=True))
        self._offsets[:] = array("q", accumulate(sizes, initial=0))
        #: The numbers of the rule, then the scalars after the step. An array of nothing would lie nowhere.
        self.row, self._before = array("d", [0.0] * rows * self.numbers + before + [0.0]), array("d", [*before, 0.0])
        self._put_numbers = Struct(f"{len(self.row) - 1}d").pack_into
        self.cohorts, self.arguments.cohorts = cohorts, rows
        self.arguments.before, self.arguments.scalars = place(self._before), place(self.row)
        self.arguments.after = place(self.row) + 8 * rows * self.numbers

    def regroup(self) -> bool:
        """
        ### Step the parameters that have gradients now, each with its own count

        False if something else has changed. Then everything must be laid out anew.
        """
        found = self.look.find_present() if self.takes_absent else None
        if found is None:
            return False
        present, counts = found
        together: dict[Any, list[int]] = {}
        for i, (here, home) in enumerate(zip(present, self._homes, strict=True)):
            if here:
                together.setdefault((home.group, *counts[i :: len(present)]), []).append(i)
        cohorts, rows = [], array("i", [-1]) * len(present)
        for row, ((_, *values), members) in enumerate(together.items()):
            scalars = {name: as_number(name, value) for name, value in zip(self.counts, values, strict=True)}
            cohorts.append(cohort := copy(self._homes[members[0]]))
            cohort.scalars, cohort.absent = scalars, False
            cohort.params, cohort.states = [self.params[i] for i in members], [self.states[i] for i in members]
            for i in members:
                rows[i] = row
        self.of_tensor[:] = rows
        self._arrange(cohorts)
        return True

    def ready(self, numbers: list[Any], after: list[float]) -> bool:
        """### Take the numbers of this step. False if a count is not what it is taken for"""
        try:
            self._put_numbers(self.row, 0, *numbers, *after)
        except Exception as error:
            raise Unrecordable(f"a number of the rule is not one: {error}") from error
        return self.kernel.check(self.argument) == 0

    def run(self, state_is_known: bool) -> None:
        """### Step, and tell autograd what is written, as far as anybody else can have used it"""
        raise NotImplementedError

    def adopt(self, rule: Any) -> None:
        """### Put what the rule added to the states in its place"""
        for name, tensors in self.new_state.items():
            for param, state, tensor in zip(self.params, self.states, tensors, strict=True):
                state[name] = tensor
                states_of(rule)[param] = state


def numel(tensor: Tensor) -> int:
    """The real numbers in a tensor, as far as it lies here."""
    return local(tensor).numel() * (2 if tensor.is_complex() else 1)


def address(tensor: Tensor) -> int:
    """Where a tensor lies."""
    return local(tensor).data_ptr()


def place(numbers: array[Any]) -> int:
    """Where an array lies."""
    return numbers.buffer_info()[0]


def slots_of(cohort: Cohort, program: Program) -> tuple[torch.dtype, ...]:
    """The dtypes in memory of the leaves, and of the new state, which has the dtype of the parameter."""
    param, state = cohort.params[0], cohort.states[0]
    grad = param if param.grad is None else param.grad
    leaves = (param.dtype, grad.dtype, *(state[name].dtype for name in program.leaves[2:]))
    return tuple(map(real_dtype, (*leaves, *(param.dtype for _ in program.new_state))))


def _like(param: Tensor) -> Tensor:
    return torch.empty_like(param, requires_grad=False)
