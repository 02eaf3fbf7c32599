r"""
---
title: RMSprop
summary: Gradients divided by a moving average of their size, plain or centred, with or without momentum.
---

# RMSprop

[Hinton's lecture 6e](https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf) starts from the
sign of the gradient, which makes steps of one size in every direction. With mini-batches that fails: nine
gradients of $+0.1$ and one of $-0.9$ should cancel, and their signs do not. So divide by a size that changes
slowly, the root of a moving average of squares:

\begin{align}
v_t &\leftarrow \rho\, v_{t-1} + (1 - \rho)\, g_t^2 \\
\theta_t &\leftarrow \theta_{t-1} - \alpha \frac{g_t}{\sqrt{v_t} + \epsilon}
\end{align}

**Centred**, as in [Generating Sequences With Recurrent Neural Networks](https://arxiv.org/abs/1308.0850),
the divisor is an estimate of the standard deviation: with $\bar g_t$ the moving average of the gradient,
$v_t - \bar g_t^2$ stands for $v_t$. Steps grow where gradients agree.

**With momentum** $\mu$ the quotient is accumulated, $b_t \leftarrow \mu\, b_{t-1} + g_t / (\sqrt{v_t} + \epsilon)$,
and the parameter moves by $-\alpha\, b_t$.

* $\rho$ is `alpha` (torch's name; it is no learning rate), $\alpha$ is `lr`, $\epsilon$ is `eps`.
* All averages start at $0$ and, unlike in [Adam](adam.html), that bias is not corrected: the first step
  has length $\alpha / \sqrt{1 - \rho}$, ten times $\alpha$ with the defaults.

It is still met in reinforcement learning and recurrent networks. For new work Adam, which is this with momentum
and corrected averages, is nearly always the better first choice.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class RMSprop(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.RMSprop`, with the same order, defaults and results.

    * `alpha` is $\rho$, `momentum` is $\mu$, and `centered` subtracts $\bar g_t^2$.
    * `weight_decay` is $\lambda$ for L2 regularisation, or a [`WeightDecay`](weight_decay.html).
    * `fused`, which torch does not have here, and `defaults` are as in [Adam](adam.html).
    """

    sparse_error = "RMSprop does not support sparse gradients"
    letters: ClassVar[dict[str, str]] = {"alpha": r"\rho"}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float | WeightDecay = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        own = {
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            **self.decay_defaults(weight_decay),
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, {**own, **(defaults or {})}, lr)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        self.check_not_negative(group, "momentum", "alpha")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the count of steps and the averages in use"""
        state["step"] = 0
        # $v_0 = 0$
        state["square_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if group["momentum"] > 0:
            # $b_0 = 0$
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if group["centered"]:
            # $\bar g_0 = 0$
            state["grad_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def get_rms(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor) -> Tensor:
        """### The size of the gradient, a root of the mean square"""
        rho = group["alpha"]
        v: Tensor = state["square_avg"]
        # $$v_t \leftarrow \rho\, v_{t-1} + (1 - \rho)\, g_t^2$$
        v.mul_(rho).addcmul_(grad, grad, value=1 - rho)
        if not group["centered"]:
            # $$\sqrt{v_t}$$
            return v.sqrt()
        g_avg = state["grad_avg"]
        # $$\bar g_t \leftarrow \bar g_{t-1} + (1 - \rho)(g_t - \bar g_{t-1})$$
        g_avg.lerp_(grad, 1 - rho)
        # $$\sqrt{\max(v_t - \bar g_t^2, 0)}$$
        return v.addcmul(g_avg, g_avg, value=-1).clamp_min_(0.0).sqrt_()

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        # $$\text{rms}_t + \epsilon$$
        denominator = self.get_rms(state, group, grad).add_(group["eps"])
        if group["momentum"] > 0:
            b = state["momentum_buffer"]
            # $$b_t \leftarrow \mu\, b_{t-1} + \frac{g_t}{\text{rms}_t + \epsilon}$$
            b.mul_(group["momentum"]).addcdiv_(grad, denominator)
            # $$\theta_t \leftarrow \theta_{t-1} - \alpha\, b_t$$
            param.add_(b, alpha=-group["lr"])
        else:
            # $$\theta_t \leftarrow \theta_{t-1} - \alpha \frac{g_t}{\text{rms}_t + \epsilon}$$
            param.addcdiv_(grad, denominator, value=-group["lr"])
