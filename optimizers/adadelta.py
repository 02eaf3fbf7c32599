r"""
---
title: Adadelta
summary: Steps measured by earlier steps, so that there is no learning rate to find.
---

# Adadelta

A step should have the units of the parameter. $\alpha\, g$ has not: scale the loss by ten and the steps grow by ten.
$g / \sqrt{v}$, as in [RMSprop](rmsprop.html), is a bare number, and $\alpha$ must supply the size.
[ADADELTA](https://arxiv.org/abs/1212.5701) takes the size from the steps that were made before:

\begin{align}
v_t &\leftarrow \rho\, v_{t-1} + (1 - \rho)\, g_t^2 \\
\Delta_t &\leftarrow \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\; g_t \\
u_t &\leftarrow \rho\, u_{t-1} + (1 - \rho)\, \Delta_t^2 \\
\theta_t &\leftarrow \theta_{t-1} - \alpha\, \Delta_t
\end{align}

* $v_t$ and $u_t$ are moving averages of the squares of the gradients and of the steps. Both start at $0$.
* $\epsilon$ is `eps`. It stands *inside* the roots and starts the whole: the first step is about $\sqrt\epsilon$ long.
* $\alpha$ is `lr`, $1$ in the paper; $\rho$ is `rho`.

It starts slowly, since steps can only grow from $\sqrt\epsilon$, and then needs no tuning. Today it is met in older
recipes, and where loss scales are unknown.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class Adadelta(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.Adadelta`, with the same order, defaults and results.

    * `rho` is $\rho \in [0, 1]$.
    * `weight_decay` is $\lambda$ for L2 regularisation, or a [`WeightDecay`](weight_decay.html).
    * `fused`, which torch does not have here, and `defaults` are as in [Adam](adam.html).
    """

    sparse_error = "Adadelta does not support sparse gradients"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float | WeightDecay = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        own = {
            "rho": rho,
            "eps": eps,
            **self.decay_defaults(weight_decay),
            "foreach": foreach,
            "capturable": capturable,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, {**own, **(defaults or {})}, lr)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        if not 0.0 <= group["rho"] <= 1.0:
            raise ValueError(f"Invalid rho value: {group['rho']}")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the count of steps and two averages"""
        state["step"] = 0
        # $v_0 = 0$
        state["square_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        # $u_0 = 0$
        state["acc_delta"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def get_delta(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor) -> Tensor:
        r"""### The step $\Delta_t$, before the learning rate"""
        rho, eps = group["rho"], group["eps"]
        v, u = state["square_avg"], state["acc_delta"]
        # $$v_t \leftarrow \rho\, v_{t-1} + (1 - \rho)\, g_t^2$$
        v.mul_(rho).addcmul_(grad, grad, value=1 - rho)
        # $$\Delta_t \leftarrow \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\; g_t$$
        delta: Tensor = u.add(eps).sqrt_().div_(v.add(eps).sqrt_()).mul_(grad)
        # $$u_t \leftarrow \rho\, u_{t-1} + (1 - \rho)\, \Delta_t^2$$
        u.mul_(rho).addcmul_(delta, delta, value=1 - rho)
        return delta

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        delta = self.get_delta(state, group, grad)
        # $$\theta_t \leftarrow \theta_{t-1} - \alpha\, \Delta_t$$
        param.add_(delta, alpha=-group["lr"])
