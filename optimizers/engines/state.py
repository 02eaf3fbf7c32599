"""
---
title: State
summary: What a rule sees as its state, and what the world sees.
---

# State

Outside, the state of a parameter is torch's: tensors, of which `step` is a 0-dim float32 tensor on the CPU. Inside a
rule the scalars are Python numbers, and the tensors have one dtype, that of the computation. This page translates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")

#: Where arithmetic is done, for parameters whose own dtype is too coarse: with `eps=1e-8` and a zero gradient, Adam in
#: plain float16 is 0/0.
COMPUTE_DTYPE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class StateView(dict[str, Any]):
    """
    ## The state as a rule sees it

    `step` is counted by the engine. A rule that counts by itself, as labml's do, writes what is already there.
    """

    def __setitem__(self, name: str, value: Any) -> None:
        if name != "step":
            super().__setitem__(name, value)


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of one number: of the real and the imaginary part, where there are both."""
    return dtype.to_real() if dtype.is_complex else dtype


def compute_dtype(param: Tensor) -> torch.dtype:
    """The dtype in which the rule of `param` is computed."""
    real = real_dtype(param.dtype)
    return COMPUTE_DTYPE.get(real, real)


def group_numbers(group: dict[str, Any]) -> dict[str, Any]:
    """A group as a rule sees it: a learning rate (or anything else) given as a one-element tensor is a number."""
    return {name: _number(value) for name, value in group.items() if name != "params"}


def _number(value: Any) -> Any:
    # A tensor of more elements is something of the user's own.
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, tuple):
        return tuple(_number(v) for v in value)
    return value


def hypers_on(group: dict[str, Any], device: torch.device) -> list[str]:
    """The entries of a group that are, or have, numbers in tensors on a device."""
    values = ((name, value) for name, value in group.items() if value.__class__ not in _NO_TENSORS)
    return [name for name, value in values if name != "params" and _is_on(value, device)]


#: What hyper-parameters mostly are.
_NO_TENSORS = frozenset((float, int, bool, str, type(None)))


def _is_on(value: Any, device: torch.device) -> bool:
    if isinstance(value, tuple):
        return any(_is_on(part, device) for part in value)
    return isinstance(value, Tensor) and value.numel() == 1 and value.device == device


def scalar_tensor(value: Any) -> Tensor:
    """A number as the world sees it, torch's form of a step count: a new float32 0-dim tensor on the CPU."""
    if isinstance(value, Tensor):
        value = value.item()
    return torch.tensor(float(value), dtype=torch.float32, device=CPU)


def new_state(rule: Any, group: dict[str, Any], param: Tensor) -> dict[str, Any]:
    """The state that a rule gives to a parameter before its first step."""
    state: dict[str, Any] = {}
    rule.init_state(state, group, param)
    for name in rule.scalar_state:
        if isinstance(state.get(name), Tensor):
            # A number of its own: what is given may be the tensor of a group.
            state[name] = scalar_tensor(state[name])
    settle_scalars(rule, state)
    for name, value in state.items():
        refuse_number(rule, name, value)
    return state


def refuse_number(rule: Any, name: str, value: Any) -> None:
    """A number in a state must be declared, or nobody could tell it from a tensor in a checkpoint."""
    if isinstance(value, (bool, int, float)) and name not in rule.scalar_state:
        kind = type(rule).__name__
        raise TypeError(
            f"{kind} keeps the number {value!r} as state[{name!r}]. Declare it, so that it is kept and saved as a "
            f"number: scalar_state = (*GenericAdaptiveOptimizer.scalar_state, {name!r}) in the class {kind}"
        )


def imagined_state(rule: Any, group: dict[str, Any], param: Tensor) -> dict[str, Any]:
    """What `init_state` would make, without its memory; with it where `init_state` looks at the parameter's values."""
    try:
        return new_state(rule, group, torch.empty_like(param, device="meta"))
    except (NotImplementedError, RuntimeError):
        return new_state(rule, group, param)


def settle_scalars(rule: Any, state: dict[str, Any], device: torch.device = CPU) -> None:
    """Give the scalars of a state the form that they have here, whoever put them there."""
    for name in rule.scalar_state:
        value = state.get(name)
        if value is not None and not _is_scalar_tensor(value, device):
            state[name] = scalar_tensor(value).to(device)


def is_settled(rule: Any, state: dict[str, Any]) -> bool:
    """Whether the scalars of a state have that form."""
    return all(_is_scalar_tensor(state[name], CPU) for name in rule.scalar_state if name in state)


def _is_scalar_tensor(value: Any, device: torch.device) -> bool:
    return type(value) is Tensor and value.dtype == torch.float32 and value.dim() == 0 and value.device == device


def adopt_state(rule: Any, saved: dict[str, Any] | None) -> None:
    """
    ## Make loaded state the optimizer's own

    Scalars become what `scalar_tensor` gives, whatever an older checkpoint has. With `saved`, the state dict that
    was loaded, tensors get the dtype back that they were saved with, and share no memory with it.
    """
    params = [p for group in rule.param_groups for p in group["params"]]
    sources = _saved_by_param(params, saved) if saved is not None else {}
    for param in params:
        state = vars(rule)["state"].get(param)
        if not state:
            continue
        if saved is None:
            # Of a copy. Whoever has the tensors too, such as another process, sees the same counts.
            settle_scalars(rule, state)
            continue
        source = sources.get(id(param), {})
        for name, value in state.items():
            if name in rule.scalar_state:
                # The source, because torch rounds all but `step` to the dtype of the parameter.
                state[name] = scalar_tensor(source.get(name, value))
            elif isinstance(source.get(name), Tensor):
                state[name] = source[name].detach().to(device=param.device, copy=True)


def _saved_by_param(params: list[Tensor], saved: dict[str, Any]) -> dict[int, dict[str, Any]]:
    indices = [i for group in saved["param_groups"] for i in group["params"]]
    return {id(p): saved["state"][i] for p, i in zip(params, indices, strict=True) if i in saved["state"]}


def check_shapes(rule: Any, saved: dict[str, Any]) -> None:
    """
    ## See that a state dict is of this model

    Raises `ValueError` if a state in `saved` has another shape than its parameter needs: better now than in the
    middle of a step. Numbers of groups and parameters are torch's to check.
    """
    if [len(g["params"]) for g in rule.param_groups] != [len(g["params"]) for g in saved["param_groups"]]:
        return
    sources = _saved_by_param([p for group in rule.param_groups for p in group["params"]], saved)
    for number, (own, group) in enumerate(zip(rule.param_groups, saved["param_groups"], strict=True)):
        for param in own["params"]:
            source = sources.get(id(param), {})
            moments = {k: v for k, v in source.items() if isinstance(v, Tensor) and k not in rule.scalar_state}
            expected: dict[str, Any] = {}
            if moments:
                expected = imagined_state(rule, {**own, **group}, param)
                expected.update(dict.fromkeys(rule.lazy_state, param))
            for name, value in moments.items():
                shape = expected[name].shape if isinstance(expected.get(name), Tensor) else value.shape
                if value.shape != shape:
                    raise ValueError(
                        f"loaded state {name!r} is of shape {tuple(value.shape)}, but its parameter in group {number} "
                        f"needs {tuple(shape)}. The checkpoint is of another model, or the parameters are in another "
                        "order"
                    )
