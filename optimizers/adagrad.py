r"""
---
title: Adagrad
summary: Gradients divided by the root of the sum of all their squares; sparse gradients welcome.
---

# Adagrad

[Adaptive Subgradient Methods](https://jmlr.org/papers/v12/duchi11a.html) gave every parameter a learning
rate of its own, before [RMSprop](rmsprop.html) and [Adam](adam.html) did. It remembers all it has seen:

\begin{align}
s_t &\leftarrow s_{t-1} + g_t^2 \\
\theta_t &\leftarrow \theta_{t-1} - \frac{\alpha}{1 + (t - 1)\, \eta} \cdot \frac{g_t}{\sqrt{s_t} + \epsilon}
\end{align}

* $s_t$ is the sum of squares. $s_0$ is `initial_accumulator_value`; above $0$ it shortens the first steps.
* $\alpha$ is `lr`, $\epsilon$ is `eps`, and $\eta$ is `lr_decay`, which lowers the learning rate further.

A word that occurs once in a thousand batches has a small sum, and so a large step when it occurs. That is what it is
for: embeddings, click models, convex problems. A sum never shrinks, so steps fade as $1 / \sqrt t$; where the
loss keeps changing its shape, as in deep networks, they fade too early and an average is better.

**Sparse gradients** name the rows that they have. Only those rows of $s$ and $\theta$ are read and written, so
a step costs what the batch costs and not what the table costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class Adagrad(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.Adagrad`, with the same order, defaults and results.

    * `lr_decay` is $\eta$ and `initial_accumulator_value` is $s_0$; both are $\ge 0$.
    * `weight_decay` is $\lambda$ for L2 regularisation, or a [`WeightDecay`](weight_decay.html). Sparse gradients
      exclude it.
    * `defaults` are further keys for the parameter groups.
    """

    sparse_error = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float | WeightDecay = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        own = {
            "lr_decay": lr_decay,
            "eps": eps,
            **self.decay_defaults(weight_decay),
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, {**own, **(defaults or {})}, lr)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        self.check_not_negative(group, "lr_decay", "initial_accumulator_value")

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the count of steps and the sum"""
        state["step"] = 0
        start = group["initial_accumulator_value"]
        # $s_0$; the two parts of a complex parameter are two numbers
        start = complex(start, start) if param.is_complex() else start
        state["sum"] = torch.full_like(param, start, memory_format=torch.preserve_format)

    def get_lr(self, state: dict[str, Any], group: dict[str, Any]) -> float:
        r"""### Learning rate at this step, $\frac{\alpha}{1 + (t - 1)\, \eta}$"""
        lr: float = group["lr"] / (1 + (state["step"] - 1) * group["lr_decay"])
        return lr

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        s, lr = state["sum"], self.get_lr(state, group)
        if grad.is_sparse:
            self.step_rows(s, lr, group["eps"], grad, param)
            return
        # $$s_t \leftarrow s_{t-1} + g_t^2$$
        s.addcmul_(grad, grad, value=1)
        # $$\theta_t \leftarrow \theta_{t-1} - \alpha_t \frac{g_t}{\sqrt{s_t} + \epsilon}$$
        param.addcdiv_(grad, s.sqrt().add_(group["eps"]), value=-lr)

    def step_rows(self, s: Tensor, lr: float, eps: float, grad: Tensor, param: Tensor) -> None:
        """### The same for the rows of a sparse gradient"""
        # A row may be named twice. Its parts must be summed before they are squared.
        grad = grad.coalesce()
        # $$s_t \leftarrow s_{t-1} + g_t^2$$
        s.add_(_rows_like(grad, grad.values().square()))
        # $$\sqrt{s_t} + \epsilon$$
        denominator = s.sparse_mask(grad).values().sqrt().add_(eps)
        # $$\theta_t \leftarrow \theta_{t-1} - \alpha_t \frac{g_t}{\sqrt{s_t} + \epsilon}$$
        param.add_(_rows_like(grad, grad.values().div(denominator)), alpha=-lr)

    def state_dict(self) -> dict[str, Any]:
        """### What is saved. torch's class has state from the start, and expects it in what it loads"""
        self.fill_state()
        return super().state_dict()

    def share_memory(self) -> None:
        """### Move the sums to shared memory, for processes that train one model together"""
        self.fill_state()
        for state in self.state.values():
            state["sum"].share_memory_()


def _rows_like(grad: Tensor, values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(grad.indices(), values, grad.shape, check_invariants=False, is_coalesced=True)
