"""
---
title: The single and the foreach reader
summary: The rule run at once, on one tensor after another or on lists of them.
---

# The single and the foreach reader

Both hand the rule something that computes at once. The **single** reader hands it the real tensors of one
parameter after another. It is slow and plain, it takes whatever torch can compute, and it defines what is right: all
other readers are tested against it. The **foreach** reader hands it [lists](tensor_list.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from optimizers.engines.cohort import Cohort
from optimizers.engines.shard import cut_as, is_distributed, local, whole_of
from optimizers.engines.state import StateView, compute_dtype, group_numbers, refuse_number
from optimizers.engines.tensor_list import TensorList, copy_all


def step_single(rule: Any, cohort: Cohort, scale: float | None) -> dict[str, float]:
    """## Move the parameters of a cohort, one after another, and give the scalars that follow"""
    group = group_numbers(rule.param_groups[cohort.group])
    for param, state in zip(cohort.params, cohort.states, strict=True):
        scalars = _step(rule, group, cohort, [param], [state], scale, lists=False)
    return scalars


def step_foreach(rule: Any, cohort: Cohort, scale: float | None) -> dict[str, float]:
    """
    ## Move the parameters of a cohort together, and give the scalars that follow

    Of a distributed tensor each process moves what it has. Lists keep to what is done element by element, so no more is
    needed; and torch has some of its list operations for plain tensors only.
    """
    group = group_numbers(rule.param_groups[cohort.group])
    if not is_distributed(cohort.params[0]):
        return _step(rule, group, cohort, cohort.params, cohort.states, scale, lists=True)
    here = _parts(cohort)
    scalars = _step(rule, group, here, here.params, here.states, scale, lists=True)
    for param, state, part in zip(cohort.params, cohort.states, here.states, strict=True):
        state.update({name: whole_of(value, param) for name, value in part.items() if name not in state})
        increment_version([param, *(state[name] for name in cohort.names)])
    return scalars


def _parts(cohort: Cohort) -> Cohort:
    """What lies here of the tensors of a cohort."""
    params, states = [], []
    for param, state in zip(cohort.params, cohort.states, strict=True):
        params.append(local(param).detach())
        params[-1].grad = local(cut_as(param, param.grad))
        state.update({name: cut_as(param, state[name]) for name in cohort.names})
        states.append({name: local(value) for name, value in state.items()})
    return replace(cohort, params=params, states=states)


def _step(
    rule: Any,
    group: dict[str, Any],
    cohort: Cohort,
    params: list[Tensor],
    states: list[dict[str, Any]],
    scale: float | None,
    lists: bool,
) -> dict[str, float]:
    def wrap(tensors: list[Tensor]) -> Any:
        return TensorList(tensors) if lists else tensors[0]

    dtype = compute_dtype(params[0])
    others = {name: states[0][name] for name in cohort.others}
    view = StateView({**others, **cohort.next_scalars()})
    for name in cohort.names:
        view[name] = wrap([lift(state[name], dtype) for state in states])
    theta, grad = [lift(p, dtype) for p in params], [lift(p.grad, dtype) for p in params]
    inputs = [*theta, *grad, *(t for name in cohort.names for t in _tensors(view[name]))]
    rule.update_param(view, group, wrap(grad) if scale is None else wrap(grad).div(scale), wrap(theta))
    lower(params, theta)
    for name, value in view.items():
        if name in cohort.names:
            lower([state[name] for state in states], _tensors(value))
        elif isinstance(value, (Tensor, TensorList)):
            for param, state, made in zip(params, states, _tensors(value), strict=True):
                state[name] = _own(made, param, inputs)
        elif name not in cohort.scalars and value is not others.get(name):
            refuse_number(rule, name, value)
            for state in states:
                state[name] = value
    return {name: view[name] for name in cohort.scalars}


def _tensors(value: Any) -> list[Tensor]:
    return value.tensors if isinstance(value, TensorList) else [value]


def lift(tensor: Any, dtype: torch.dtype) -> Tensor:
    """A tensor as the rule computes with it: real, and in the dtype of the computation."""
    real: Tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real if real.dtype == dtype or not real.is_floating_point() else real.to(dtype)


def lower(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Store what the rule computed, where it was not computed in place. It is rounded here, once."""
    pairs = []
    for target, value in zip(targets, values, strict=True):
        if target.is_complex() and not value.is_complex():
            target = torch.view_as_real(target)
        if value is not target and (value.data_ptr() != target.data_ptr() or value.dtype != target.dtype):
            pairs.append((target, value))
    if len(pairs) == 1:
        # torch copies no lists of distributed tensors.
        pairs[0][0].copy_(pairs[0][1])
    elif pairs:
        copy_all([target for target, _ in pairs], [value for _, value in pairs])


def _own(value: Tensor, param: Tensor, inputs: list[Tensor]) -> Tensor:
    """A tensor that the rule made during the step, as new state: of the parameter's dtype, and sharing no memory."""
    if param.is_complex() and not value.is_complex() and value.shape == (*param.shape, 2):
        value = torch.view_as_complex(value.contiguous())
    if value.dtype != param.dtype and value.is_floating_point():
        return value.to(param.dtype)
    shared = not value.is_sparse and (value._is_view() or any(value is other for other in inputs))
    return value.clone() if shared else value
