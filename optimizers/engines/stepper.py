"""
---
title: The stepper
summary: Who steps, and which reader runs the rule.
---

# The stepper
"""

from __future__ import annotations

from typing import Any

import torch

from optimizers.engines.single import step_one
from optimizers.engines.state import group_numbers, new_state


class Stepper:
    """## What an optimizer hands its step to"""

    @torch.no_grad()
    def step(self, rule: Any) -> None:
        """Move every parameter that has a gradient. Wrong gradients are refused before anything moves."""
        with_grad = [(g, p) for g in rule.param_groups for p in g["params"] if p.grad is not None]
        if rule.sparse_error and any(p.grad.is_sparse for _, p in with_grad):
            raise RuntimeError(rule.sparse_error)
        states = []
        for group, param in with_grad:
            state = rule.state.get(param)
            states.append(state if state else new_state(rule, group, param))
        for (group, param), state in zip(with_grad, states, strict=True):
            step_one(rule, group_numbers(group), param, param.grad, state)
            if state:
                rule.state[param] = state
