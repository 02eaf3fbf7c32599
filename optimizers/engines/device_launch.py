"""
---
title: A launch with numbers of the device
summary: A step on a GPU that Python asks for, and knows nothing about.
---

# A launch with numbers of the device

Two kernels: a small one [calculates the numbers](device_numbers.html) of every tensor, then the large one moves it.
Both read what they need from the memory of the device, so a CUDA graph may repeat them: counts, learning rates that are
tensors, and what AMP found. What the host sends is the addresses of the gradients and those hyper-parameters that are
numbers. In a graph both stay what they were when it was captured.

What a graph takes these from must stay as it is for as long as the graph may be repeated, which nobody can know. So all
that a captured step has laid out is kept for good: some 100 bytes for each tensor, and 8 for each 1024 elements.
Parameters, states and learning rates are the user's to keep: a graph that was captured before `load_state_dict` writes
into the states of then, as with torch's optimizers.
"""

from __future__ import annotations

from array import array
from itertools import repeat
from operator import is_
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from optimizers.engines.cohort import Cohort
from optimizers.engines.device_numbers import NUMBERS_BLOCK, Reading, is_restless, numbers_source, read, signature
from optimizers.engines.launch import place, slots_of
from optimizers.engines.program import Unrecordable
from optimizers.engines.scaling import Scaling
from optimizers.engines.shard import local
from optimizers.engines.state import CPU, compute_dtype
from optimizers.engines.triton_kernel import BLOCK, load, triton_source
from optimizers.engines.triton_launch import OPTIONS, Fresh, TritonLaunch, blocks, compile_now, is_capturing, on, table

#: Memory of the host can't be had during a capture. So many steps may be captured before one that is not.
SPARES = 4

# What graphs read.
_captured: list[Any] = []


class DeviceJob:
    """
    ## The cohorts whose numbers are the device's

    Of a group all parameters are in one cohort, whatever their counts. `readings` are kept from plan to plan. Raises
    `Unrecordable` or `NoCompiler`.
    """

    reader = "fused"
    on_device = True

    def __init__(self, rule: Any, cohorts: list[Cohort], readings: dict[Any, Reading], scaled: bool, dry: bool) -> None:
        self._scaled, self._own = scaled, own_numbers(rule)
        together: dict[Any, list[Cohort]] = {}
        for cohort in cohorts:
            param, entries = cohort.params[0], (cohort.names, tuple(cohort.scalars), repr(cohort.others))
            kind = signature(rule.param_groups[cohort.group], param.device)
            key = (self._own, entries, real(cohort), scaled, kind)
            if key not in readings:
                readings[key] = read(rule, cohort, scaled)
            together.setdefault(key, []).append(cohort)
        self.launches = [DeviceLaunch(rule, readings[key], some, dry) for key, some in together.items()]
        self._signatures = [signature for *_, signature in together]
        self.cohorts = [cohort for launch in self.launches for cohort in launch.cohorts]
        self.params = [param for launch in self.launches for param in launch.params]
        self.grows = any(launch.program.new_state for launch in self.launches)

    def ready(self, rule: Any, scaling: Scaling | None) -> bool:
        """### Prepare a step; False if something is not as it was. Nothing is written"""
        # Whatever reader a group wants is part of its signature.
        if self._scaled != (scaling is not None and scaling.grad_scale is not None):
            return False
        if own_numbers(rule) != self._own:
            return False
        self._scaling = scaling
        return all(map(DeviceLaunch.take, self.launches, repeat(rule), self._signatures))

    def run(self, rule: Any) -> bool:
        """### Step. False if the plan must be made anew, because the states have new entries"""
        for launch in self.launches:
            launch.go(self._scaling, rule._state_is_known)
        if not self.grows:
            return True
        for launch in self.launches:
            launch.adopt(rule)
        return False

    def counts(self) -> list[int]:
        """### The steps that each cohort has taken, its first parameter that is; to look is to wait for the device"""
        states = [cohort.states[0] for cohort in self.cohorts]
        return [int(state["step"].item()) for state in states if "step" in state]


def real(cohort: Cohort) -> torch.dtype:
    """The dtype of the arithmetic."""
    return compute_dtype(cohort.params[0])


def own_numbers(rule: Any) -> tuple[Any, ...]:
    """What a rule keeps of numbers outside of its groups, which a reading takes for constants."""
    return tuple((k, v) for k, v in vars(rule).items() if isinstance(v, (bool, int, float, str)) and k[0] != "_")


class DeviceLaunch(TritonLaunch):
    """## Both kernels, and the tensors that they are called for"""

    kernels = 2

    def __init__(self, rule: Any, reading: Reading, cohorts: list[Cohort], dry: bool) -> None:
        self.reading = reading
        super().__init__(rule, reading.programs[0], cohorts, dry)

    def _print(self, title: str) -> str:
        reading, slots, kind = self.reading, slots_of(self.cohorts[0], self.program), real(self.cohorts[0])

        def text() -> str:
            return triton_source(title, reading.programs, kind, slots, guarded=True) + numbers_source(reading)

        return self.program.memo((id(reading), title, kind, *slots), text)

    def _load(self) -> None:
        functions = load(self.source)
        self.function, self._calculate = functions["step"], functions["calculate"]

    def _lay_out(self) -> None:
        n, rows = len(self.params), len(self.cohorts)
        self.device = device = local(self.params[0]).device
        width, columns = self.reading.width, self.reading.columns
        self.row = array("d", [0.0] * rows * len(columns))
        self._put = Struct("".join("d" if c.dtype is None else "Q" for c in columns) * rows).pack_into
        groups = [k * len(columns) for k, cohort in enumerate(self.cohorts) for _ in cohort.params]
        cells = [[s[name].data_ptr() for s in self.states] for name in self.reading.cells]
        if any(len(set(places)) < n for places in cells):
            raise Unrecordable("parameters share a number of their states, which the device would count for each")
        with torch.no_grad(), on(device):
            self.fixed = table(self.addresses, self.sizes, [k * width for k in range(n)], device)
            self._tensors_table = torch.tensor([groups, *cells], dtype=torch.int64, device=CPU).to(device)
            self.fresh = Fresh(n, len(self.row), device)
            self._spares = [self.fresh.memory() for _ in range(SPARES)]
            self._zero, self._one = (torch.full((), x, dtype=torch.float32, device=device) for x in (0.0, 1.0))
            numbers = torch.zeros(n * width, dtype=torch.float64, device=device)
            self._large = (self.fixed, self.fresh.grads, numbers)
            self._small = (self._tensors_table, self.fresh.words, numbers)
            self._blocks = blocks(self.sizes)
            compile_now(self.function, (*self._large, self._zero, n), BLOCK=BLOCK)
            compile_now(self._calculate, (*self._small, self._zero, self._one, n), BLOCK=NUMBERS_BLOCK)
        # Tensors and lists are looked at anew at each step.
        self._seen: list[Any] = []
        self._restless = True

    def take(self, rule: Any, expected: tuple[Any, ...]) -> bool:
        """
        ### Look whether all is as it was, and take what is new: gradients and hyper-parameters

        The signature of all groups must be as `expected`.
        """
        if (rule._state_is_known and self.look.states_changed()) or self.look.gradients_changed():
            return False
        if not self._spares and is_capturing(self.device):
            raise RuntimeError(f"{SPARES} steps were captured in CUDA graphs: take one outside before the next capture")
        groups = [rule.param_groups[cohort.group] for cohort in self.cohorts]
        values = [value for group in groups for value in group.values()]
        if self._restless or len(values) != len(self._seen) or not all(map(is_, values, self._seen)):
            if any(signature(group, self.device) != expected for group in groups):
                return False
            others = (value for group in groups for name, value in group.items() if name != "params")
            self._seen, self._restless = values, any(map(is_restless, others))
            self._put(self.row, 0, *(column.of(group) for group in groups for column in self.reading.columns))
        return True

    def go(self, scaling: Scaling | None, state_is_known: bool) -> None:
        """### Step, and tell autograd what was written"""
        capturing = is_capturing(self.device)
        with on(self.device):
            host = self._spares.pop() if capturing else self.fresh.memory()
            self.fresh.send(place(self.table) + 8 * len(self.params), place(self.row), host)
            if capturing:
                _captured.append((host, self.fresh, self._small, self._large, self._zero, self._one))
            while not capturing and len(self._spares) < SPARES:
                self._spares.append(self.fresh.memory())
            told = scaling or Scaling(None, None)
            self.launch(self._brought(told.found_inf, self._zero), self._brought(told.grad_scale, self._one))
        self.look.mark()
        if state_is_known:
            self.look.mark_states()

    def _brought(self, tensor: Tensor | None, otherwise: Tensor) -> Tensor:
        return otherwise if tensor is None else tensor.to(self.device, non_blocking=True)

    def launch(self, found_inf: Tensor, grad_scale: Tensor) -> None:
        """### Both kernels: all that a graph repeats beside the copy"""
        n = len(self.params)
        grid = ((n + NUMBERS_BLOCK - 1) // NUMBERS_BLOCK,)
        self._calculate[grid](*self._small, found_inf, grad_scale, n, BLOCK=NUMBERS_BLOCK, **OPTIONS)
        if self._blocks:
            self.function[(self._blocks,)](*self._large, found_inf, n, BLOCK=BLOCK, **OPTIONS)
