r"""
---
title: What each rule starts from
summary: The rules by name, with learning rates and options with which they train a small network in a minute.
---

# What each rule starts from

The defaults of a rule are those of its paper or of torch: made for large models and long runs, or chosen
before either. Most train [the small network on digits](mnist.html) as they are. Here are the others, and why.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.optim import Optimizer

import optimizers
from optimizers.experiments.training import Together

#: Learning rates in place of defaults with which the loss hardly falls in a few thousand steps.
_LEARNING_RATES = {
    # The step is the gradient times the rate, and gradients here are well below 1.
    "SGD": 0.1,
    "ASGD": 0.1,
    # Every coordinate moves by the rate. Large models take a tenth of Adam's, a small one a third.
    "Lion": 3e-4,
    # Most steps are clipped, so they are as long as Adam's; the default is that of a large language model.
    "Sophia": 1e-3,
    # A step has no size but the rate: its singular values are about 1. This is what the author of Muon takes.
    "Muon": 0.02,
}

#: The rules that take matrices only.
_FOR_MATRICES = {"Muon"}


def rules() -> dict[str, type[optimizers.GenericAdaptiveOptimizer]]:
    """## The rules of the package, by name"""
    base = optimizers.GenericAdaptiveOptimizer
    exported = ((name, getattr(optimizers, name)) for name in optimizers.__all__)
    return {name: c for name, c in exported if isinstance(c, type) and issubclass(c, base) and c is not base}


def default_lr(rule: type[Optimizer]) -> float | None:
    """## The learning rate to start from; None where a rule finds its own"""
    declared = inspect.signature(rule).parameters.get("lr")
    default = _LEARNING_RATES.get(rule.__name__, declared.default if declared else None)
    return default if isinstance(default, float) else None


def default_options(rule: type[Optimizer], steps: int) -> dict[str, Any]:
    """## Other options, for a run of so many steps"""
    # A tenth of the run to warm up is usual.
    warmup = max(1, steps // 10)
    options: dict[str, dict[str, Any]] = {
        # Mini-batches turn signs by chance. Steps that may grow to 50, made for full batches, then blow up.
        "Rprop": {"step_sizes": (1e-6, 0.01)},
        # Without these there is no schedule, or one for a run a hundred times as long.
        "Noam": {"warmup": warmup},
        "AdamWarmup": {"warmup": warmup},
        "AdamWarmupCosineDecay": {"warmup": warmup, "total_steps": steps},
    }
    return options.get(rule.__name__, {})


def make_optimizer(rule: type[Optimizer], model: nn.Module, options: dict[str, Any]) -> Optimizer | Together:
    """## The optimizer of a model; where the rule is for matrices only, with an AdamW for the rest"""
    params = list(model.parameters())
    if rule.__name__ not in _FOR_MATRICES:
        return rule(params, **options)
    # The output layer is a matrix too. It is better given to AdamW, but in a model this small little would be left.
    matrices, rest = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
    return Together(rule(matrices, **options), optimizers.AdamW(rest))
