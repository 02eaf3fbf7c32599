r"""
---
title: AdEMAMix
summary: Adam with a second, very slow momentum beside the first.
---

# AdEMAMix

One moving average can't both follow the newest gradients and remember old ones.
[The AdEMAMix Optimizer: Better, Faster, Older](https://arxiv.org/abs/2409.03137) finds that gradients are worth
remembering for tens of thousands of steps, and gives [Adam](adam.html) a second average for that:

\begin{align}
m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
n_t &\leftarrow \beta_{3,t}\, n_{t-1} + (1 - \beta_{3,t})\, g_t \\
v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
\theta_t &\leftarrow \theta_{t-1} - \alpha \frac{\hat m_t + a_t n_t}{\sqrt{\hat v_t} + \epsilon}
\end{align}

* $n_t$ is the slow momentum, not corrected for its bias: it shall begin small. $\beta_3$ is `beta3`, and its
  weight $a$ is `alpha`.
* Both come in gradually over $T$ steps, `warmup`, or the old average would carry the early steps too far:
  $a_t = a \min(1, t / T)$, and $\beta_{3,t}$ goes from $\beta_1$ to $\beta_3$ so that its half-life grows evenly.
  Take the length of the run for $T$. $T = 0$ has both at once.
* The other symbols are Adam's.

It is for long runs: the paper's language models reach Adam's loss in half of the tokens. For a short run it is Adam
with more memory.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.adam import Adam
from optimizers.base import exp, log


class AdEMAMix(Adam):
    r"""
    ## The optimizer

    * `alpha` is $a \ge 0$, `beta3` is $\beta_3 \in [0, 1)$, `warmup` is $T \ge 0$ in steps.
    * `options` are those of [Adam](adam.html), also by position.
    """

    letters: ClassVar[dict[str, str]] = {"alpha": "a", "warmup": "T"}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *options: Any,
        beta3: float = 0.9999,
        alpha: float = 5.0,
        warmup: float = 0,
        defaults: dict[str, Any] | None = None,
        **named_options: Any,
    ) -> None:
        own = {"beta3": beta3, "alpha": alpha, "warmup": warmup, **(defaults or {})}
        super().__init__(params, lr, *options, defaults=own, **named_options)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        if not 0.0 <= group["beta3"] < 1.0:
            raise ValueError(f"Invalid beta3 value: {group['beta3']}")
        self.check_not_negative(group, "alpha", "warmup")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: Adam's, and the slow momentum"""
        super().init_state(state, group, param)
        # $n_0 = 0$
        state["exp_avg_slow"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def get_slow(self, group: dict[str, Any], t: float) -> tuple[float, float]:
        r"""### $\beta_{3,t}$ and $a_t$"""
        beta1, beta3, alpha, warmup = group["betas"][0], group["beta3"], group["alpha"], group["warmup"]
        if t >= warmup:
            return beta3, alpha
        # $\frac{t}{T}$
        part = t / warmup
        if beta1 == 0:
            return beta3, alpha * part
        start, end = log(beta1), log(beta3)
        # $\beta_{3,t} = \exp \frac{\ln \beta_1 \ln \beta_3}{(1 - t/T) \ln \beta_3 + (t/T) \ln \beta_1}$
        # and $a_t = a \frac{t}{T}$
        return min(beta3, exp(start * end / ((1 - part) * end + part * start))), alpha * part

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        beta1, beta2 = group["betas"]
        beta3, alpha = self.get_slow(group, state["step"])
        m, v = self.get_mv(state, group, grad)
        n = state["exp_avg_slow"]
        # $$n_t \leftarrow n_{t-1} + (1 - \beta_{3,t})(g_t - n_{t-1})$$
        n.lerp_(grad, 1 - beta3)
        # $$\hat m_t + a_t n_t$$
        mixed = m.div(1 - beta1 ** state["step"]).add_(n, alpha=alpha)
        # $$\sqrt{\hat v_t} + \epsilon$$
        denominator = v.sqrt().div_((1 - beta2 ** state["step"]) ** 0.5).add_(group["eps"])
        # $$\theta_t \leftarrow \theta_{t-1} - \alpha \frac{\hat m_t + a_t n_t}{\sqrt{\hat v_t} + \epsilon}$$
        param.addcdiv_(mixed, denominator, value=-self.get_lr(state, group))
