r"""
---
title: SGD
summary: Stochastic gradient descent with momentum, in torch's form and as a moving average.
---

# Stochastic gradient descent

The oldest rule, and the yardstick: walk against the gradient of a mini-batch.

$$\theta_t \leftarrow \theta_{t-1} - \alpha\, g_t$$

In a narrow valley this zigzags. **Momentum** averages the zigzag away and adds up what the steps have in
common, like a heavy ball that rolls downhill. Two forms are in use.

**torch's form** sums gradients; $\mu$ is `momentum`, $\tau$ is `dampening`:

\begin{align}
v_1 &\leftarrow g_1 \\
v_t &\leftarrow \mu\, v_{t-1} + (1 - \tau)\, g_t \qquad t > 1 \\
\theta_t &\leftarrow \theta_{t-1} - \alpha\, v_t
\end{align}

Note the first step: it is *not* scaled by $1 - \tau$. With $\mu = 0.9$ and $\tau = 0$ a steady gradient
builds up to $v = 10\, g$, so a learning rate found without momentum is ten times too large with it.

**The moving average**, `moving_average=True`, starts from $v_0 = 0$ and keeps the scale of a gradient;
with $\beta$ as `momentum`:

\begin{align}
v_t &\leftarrow \beta\, v_{t-1} + (1 - \beta)\, g_t \\
\theta_t &\leftarrow \theta_{t-1} - \alpha\, v_t
\end{align}

From the second step on it is torch's form with $\tau = \beta$, but the first step is $(1 - \beta)\, g_1$,
not $g_1$: a first gradient that is far off does not weigh ten times as much as every later one.

**Nesterov's momentum** looks one step ahead: it uses $g_t + \mu v_t$ where plain momentum uses $v_t$.

Take SGD where the loss is well scaled and compute is plentiful (convolutional networks with a schedule,
convex problems). It needs the least memory, none without momentum. Sparse gradients are welcome.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay


class SGD(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.SGD`, with the same order, defaults and results.

    * `momentum` is $\mu$ (or $\beta$), `dampening` is $\tau$, and `nesterov` looks ahead.
    * `weight_decay` is $\lambda$ for L2 regularisation, or a [`WeightDecay`](weight_decay.html).
    * `moving_average` takes the second form above; it excludes `dampening` and `nesterov`.
    * `defaults` are further keys for the parameter groups.
    """

    sparse_error = None
    lazy_state = ("momentum_buffer",)
    letters: ClassVar[dict[str, str]] = {"momentum_buffer": "v"}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor | WeightDecay = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        moving_average: bool = False,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        own = {
            "momentum": momentum,
            "dampening": dampening,
            **self.decay_defaults(weight_decay),
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "moving_average": moving_average,
        }
        super().__init__(params, {**own, **(defaults or {})}, lr)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy"""
        super().check_group(group)
        momentum, dampening = group["momentum"], group["dampening"]
        if not 0.0 <= momentum:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if group["nesterov"] and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        if group["moving_average"] and (not momentum < 1 or dampening != 0 or group["nesterov"]):
            raise ValueError(
                "moving_average=True requires momentum below 1, zero dampening and nesterov=False. "
                f"Received: momentum={momentum}, dampening={dampening}, nesterov={group['nesterov']}"
            )

    def get_velocity(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor) -> Tensor:
        """### The velocity $v_t$, made from the first gradient"""
        momentum, v = group["momentum"], state.get("momentum_buffer")
        if group["moving_average"]:
            if v is None:
                # $$v_1 \leftarrow (1 - \beta)\, g_1$$
                v = state["momentum_buffer"] = grad.mul(1 - momentum)
            else:
                # $$v_t \leftarrow v_{t-1} + (1 - \beta)(g_t - v_{t-1})$$
                v.lerp_(grad, 1 - momentum)
        elif v is None:
            # $$v_1 \leftarrow g_1$$
            v = state["momentum_buffer"] = grad.clone()
        else:
            # $$v_t \leftarrow \mu\, v_{t-1} + (1 - \tau)\, g_t$$
            v.mul_(momentum).add_(grad, alpha=1 - group["dampening"])
        return v

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        if group["momentum"] != 0:
            v = self.get_velocity(state, group, grad)
            # $$g_t \leftarrow \begin{cases} g_t + \mu\, v_t & \text{nesterov} \\ v_t & \text{otherwise} \end{cases}$$
            grad = grad.add(v, alpha=group["momentum"]) if group["nesterov"] else v
        # $$\theta_t \leftarrow \theta_{t-1} - \alpha\, g_t$$
        param.add_(grad, alpha=-group["lr"])
