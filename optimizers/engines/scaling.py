"""
---
title: Scaling
summary: What torch's GradScaler tells an optimizer that says it can do with it.
---

# Scaling

With `fused=True` an optimizer says that it does itself what `torch.amp.GradScaler` has to have done: to divide the
gradients by the scale, and to leave out a step where one of them is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor


@dataclass
class Scaling:
    """
    ## What AMP's `GradScaler` tells an optimizer

    `found_inf` is not 0 where a gradient is infinite, and the step is not to be done. The gradients are yet to be
    divided by `grad_scale`, if that is there. Both are tensors; to look at them is to wait for the device. (Where there
    is no gradient at all, `found_inf` is the number 0.)
    """

    found_inf: Any
    grad_scale: Tensor | None

    @classmethod
    def of(cls, rule: Any) -> Scaling | None:
        """### What an optimizer was told, if anything"""
        found_inf, grad_scale = getattr(rule, "found_inf", None), getattr(rule, "grad_scale", None)
        return None if found_inf is None and grad_scale is None else cls(found_inf, grad_scale)

    @property
    def is_skipped(self) -> bool:
        """### Whether the step is not to be done"""
        return self.found_inf is not None and bool(self.found_inf)

    @cached_property
    def number(self) -> float | None:
        """### The scale"""
        return None if self.grad_scale is None else float(self.grad_scale.item())
