r"""
---
title: Lion
summary: The sign of a momentum; half of Adam's memory.
---

# Lion

[Symbolic Discovery of Optimization Algorithms](https://arxiv.org/abs/2302.06675) searched programs for a good update
rule and found a short one:

\begin{align}
c_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
\theta_t &\leftarrow \theta_{t-1} - \alpha \big(\text{sign}(c_t) + \lambda\, \theta_{t-1}\big) \\
m_t &\leftarrow \beta_2 m_{t-1} + (1 - \beta_2)\, g_t
\end{align}

Every coordinate moves by exactly $\alpha$ a step. The direction is a vote of the momentum and, with more weight than
the momentum itself will give it, of the gradient at hand ($\beta_1 < \beta_2$).

* $\alpha$ is `lr`: three to ten times smaller than for [Adam](adam.html), because no step is shorter than it.
* $\lambda$ is `weight_decay`, decoupled: as much larger as $\alpha$ is smaller, so that $\alpha \lambda$ stays.
* $\beta_1, \beta_2$ are `betas`; $m_0 = 0$, and no bias has to be corrected, since signs have none.

One moment instead of two makes it the rule for large models where memory is short. It wants large batches: with
small ones signs are mostly noise.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class Lion(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    * `weight_decay` is $\lambda$, decoupled, or a [`WeightDecay`](weight_decay.html).
    * `defaults` are further keys for the groups, and `options` are those of every rule: `foreach`, `fused`,
      `maximize`, `capturable`, `differentiable`.
    """

    sparse_error = "Lion does not support sparse gradients"
    absent_switches: ClassVar[dict[str, bool]] = {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float | WeightDecay = 0,
        *,
        defaults: dict[str, Any] | None = None,
        **options: bool | None,
    ) -> None:
        own = {"betas": betas, **self.decay_defaults(weight_decay, decoupled_weight_decay=True)}
        super().__init__(params, {**own, **self.reader_options(options), **(defaults or {})}, lr)

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the momentum"""
        # $m_0 = 0$
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        beta1, beta2 = group["betas"]
        m = state["exp_avg"]
        # $$\text{sign}(c_t), \quad c_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t - m_{t-1})$$
        direction = m.lerp(grad, 1 - beta1).sign_()
        # $$\theta_t \leftarrow \theta_{t-1} - \alpha\, \text{sign}(c_t)$$
        param.add_(direction, alpha=-self.get_lr(state, group))
        # $$m_t \leftarrow m_{t-1} + (1 - \beta_2)(g_t - m_{t-1})$$
        m.lerp_(grad, 1 - beta2)
