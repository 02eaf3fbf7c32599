"""
---
title: The foreach reader's lists
summary: Many tensors behind the methods of one, each method one call of torch's list operations.
---

# Lists of tensors

A `TensorList` has the methods that rules use of a tensor and does each for all its tensors at once. On a GPU that
is a few launches instead of thousands; on a CPU it is what torch does without a compiler. Each method gives,
bit for bit, what the same method gives on each tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _arguments(args: tuple[Any, ...]) -> list[Any]:
    return [a.tensors if isinstance(a, TensorList) else a for a in args]


def _method(name: str, function: str = "") -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The out-of-place and the in-place form of a list operation; one tensor after another where torch has none."""
    stem = f"_foreach_{function or name}"
    many, many_ = getattr(torch, stem, None), getattr(torch, stem + "_", None)

    def method(self: TensorList, *args: Any, **kwargs: Any) -> TensorList:
        if many is None:
            return self._each(name, args, kwargs)
        return TensorList(many(self.tensors, *_arguments(args), **kwargs))

    def method_(self: TensorList, *args: Any, **kwargs: Any) -> TensorList:
        if many_ is None:
            self._each(name + "_", args, kwargs)
        else:
            many_(self.tensors, *_arguments(args), **kwargs)
        return self

    return method, method_


def _scaled(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    # torch's list operations take alpha for a list, not for a number.
    method, method_ = _method(name)

    def with_alpha(call: Callable[..., Any]) -> Callable[..., Any]:
        def scaled(self: TensorList, other: Any, *, alpha: Any = 1) -> Any:
            if isinstance(other, TensorList):
                return call(self, other, alpha=alpha)
            return call(self, other * alpha)

        return scaled

    return with_alpha(method), with_alpha(method_)


def _by_tensor(name: str) -> Callable[..., Any]:
    def method(self: TensorList, *args: Any, **kwargs: Any) -> TensorList:
        return self._each(name, args, kwargs)

    return method


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def method(self: TensorList, other: Any) -> TensorList:
        return TensorList([function(other, t) for t in self.tensors])

    return method


class TensorList:
    """## Many tensors, used as one"""

    __slots__ = ("tensors",)
    is_sparse = False

    def __init__(self, tensors: Any) -> None:
        self.tensors: list[Tensor] = list(tensors)

    def _each(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorList:
        def at(i: int, x: Any) -> Any:
            return x.tensors[i] if isinstance(x, TensorList) else x

        return TensorList(
            getattr(t, name)(*(at(i, a) for a in args), **{k: at(i, a) for k, a in kwargs.items()})
            for i, t in enumerate(self.tensors)
        )

    add, add_ = _scaled("add")
    sub, sub_ = _scaled("sub")
    mul, mul_ = _method("mul")
    div, div_ = _method("div")
    pow, pow_ = _method("pow")
    maximum, _ = _method("maximum")
    minimum, _ = _method("minimum")
    addcmul, addcmul_ = _method("addcmul")
    addcdiv, addcdiv_ = _method("addcdiv")
    lerp, lerp_ = _method("lerp")
    clamp_min, clamp_min_ = _method("clamp_min")
    clamp_max, clamp_max_ = _method("clamp_max")
    sqrt, sqrt_ = _method("sqrt")
    rsqrt, rsqrt_ = _method("rsqrt")
    reciprocal, reciprocal_ = _method("reciprocal")
    abs, abs_ = _method("abs")
    sign, sign_ = _method("sign")
    neg, neg_ = _method("neg")
    exp, exp_ = _method("exp")
    log, log_ = _method("log")
    tanh, tanh_ = _method("tanh")
    square, square_ = _by_tensor("square"), _by_tensor("square_")
    clamp, clamp_ = _by_tensor("clamp"), _by_tensor("clamp_")
    lt, le, gt, ge = _by_tensor("lt"), _by_tensor("le"), _by_tensor("gt"), _by_tensor("ge")
    logical_and, logical_or, logical_not = (
        _by_tensor("logical_and"),
        _by_tensor("logical_or"),
        _by_tensor("logical_not"),
    )
    __and__ = __rand__ = logical_and
    __or__ = __ror__ = logical_or
    __invert__ = logical_not
    eq, ne, clone = _by_tensor("eq"), _by_tensor("ne"), _by_tensor("clone")
    where, fill_, zero_, to = _by_tensor("where"), _by_tensor("fill_"), _by_tensor("zero_"), _by_tensor("to")
    detach, type_as = _by_tensor("detach"), _by_tensor("type_as")
    _, copy_ = _method("copy")
    del _

    multiply, multiply_, divide, divide_, true_divide, subtract, subtract_ = mul, mul_, div, div_, div, sub, sub_
    negative, absolute, clip, clip_ = neg, abs, clamp, clamp_
    float, double, half, bfloat16 = (_by_tensor(n) for n in ("float", "double", "half", "bfloat16"))
    __add__ = __radd__ = add
    __sub__, __rsub__ = sub, _swapped(operator.sub)
    __mul__ = __rmul__ = mul
    __truediv__, __rtruediv__ = div, _swapped(operator.truediv)
    __pow__, __rpow__ = pow, _swapped(operator.pow)
    __neg__, __abs__ = neg, abs
    __iadd__, __isub__, __imul__, __itruediv__, __ipow__ = add_, sub_, mul_, div_, pow_
    __lt__, __le__, __gt__, __ge__ = lt, le, gt, ge
    __eq__, __ne__ = eq, ne
    __hash__ = object.__hash__

    @property
    def data(self) -> TensorList:
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`torch.sqrt(x)` is `x.sqrt()`; what is no method is called for each tensor."""
        kwargs = dict(kwargs or {})
        out = kwargs.pop("out", None)
        method = getattr(args[0], getattr(func, "__name__", ""), None) if isinstance(args[0], TensorList) else None
        if func is not torch.where and method is not None:
            made = method(*args[1:], **kwargs)
        else:
            count = max(len(a.tensors) for a in args if isinstance(a, TensorList))
            made = TensorList(
                func(*(a.tensors[i] if isinstance(a, TensorList) else a for a in args), **kwargs) for i in range(count)
            )
        return made if out is None else out.copy_(made)


def copy_all(targets: list[Tensor], values: list[Tensor]) -> None:
    """Copy a list of tensors into another, in as few calls as torch has for it."""
    torch._foreach_copy_(targets, values)
