r"""
---
title: Sophia
summary: Steps divided by an estimate of the curvature, and clipped where that can't be trusted.
---

# Sophia-G

[Sophia](https://arxiv.org/abs/2305.14342) divides by the curvature of the loss instead of the size of gradients, as
Newton's method does, so that flat directions get long steps and steep ones short. Two tricks make that affordable and
safe. The curvature $h_t$, the diagonal of the Hessian, is estimated only every $k$ steps, and averaged. And every
coordinate of the step is clipped, so where $h_t$ is tiny, old or wrong, the step is that of a sign:

\begin{align}
m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
h_t &\leftarrow \beta_2 h_{t-k} + (1 - \beta_2)\, \hat h_t \qquad \text{every } k \text{ steps} \\
\theta_t &\leftarrow \theta_{t-1} - \eta\, \text{clip}\bigg(\frac{m_t}{h_t + \epsilon},\; \rho\bigg)
\end{align}

* $\rho$ is `rho`. The largest step is $\eta \rho$, and that is `lr`: $\eta = \alpha / \rho$.
* $\epsilon$ is `eps`. Before the first estimate $h_t = 0$ and every step is a sign.
* $\beta_1, \beta_2$ are `betas`.

**The estimate** is Gauss, Newton and Bartlett's. Draw labels $\hat y$ from the model's own output, take the gradient
$\hat g$ of the mean cross entropy against them, and square it: $\hat h_t = B\, \hat g^2$ with $B$ tokens in
the batch. It is never negative.

```python
if step % 10 == 0:
    logits = model(x)
    labels = torch.distributions.Categorical(logits=logits).sample()
    torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
    optimizer.update_hessian(n_tokens=labels.numel())
    optimizer.zero_grad()
```

It is made for language models, where the paper halves the steps of AdamW. It needs a loss that is a cross entropy.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class Sophia(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    * `rho` is $\rho > 0$; `weight_decay` is decoupled, or a [`WeightDecay`](weight_decay.html).
    * `defaults` are further keys for the groups, and `options` are those of every rule: `foreach`, `fused`,
      `maximize`, `capturable`, `differentiable`.
    """

    sparse_error = "Sophia does not support sparse gradients"
    absent_switches: ClassVar[dict[str, bool]] = {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-12,
        rho: float = 0.03,
        weight_decay: float | WeightDecay = 0,
        *,
        defaults: dict[str, Any] | None = None,
        **options: bool | None,
    ) -> None:
        decay = self.decay_defaults(weight_decay, decoupled_weight_decay=True)
        own = {"betas": betas, "eps": eps, "rho": rho, **decay}
        super().__init__(params, {**own, **self.reader_options(options), **(defaults or {})}, lr)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        if not 0.0 < group["rho"]:
            raise ValueError(f"Invalid rho value: {group['rho']}")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the count of steps, the momentum and the curvature"""
        state["step"] = 0
        # $m_0 = 0$
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        # $h_0 = 0$
        state["hessian"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    @torch.no_grad()
    def update_hessian(self, n_tokens: float) -> None:
        r"""
        ### Average the estimate of the curvature into $h_t$

        The gradients are those of the mean cross entropy against labels drawn from the model; `n_tokens` is the number
        $B$ of them. Parameters without gradient keep theirs. Clear the gradients afterwards.
        """
        if not 0 < n_tokens:
            raise ValueError(f"Invalid n_tokens value: {n_tokens}")
        self.fill_state()
        for group in self.param_groups:
            beta2 = float(group["betas"][1])
            for param in group["params"]:
                if param.grad is not None:
                    h, grad = (_real(t) for t in (self.state[param]["hessian"], param.grad))
                    # $$h_t \leftarrow \beta_2 h_{t-k} + (1 - \beta_2)\, B\, \hat g^2$$
                    h.copy_(_wide(h).mul(beta2).addcmul_(_wide(grad), _wide(grad), value=(1 - beta2) * n_tokens))

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        m, h, rho = state["exp_avg"], state["hessian"], group["rho"]
        # $$m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t - m_{t-1})$$
        m.lerp_(grad, 1 - group["betas"][0])
        # $$\text{clip}\bigg(\frac{m_t}{h_t + \epsilon},\; \rho\bigg)$$
        ratio = m.div(h.add(group["eps"])).clamp_(-rho, rho)
        # $$\theta_t \leftarrow \theta_{t-1} - \frac{\alpha}{\rho} \cdot \text{ratio}$$
        param.add_(ratio, alpha=-self.get_lr(state, group) / rho)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _wide(tensor: Tensor) -> Tensor:
    """Half precision is computed in float32, as in a step."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
