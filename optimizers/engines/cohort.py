"""
---
title: Cohorts
summary: Which parameters step together.
---

# Cohorts

Parameters may be handed to a rule together if the rule would do the same to each: same group, same count of steps, same
kind of state. The count is each parameter's own, as in torch: one whose gradient was missing once is a step
behind, corrects its bias accordingly, and so is in another cohort.

Which of them have gradients may change at each step. On the CPU [a launch](launch.html) also holds those that have none
at the moment, and makes new cohorts when they come back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from optimizers.engines.c_kernel import STORAGE
from optimizers.engines.shard import is_plain, local, placed
from optimizers.engines.state import (
    CPU,
    compute_dtype,
    imagined_state,
    is_settled,
    new_state,
    real_dtype,
    settle_scalars,
)

#: What lists of torch don't take either.
LAZY = "a lazily negated or conjugated view"


@dataclass
class Cohort:
    """
    ## Parameters that step together

    * `group` is the index of their parameter group.
    * `kind` is what cohorts must have in common to share a kernel: everything but numbers.
    * `params` and `states` belong together. `names` are the entries of the states that are tensors.
    * `scalars` are the numbers in the state *before* the step, such as the count; `others` is what else there is.
    * `obstacle` says why no kernel can take them, or is empty. `sparse` gradients are one reason, `shared` memory is
      another. `tensor_hypers` says that some hyper-parameter is a tensor.
    * `on_device` says that the numbers are those of the device: the scalars are not known here, and may differ.
    * `absent` says that they have no gradients at the moment, so they don't step. When they have, they step as the
      others do.
    """

    group: int
    kind: Any
    names: tuple[str, ...]
    scalars: dict[str, float]
    others: dict[str, Any]
    obstacle: str
    sparse: bool
    shared: bool
    tensor_hypers: bool
    on_device: bool = False
    absent: bool = False
    params: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def next_scalars(self) -> dict[str, float]:
        """### The scalars as the rule sees them: the count is already that of this step"""
        if "step" not in self.scalars:
            return self.scalars
        return {**self.scalars, "step": self.scalars["step"] + 1}


def gather(rule: Any, dry: bool = False, on_device: Callable[[Any, Tensor], bool] | None = None) -> list[Cohort]:
    """
    ## The cohorts of this step

    Raises `RuntimeError` for a sparse gradient where the rule can't take one. New parameters get their state,
    which `adopt` puts in its place. A `dry` run is for looking: every parameter counts as having a gradient.
    `on_device` tells of a group and a parameter whether its numbers are the device's.
    """
    cohorts: dict[Any, Cohort] = {}
    active = [(i, p) for i, g in enumerate(rule.param_groups) for p in g["params"] if dry or p.grad is not None]
    if rule.sparse_error and any(p.grad is not None and p.grad.is_sparse for _, p in active):
        raise RuntimeError(rule.sparse_error)
    shared = _share_memory([p for _, p in active])
    # A parameter may be there twice (torch warns of it). It then steps twice, with one state.
    states = states_of(rule)
    met: dict[int, list[dict[str, Any]]] = {}
    for index, param in active:
        group, grad = rule.param_groups[index], param if param.grad is None else param.grad
        turns = met.setdefault(id(param), [])
        state = turns[0] if turns else states.get(param)
        if not state:
            state = (imagined_state if dry else new_state)(rule, group, param)
        turns.append(state)
        obstacle = "parameters share memory" if shared else _obstacle(param, grad, _tensors(rule, state), dry)
        there = on_device is not None and not obstacle and on_device(group, param)
        if not (dry and there):
            settle_scalars(rule, state, param.device if there else CPU)
        _join(cohorts, rule, index, param, state, obstacle=obstacle, shared=shared, there=there, turn=len(turns))
    return list(cohorts.values())


def gather_absent(rule: Any, may_wait: Callable[[Any, Tensor], bool]) -> list[Cohort]:
    """
    ## Those that have no gradients at the moment

    `may_wait` tells of a group and a parameter whether a launch could hold it. Nothing is changed or refused here: who
    isn't ready to step as it is has no part in it.
    """
    states, cohorts, waiting = states_of(rule), dict[Any, Cohort](), list[Tensor]()
    active = [p for g in rule.param_groups for p in g["params"] if p.grad is not None]
    stateless = not any(states.get(p) for p in active)
    for index, group in enumerate(rule.param_groups):
        for param in group["params"]:
            state = states.get(param) or {}
            if param.grad is not None or not (state or stateless) or not may_wait(group, param):
                continue
            if is_settled(rule, state) and not _obstacle(param, param, _tensors(rule, state), dry=False):
                # A count may be no number.
                with suppress(ValueError, OverflowError):
                    _join(cohorts, rule, index, param, state, absent=True)
                    waiting.append(param)
    return [] if waiting and _share_memory([*active, *waiting]) else list(cohorts.values())


def _tensors(rule: Any, state: dict[str, Any]) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if isinstance(t, Tensor) and n not in rule.scalar_state}


def _join(
    cohorts: dict[Any, Cohort],
    rule: Any,
    index: int,
    param: Tensor,
    state: dict[str, Any],
    *,
    obstacle: str = "",
    shared: bool = False,
    there: bool = False,
    absent: bool = False,
    turn: int = 1,
) -> None:
    """Put a parameter into the cohort of its kind."""
    grad, tensors = param if param.grad is None else param.grad, _tensors(rule, state)
    # To ask a device for a number is to wait for it.
    known = {} if there else state
    scalars = {name: as_number(name, known.get(name, 0.0)) for name in rule.scalar_state if name in state}
    others = {n: v for n, v in state.items() if n not in tensors and n not in scalars}
    dtypes = tuple((name, tensor.dtype) for name, tensor in tensors.items())
    mesh = (placed(param) or (None,))[0]
    memory = (param.dtype, param.device, grad.dtype, type(param), grad.layout, mesh)
    kind = (*memory, obstacle, dtypes, tuple(scalars), repr(others), there)
    key = (index, tuple(scalars.items()), kind, turn)
    if key not in cohorts:
        tensor_hypers = any(map(_has_tensor, rule.param_groups[index].values()))
        about = (obstacle, grad.is_sparse, shared, tensor_hypers, there, absent)
        cohorts[key] = Cohort(index, kind, tuple(tensors), scalars, others, *about)
    cohorts[key].params.append(param)
    cohorts[key].states.append(state)


def adopt(rule: Any, cohorts: list[Cohort]) -> None:
    """### Put the states of new parameters in their place. A rule without state leaves none, as in torch"""
    for cohort in cohorts:
        for param, state in zip(cohort.params, cohort.states, strict=True):
            if state:
                states_of(rule)[param] = state


def states_of(rule: Any) -> dict[Tensor, dict[str, Any]]:
    """The states of an optimizer, asked for by the engines: nobody else gets to know them by that."""
    states: dict[Tensor, dict[str, Any]] | None = vars(rule).get("state")
    # A wrapper that poses as the rule has none, and shows those of the rule.
    return rule.state if states is None else states


def wish(rule: Any, cohort: Cohort) -> tuple[bool | None, bool | None]:
    """The reader that the user asks for: `foreach` and `fused` of the cohort's group."""
    group = rule.param_groups[cohort.group]
    return group["foreach"], group["fused"]


def as_stored(name: str, value: float) -> float:
    """
    A scalar as it will be read back from its float32 tensor, so that a run that is resumed does not differ from one
    that is not. A count is exact.
    """
    return value if name == "step" else ctypes.c_float(value).value


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple) and any(isinstance(v, Tensor) for v in value))


def as_number(name: str, value: Any) -> float:
    """A scalar of a state as the rule gets it: a count is whole."""
    number = value.item() if isinstance(value, Tensor) else value
    return int(number) if name == "step" else float(number)


def _share_memory(params: list[Tensor]) -> bool:
    """Whether two parameters lie over each other: they then must move one after the other."""
    parts = [local(p) for p in params if p.layout == torch.strided and is_plain(p)]
    spans = sorted(_span(part) for part in parts if part.numel())
    return any(start < end for (_, end), (start, _) in pairwise(spans))


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the first byte and of the one after the last."""
    if tensor.device.type == "meta":
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _obstacle(param: Tensor, grad: Tensor, tensors: dict[str, Tensor], dry: bool) -> str:
    """Why no kernel can take a parameter: the first thing that is in the way."""
    if all(_is_simple(tensor, param) for tensor in (param, grad, *tensors.values())):
        return ""
    if not is_plain(param):
        return f"the parameter is a {type(param).__name__}"
    others = {"gradient": grad, **{f"state {name!r}": tensor for name, tensor in tensors.items()}}
    for what, tensor in others.items():
        if not is_plain(tensor) or placed(tensor) != placed(param):
            return f"the {what} is a {type(tensor).__name__} that is not cut as the parameter is"
    param, others = local(param), {what: local(tensor) for what, tensor in others.items()}
    if param.layout == torch.strided and not _is_dense(param):
        return f"the parameter has gaps in memory: shape {tuple(param.shape)}, strides {param.stride()}"
    for what, tensor in {"parameter": param, **others}.items():
        if tensor.layout != torch.strided:
            return f"the {what} is {tensor.layout}"
        if real_dtype(tensor.dtype) not in STORAGE or tensor.is_complex() != param.is_complex():
            return f"the {what} has dtype {tensor.dtype}"
        if tensor.shape != param.shape:
            return f"the {what} has another shape than the parameter"
        if not same_layout(tensor, param):
            return f"the {what} has strides {tensor.stride()}, the parameter has {param.stride()}"
        if tensor.is_neg() or tensor.is_conj():
            return f"the {what} is {LAZY}"
        if tensor._is_zerotensor():
            return f"the {what} is of zeros that lie nowhere"
        if tensor.device != param.device and not dry:
            return f"the {what} is on {tensor.device}"
    if compute_dtype(param) not in (torch.float32, torch.float64):
        return f"the parameter has dtype {param.dtype}"
    return ""


def _is_simple(tensor: Tensor, param: Tensor) -> bool:
    """Whether nothing can be in the way: the commonest case, told quickly."""
    return (
        type(tensor) in (Tensor, Parameter)
        and tensor.dtype in STORAGE
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and tensor.device == param.device
        and tensor.shape == param.shape
        and not (tensor.is_neg() or tensor._is_zerotensor())
    )


def same_layout(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order; a dimension of 1 has any stride."""
    if one.stride() == two.stride() or one.numel() == 0:
        return True
    return all(a == b for a, b, n in zip(one.stride(), two.stride(), one.shape, strict=True) if n != 1)


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted((st, n) for st, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _differ(one: float, two: float) -> bool:
    """Whether two numbers differ; NaN is what it is."""
    return one != two and (one == one or two == two)


class Counts:
    """
    ## The scalars of a cohort's states, watched

    Reading a tensor's number by `item()` and adding to it by `add_` takes longer than a small step. They are
    floats in memory that we know the place of.
    """

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.tensors = {name: [state[name] for state in cohort.states] for name in cohort.scalars}
        self._places = {name: [t.data_ptr() for t in tensors] for name, tensors in self.tensors.items()}
        self._cells = {name: list(map(ctypes.c_float.from_address, at)) for name, at in self._places.items()}

    def unchanged(self) -> bool:
        """Whether all are what the cohort takes them for."""
        for name, tensors in self.tensors.items():
            if any(state.get(name) is not t for state, t in zip(self.cohort.states, tensors, strict=True)):
                return False
            # The memory of a tensor may be moved, to where other processes see it.
            if list(map(Tensor.data_ptr, tensors)) != self._places[name]:
                return False
            expected = ctypes.c_float(self.cohort.scalars[name]).value
            if any(_differ(cell.value, expected) for cell in self._cells[name]):
                return False
        return True

    def refresh(self) -> None:
        """Take what the scalars are now."""
        for name, cells in self._cells.items():
            value = cells[0].value
            self.cohort.scalars[name] = int(value) if name == "step" else value

    def advance(self, scalars: dict[str, float]) -> None:
        """Write the scalars of the next step."""
        for name, value in scalars.items():
            for cell in self._cells[name]:
                cell.value = value
        self.cohort.scalars = {name: as_stored(name, value) for name, value in scalars.items()}
