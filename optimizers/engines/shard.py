"""
---
title: Shards
summary: The part of a distributed tensor that lies in this process.
---

# Shards

A model that is sharded (FSDP2) or split (tensor parallelism) has `DTensor`s for parameters: each process holds a part
and knows how the parts make up the whole. What rules do they do element by element, so a kernel may run on the parts,
as long as parameter, gradient and state are cut alike.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter)


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`. Their module is slow to import, and without it there are none."""
    if type(tensor) in _PLAIN:
        return False
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(tensor) is module.DTensor


def local(tensor: Any) -> Tensor:
    """The part of a tensor that lies here; of a plain tensor all of it."""
    return tensor._local_tensor if is_distributed(tensor) else tensor  # type: ignore[no-any-return]


def placed(tensor: Any) -> Any:
    """How a tensor is cut, and over which processes; None for a plain one."""
    return (tensor.device_mesh, tensor.placements) if is_distributed(tensor) else None


def is_plain(tensor: Any) -> bool:
    """Whether what lies here is a tensor of torch's own, with memory that we may read and write."""
    return type(local(tensor)) in _PLAIN


def cut_as(param: Any, tensor: Any) -> Any:
    """A tensor, cut as a parameter is. A gradient may lie otherwise, or be a sum that is yet to be done."""
    if placed(tensor) == placed(param):
        return tensor
    if not is_distributed(tensor):
        raise RuntimeError(
            "a parameter is a DTensor, but its gradient or state is a plain tensor. A whole state dict is loaded by "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )
    return tensor.redistribute(param.device_mesh, param.placements)


def whole_of(part: Any, param: Tensor) -> Any:
    """The distributed tensor of which this part lies here."""
    if not isinstance(part, Tensor):
        return part
    whole = torch.empty_like(param, dtype=part.dtype, requires_grad=False)
    local(whole).copy_(part)
    return whole
