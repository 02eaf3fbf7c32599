r"""
---
title: ASGD
summary: Averaged stochastic gradient descent, which keeps the mean of the points it has visited.
---

# Averaged SGD

With noisy gradients SGD ends up dancing around the minimum. The dancers' mean is much closer to it than any
dancer: [Acceleration of Stochastic Approximation by Averaging](https://doi.org/10.1137/0330046) shows that
it is as good as can be had from the data. So walk as [SGD](sgd.html) does, with slowly shrinking steps, and average:

\begin{align}
\theta_t &\leftarrow (1 - \lambda\, \eta_{t-1})\, \theta_{t-1} - \eta_{t-1}\, g_t \\
\bar\theta_t &\leftarrow \bar\theta_{t-1} + \mu_{t-1} (\theta_t - \bar\theta_{t-1}) \\
\eta_t &\leftarrow \frac{\alpha}{(1 + \lambda\, \alpha\, t)^a} \\
\mu_t &\leftarrow \frac{1}{\max(1, t - t_0)}
\end{align}

* $\bar\theta_t$ is the average. It is *not* put into the model: take it from `optimizer.state[param]["ax"]`
  when training is done.
* $\eta_t$ is the step size and $\alpha$ is `lr`; it starts at $\eta_0 = \alpha$. As in torch a new `lr` takes effect
  one step later.
* $\lambda$ is `lambd`, a small decay that the schedule of $\eta$ is made for; $a$ is `alpha`, torch's name.
* $t_0$ is `t0`. Until then $\mu_t = 1$ and the average is the last point, so that the way to the valley does not count.

The default $t_0$ of a million steps means no averaging in most runs: set it to when the loss stops falling. In
modern recipes a moving average of the weights (`torch.optim.swa_utils`) around any rule does the same job.
"""

from __future__ import annotations

from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class ASGD(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.ASGD`, with the same order, defaults and results.

    * `lambd` is $\lambda$, `alpha` is $a$ and `t0` is $t_0$.
    * `weight_decay` is L2 regularisation on top of `lambd`, or a [`WeightDecay`](weight_decay.html).
    * `fused`, which torch does not have here, and `defaults` are as in [Adam](adam.html).
    """

    sparse_error = "ASGD does not support sparse gradients"
    scalar_state: ClassVar[tuple[str, ...]] = (*GenericAdaptiveOptimizer.scalar_state, "eta", "mu")
    letters: ClassVar[dict[str, str]] = {"alpha": "a", "ax": r"\bar\theta", "weight_decay": r"\lambda'"}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float | WeightDecay = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        fused: bool | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        own = {
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            **self.decay_defaults(weight_decay),
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
            "fused": fused,
        }
        super().__init__(params, {**own, **(defaults or {})}, lr)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        for name in ("lambd", "alpha", "t0"):
            if group[name] is None or not abs(group[name]) < inf:
                raise ValueError(f"Invalid {name} value: {group[name]}")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: three numbers and the average"""
        state["step"] = 0
        # $\eta_0 = \alpha$
        state["eta"] = group["lr"]
        # $\mu_0 = 1$
        state["mu"] = 1.0
        # The first step replaces it.
        state["ax"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        eta, mu, average = state["eta"], state["mu"], state["ax"]
        # $$\theta_t \leftarrow (1 - \lambda\, \eta_{t-1})\, \theta_{t-1}$$
        param.mul_(1 - group["lambd"] * eta)
        # $$\theta_t \leftarrow \theta_t - \eta_{t-1}\, g_t$$
        param.add_(grad, alpha=-eta)
        if mu == 1:
            # $$\bar\theta_t \leftarrow \theta_t$$
            average.copy_(param)
        else:
            # $$\bar\theta_t \leftarrow \bar\theta_{t-1} + \mu_{t-1} (\theta_t - \bar\theta_{t-1})$$
            average.add_(param.sub(average).mul_(mu))
        # $$\eta_t \leftarrow \frac{\alpha}{(1 + \lambda\, \alpha\, t)^a}$$
        state["eta"] = group["lr"] / (1 + group["lambd"] * group["lr"] * state["step"]) ** group["alpha"]
        # $$\mu_t \leftarrow \frac{1}{\max(1, t - t_0)}$$
        state["mu"] = 1 / max(1, state["step"] - group["t0"])
