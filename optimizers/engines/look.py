"""
---
title: Looking for changes
summary: What may have changed since the last step, found out quickly.
---

# Looking for changes

Between two steps anything may happen: gradients are new tensors each time, and may be sparse, of another dtype or
shape, or laid out differently; a parameter's memory may have been exchanged; states may have been replaced. A kernel
that trusts an old address then computes rubbish, or worse. So every step looks.

The time that this takes decides the speed of small models, so plain tensors are looked at [in C](c_look.html). This
page is for the others: shards of distributed tensors, and a torch that can't be asked from C. What Python does is
written out for the case at hand, without inner loops.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from optimizers.engines.c_look import CLook
from optimizers.engines.compiler import NoCompiler
from optimizers.engines.shard import is_distributed, local

#: torch's `increment_version`, without the wrapper around it, which takes longer than the thing itself.
increment_version: Callable[[Any], None] = torch._C._increment_version

_log = logging.getLogger("optimizers")
_told: set[str] = set()


class Unseen(Exception):
    """Parameters without gradients can't be looked at."""


def look_at(
    params: list[Tensor],
    states: list[dict[str, Any]],
    names: tuple[str, ...],
    counts: tuple[str, ...],
    table: array[int],
    rows: array[int],
) -> CLook | Look:
    """
    ## What looks at these tensors from now on

    `names` are the tensors in the states, and `counts` the numbers. The addresses of the gradients are put in the
    table behind those of the parameters. A parameter that has no gradient at the moment has a negative number in
    `rows`. Raises `Unseen` where there are such, and Python has to look.
    """
    if not is_distributed(params[0]):
        try:
            return CLook(params, states, names, counts, table, rows)
        except NoCompiler as error:
            if str(error) not in _told:
                _told.add(str(error))
                _log.info("gradients are looked at by Python, which takes longer: %s", error)
    if min(rows) < 0:
        raise Unseen
    return Look(params, states, names, counts, table)


class Look:
    """
    ## A look at parameters, gradients and states, by Python

    What it knows is how they were when it was made. `gradients_changed` and `states_changed` say whether something is
    not as it was. `mark` and `mark_states` tell autograd what is written. All parameters must have gradients.
    """

    def __init__(
        self,
        params: list[Tensor],
        states: list[dict[str, Any]],
        names: tuple[str, ...],
        counts: tuple[str, ...],
        table: array[int],
    ) -> None:
        distributed = is_distributed(params[0])
        self._look, self._rows = _gradient_looker(params), [_expected(p) for p in params]
        self._look_at_states = _state_looker(names, counts, distributed)
        self._state_rows = [_expected_state(s, names, counts) for s in states]
        self._written = [*params, *map(local, params)] if distributed else params
        self._tensors = [state[name] for name in names for state in states]
        self._table, self._put = table, Struct(f"{len(params)}Q").pack_into

    def find_present(self) -> None:
        """### Which parameters have gradients; that takes a new plan"""

    def gradients_changed(self) -> bool:
        """### Look at parameters and gradients, and put the addresses of the gradients in their place"""
        try:
            grads = self._look(self._rows)
        except (AttributeError, TypeError, RuntimeError):
            # A gradient is missing, or it is sparse, and has no strides.
            return True
        if grads is None:
            return True
        self._put(self._table, 8 * len(grads), *grads)
        return False

    def states_changed(self) -> bool:
        """### Look at states"""
        try:
            return not self._look_at_states(self._state_rows)
        except (AttributeError, KeyError, TypeError, RuntimeError):
            # A tensor is missing, or is something else.
            return True

    def mark(self) -> None:
        """### Tell autograd that the parameters are written"""
        increment_version(self._written)

    def mark_states(self) -> None:
        """### Tell autograd that the tensors of the states are written"""
        increment_version(self._tensors)


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()


def _names(known: str) -> list[str]:
    return [f"{known}_{fact}" for fact in ("dtype", "shape", "stride")]


def _differs(tensor: str, known: str) -> str:
    checks = [f"{tensor}.{fact} != {known}_{fact.removesuffix('()')}" for fact in ("dtype", "shape", "stride()")]
    # What is put off until somebody reads it, as by `imag` of a conjugate, is not in memory.
    return " or ".join([*checks, *(f"{tensor}.{lazy}()" for lazy in ("is_neg", "is_conj", "_is_zerotensor"))])


def _expected(param: Tensor) -> tuple[Any, ...]:
    """What is expected of a parameter and its gradient: a row for the function that `_gradient_looker` gives."""
    part, grad = local(param), local(param.grad)
    return param, part.data_ptr(), *_facts(part), *_facts(grad)


def _gradient_looker(params: list[Tensor]) -> Callable[[Any], list[int] | None]:
    """
    ## Look at parameters and gradients

    The function gives the addresses of the gradients. It may raise `AttributeError`, `TypeError` or `RuntimeError`
    where a gradient is missing or sparse.
    """
    look: Callable[[Any], list[int] | None] = _compiled(f"""
def look(rows):
    addresses = []
    append = addresses.append
    for {", ".join(["param", "at", *_names("own"), *_names("its")])} in rows:
        grad = param.grad{_TAKE_PARTS if is_distributed(params[0]) else ""}
        if param.data_ptr() != at or {_differs("param", "own")} or {_differs("grad", "its")}:
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


def _expected_state(state: dict[str, Any], names: tuple[str, ...], scalars: tuple[str, ...]) -> tuple[Any, ...]:
    """What is expected of a state: a row for the function that `_state_looker` gives."""
    parts = [local(state[name]) for name in names]
    tensors = (fact for part in parts for fact in (part.data_ptr(), *_facts(part)))
    return state, *tensors, *(part for name in scalars for part in (state[name], state[name].data_ptr()))


def _state_looker(names: tuple[str, ...], scalars: tuple[str, ...], distributed: bool) -> Callable[[Any], bool]:
    """
    ## Look at states

    The tensors `names` must lie where they lay. The scalars must be the same objects, too; their values are the
    kernel's to look at. The function raises `KeyError` where one is missing.
    """
    part = "._local_tensor" if distributed else ""
    places = [name for i in range(len(names)) for name in (f"at_{i}", *_names(f"known_{i}"))]
    cells = [name for i in range(len(scalars)) for name in (f"cell_{i}", f"place_{i}")]
    takes = [f"part_{i} = state[{name!r}]{part}" for i, name in enumerate(names)]
    checks = [f"part_{i}.data_ptr() != at_{i} or {_differs(f'part_{i}', f'known_{i}')}" for i in range(len(names))]
    checks += [f"state[{name!r}] is not cell_{i}" for i, name in enumerate(scalars)]
    checks += [f"cell_{i}.data_ptr() != place_{i}" for i in range(len(scalars))]
    look: Callable[[Any], bool] = _compiled(f"""
def look(rows):
    for {", ".join(["state", *places, *cells])}, in rows:
        {"; ".join(takes) or "pass"}
        if {" or ".join(checks) or "False"}:
            return False
    return True
""")
    return look


def _compiled(source: str) -> Any:
    namespace: dict[str, Any] = {"Tensor": Tensor}
    exec(source, namespace)
    return namespace["look"]
