r"""
---
title: Muon
summary: Momentum whose matrices are made orthogonal; for the hidden layers.
---

# Muon

The weights of a hidden layer are a matrix, and its momentum nearly always has a few large singular values and many
small ones: most of what a step does, it does in a few directions. [Muon](https://kellerjordan.github.io/posts/muon/)
makes all singular values one and keeps the directions, so that rare ones are learnt as fast as common ones:

\begin{align}
m_t &\leftarrow \mu\, m_{t-1} + (1 - \mu)\, g_t \\
o_t &\leftarrow U V^\top \qquad \text{where } U \Sigma V^\top = (1 - \mu)\, g_t + \mu\, m_t \\
\theta_t &\leftarrow (1 - \alpha \lambda)\, \theta_{t-1} - \alpha\, s\, o_t
\end{align}

* $\mu$ is `momentum`. Without `nesterov` it is $m_t$ itself that is made orthogonal.
* $s$ makes up for the shape, with $A$ rows and $B$ columns: $\sqrt{\max(1, A/B)}$, or $0.2 \sqrt{\max(A, B)}$
  (`adjust_lr_fn="match_rms_adamw"`, from [Muon is Scalable](https://arxiv.org/abs/2502.16982)), with which learning
  rate and decay of AdamW can be kept.
* $\lambda$ is `weight_decay`, decoupled.

**Newton and Schulz** make a matrix orthogonal by products alone, in bfloat16 if need be. First divide by the norm,
so that all singular values lie in $(0, 1]$ ($\delta$ is 1, but 1.01 for the Polar Express). Then repeat, with $X$ lying
down,

$$X \leftarrow a X + (b A + c A^2) X, \qquad A = X X^\top$$

which maps each singular value $x$ to $a x + b x^3 + c x^5$. Two choices of $(a, b, c)$: one triple that is
steep at $0$ and leaves values between about 0.7 and 1.2 (`ns_coefficients`, five times), or the best triple for each
turn, which [The Polar Express](https://arxiv.org/abs/2505.16932) has worked out (`polar_express=True`) and which come
closer to one; six turns are a good number for them.

A matrix product is not done element by element, so no kernel takes this rule: it steps one matrix after another.
Embeddings, output layers, biases and norms are for [AdamW](adamw.html).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.weight_decay import WeightDecay

Coefficients = tuple[float, float, float]

#: Of the paper, for singular values from 0.001 on; the last is for all later turns. Turns before it are damped by 1.01,
#: for values that rounding has put above one.
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
DAMPING = 1.01


class Muon(GenericAdaptiveOptimizer):
    r"""
    ## The optimizer

    The arguments are those of `torch.optim.Muon`, with the same order, defaults and results. Parameters are matrices.

    * `ns_steps` is how often the iteration is repeated, `eps` the least norm that is divided by.
    * `polar_express` takes the coefficients of that paper in place of `ns_coefficients`.
    * `defaults` and `options` are as in [Lion](lion.html).
    """

    sparse_error = "Muon does not support sparse gradients"
    absent_switches: ClassVar[dict[str, bool]] = {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float | WeightDecay = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        polar_express: bool = False,
        defaults: dict[str, Any] | None = None,
        **options: bool | None,
    ) -> None:
        own = {
            **self.decay_defaults(weight_decay, decoupled_weight_decay=True),
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "polar_express": polar_express,
        }
        super().__init__(params, {**own, **self.reader_options(options), **(defaults or {})}, lr)

    def check_group(self, group: dict[str, Any]) -> None:
        """### What the hyper-parameters must satisfy, in torch's words"""
        if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        for name, label in {"lr": "Learning rate", "momentum": "momentum", "weight_decay": "weight decay"}.items():
            if group[name] is None or not 0.0 <= group[name]:
                raise ValueError(f"{label} should be >= 0 but is: {group[name]}")
        super().check_group(group)
        if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"Adjust learning rate function {group['adjust_lr_fn']} is not supported")
        if group["ns_steps"] >= 100:
            raise ValueError("Number of steps must be less than 100 for computational efficiency")
        if group["differentiable"]:
            raise ValueError("Muon takes no differentiable steps: products of matrices are done in bfloat16")
        if not isinstance(group["ns_coefficients"], (tuple, list)) or len(group["ns_coefficients"]) != 3:
            raise ValueError("Coefficients must be a tuple of exactly 3 values")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """### Add a parameter group; all in it must be real matrices"""
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.ndim != 2 or param.is_complex():
                del self.param_groups[-1]
                kind = "complex parameters" if param.is_complex() else f"a parameter with size: {param.size()}"
                raise ValueError(
                    f"Muon only supports 2D parameters whereas we found {kind}. Give embeddings, biases and whatever "
                    "is no hidden matrix to AdamW"
                )

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### State of a parameter: the momentum"""
        # $m_0 = 0$
        state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def orthogonalize(self, group: dict[str, Any], matrix: Tensor) -> Tensor:
        r"""### Nearly $U V^\top$ of a matrix $U \Sigma V^\top$, in bfloat16"""
        polar_express, turns = group["polar_express"], group["ns_steps"]
        x = matrix.bfloat16()
        stands = matrix.size(0) > matrix.size(1)
        x = x.T if stands else x
        # $$X \leftarrow \frac{X}{\delta \max(\lVert X \rVert, \epsilon)}$$
        x = x / (x.norm().clamp(min=group["eps"]) * (DAMPING if polar_express else 1.0))
        for a, b, c in _polar_express(turns) if polar_express else [group["ns_coefficients"]] * turns:
            # $$A = X X^\top$$
            gram = x @ x.T
            # $$X \leftarrow a X + (b A + c A^2) X$$
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if stands else x

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### One step of one parameter"""
        mu, m = group["momentum"], state["momentum_buffer"]
        # $$m_t \leftarrow m_{t-1} + (1 - \mu)(g_t - m_{t-1})$$
        m.lerp_(grad, 1 - mu)
        # $$o_t \leftarrow U V^\top \text{ of } g_t + \mu (m_t - g_t)$$
        o = self.orthogonalize(group, grad.lerp(m, mu) if group["nesterov"] else m)
        rows, columns = param.shape
        if group["adjust_lr_fn"] == "match_rms_adamw":
            # $s = 0.2 \sqrt{\max(\text{rows}, \text{columns})}$
            scale = 0.2 * math.sqrt(max(rows, columns))
        else:
            # $s = \sqrt{\max(1, \text{rows} / \text{columns})}$
            scale = math.sqrt(max(1, rows / max(1, columns)))
        # $$\theta_t \leftarrow \theta_{t-1} - \alpha\, s\, o_t$$
        param.add_(o, alpha=-(self.get_lr(state, group) * scale))


def _polar_express(turns: int) -> list[Coefficients]:
    """The coefficients of each turn."""
    first = [(a / DAMPING, b / DAMPING**3, c / DAMPING**5) for a, b, c in POLAR_EXPRESS[:-1]]
    return [*first[:turns], *[POLAR_EXPRESS[-1]] * (turns - len(first))]
