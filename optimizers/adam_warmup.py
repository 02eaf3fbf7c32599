r"""
---
title: Adam with warm-up
summary: Adam whose learning rate rises from zero during the first steps.
---

# Adam with warm-up

[Adam](adam.html)'s first steps rest on estimates from a handful of gradients, and every one of them is about $\alpha$
long in every direction. A network that was just initialised may not survive that. So begin small:

$$\alpha_t = \alpha \min \Big(1, \frac{t}{w}\Big)$$

* $w$ is `warmup`, the number of steps until the learning rate is $\alpha$. A few hundred to a few thousand is usual:
  about $2 / (1 - \beta_2)$ is a rule of thumb. $w = 0$ is no warm-up.

![Learning rates by step](schedules.svg)

[RAdam](radam.html) does without the number $w$. A scheduler of `torch.optim.lr_scheduler` does the same from outside;
here it is part of the rule, so it needs no second object and no second checkpoint.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.adam import Adam


class AdamWarmup(Adam):
    """
    ## The optimizer

    * `warmup` is $w$, in steps.
    * `options` are those of [Adam](adam.html), also by position.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *options: Any,
        warmup: float = 0,
        defaults: dict[str, Any] | None = None,
        **named_options: Any,
    ) -> None:
        super().__init__(params, lr, *options, defaults={"warmup": warmup, **(defaults or {})}, **named_options)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        self.check_not_negative(group, "warmup")

    def get_lr(self, state: dict[str, Any], group: dict[str, Any]) -> float:
        r"""### Learning rate $\alpha_t$ at this step"""
        lr: float = group["lr"]
        if state["step"] < group["warmup"]:
            # $\alpha \frac{t}{w}$
            lr = lr * state["step"] / group["warmup"]
        return lr
