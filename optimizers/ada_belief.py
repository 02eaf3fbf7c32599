r"""
---
title: AdaBelief
summary: Adam that divides by how far gradients are from what they were expected to be.
---

# AdaBelief

[Adam](adam.html) shortens its steps wherever gradients are large. On a long slope that is a pity: gradients are
large *and* all alike, so there is every reason to go on. [AdaBelief](https://arxiv.org/abs/2010.07468) takes
$m_t$ for its belief of what the next gradient will be, and divides by how far that was off:

\begin{align}
m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
s_t &\leftarrow \beta_2 s_{t-1} + (1 - \beta_2)(g_t - m_t)^2 \\
\theta_t &\leftarrow \theta_{t-1} - \alpha \frac{\hat m_t}{\sqrt{\hat s_t} + \epsilon}
\end{align}

Where gradients agree with the belief the step is long; where they surprise it is short. $s_t$ is a variance, Adam's
$v_t$ a mean square.

* $\epsilon$ is `eps`, added to $s_t$ as well, and here it matters: $s_t$ may truly be near $0$. The paper
  takes $10^{-16}$ for most tasks and $10^{-8}$ for small convolutional networks and GANs.
* `rectify` multiplies by the $r_t$ of [RAdam](radam.html), as the authors recommend. It is on.
* The other symbols are Adam's.

Try it for GANs and convolutional networks, where the paper finds it as fast as Adam and as good as SGD. It divides by
differences of nearly equal numbers, so it likes neither tiny batches nor half precision.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.radam import RAdam
from optimizers.weight_decay import WeightDecay


class AdaBelief(RAdam):
    r"""
    ## The optimizer

    * `amsgrad` divides by the largest $s_t$ so far.
    * `degenerate_to_sgd` is what [RAdam](radam.html) calls `degenerated_to_sgd`.
    * `rectify` is whether steps are rectified; without it they are Adam's.
    * `options` are the other ones of RAdam.
    """

    absent_switches: ClassVar[dict[str, bool]] = {**RAdam.absent_switches, "rectify": True}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float | WeightDecay = 0,
        *,
        amsgrad: bool = False,
        degenerate_to_sgd: bool = True,
        rectify: bool = True,
        defaults: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad=amsgrad,
            degenerated_to_sgd=degenerate_to_sgd,
            defaults={"rectify": rectify, **(defaults or {})},
            **options,
        )

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the count of steps, the belief and its variance"""
        state["step"] = 0
        # $m_0 = 0$
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        # $s_0 = 0$
        state["exp_avg_var"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if group["amsgrad"]:
            state["max_exp_avg_var"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def get_ms(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor) -> tuple[Tensor, Tensor]:
        """### The belief $m_t$ and its variance $s_t$"""
        beta1, beta2 = group["betas"]
        m, s = state["exp_avg"], state["exp_avg_var"]
        # $$m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t - m_{t-1})$$
        m.lerp_(grad, 1 - beta1)
        # $$g_t - m_t$$
        surprise = grad.sub(m)
        # $$s_t \leftarrow \beta_2 s_{t-1} + (1 - \beta_2)(g_t - m_t)^2$$
        s.mul_(beta2).addcmul_(surprise, surprise, value=1 - beta2)
        if not group["amsgrad"]:
            return m, s
        s_max = state["max_exp_avg_var"]
        # $$s^{max}_t \leftarrow \max(s^{max}_{t-1}, s_t)$$
        s_max.copy_(torch.maximum(s_max, s))
        return m, s_max

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        m, s = self.get_ms(state, group, grad)
        # $$s_t + \epsilon$$
        s = s.add(group["eps"])
        if group["rectify"]:
            self.r_adam_update(state, group, param, m, s)
        else:
            self.adam_update(state, group, param, m, s)
