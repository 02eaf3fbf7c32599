r"""
---
title: AdamW
summary: Adam with decoupled weight decay.
---

# AdamW

[Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101) is [Adam](adam.html) with the
decay taken out of the gradient:

$$\theta_t \leftarrow (1 - \alpha \lambda)\, \theta_{t-1}
  - \alpha \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}$$

With L2 regularisation Adam divides $\lambda \theta$ by $\sqrt{\hat v_t}$, so the parameters that get the
largest gradients decay least. Here every parameter decays at the same rate $\alpha \lambda$. That makes
$\lambda$ nearly independent of the other settings, and it is why transformers are trained with
AdamW: $\lambda$ of 0.01 to 0.1 for matrices and 0 for biases and norms (two parameter groups) is usual.

There is no update rule on this page. The decay is a [mode of the group](weight_decay.html), and the rest is Adam.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.adam import Adam
from optimizers.weight_decay import WeightDecay


class AdamW(Adam):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.AdamW`; `optimized_update` and `defaults` are as in
    [Adam](adam.html). `weight_decay` is $\lambda$, relative to the learning rate; give
    `WeightDecay(λ, absolute=True)` for a decay that ignores it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | WeightDecay = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        optimized_update: bool = False,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(weight_decay, WeightDecay) and not weight_decay.weight_decouple:
            raise ValueError(
                f"AdamW decouples its weight decay. Received: {weight_decay}. Take Adam for L2 regularisation"
            )
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            optimized_update=optimized_update,
            defaults=defaults,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """### A checkpoint of any age decays decoupled here"""
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
