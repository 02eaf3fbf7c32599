r"""
---
title: AMSGrad
summary: Adam that never forgets its largest second moment.
---

# AMSGrad

[On the Convergence of Adam and Beyond](https://arxiv.org/abs/1904.09237) shows a problem of one dimension that
[Adam](adam.html) gets wrong. The gradient is large and points one way once in a hundred steps; in all others it is
small and points the other way. The large one is right, on average, but by the time that it counts in $m_t$ it has
also made $v_t$ large, and $v_t$ forgets it within $1 / (1 - \beta_2)$ steps. So the small, wrong ones make
the longer steps, and Adam walks away from the minimum.

The mend is to divide by the largest second moment so far:

\begin{align}
v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
v^{max}_t &\leftarrow \max(v^{max}_{t-1}, v_t) \\
\theta_t &\leftarrow \theta_{t-1} - \alpha \frac{\hat m_t}{\sqrt{\hat v^{max}_t} + \epsilon}
\end{align}

where hats correct the bias as in Adam. Step sizes then never grow, which the proof of convergence needs. In practice
it seldom helps: one outlier shortens all later steps. Take it where Adam's loss jumps up after rare large gradients.

As in torch the maximum is taken before the bias is corrected; the paper has no correction at all.

What differs from Adam is one more moment, which `get_mv` gives in the place of $v_t$. (In torch it is the option
`amsgrad` of `Adam`, so ours has that too. Here Adam is asked with the option off.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.adam import Adam
from optimizers.weight_decay import WeightDecay


class AMSGrad(Adam):
    """
    ## The optimizer

    The arguments are those of [Adam](adam.html). With `amsgrad=False`, also in a single group, it is Adam.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | WeightDecay = 0,
        amsgrad: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: that of Adam, and the largest second moment"""
        super().init_state(state, {**group, "amsgrad": False}, param)
        if group["amsgrad"]:
            # $v^{max}_0 = 0$
            state["max_exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def get_mv(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor) -> tuple[Tensor, Tensor]:
        """### First moment and largest second moment, $m_t$ and $v^{max}_t$"""
        m, v = super().get_mv(state, {**group, "amsgrad": False}, grad)
        if not group["amsgrad"]:
            return m, v
        v_max = state["max_exp_avg_sq"]
        # $$v^{max}_t \leftarrow \max(v^{max}_{t-1}, v_t)$$
        v_max.copy_(torch.maximum(v_max, v))
        return m, v_max
