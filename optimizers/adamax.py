r"""
---
title: Adamax
summary: Adam with the largest gradient in place of the mean square.
---

# Adamax

[Adam](adam.html) divides by $\sqrt{v_t}$, an average of squares. Its paper, [section 7](https://arxiv.org/abs/1412.6980),
replaces the square by the $p$-th power and lets $p \to \infty$. What is left of the average is a maximum that
fades slowly:

\begin{align}
m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
u_t &\leftarrow \max(\beta_2 u_{t-1},\; |g_t| + \epsilon) \\
\theta_t &\leftarrow \theta_{t-1} - \frac{\alpha}{1 - \beta_1^t} \cdot \frac{m_t}{u_t}
\end{align}

* $u_t$ is the infinity norm of the gradients so far, each discounted by its age. A maximum has no bias towards
  its start, so nothing has to be corrected, and the step is at most $\alpha$.
* $\epsilon$ is `eps`; it keeps $u_t$ away from $0$. The paper has none, and adds it to no quotient.
* The other symbols are Adam's.

It suits gradients that are rare but large, such as those of embeddings: one large gradient shortens the next steps
for about $1 / (1 - \beta_2)$ of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class Adamax(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.Adamax`, with the same order, defaults and results.

    * `weight_decay` is $\lambda$ for L2 regularisation, or a [`WeightDecay`](weight_decay.html).
    * `fused`, which torch does not have here, and `defaults` are as in [Adam](adam.html).
    """

    sparse_error = "Adamax does not support sparse gradients"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | WeightDecay = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        own = {
            "betas": betas,
            "eps": eps,
            **self.decay_defaults(weight_decay),
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
            "fused": fused,
        }
        super().__init__(params, {**own, **(defaults or {})}, lr)

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the count of steps, the first moment and the norm"""
        state["step"] = 0
        # $m_0 = 0$
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        # $u_0 = 0$
        state["exp_inf"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def get_mu(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor) -> tuple[Tensor, Tensor]:
        """### First moment and infinity norm, $m_t$ and $u_t$"""
        beta1, beta2 = group["betas"]
        m, u = state["exp_avg"], state["exp_inf"]
        # $$m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t - m_{t-1})$$
        m.lerp_(grad, 1 - beta1)
        # $$u_t \leftarrow \max(\beta_2 u_{t-1},\; |g_t| + \epsilon)$$
        u.copy_(torch.maximum(u.mul(beta2), grad.abs().add_(group["eps"])))
        return m, u

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        m, u = self.get_mu(state, group, grad)
        # $1 - \beta_1^t$
        bias_correction1 = 1 - group["betas"][0] ** state["step"]
        # $$\theta_t \leftarrow \theta_{t-1} - \frac{\alpha}{1 - \beta_1^t} \cdot \frac{m_t}{u_t}$$
        param.addcdiv_(m, u, value=-(group["lr"] / bias_correction1))
