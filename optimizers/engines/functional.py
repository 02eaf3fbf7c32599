"""
---
title: The functional reader
summary: The rule out of place, so that gradients flow through a step.
---

# The functional reader

`differentiable=True` asks for steps that autograd can go back through: to learn a learning rate, or an initialisation.
Nothing may then be overwritten that the way back needs. So the rule is handed values whose methods *in place* make
a new tensor, and only the object changes what it stands for. Hyper-parameters that are tensors stay tensors.

The same values make pure functions of a rule: [`as_functions`](../functional.html).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode

from optimizers.engines.cohort import Cohort
from optimizers.engines.eager import lift
from optimizers.engines.state import StateView, compute_dtype

#: What is asked of a tensor without calling it.
_ATTRIBUTES = {"T", "device", "mT", "ndim", "shape"}


class Functional:
    """## A tensor that is never written; its methods in place let it stand for a new one"""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _ATTRIBUTES:
            return _wrapped(getattr(self.tensor, name))
        if not name.endswith("_"):
            return lambda *args, **kwargs: _wrapped(_apply(name, self.tensor, args, kwargs))

        def in_place(*args: Any, **kwargs: Any) -> Functional:
            self.tensor = _apply(name.rstrip("_"), self.tensor, args, kwargs)
            return self

        return in_place

    @property
    def data(self) -> Functional:
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def is_sparse(self) -> bool:
        return self.tensor.is_sparse

    def detach(self) -> Functional:
        return self

    def clone(self, **_: Any) -> Functional:
        # Of its own: a new state must not be the gradient that the caller may clear.
        return Functional(self.tensor.clone())

    def copy_(self, source: Any) -> Functional:
        value = _plain(source)
        if not isinstance(value, Tensor):
            value = torch.full_like(self.tensor, value)
        self.tensor = value.to(self.tensor.dtype, copy=True).expand_as(self.tensor)
        return self

    def fill_(self, value: Any) -> Functional:
        return self.copy_(value)

    def zero_(self) -> Functional:
        return self.copy_(0.0)

    def __matmul__(self, other: Any) -> Functional:
        return Functional(self.tensor @ _plain(other))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A function of torch, out of place; `out=` lets its operand stand for the result."""
        kwargs = dict(kwargs or {})
        out = kwargs.pop("out", None)
        made = func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})
        return _wrapped(made) if out is None else out.copy_(made)


def _wrapped(value: Any) -> Any:
    return Functional(value) if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, Functional) else value


def _operand(value: Any, tensor: Tensor) -> Any:
    """What a tensor meets: a number that is a tensor is rounded to its dtype, as any number is."""
    if isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point() and tensor.is_floating_point():
        return value.to(tensor.dtype)
    return _plain(value)


def _apply(name: str, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A method of a tensor, also with a factor that is itself a tensor, which torch would take the number of."""
    values = [_operand(arg, tensor) for arg in args]
    factor = kwargs.get("alpha", kwargs.get("value"))
    if isinstance(factor, Tensor):
        factor = _operand(factor, tensor)
        if name in ("add", "sub"):
            return getattr(operator, name)(tensor, factor * values[0])  # type: ignore[no-any-return]
        if name in ("addcmul", "addcdiv"):
            one, two = values
            product: Tensor = factor * (one * two if name == "addcmul" else one / two)
            return tensor + product
    named = {key: _plain(value) for key, value in kwargs.items()}
    return getattr(tensor, name)(*values, **named)  # type: ignore[no-any-return]


def _operator(function: Callable[..., Any], swapped: bool) -> Callable[..., Functional]:
    def apply(self: Functional, *others: Any) -> Functional:
        operands = [self.tensor, *(_operand(other, self.tensor) for other in others)]
        return Functional(function(*(reversed(operands) if swapped else operands)))

    return apply


def _in_place(function: Callable[..., Any]) -> Callable[..., Functional]:
    def apply(self: Functional, other: Any) -> Functional:
        self.tensor = function(self.tensor, _operand(other, self.tensor))
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
    group = functional_group(rule.param_groups[cohort.group])
    for param, state in zip(cohort.params, cohort.states, strict=True):
        grad = param.grad if scale is None else lift(param.grad, compute_dtype(param)).div(scale)
        numbers, tensors = {**cohort.others, **cohort.next_scalars()}, {name: state[name] for name in cohort.names}
        theta, made = step_out_of_place(rule, group, numbers, tensors, grad, param)
        param.copy_(theta)
        state.update({name: value for name, value in made.items() if name not in cohort.scalars})
    return {name: float(made[name]) for name in cohort.scalars}


def step_out_of_place(
    rule: Any, group: dict[str, Any], numbers: dict[str, Any], tensors: dict[str, Tensor], grad: Any, param: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """
    ## A parameter and its state after a step

    `numbers` are all of the state that are no moments: the count of this step, and numbers in the form of tensors too.
    Nothing is written, and what is new shares no memory with the gradient.
    """
    dtype = compute_dtype(param)
    view = StateView(numbers)
    for name, tensor in tensors.items():
        view[name] = Functional(lift(tensor, dtype))
    theta, given = Functional(lift(param, dtype)), lift(grad, dtype)
    rule.update_param(view, group, Functional(given), theta)
    made: dict[str, Any] = {}
    for name, value in view.items():
        if isinstance(value, Functional):
            tensor = value.tensor.clone() if value.tensor is given else value.tensor
            value = _lower(tensor, tensors.get(name, param))
        made[name] = value
    return _lower(theta.tensor, param), made


def functional_group(group: dict[str, Any]) -> dict[str, Any]:
    """A group as a rule sees it here: what is a tensor stays one, so that gradients reach it."""
    return {name: _scalar(value) for name, value in group.items() if name != "params"}


def is_mapped(value: Any) -> bool:
    """Whether `vmap` maps over a number, so that nobody can look at its value."""
    if isinstance(value, (tuple, list)):
        return any(map(is_mapped, value))
    if not isinstance(value, Tensor) or value.numel() != 1:
        return False
    try:
        bool(value == value)
    except RuntimeError:
        return True
    return False


def watched(rule: Any, *numbers: dict[str, Any]) -> AbstractContextManager[Any]:
    """While a rule runs with numbers that are tensors: they may not become Python's, which have no gradient."""
    values = (part for many in numbers for v in many.values() for part in (v if isinstance(v, tuple) else (v,)))
    if is_compiling() or not any(isinstance(value, Tensor) for value in values):
        return nullcontext()
    return _Watch(type(rule).__name__)


class _Watch(TorchFunctionMode):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__float__", "__int__", "__index__", "item") and _is_traced(args[0]):
            raise TypeError(
                f"{self.kind} takes a Python number of a tensor that is differentiated or mapped, which would be lost. "
                "Give `i` and the hyper-parameters that it uses so as numbers"
            )
        if name != "__bool__":
            return func(*args, **(kwargs or {}))
        try:
            return func(*args)
        except RuntimeError as error:
            raise TypeError(
                f"{self.kind} decides by a tensor that is mapped, so by many values at once. Give `i` and the "
                "hyper-parameters that it decides by as numbers"
            ) from error


def _is_traced(tensor: Tensor) -> bool:
    return tensor.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _scalar(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_scalar, value))
    # A tensor of more elements is something of the user's own.
    return value.squeeze() if isinstance(value, Tensor) and value.dim() and value.numel() == 1 else value


def _lower(value: Tensor, like: Tensor) -> Tensor:
    if like.is_complex() and not value.is_complex():
        value = torch.view_as_complex(value.contiguous())
    return value.to(like.dtype)
