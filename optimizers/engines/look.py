"""
---
title: Looking for changes
summary: What may have changed since the last step, found out quickly.
---

# Looking for changes

Between two steps anything may happen: gradients are new tensors each time, and may be sparse, of another dtype or
shape, or laid out differently; a parameter's memory may have been exchanged; states may have been replaced. A kernel
that trusts an old address then computes rubbish, or worse. So every step looks.

Python's time per parameter decides the speed of small models. The functions that look are therefore written out
for the case at hand, without inner loops. They give None, or False, if something is not as expected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optimizers.engines.shard import is_distributed, local

#: From this number of tensors on, looking at all at once takes less time than looking at one after another.
BULK = 32

_data_ptr = Tensor.data_ptr


def expected(param: Tensor) -> tuple[Any, ...]:
    """What is expected of a parameter and its gradient: a row for the function that `gradient_looker` gives."""
    part, grad = local(param), local(param.grad)
    return param, part.data_ptr(), grad.dtype, grad.numel(), part.stride(), grad.stride()


def gradient_looker(params: list[Tensor]) -> Callable[[Any], list[int] | None]:
    """
    ## Look at parameters and gradients

    The function gives the addresses of the gradients. It may raise `AttributeError`, `TypeError` or `RuntimeError`
    where a gradient is missing or sparse.
    """
    bulk = bulk_gradient_looker(params) if len(params) >= BULK and not is_distributed(params[0]) else None
    if bulk is not None:
        return bulk
    checks = ["param.data_ptr() != at", "grad.dtype is not dtype", "grad.numel() != numel"]
    parts = list(map(local, params))
    # Asking whether a tensor is contiguous is quicker than asking for its strides.
    contiguous = all(p.is_contiguous() for p in parts)
    if contiguous:
        checks += ["not grad.is_contiguous()", "not param.is_contiguous()"]
    else:
        checks += ["grad.stride() != grad_stride", "param.stride() != stride"]
    checks += ["grad.is_conj()"] if params[0].is_complex() else []
    # Views that are negated later (of imaginary parts) have gaps, unless they have one element.
    checks += ["grad.is_neg()"] if any(p.numel() == 1 for p in parts) else []
    take_parts = _TAKE_PARTS if is_distributed(params[0]) else ""
    look: Callable[[Any], list[int] | None] = _compiled(f"""
def look(rows):
    addresses = []
    append = addresses.append
    for param, at, dtype, numel, stride, grad_stride in rows:
        grad = param.grad{take_parts}
        if {" or ".join(checks)}:
            return None
        append(grad.data_ptr())
    return addresses
""")
    return look


_TAKE_PARTS = """
        if grad.placements != param.placements or grad.device_mesh != param.device_mesh:
            return None
        grad, param = grad._local_tensor, param._local_tensor
        if grad.__class__ is not Tensor:
            return None"""


def bulk_gradient_looker(params: list[Tensor]) -> Callable[[Any], list[int] | None] | None:
    """
    ## Look at many parameters and gradients

    torch's compiler has guards that compare type, dtype, device, sizes and strides of many tensors in one call. They
    are not part of its public interface, so this gives None where they are not as expected.
    """
    guards: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    addresses = list(map(_data_ptr, params))
    try:
        kept, unchanged = (
            guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
            for tensors in ([p.grad for p in params], params)
        )
        if not (kept(*[p.grad for p in params]) and unchanged(*params)):
            return None
    except (AttributeError, TypeError, RuntimeError):
        return None

    def look(rows: Any) -> list[int] | None:
        grads: list[Any] = [p.grad for p in params]
        if not (kept(*grads) and unchanged(*params)) or list(map(_data_ptr, params)) != addresses:
            return None
        return list(map(_data_ptr, grads))

    return look


def expected_state(state: dict[str, Any], names: tuple[str, ...], scalars: tuple[str, ...]) -> tuple[Any, ...]:
    """What is expected of a state: a row for the function that `state_looker` gives."""
    parts = [local(state[name]) for name in names]
    tensors = (fact for part in parts for fact in (part.data_ptr(), part.stride()))
    return state, *tensors, *(part for name in scalars for part in (state[name], state[name].data_ptr()))


def state_looker(names: tuple[str, ...], scalars: tuple[str, ...], distributed: bool) -> Callable[[Any], bool]:
    """
    ## Look at states

    The tensors `names` must lie where they lay. The scalars must be the same objects, too; their values are the
    kernel's to look at. The function raises `KeyError` where one is missing.
    """
    places = [part for i in range(len(names)) for part in (f"at_{i}", f"stride_{i}")]
    cells = [part for i in range(len(scalars)) for part in (f"cell_{i}", f"place_{i}")]
    part = "._local_tensor" if distributed else ""
    checks = [f"state[{name!r}]{part}.data_ptr() != at_{i}" for i, name in enumerate(names)]
    checks += [f"state[{name!r}]{part}.stride() != stride_{i}" for i, name in enumerate(names)]
    checks += [f"state[{name!r}] is not cell_{i}" for i, name in enumerate(scalars)]
    checks += [f"cell_{i}.data_ptr() != place_{i}" for i in range(len(scalars))]
    look: Callable[[Any], bool] = _compiled(f"""
def look(rows):
    for {", ".join(["state", *places, *cells])}, in rows:
        if {" or ".join(checks) or "False"}:
            return False
    return True
""")
    return look


def _compiled(source: str) -> Any:
    namespace: dict[str, Any] = {"Tensor": Tensor}
    exec(source, namespace)
    return namespace["look"]
