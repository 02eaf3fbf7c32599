"""
---
title: The single reader
summary: One parameter at a time with plain tensors, the reference for all other readers.
---

# The single reader

The rule is handed real tensors, one parameter after another. It is slow and plain, and it defines what is right:
every other reader is tested against it. It takes whatever torch can compute, sparse gradients and norms included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optimizers.engines.state import StateView, compute_dtype


def step_one(rule: Any, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Any]) -> None:
    """
    ## Move one parameter by the rule

    `group` holds numbers. What the rule assigns to the state is kept in `state`.
    """
    dtype = compute_dtype(param)
    view = StateView()
    for name, value in state.items():
        if name in rule.scalar_state:
            number = value.item()
            dict.__setitem__(view, name, int(number) + 1 if name == "step" else number)
        else:
            view[name] = lift(value, dtype) if isinstance(value, Tensor) else value
    given = dict(view)
    theta, grad = lift(param, dtype), lift(grad, dtype)
    rule.update_param(view, group, grad, theta)
    lower(param, theta)
    for name, value in view.items():
        if name in rule.scalar_state:
            state[name].fill_(value)
        elif not isinstance(value, Tensor):
            state[name] = value
        elif isinstance(state.get(name), Tensor):
            lower(state[name], value)
        else:
            state[name] = _own(value, param, (grad, theta, *given.values()))


def lift(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as the rule computes with it: real, and in the dtype of the computation."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.dtype == dtype or not tensor.is_floating_point() else tensor.to(dtype)


def lower(target: Tensor, value: Tensor) -> None:
    """Store what the rule computed, where it was not computed in place. It is rounded here, once."""
    if target.is_complex() and value.dim() == target.dim() + 1:
        target = torch.view_as_real(target)
    if value is not target and value.data_ptr() != target.data_ptr():
        target.copy_(value)


def _own(value: Tensor, param: Tensor, inputs: tuple[Any, ...]) -> Tensor:
    """A tensor that the rule made during the step, as new state: of the parameter's dtype, and sharing no memory."""
    if param.is_complex() and value.shape == (*param.shape, 2):
        value = torch.view_as_complex(value.contiguous())
    if value.dtype != param.dtype and value.is_floating_point():
        return value.to(param.dtype)
    shared = value._is_view() or any(value is other for other in inputs)
    return value.clone() if shared else value
