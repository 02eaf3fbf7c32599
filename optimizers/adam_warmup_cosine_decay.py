r"""
---
title: Adam with warm-up and cosine decay
summary: The learning rate of most language models, rising, then falling along half a cosine.
---

# Adam with warm-up and cosine decay

A long run wants three things of its learning rate: to begin small, as [the warm-up](adam_warmup.html) does, to be large
for most of the time, and to end small, so that the last steps settle instead of dancing around. Half a
period of a cosine joins the last two without a corner:

\begin{align}
p &= \min \Big(1, \frac{t - w}{T - w}\Big) \\
\alpha_t &= \alpha \max \Big(0.1,\; \frac{1 + \cos \pi p}{2}\Big) \qquad t \ge w
\end{align}

* $w$ is `warmup`, $T$ is `total_steps`. After $T$ the learning rate stays at a tenth of $\alpha$.

![Learning rates by step](schedules.svg)

The shape needs the number of steps in advance. Choose $T$ as long as you mean to train: a run that stops at half of it
has not had its small steps yet.
"""

from __future__ import annotations

from math import pi
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.adam_warmup import AdamWarmup
from optimizers.base import cos


class AdamWarmupCosineDecay(AdamWarmup):
    """
    ## The optimizer

    * `warmup` is $w$ and `total_steps` is $T$, in steps.
    * `options` are those of [Adam](adam.html), also by position.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *options: Any,
        warmup: float = 0,
        total_steps: float = 1e10,
        defaults: dict[str, Any] | None = None,
        **named_options: Any,
    ) -> None:
        own = {"total_steps": total_steps, **(defaults or {})}
        super().__init__(params, lr, *options, warmup=warmup, defaults=own, **named_options)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        if not group["warmup"] <= group["total_steps"]:
            raise ValueError(
                f"total_steps must be at least warmup. Received: total_steps={group['total_steps']}, "
                f"warmup={group['warmup']}"
            )

    def get_lr(self, state: dict[str, Any], group: dict[str, Any]) -> float:
        r"""### Learning rate $\alpha_t$ at this step"""
        t, warmup, total_steps = state["step"], group["warmup"], group["total_steps"]
        if t < warmup:
            return super().get_lr(state, group)
        # $p = \min (1, \frac{t - w}{T - w})$
        progress = min(1.0, (t - warmup) / max(1, total_steps - warmup))
        # $\alpha \max (0.1, \frac{1 + \cos(\pi p)}{2})$
        lr: float = group["lr"] * max(0.1, 0.5 * (1.0 + cos(pi * progress)))
        return lr
