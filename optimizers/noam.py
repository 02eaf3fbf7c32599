r"""
---
title: Noam
summary: Adam with the learning rate of the first transformer.
---

# Noam

[Attention Is All You Need](https://arxiv.org/abs/1706.03762) trains with [Adam](adam.html) and a learning rate that
rises for $w$ steps and then falls as one over the root of the step (its equation 3):

$$\alpha_t = \alpha \frac{1}{\sqrt{d_{model}}} \min \bigg(\frac{1}{\sqrt t}, \frac{t}{w^{3/2}}\bigg)$$

* $w$ is `warmup`, in steps; both arms meet there, at the peak $\alpha / \sqrt{d_{model}\, w}$.
* $d_{model}$ is `d_model`, the width of the model: wider models take smaller steps.
* $\alpha$ is `lr`. It scales the whole, and is $1$ in the paper. It is *not* the size of a step.

![Learning rates by step](schedules.svg)

There is no end to choose, so a run may be prolonged. For a run of known length
[a cosine](adam_warmup_cosine_decay.html) usually ends a little lower. The paper takes `betas=(0.9, 0.98)`, `eps=1e-9`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.adam import Adam


class Noam(Adam):
    r"""
    ## The optimizer

    * `warmup` is $w \ge 0$ in steps; with $0$ the learning rate only falls.
    * `d_model` is $d_{model}$.
    * `options` are those of [Adam](adam.html), also by position.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *options: Any,
        warmup: float = 4000,
        d_model: float = 512,
        defaults: dict[str, Any] | None = None,
        **named_options: Any,
    ) -> None:
        own = {"warmup": warmup, "d_model": d_model, **(defaults or {})}
        super().__init__(params, lr, *options, defaults=own, **named_options)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        self.check_not_negative(group, "warmup")
        if not 0 < group["d_model"]:
            raise ValueError(f"Invalid d_model value: {group['d_model']}")

    def get_lr(self, state: dict[str, Any], group: dict[str, Any]) -> float:
        r"""### Learning rate $\alpha_t$ at this step"""
        t, warmup = state["step"], group["warmup"]
        # $$\begin{cases} \frac{1}{\sqrt t} & t \ge w \\ \frac{t}{w^{3/2}} & \text{otherwise} \end{cases}$$
        factor = t**-0.5 if t >= warmup else t * warmup**-1.5
        # $\alpha \frac{1}{\sqrt{d_{model}}} \min (\frac{1}{\sqrt t}, \frac{t}{w^{3/2}})$
        lr: float = group["lr"] * group["d_model"] ** -0.5 * factor
        return lr
