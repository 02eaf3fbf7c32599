r"""
---
title: Calling the loop
summary: Rules that are kept ready for a loop, and the memory in which it runs.
---

# Calling the loop

[A loop](loop.html) of a hundred steps takes some ten microseconds, so what is around it counts. To make an optimizer
and to read its rule takes a thousand times longer. So these are kept with the class of the rule, until
[that changes](watch.html): for the options of a call, the numbers that they stand for; for what all such calls have in
common, the rule as it was read; and the kernels, with the memory in which they ran.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from dataclasses import dataclass
from struct import Struct
from time import perf_counter
from typing import Any

import numpy as np
import torch

from optimizers.engines import compiler
from optimizers.engines.c_launch import THREADING_ELEMENTS, threads
from optimizers.engines.gradient import Recording
from optimizers.engines.loop import BLOCK, LANES, LoopRule
from optimizers.engines.program import Unrecordable
from optimizers.engines.state import new_state
from optimizers.engines.symbolic import Subject, exact
from optimizers.engines.watch import Watch, is_plain

#: What a launch ends with.
GOES_ON, CONVERGED, NOT_FINITE, DIFFERS = range(4)

#: How many sets of options are kept for a class, how many sizes for a kernel, and memory of how many bytes each.
KEPT_OPTIONS, KEPT_SIZES, KEPT_BYTES = 256, 8, 1 << 20
#: How near a formula must come to the gradient that it was recorded from, as a part of the largest element.
CLOSENESS = {torch.float64: 1e-9, torch.float32: 1e-4}
#: About how long a kernel runs until Python has a look whether somebody wants to interrupt it.
SECONDS = 0.1


# ## Rules that are ready


@dataclass(frozen=True)
class Ready:
    """### A rule with its numbers. Where it can't be put into a loop, `reason` says why"""

    rule: LoopRule | None
    numbers: tuple[float, ...] = ()
    reason: str = ""


class _Kept:
    """What is kept with a class, as an attribute of it: it goes when the class goes."""

    def __init__(self, cls: Any, base: type) -> None:
        cls._loops = self
        self.watch = Watch(cls, base, _ROOTS)
        self.ready: dict[Any, Ready] = {}
        self.rules: dict[str, LoopRule] = {}


#: The members that say how a parameter moves.
_ROOTS = ("__init__", "check_group", "init_state", "update_param", "scalar_state", "lazy_state")


def prepare(rule: Any, options: dict[str, Any], base: type) -> Ready:
    """
    ## A rule with its options

    `base` is the class of all rules. Raises what the rule raises on options that it can't take.
    """
    kept = vars(rule).get("_loops") if isinstance(rule, type) else None
    if kept is not None and kept.watch.is_unchanged():
        try:
            found: Ready = kept.ready[tuple(options.items())]
            return found
        except (KeyError, TypeError):
            pass
    made = rule([torch.arange(1.0, 5.0, dtype=torch.float64).reshape(2, 2).requires_grad_()], **options)
    if not isinstance(made, base):
        return Ready(None, reason=f"{type(made).__name__} is no rule of this package")
    kept = _kept(type(made), base)
    own = vars(made).keys() - _attributes_of_all(base)
    is_settled = kept.watch.is_settled and not own
    ready = _ready(made, kept.rules if is_settled else {})
    if rule is type(made) and is_settled and all(map(is_plain, options.values())):
        if len(kept.ready) >= KEPT_OPTIONS:
            kept.ready.clear()
        kept.ready[tuple(options.items())] = ready
    return ready


def _kept(cls: type, base: type) -> _Kept:
    kept: _Kept | None = vars(cls).get("_loops")
    return kept if kept is not None and kept.watch.is_unchanged() else _Kept(cls, base)


@functools.cache
def _attributes_of_all(base: Any) -> set[str]:
    return set(vars(base([torch.zeros(1)], {}, lr=1.0)))


def _ready(made: Any, rules: dict[str, LoopRule]) -> Ready:
    group = made.param_groups[0]
    for name, value in (("fused", False), ("foreach", True), ("differentiable", True)):
        if group[name] is value:
            return Ready(None, reason=f"{name}={value} asks for another reader")
    try:
        subject = Subject(made, (), ())
        _check_beginning(subject)
        key = _structure(subject)
        if key not in rules:
            rules[key] = LoopRule.read(subject)
    except Unrecordable as error:
        return Ready(None, reason=str(error))
    return Ready(rules[key], tuple(map(float, subject.values.values())))


def _structure(subject: Subject) -> str:
    """All that a reading depends on. Numbers that are symbols do not belong to it, but their signs."""
    symbols = [(name, sorted(symbol.assumptions0.items())) for name, symbol in subject.symbols.items()]
    return repr((symbols, subject.group, subject.initial, subject.leaves, subject.others))


def _check_beginning(subject: Subject) -> None:
    """See that the state begins as the formulas say for another parameter as well."""
    param = torch.tensor([0.75, -3.0, 2.5], dtype=torch.float64)
    state = new_state(subject.rule, subject.rule.param_groups[0], param)
    values: Any = {symbol: exact(value) for symbol, value in subject.values.items()}
    for name, formula in subject.initial.items():
        if formula is not None and formula != subject.symbols["param"]:
            is_so = torch.isclose(state[name].double(), torch.tensor(float(formula.xreplace(values))).double(), 1e-6)
            if not is_so.all():
                raise Unrecordable(f"state[{name!r}] begins with a value that depends on the parameter")


# ## Kernels that are ready


class LoopKernel:
    """### A compiled loop. Raises `NoCompiler`"""

    def __init__(self, rule: LoopRule, recording: Recording | None, real: torch.dtype) -> None:
        self.source, self.kept = rule.source(recording, real)
        self.step = compiler.load(self.source).step
        self.real = real
        self.tensors = len(rule.leaves)
        self.arrays = len(recording.arrays) if recording else 0
        self.numbers = len(rule.numbers) + (len(recording.numbers) if recording else 0)
        self.width = rule.width + (len(recording.numbers) if recording else 0)
        self._free: dict[int, list[Memory]] = {}

    def memory(self, n: int) -> Memory:
        """### Memory for `n` elements, which nobody else has"""
        try:
            return self._free[n].pop()
        except LookupError:
            return Memory(self, n)

    def give_back(self, memory: Memory) -> None:
        """### Keep memory for the next call"""
        if memory.bytes <= KEPT_BYTES:
            if memory.n not in self._free and len(self._free) >= KEPT_SIZES:
                self._free.clear()
            self._free.setdefault(memory.n, []).append(memory)


def kernel(rule: LoopRule, recording: Recording | None, real: torch.dtype) -> LoopKernel:
    """## The kernel of a rule for a gradient. Raises `NoCompiler` and `Unrecordable`"""
    key = (real, None if recording is None else recording.key)
    found: LoopKernel | None = rule.kernels.get(key)
    if found is None:
        found = rule.kernels[key] = LoopKernel(rule, recording, real)
    return found


#: The head of a `launch`, which is new at each call; addresses follow.
_HEAD, _ADDRESSES = Struct("6q3d"), Struct("10Q")


class Memory:
    """### The arrays and the arguments of a loop of `n` elements"""

    def __init__(self, kernel: LoopKernel, n: int) -> None:
        dtype, padded = np.dtype(str(kernel.real).removeprefix("torch.")), -(-n // LANES) * LANES
        rows = kernel.tensors + kernel.arrays + 1
        whole = np.zeros((rows * padded + LANES) * dtype.itemsize, np.uint8)
        first = -whole.ctypes.data % 64
        values = whole[first : first + rows * padded * dtype.itemsize].view(dtype).reshape(rows, padded)
        self.n, self.bytes = n, whole.nbytes
        self.is_padded = 0 < n < padded
        self.param, self.grad, self.expected = values[0], values[1], values[-1][:n]
        self.arrays = list(values[kernel.tensors : -1])
        self.x, self.jac = self.param[:n], self.grad[:n]
        self.numbers = array("d", bytes(8 * kernel.numbers))
        places = array("Q", (row.ctypes.data for row in values))
        others = [array("d", bytes(8 * k)) for k in (kernel.kept, kernel.width, -(-n // BLOCK))]
        self._kept = (whole, places, others)
        self._put_numbers = Struct(f"{kernel.numbers}d").pack_into
        self._launch = bytearray(_HEAD.size + _ADDRESSES.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._launch))
        addresses = [one.buffer_info()[0] for one in (self.numbers, *others)] + [places.buffer_info()[0]]
        self._addresses = [*addresses, places[-1]]
        self._real, self._step = kernel.real, kernel.step
        self._runtime = compiler.openmp() if n >= THREADING_ELEMENTS else None
        self.native(0)

    def native(self, gradient: int) -> None:
        """### Take this function as the gradient"""
        _ADDRESSES.pack_into(self._launch, _HEAD.size, *self._addresses, gradient, *(self._runtime or (0, 0, 0)))

    def begin(self, x: Any, numbers: Any, arrays: Any, expected: Any = None) -> None:
        """
        ### Put everything in its place

        Where to begin, hyper-parameters and numbers of the gradient, its arrays; and if it is to be seen whether the
        kernel calculates the gradient rightly, what is `expected` there.
        """
        self._closeness = -1.0
        if expected is not None:
            self._closeness = CLOSENESS[self._real]
            self.expected[:] = expected.ravel()
        self.x[:] = x.ravel()
        self._put_numbers(self.numbers, 0, *numbers)
        for row, values in zip(self.arrays, arrays, strict=True):
            row[: self.n] = values.ravel()
        if self.is_padded:
            # What is beyond the end does as the last element does, and is not counted.
            for row in (self.param, *self.arrays):
                row[self.n :] = row[self.n - 1]

    def run(self, first: int, last: int, tolerance: float) -> tuple[int, int, float]:
        """### Steps `first + 1` to `last`: how it ended, after which step, and the square of the last way"""
        team = 1 if self._runtime is None else threads()
        launch = self._launch
        _HEAD.pack_into(launch, 0, self.n, first, last, team, 0, first, tolerance, 0.0, self._closeness)
        ending = self._step(self.address)
        _, _, _, _, _, step, _, moved, _ = _HEAD.unpack_from(launch)
        return ending, step, moved


def descend(memory: Memory, steps: int, tolerance: float, slow: bool) -> tuple[int, int, float]:
    """
    ## Up to `steps` steps

    Some at a time, so that a long run can be interrupted; few at first if the gradient may be `slow`.
    """
    some, done = 16 if slow else max(1, 10_000_000 // (memory.n or 1)), 0
    while True:
        began, before = perf_counter(), done
        ending, done, moved = memory.run(done, min(done + some, steps), tolerance)
        if ending != GOES_ON or done >= steps:
            return ending, done, moved
        some = max(1, int((done - before) * SECONDS / (perf_counter() - began)))
