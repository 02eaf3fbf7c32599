r"""
---
title: AdamFP16
summary: Adam for parameters in half precision, moved in float32.
---

# Adam for half precision

A model in float16 or bfloat16 takes half of the memory and computes faster, but plain [Adam](adam.html) trains it
badly. Above $1$ the numbers of float16 are $2^{-10}$ apart, those of bfloat16 $2^{-7}$. What is added to a parameter is
rounded to the nearest of them, so a step of $10^{-4}$ is rounded away, and so are the next thousand.

The remedy is that of [Mixed Precision Training](https://arxiv.org/abs/1710.03740) (section 3.1): move a copy
$\Theta$ of every parameter in float32, the *master copy*, and let the parameter be what it rounds to.

\begin{align}
\Theta_t &\leftarrow \text{Adam}(\Theta_{t-1}, g_t) \\
\theta_t &\leftarrow \text{round}(\Theta_t)
\end{align}

* $\theta_t$ is the parameter, in half precision, which the model computes with.
* $\Theta_0 = \theta_0$. Steps too small to be seen in $\theta$ add up in $\Theta$, and one day it rounds
  to the next number.
* $g_t$ is widened to float32, and $m_t$ and $v_t$ are kept in it. Weight decay too is that of $\Theta$.

A parameter then takes 12 bytes of state beside its own 2. Where some float32 layers are needed, or memory is no matter,
`torch.autocast` around a model in float32 and plain Adam do the same with less to look after. Parameters in float32 or
wider have a copy in their own dtype, and move as by Adam.

The master copy is what counts. What others write to a parameter in mid-training, by loading a model say, is
overwritten by the next step. Load the state of the optimizer too, or let it begin anew: `optimizer.state.clear()`.

## Gradients that are too small

In float16 whatever is below $3 \cdot 10^{-8}$ is rounded to $0$, and many gradients are. So the loss is multiplied by a
large number, and the gradients are divided by it before the step. In float16 that would bring the zeros back.
`GradScalerFP16` divides in float32:

```python
optimizer, scaler = AdamFP16(model.half().parameters()), GradScalerFP16("cuda")
for x, y in batches:
    optimizer.zero_grad()
    scaler.scale(loss(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
```

bfloat16 reaches as far down as float32, and needs no scaler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizers.adam import Adam


class AdamFP16(Adam):
    """
    ## The optimizer

    The arguments are those of [Adam](adam.html). `state["fp32_copy"]` is the master copy. A checkpoint of Adam can be
    loaded too: the parameters then become the master copies.
    """

    sparse_error = "AdamFP16 does not support sparse gradients"

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        r"""### State of a parameter: the master copy, and Adam's state of it"""
        # $\Theta_0 = \theta_0$
        master = _wide(param, copy=True)
        super().init_state(state, group, master)
        state["fp32_copy"] = master

    def update_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### Move the master copy as Adam moves a parameter, then round it"""
        master = state["fp32_copy"]
        if group["differentiable"] and state["step"] == 1:
            # $\Theta_0 = \theta_0$, once more: gradients of a step flow back to the parameter, not to a copy
            master.copy_(param)
        # $$\Theta_t \leftarrow \text{Adam}(\Theta_{t-1}, g_t)$$
        super().update_param(state, group, grad, master)
        # $$\theta_t \leftarrow \text{round}(\Theta_t)$$
        param.copy_(master)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """### Take over a loaded state. One of Adam may be in half precision, and has no master copies"""
        super().__setstate__(state)
        for param, kept in vars(self)["state"].items():
            if kept and "fp32_copy" not in kept:
                kept["fp32_copy"] = _wide(param, copy=True)
            for name in {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"} & set(kept):
                kept[name] = _wide(kept[name])


class GradScalerFP16(torch.amp.GradScaler):
    """
    ## The scaler of gradients

    A `torch.amp.GradScaler`, with its arguments, which unscales the gradients of `AdamFP16` in float32. It serves other
    optimizers as torch's does.
    """

    def unscale_(self, optimizer: Optimizer) -> None:
        """
        ### Divide gradients by the scale

        The wide gradient takes the place of the narrow one, `param.grad`, so it is also the one that is clipped and
        cleared. torch doesn't let us assign it, but exchange its memory, as `module.float()` does. Where gradients are
        no plain tensors neither can be done, and torch refuses to unscale float16.
        """
        if self.is_enabled() and isinstance(optimizer, AdamFP16):
            grads = (p.grad for group in optimizer.param_groups for p in group["params"])
            for grad in grads:
                if type(grad) is Tensor and grad.layout == torch.strided:
                    grad.data = _wide(grad)
        super().unscale_(optimizer)


def _wide(tensor: Tensor, copy: bool = False) -> Tensor:
    """The values of a tensor in float32, or in its own dtype where that is wider."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor if tensor.dtype == wide and not copy else tensor.detach().to(wide, copy=copy)
