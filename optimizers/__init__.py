"""
---
title: Optimizers
summary: Gradient-descent optimizers for PyTorch, written once and read many ways.
---

# Optimizers

Each optimizer here is one page: the paper, the maths, and the code that is the maths. They are `torch.optim`
optimizers, with torch's arguments, state and checkpoints.

| rule | when to choose it |
|---|---|
| [`Adam`](adam.html) | first, for nearly anything |
| [`AdamW`](adamw.html) | with weight decay: transformers, fine-tuning |
| [`SGD`](sgd.html) | well-scaled problems with a schedule; least memory; sparse gradients |
| [`RMSprop`](rmsprop.html) | reinforcement learning and recurrent networks, where results were published with it |

To write your own, subclass the nearest rule and override a method, or start from
[`GenericAdaptiveOptimizer`](base.html). [`check_optimizer`](checking.html) then tries on it what we try on ours.
"""

from optimizers.adam import Adam
from optimizers.adamw import AdamW
from optimizers.base import GenericAdaptiveOptimizer
from optimizers.checking import CheckFailed, check_optimizer
from optimizers.rmsprop import RMSprop
from optimizers.sgd import SGD
from optimizers.weight_decay import WeightDecay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CheckFailed",
    "GenericAdaptiveOptimizer",
    "RMSprop",
    "WeightDecay",
    "check_optimizer",
]

__version__ = "0.1.0"
