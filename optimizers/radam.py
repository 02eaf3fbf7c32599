r"""
---
title: RAdam
summary: Adam that trusts its step sizes only as far as their variance allows, which replaces a warm-up.
---

# RAdam

In its first steps [Adam](adam.html) divides by a second moment that was estimated from a handful of gradients. Such an
estimate is sometimes far too small, and one huge step in a bad direction can spoil a run; that is why Adam
is often warmed up. [On the Variance of the Adaptive Learning Rate and Beyond](https://arxiv.org/abs/1908.03265)
works out how much the quotient varies, and shortens steps by just that.

An exponential average of age $t$ is about as good as a plain average of the last $\rho_t$ gradients:

\begin{align}
\rho_\infty &= \frac{2}{1 - \beta_2} - 1 &
\rho_t &= \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}
\end{align}

Where gradients are normal with variance $\sigma^2$, the adaptive factor $\psi_t$, one over the root of their mean
square, has a variance of about (section 4 of the paper)

$$\text{Var}[\psi_t] \approx \frac{\rho_t}{2 (\rho_t - 2)(\rho_t - 4)\, \sigma^2}$$

which is smallest at $\rho_\infty$. A factor $r_t$ makes it so at every step:

\begin{align}
r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\, \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\, \rho_t}} \\
\theta_t &\leftarrow \theta_{t-1} - \alpha\, r_t\, \hat m_t\, l_t
  \qquad l_t = \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \hat\epsilon}
\end{align}

For $\rho_t \le 4$ the variance does not exist. There (the code waits until $\rho_t > 5$, at the sixth step with the
defaults) the step is that of momentum alone, $\alpha\, \hat m_t$; or none, with `degenerated_to_sgd=False`.

With $\beta_2 = 0.999$ this acts like a warm-up over some thousand steps that nobody had to choose. It is a good default
where Adam diverges early; where a schedule with a warm-up is in place already, there is nothing to gain.

![Rectification by step](rectification.svg)
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.adam import Adam
from optimizers.weight_decay import WeightDecay


class RAdam(Adam):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.RAdam`, with the same order, defaults and results.

    * `degenerated_to_sgd` says what to do while $r_t$ does not exist: a step of momentum, or none.
    * `optimized_update`, which is on here as in torch, has $\hat\epsilon$ beside $\sqrt{v_t}$; without it `eps` is
      $\epsilon$ beside $\sqrt{\hat v_t}$.
    * `amsgrad`, `fused` and `defaults` are as in [Adam](adam.html).
    """

    sparse_error = "RAdam does not support sparse gradients"
    strict_betas: ClassVar[bool] = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | WeightDecay = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        amsgrad: bool = False,
        optimized_update: bool = True,
        degenerated_to_sgd: bool = True,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
            optimized_update=optimized_update,
            defaults={"degenerated_to_sgd": degenerated_to_sgd, **(defaults or {})},
        )

    #: What torch's class always does, a checkpoint of it does not say.
    absent_switches: ClassVar[dict[str, bool]] = {"optimized_update": True, "degenerated_to_sgd": True}

    @staticmethod
    def calc_rectification_term(beta2: float, step: float) -> float | None:
        r"""### The rectification term $r_t$, or None where there is none"""
        # $\beta_2^t$
        beta2_t = beta2**step
        # $$\rho_\infty = \frac{2}{1 - \beta_2} - 1$$
        rho_inf = 2 / (1 - beta2) - 1
        # $$\rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}$$
        rho = rho_inf - 2 * step * beta2_t / (1 - beta2_t)
        if not rho > 5.0:
            return None
        # $$r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\, \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\, \rho_t}}$$
        r: float = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
        return r

    def r_adam_update(self, state: dict[str, Any], group: dict[str, Any], param: Tensor, m: Tensor, v: Tensor) -> None:
        r"""### The update of $\theta$ from $m_t$ and $v_t$"""
        beta1, beta2 = group["betas"]
        # $1 - \beta_1^t$ and $1 - \beta_2^t$
        bias_correction1 = 1 - beta1 ** state["step"]
        bias_correction2 = 1 - beta2 ** state["step"]
        r = self.calc_rectification_term(beta2, state["step"])
        if r is None and not group["degenerated_to_sgd"]:
            return
        # $$\alpha\, \hat m_t = \alpha \frac{m_t}{1 - \beta_1^t}$$
        update = m.div(bias_correction1).mul_(self.get_lr(state, group))
        if r is not None:
            if group["optimized_update"]:
                # $$l_t = \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \hat\epsilon}$$
                adaptive = bias_correction2**0.5 / v.sqrt().add_(group["eps"])
            else:
                # $$l_t = \frac{1}{\sqrt{\hat v_t} + \epsilon}$$
                adaptive = 1.0 / v.sqrt().div_(bias_correction2**0.5).add_(group["eps"])
            # $$\alpha\, \hat m_t\, l_t\, r_t$$
            update.mul_(adaptive).mul_(r)
        # $$\theta_t \leftarrow \theta_{t-1} - \text{update}$$
        param.sub_(update)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        m, v = self.get_mv(state, group, grad)
        self.r_adam_update(state, group, param, m, v)
