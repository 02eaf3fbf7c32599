"""
---
title: Configurable optimizers
summary: The optimizers of this package as options of a labml experiment.
---

# Configurable optimizers

[labml](https://github.com/labmlai/labml) lets an experiment name its parts and their numbers. With these configs the
optimizer is such a part:

```python
@option(Configs.optimizer)
def _optimizer(c: Configs):
    conf = OptimizerConfigs()
    conf.parameters = c.model.parameters()
    return conf

experiment.configs(Configs(), {"optimizer.optimizer": "AdamW", "optimizer.learning_rate": 3e-4})
```

Each optimizer of the package is an option under its own name. It takes the configs in its row [below](#the-table), and
has its own defaults for everything else. Choose the learning rate with the optimizer: one that is good for Adam is far
too small for Adadelta.

Names and defaults are those of labml's `OptimizerConfigs`. Three of them now do what they say:

* `"AdamW"` is [AdamW](adamw.html). labml's made an [AdamWarmup](adam_warmup.html).
* `weight_decouple` holds for every optimizer. labml's SGD added the decay to the gradient whatever it said.
* `optimized_adam_update` holds for Adam and its kin. labml's passed it to Adam and AMSGrad only.

`import optimizers` does not import this page, which needs labml: `pip install labml`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labml.configs import BaseConfigs, calculate, meta_config
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

import optimizers
from optimizers.weight_decay import WeightDecay


class OptimizerConfigs(BaseConfigs):
    r"""
    ## The configs

    `optimizer` is what they make: the name of an option, or an optimizer. `parameters` must be given.
    """

    optimizer: Optimizer
    parameters: ParamsT

    # $\alpha$
    learning_rate: float = 0.01
    # $(\beta_1, \beta_2)$
    betas: tuple[float, float] = (0.9, 0.999)
    # $\epsilon$ of Adam and its kin, and of RMSprop
    eps: float = 1e-8
    # Whether Adam and its kin take their reordered form, with $\hat\epsilon$ for $\epsilon$
    optimized_adam_update: bool = True
    # Whether to divide by the largest $v_t$ so far
    amsgrad: bool = False
    # Momentum of SGD
    momentum: float = 0.5

    # How to decay: the option `L2` makes it of the next three. Or give a `WeightDecay`
    weight_decay_obj: WeightDecay
    # $\lambda$
    weight_decay: float = 0.0
    # Whether the decay is decoupled from the gradient
    weight_decouple: bool = True
    # Whether a decoupled decay ignores the learning rate
    weight_decay_absolute: bool = False

    # Steps in which the learning rate rises, and in which AdEMAMix lets its slow momentum in
    warmup: int = 2_000
    # Steps until the learning rate of AdamWarmupCosineDecay has fallen
    total_steps: int = int(1e10)
    # Width of the model, for Noam; it must be given
    d_model: int
    # Whether RAdam and AdaBelief step as SGD where they can't rectify
    degenerate_to_sgd: bool = True
    # Whether AdaBelief rectifies
    rectify: bool = True
    # Where Sophia clips
    rho: float = 0.03

    def __init__(self) -> None:
        super().__init__(_primary="optimizer")


# ## The table
#
# Which arguments of an optimizer are configured, besides the parameters and the learning rate. A rule joins by a row.

_ADAM = ("betas", "eps", "weight_decay", "amsgrad", "optimized_update")

OPTIONS: dict[str, tuple[str, ...]] = {
    # labml's default is the first.
    "SGD": ("momentum", "weight_decay"),
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "AdamFP16": _ADAM,
    "AMSGrad": tuple(name for name in _ADAM if name != "amsgrad"),
    "NAdam": ("betas", "eps", "weight_decay"),
    "RAdam": (*_ADAM, "degenerated_to_sgd"),
    "AdaBelief": (*_ADAM, "degenerate_to_sgd", "rectify"),
    "Adamax": ("betas", "eps", "weight_decay"),
    "AdamWarmup": (*_ADAM, "warmup"),
    "AdamWarmupCosineDecay": (*_ADAM, "warmup", "total_steps"),
    "Noam": (*_ADAM, "warmup", "d_model"),
    "AdEMAMix": ("betas", "eps", "weight_decay", "amsgrad", "warmup"),
    "Sophia": ("betas", "eps", "weight_decay", "rho"),
    "Lion": ("betas", "weight_decay"),
    "Muon": ("weight_decay",),
    "RMSprop": ("eps", "weight_decay"),
    "Adagrad": ("weight_decay",),
    "Adadelta": ("weight_decay",),
    "Rprop": (),
    "ASGD": ("weight_decay",),
}

#: The config of an argument, where they have different names.
CONFIG_OF = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay_obj",
    "optimized_update": "optimized_adam_update",
    "degenerated_to_sgd": "degenerate_to_sgd",
}


def _maker(name: str, arguments: tuple[str, ...]) -> Callable[[OptimizerConfigs], Optimizer]:
    """What makes an optimizer of the configs."""

    def make(c: OptimizerConfigs) -> Optimizer:
        values: dict[str, Any] = {a: getattr(c, CONFIG_OF.get(a, a)) for a in ("lr", *arguments)}
        made: Optimizer = getattr(optimizers, name)(c.parameters, **values)
        return made

    return make


def _weight_decay(c: OptimizerConfigs) -> WeightDecay:
    return WeightDecay(c.weight_decay, c.weight_decouple, c.weight_decay_absolute)


for _name, _arguments in OPTIONS.items():
    calculate(OptimizerConfigs.optimizer, _name, _maker(_name, _arguments))
calculate(OptimizerConfigs.weight_decay_obj, "L2", _weight_decay)
# The parameters of a model are no hyper-parameters.
meta_config(OptimizerConfigs.parameters)
