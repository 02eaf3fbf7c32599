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
| [`RAdam`](radam.html) | in place of Adam with a warm-up |
| [`AdaBelief`](ada_belief.html) | GANs, convolutional networks |
| [`AMSGrad`](amsgrad.html) | where rare large gradients lead Adam astray |
| [`AdamWarmup`](adam_warmup.html), [`AdamWarmupCosineDecay`](adam_warmup_cosine_decay.html), [`Noam`](noam.html) | \
transformers, with the schedule inside |
| [`AdamFP16`](adam_fp16.html) | parameters in float16 or bfloat16, moved in float32; with `GradScalerFP16` |
| [`Lion`](lion.html) | large models and batches, where memory is short |
| [`AdEMAMix`](ademamix.html) | long runs |
| [`Muon`](muon.html) | the hidden matrices of a network, beside AdamW for the rest |
| [`Sophia`](sophia.html) | language models |
| [`NAdam`](nadam.html) | where Adam works, and its first thousands of steps matter |
| [`Adamax`](adamax.html) | gradients that are rare but large |
| [`Adagrad`](adagrad.html) | rare features: embeddings, click models; sparse gradients |
| [`Adadelta`](adadelta.html) | when no learning rate is to be found |
| [`Rprop`](rprop.html) | full batches, without tuning |
| [`ASGD`](asgd.html) | convex problems, for the mean of the points visited |

To write your own, subclass the nearest rule and override a method, or start from
[`GenericAdaptiveOptimizer`](base.html). [`check_optimizer`](checking.html) then tries on it what we try on ours.
[`equations`](equations.html) recovers the formulas of any rule, yours too, from what it executes.
[`as_functions`](functional.html) makes pure functions of any rule, for `torch.func` and `torch.compile`.
[`minimize`](minimize.html) lets a rule walk to the minimum of a function, all steps in one kernel.
[`release_gradients`](release.html) lets each gradient go as soon as its parameter has stepped.
[`OptimizerConfigs`](configs.html) makes all rules options of a labml experiment.
"""

from optimizers.ada_belief import AdaBelief
from optimizers.adadelta import Adadelta
from optimizers.adagrad import Adagrad
from optimizers.adam import Adam
from optimizers.adam_fp16 import AdamFP16, GradScalerFP16
from optimizers.adam_warmup import AdamWarmup
from optimizers.adam_warmup_cosine_decay import AdamWarmupCosineDecay
from optimizers.adamax import Adamax
from optimizers.adamw import AdamW
from optimizers.ademamix import AdEMAMix
from optimizers.amsgrad import AMSGrad
from optimizers.asgd import ASGD
from optimizers.base import GenericAdaptiveOptimizer
from optimizers.checking import CheckFailed, check_optimizer
from optimizers.equations import Equations, equations
from optimizers.functional import as_functions
from optimizers.lion import Lion
from optimizers.minimize import minimize
from optimizers.muon import Muon
from optimizers.nadam import NAdam
from optimizers.noam import Noam
from optimizers.radam import RAdam
from optimizers.release import release_gradients
from optimizers.rmsprop import RMSprop
from optimizers.rprop import Rprop
from optimizers.sgd import SGD
from optimizers.sophia import Sophia
from optimizers.weight_decay import WeightDecay

__all__ = [
    "ASGD",
    "SGD",
    "AMSGrad",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamFP16",
    "AdamW",
    "AdamWarmup",
    "AdamWarmupCosineDecay",
    "Adamax",
    "CheckFailed",
    "Equations",
    "GenericAdaptiveOptimizer",
    "GradScalerFP16",
    "Lion",
    "Muon",
    "NAdam",
    "Noam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Sophia",
    "WeightDecay",
    "as_functions",
    "check_optimizer",
    "equations",
    "minimize",
    "release_gradients",
]

__version__ = "0.1.0"
