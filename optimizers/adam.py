r"""
---
title: Adam
summary: Adam, with the update as in the paper and its reordered form.
---

# Adam

[Adam: A Method for Stochastic Optimization](https://arxiv.org/abs/1412.6980) gives every parameter its
own step size. Think of a valley that is steep across and flat along. One learning rate is too long for the
walls and too short for the floor. Adam divides each coordinate by the size of the gradients it
has lately seen, so all coordinates move at about the same speed, $\alpha$ a step.

It is the optimizer to try first: it forgives a rough learning rate and badly scaled parameters. Its
price is two extra numbers per parameter. Where a well tuned [SGD](sgd.html) is affordable (image
classifiers, mostly) that may generalise better; for weight decay take [AdamW](adamw.html).

Two moving averages are kept, of the gradient and of its square:

\begin{align}
m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
\hat m_t &\leftarrow \frac{m_t}{1 - \beta_1^t} \\
\hat v_t &\leftarrow \frac{v_t}{1 - \beta_2^t} \\
\theta_t &\leftarrow \theta_{t-1} - \alpha \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
\end{align}

* $\theta_t$ is the parameter and $g_t$ its gradient, at step $t = 1, 2, \dots$
* $m_t$ and $v_t$ are the first and second moment. Both start at $0$, which pulls them towards zero at first;
  $\hat m_t$ and $\hat v_t$ undo this bias: after $t$ steps the weights in $m_t$ sum to $1 - \beta_1^t$.
* $\alpha$ is the learning rate, `lr`; $\beta_1, \beta_2 \in [0, 1)$ are `betas`; $\epsilon$ is `eps`,
  which keeps the quotient finite where all gradients were zero.

The effective step is $\alpha\, \hat m_t / \sqrt{\hat v_t}$. A gradient that keeps its sign gives steps of
about $\alpha$; one that is mostly noise averages out in $m_t$ but not in $v_t$, and gives small ones.

## The reordered form

Both bias corrections are numbers, not tensors, so they can be gathered into the step size. That is the
form at the end of section 2 of the paper, chosen here by `optimized_update=True`:

$$\theta_t \leftarrow \theta_{t-1} - \alpha \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
  \cdot \frac{m_t}{\sqrt{v_t} + \hat\epsilon}$$

Multiply numerator and denominator of the first form by $\sqrt{1 - \beta_2^t}$ to see that the two agree
where $\hat\epsilon = \epsilon \sqrt{1 - \beta_2^t}$. With this option `eps` *is* $\hat\epsilon$, a constant.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class Adam(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.Adam`, with the same order, defaults and results.

    * `weight_decay` is $\lambda$ for L2 regularisation (decoupled with `decoupled_weight_decay=True`), or a
      [`WeightDecay`](weight_decay.html).
    * `amsgrad` divides by the largest $v_t$ so far, as in
      [On the Convergence of Adam and Beyond](https://arxiv.org/abs/1904.09237).
    * `optimized_update` takes the reordered form, with `eps` as $\hat\epsilon$.
    * `defaults` are further keys for the parameter groups: a subclass passes its hyper-parameters here.
    """

    sparse_error = "Adam does not support sparse gradients, please consider SparseAdam instead"
    #: Whether both betas must be floats, or both tensors. torch asks that of Adam and AdamW only.
    strict_betas: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | WeightDecay = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        optimized_update: bool = False,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        own = {
            "betas": betas,
            "eps": eps,
            **self.decay_defaults(weight_decay, decoupled_weight_decay),
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "optimized_update": optimized_update,
        }
        super().__init__(params, {**own, **(defaults or {})}, lr)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy, in torch's words"""
        super().check_group(group)
        betas, lists = group["betas"], group["foreach"] and not group["capturable"]
        if not self.strict_betas:
            return
        if lists and isinstance(group["lr"], Tensor):
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        if not (all(isinstance(b, float) for b in betas) or all(isinstance(b, Tensor) for b in betas)):
            raise ValueError("betas must be either both floats or both Tensors")
        for index, beta in enumerate(betas):
            if isinstance(beta, Tensor):
                if lists:
                    raise ValueError(
                        f"betas[{index}] as a Tensor is not supported for capturable=False and foreach=True"
                    )
                if beta.numel() != 1:
                    raise ValueError(f"Tensor betas[{index}] must be 1-element")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the count of steps and two moments of its shape"""
        state["step"] = 0
        # $m_0 = 0$
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        # $v_0 = 0$
        state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def get_mv(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor) -> tuple[Tensor, Tensor]:
        """### First and second moment, $m_t$ and $v_t$"""
        beta1, beta2 = group["betas"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        # $$m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t - m_{t-1})$$
        m.lerp_(grad, 1 - beta1)
        # $$v_t \leftarrow \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2$$
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if not group["amsgrad"]:
            return m, v
        v_max = state["max_exp_avg_sq"]
        # $$v^{max}_t \leftarrow \max(v^{max}_{t-1}, v_t)$$
        v_max.copy_(torch.maximum(v_max, v))
        return m, v_max

    def adam_update(self, state: dict[str, Any], group: dict[str, Any], param: Tensor, m: Tensor, v: Tensor) -> None:
        r"""### The update of $\theta$ from $m_t$ and $v_t$"""
        beta1, beta2 = group["betas"]
        # $1 - \beta_1^t$ and $1 - \beta_2^t$
        bias_correction1 = 1 - beta1 ** state["step"]
        bias_correction2 = 1 - beta2 ** state["step"]
        # $$\frac{\alpha}{1 - \beta_1^t}$$
        step_size = self.get_lr(state, group) / bias_correction1
        if group["optimized_update"]:
            # $$\sqrt{v_t} + \hat\epsilon$$
            denominator = v.sqrt().add_(group["eps"])
            # $$\alpha \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}$$
            step_size = step_size * bias_correction2**0.5
        else:
            # $$\frac{\sqrt{v_t}}{\sqrt{1 - \beta_2^t}} + \epsilon$$
            denominator = v.sqrt().div_(bias_correction2**0.5).add_(group["eps"])
        # $$\theta_t \leftarrow \theta_{t-1} - \text{step size} \cdot \frac{m_t}{\text{denominator}}$$
        param.addcdiv_(m, denominator, value=-step_size)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        m, v = self.get_mv(state, group, grad)
        self.adam_update(state, group, param, m, v)
