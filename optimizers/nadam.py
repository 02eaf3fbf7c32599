r"""
---
title: NAdam
summary: Adam that looks one step ahead, as Nesterov's momentum does.
---

# NAdam

[Incorporating Nesterov Momentum into Adam](https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ) asks what
[Adam](adam.html) would do if it knew where its momentum is about to carry it. Plain momentum corrects its course
only after the step. Nesterov's uses the velocity of the *next* step, and the gradient at hand directly:

\begin{align}
\mu_t &\leftarrow \beta_1 \big(1 - \tfrac{1}{2}\, 0.96^{t \psi}\big) \\
m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
\hat m_t &\leftarrow \frac{\mu_{t+1}\, m_t}{1 - \prod_{i=1}^{t+1} \mu_i}
  + \frac{(1 - \mu_t)\, g_t}{1 - \prod_{i=1}^{t} \mu_i} \\
\hat v_t &\leftarrow \frac{v_t}{1 - \beta_2^t} \\
\theta_t &\leftarrow \theta_{t-1} - \alpha \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
\end{align}

* $\mu_t$ is the momentum at step $t$. It grows from about $\beta_1 / 2$ to $\beta_1$: early gradients, of a
  point that was a guess, are soon forgotten. $\psi$ is `momentum_decay`; with $0.004$ half of the way is
  done after 4,000 steps.
* The products undo the bias of the two parts of $\hat m_t$. Where $\mu_t$ is constant they are $\mu^{t+1}$ and
  $\mu^t$, as in Adam.
* The other symbols are Adam's.

It is often a little faster than Adam in the first thousands of steps, and much the same thereafter.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.adam import Adam
from optimizers.base import float32_product
from optimizers.weight_decay import WeightDecay


class NAdam(Adam):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.NAdam`, with the same order, defaults and results.

    * `momentum_decay` is $\psi \ge 0$.
    * `weight_decay` is $\lambda$ for L2 regularisation (decoupled with `decoupled_weight_decay=True`), or a
      [`WeightDecay`](weight_decay.html).
    * `fused`, which torch does not have here, and `defaults` are as in [Adam](adam.html).
    """

    sparse_error = "NAdam does not support sparse gradients"
    strict_betas: ClassVar[bool] = False
    scalar_state: ClassVar[tuple[str, ...]] = (*Adam.scalar_state, "mu_product")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | WeightDecay = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
            defaults={"momentum_decay": momentum_decay, **(defaults or {})},
        )

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        self.check_not_negative(group, "momentum_decay")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        r"""### State of a parameter: Adam's, and the product of all $\mu_i$"""
        state["step"] = 0
        # The empty product
        state["mu_product"] = 1.0
        super().init_state(state, group, param)

    def get_momentum(self, group: dict[str, Any], t: float) -> float:
        r"""### The momentum $\mu_t = \beta_1 (1 - \frac{1}{2}\, 0.96^{t \psi})$"""
        beta1: float = group["betas"][0]
        mu: float = beta1 * (1.0 - 0.5 * 0.96 ** (t * group["momentum_decay"]))
        return mu

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        m, v = self.get_mv(state, group, grad)
        t, lr = state["step"], self.get_lr(state, group)
        # $1 - \beta_2^t$
        bias_correction2 = 1 - group["betas"][1] ** t
        # $$\sqrt{\hat v_t} + \epsilon$$
        denominator = v.div(bias_correction2).sqrt_().add_(group["eps"])
        # $\mu_t$ and $\mu_{t+1}$
        mu, mu_next = self.get_momentum(group, t), self.get_momentum(group, t + 1)
        # $\prod_{i=1}^{t} \mu_i$, of float32 numbers as in torch, so that runs can be handed over
        mu_product = state["mu_product"] = float32_product(state["mu_product"], mu)
        # $$\theta_t \leftarrow \theta_{t-1} - \alpha \frac{1 - \mu_t}{1 - \prod_{i=1}^{t} \mu_i}
        #   \cdot \frac{g_t}{\sqrt{\hat v_t} + \epsilon}$$
        param.addcdiv_(grad, denominator, value=-lr * (1.0 - mu) / (1.0 - mu_product))
        # $$\theta_t \leftarrow \theta_t - \alpha \frac{\mu_{t+1}}{1 - \prod_{i=1}^{t+1} \mu_i}
        #   \cdot \frac{m_t}{\sqrt{\hat v_t} + \epsilon}$$
        param.addcdiv_(m, denominator, value=-lr * mu_next / (1.0 - mu_product * mu_next))
