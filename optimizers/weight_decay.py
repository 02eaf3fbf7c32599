r"""
---
title: Weight decay
summary: L2 regularisation or decoupled decay, relative to the learning rate or absolute.
---

# Weight decay

There are two things people call weight decay, and for adaptive optimizers they differ.

**L2 regularisation** adds $\frac{\lambda}{2} \lVert \theta \rVert^2$ to the loss, so $\lambda \theta$ to each gradient:

$$g_t \leftarrow g_t + \lambda \theta_{t-1}$$

Adam then divides that term by $\sqrt{\hat v_t}$ like any other part of the gradient: parameters with
large gradients hardly decay. **Decoupled decay**, from
[Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101), shrinks the parameter itself
and leaves the gradient alone:

$$\theta_{t-1} \leftarrow \theta_{t-1} - \alpha \lambda \theta_{t-1}$$

Its strength follows the learning rate $\alpha$, and so its schedule. The **absolute** form does not:
$\theta_{t-1} \leftarrow \theta_{t-1} - \lambda \theta_{t-1}$.

The mode lives in the parameter group, beside $\lambda$ (`weight_decay`). So it may differ between groups,
and it is saved and loaded with the rest of the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class WeightDecay:
    r"""
    ## How a parameter decays

    Any optimizer of this package takes one in place of the number `weight_decay`.

    * `weight_decay` is $\lambda \ge 0$.
    * `weight_decouple` says whether the decay is decoupled from the gradient; otherwise it is L2.
    * `absolute` makes a decoupled decay independent of the learning rate.
    """

    weight_decay: float = 0.0
    weight_decouple: bool = True
    absolute: bool = False

    def defaults(self) -> dict[str, Any]:
        """
        ### The keys of a parameter group

        The names are those of `torch.optim.AdamW`, and `absolute_weight_decay`, which is ours.
        """
        return {
            "weight_decay": self.weight_decay,
            "decoupled_weight_decay": self.weight_decouple,
            "absolute_weight_decay": self.absolute,
        }

    def __call__(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """
        ### Decay a parameter, or give the gradient with the decay added

        `param` and `grad` have the same shape; `group` holds the mode. The given `grad` is never written.
        """
        weight_decay, lr = group["weight_decay"], group["lr"]
        if not group["decoupled_weight_decay"]:
            # $$g_t \leftarrow g_t + \lambda \theta_{t-1}$$
            return grad.add(param, alpha=weight_decay)
        if not group["absolute_weight_decay"]:
            # $$\theta_{t-1} \leftarrow (1 - \alpha \lambda)\, \theta_{t-1}$$
            param.mul_(1 - lr * weight_decay)
        # A step at $\alpha = 0$ moves nothing in any mode: checkpoint tools take one to make the state.
        elif lr != 0:
            # $$\theta_{t-1} \leftarrow (1 - \lambda)\, \theta_{t-1}$$
            param.mul_(1 - weight_decay)
        return grad
