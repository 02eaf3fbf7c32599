r"""
---
title: Rprop
summary: Steps by the sign of the gradient, longer while it lasts and shorter when it turns.
---

# Rprop

[A Direct Adaptive Method for Faster Backpropagation Learning](https://doi.org/10.1109/ICNN.1993.298623) trusts
only the *sign* of a gradient. Each coordinate has a step size of its own. While the sign stays the coordinate goes
downhill, so the step may grow; when the sign turns a valley was jumped over, so it must shrink:

\begin{align}
\eta_t &\leftarrow \begin{cases}
  \eta_{t-1} \cdot \eta^+ & g_{t-1}\, g_t > 0 \\
  \eta_{t-1} \cdot \eta^- & g_{t-1}\, g_t < 0 \\
  \eta_{t-1} & \text{otherwise}
\end{cases} \quad \text{kept in } [\eta_{min}, \eta_{max}] \\
g_t &\leftarrow 0 \quad \text{where } g_{t-1}\, g_t < 0 \\
\theta_t &\leftarrow \theta_{t-1} - \eta_t\, \text{sign}(g_t)
\end{align}

* $\eta_t$ is the step size of each coordinate; $\eta_0 = \alpha$ is `lr`, which has no other use.
* $\eta^- < 1 < \eta^+$ are `etas`; $\eta_{min}$ and $\eta_{max}$ are `step_sizes`.
* Where the sign turned the gradient is forgotten: the coordinate rests for a step, and the next one can't
  shrink it again for the same turn.

It is for full batches, where it needs no tuning and is hard to beat. With mini-batches signs turn by chance;
[RMSprop](rmsprop.html) was made to mend that. As in torch, a scheduler's `lr` has no effect once the first step is
done, and with `lr=0` the steps are $\eta_{min}$ long.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer


class Rprop(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.Rprop`, with the same order, defaults and results.

    * `etas` are $(\eta^-, \eta^+)$ with $0 < \eta^- < 1 < \eta^+$, `step_sizes` are $(\eta_{min}, \eta_{max})$.
    * `fused`, which torch does not have here, and `defaults` are as in [Adam](adam.html).
    """

    sparse_error = "Rprop does not support sparse gradients"
    letters: ClassVar[dict[str, str]] = {
        "eta1": r"\eta^-",
        "eta2": r"\eta^+",
        "step_size1": r"\eta_{min}",
        "step_size2": r"\eta_{max}",
        "step_size": r"\eta",
        "prev": r"\tilde g",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        own = {
            "etas": etas,
            "step_sizes": step_sizes,
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
        for name in ("etas", "step_sizes"):
            if not isinstance(group[name], (tuple, list)) or len(group[name]) != 2:
                raise ValueError(f"{name} must be a pair of numbers. Received: {group[name]!r}")
        eta_minus, eta_plus = group["etas"]
        if not 0.0 < eta_minus < 1.0 < eta_plus:
            raise ValueError(f"Invalid eta values: {eta_minus}, {eta_plus}")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the count of steps, the last gradient and the step sizes"""
        state["step"] = 0
        # $g_0 = 0$
        state["prev"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        # $\eta_0 = \alpha$; the two parts of a complex parameter are two numbers
        start = float(group["lr"])
        eta = complex(start, start) if param.is_complex() else start
        state["step_size"] = torch.full_like(param, eta, memory_format=torch.preserve_format)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        eta_minus, eta_plus = group["etas"]
        eta_min, eta_max = group["step_sizes"]
        eta = state["step_size"]
        # $$g_{t-1}\, g_t$$
        agreement = grad.mul(state["prev"])
        turned = agreement.lt(0)
        # $$\begin{cases} \eta^+ & g_{t-1}\, g_t > 0 \\ 1 & \text{otherwise} \end{cases}$$
        factor = torch.where(agreement.gt(0), eta_plus, torch.ones_like(grad))
        # $$\text{factor} \leftarrow \eta^- \quad \text{where } g_{t-1}\, g_t < 0$$
        factor = torch.where(turned, eta_minus, factor)
        # $$\eta_t \leftarrow \min(\max(\eta_{t-1} \cdot \text{factor}, \eta_{min}), \eta_{max})$$
        eta.mul_(factor).clamp_(eta_min, eta_max)
        # $$g_t \leftarrow 0 \quad \text{where } g_{t-1}\, g_t < 0$$
        grad = torch.where(turned, 0, grad)
        # $$\theta_t \leftarrow \theta_{t-1} - \eta_t\, \text{sign}(g_t)$$
        param.addcmul_(grad.sign(), eta, value=-1)
        state["prev"].copy_(grad)
