"""
---
title: The functional reader
summary: The rule out of place, so that gradients flow through a step.
---

# The functional reader

`differentiable=True` asks for steps that autograd can go back through: to learn a learning rate, or an initialisation.
Nothing may then be overwritten that the way back needs. So the rule is handed values whose methods *in place* make
a new tensor, and only the object changes what it stands for. Hyper-parameters that are tensors stay tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optimizers.engines.cohort import Cohort
from optimizers.engines.eager import lift
from optimizers.engines.state import StateView, compute_dtype


class Functional:
    """## A tensor that is never written; its methods in place let it stand for a new one"""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not name.endswith("_"):
            return lambda *args, **kwargs: Functional(_apply(name, self.tensor, args, kwargs))

        def in_place(*args: Any, **kwargs: Any) -> Functional:
            self.tensor = _apply(name.rstrip("_"), self.tensor, args, kwargs)
            return self

        return in_place

    @property
    def data(self) -> Functional:
        return self

    @property
    def is_sparse(self) -> bool:
        return self.tensor.is_sparse

    def detach(self) -> Functional:
        return self

    def clone(self, **_: Any) -> Functional:
        return Functional(self.tensor)

    def copy_(self, source: Any) -> Functional:
        value = _plain(source)
        if not isinstance(value, Tensor):
            value = torch.full_like(self.tensor, value)
        self.tensor = value.to(self.tensor.dtype).expand_as(self.tensor)
        return self

    def fill_(self, value: Any) -> Functional:
        return self.copy_(value)

    def zero_(self) -> Functional:
        return self.copy_(0.0)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A function of torch, out of place; `out=` lets its operand stand for the result."""
        kwargs = dict(kwargs or {})
        out = kwargs.pop("out", None)
        made = func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})
        return Functional(made) if out is None else out.copy_(made)


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, Functional) else value


def _apply(name: str, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A method of a tensor, also with a factor that is itself a tensor, which torch would take the number of."""
    values = [_plain(arg) for arg in args]
    factor = kwargs.get("alpha", kwargs.get("value"))
    if isinstance(factor, Tensor):
        if name in ("add", "sub"):
            return getattr(operator, name)(tensor, factor * values[0])  # type: ignore[no-any-return]
        if name in ("addcmul", "addcdiv"):
            one, two = values
            product: Tensor = one * two if name == "addcmul" else one / two
            return tensor + factor * product
    named = {key: _plain(value) for key, value in kwargs.items()}
    return getattr(tensor, name)(*values, **named)  # type: ignore[no-any-return]


def _operator(function: Callable[..., Any], swapped: bool) -> Callable[..., Functional]:
    def apply(self: Functional, *others: Any) -> Functional:
        operands = [self.tensor, *map(_plain, others)]
        return Functional(function(*(reversed(operands) if swapped else operands)))

    return apply


def _in_place(function: Callable[..., Any]) -> Callable[..., Functional]:
    def apply(self: Functional, other: Any) -> Functional:
        self.tensor = function(self.tensor, _plain(other))
        return self

    return apply


for _name in ("add", "sub", "mul", "truediv", "pow"):
    _function = getattr(operator, _name)
    setattr(Functional, f"__{_name}__", _operator(_function, swapped=False))
    setattr(Functional, f"__r{_name}__", _operator(_function, swapped=True))
    setattr(Functional, f"__i{_name}__", _in_place(_function))
for _name in ("neg", "abs", "lt", "le", "gt", "ge"):
    setattr(Functional, f"__{_name}__", _operator(getattr(operator, _name), swapped=False))


def step_functional(rule: Any, cohort: Cohort, scale: float | None) -> dict[str, float]:
    """
    ## Move the parameters of a cohort so that gradients flow through

    The states hold new tensors afterwards. The parameter is written in place, as torch does it, so it must not be a
    leaf that requires a gradient.
    """
    group = {k: _scalar(v) for k, v in rule.param_groups[cohort.group].items() if k != "params"}
    for param, state in zip(cohort.params, cohort.states, strict=True):
        dtype = compute_dtype(param)
        view = StateView({**cohort.others, **cohort.next_scalars()})
        for name in cohort.names:
            view[name] = Functional(lift(state[name], dtype))
        theta, grad = Functional(lift(param, dtype)), Functional(lift(param.grad, dtype))
        rule.update_param(view, group, grad if scale is None else grad.div(scale), theta)
        param.copy_(_lower(theta.tensor, param))
        for name, value in view.items():
            if isinstance(value, Functional):
                state[name] = _lower(value.tensor, state.get(name, param))
            elif name not in cohort.scalars:
                state[name] = value
    return {name: float(view[name]) for name in cohort.scalars}


def _scalar(value: Any) -> Any:
    return value.squeeze() if isinstance(value, Tensor) and value.dim() else value


def _lower(value: Tensor, like: Tensor) -> Tensor:
    if like.is_complex() and not value.is_complex():
        value = torch.view_as_complex(value.contiguous())
    return value.to(like.dtype)
