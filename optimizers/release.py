"""
---
title: Gradient release
summary: Step during the backward pass, so that gradients are never all there at once.
---

# Gradient release

A training step usually has three parts: forward, backward, step. Between the last two every gradient is in
memory, as much as the parameters themselves. Nobody needs them all: as soon as the gradient of a parameter is complete
that parameter can step, and the gradient can go. One line does it:

```python
optimizer = Adam(model.parameters())
release_gradients(optimizer)
```

The loop stays as it is. `optimizer.step()` finds no gradients left and does nothing; schedules and checkpoints
go on working on the one optimizer. Results are the same, because a rule treats each parameter alone.

What looks at all gradients can't be had together with it: clipping by the norm of all (`clip_grad_norm_`), a
`GradScaler`, and summing gradients over several backward passes, as each of them steps. Nor does it go together with
FSDP, which puts gradients in their place by itself. Each parameter is a launch of its own, so small ones take longer.

`python -m optimizers.experiments.memory` measures what is saved.
"""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from optimizers.base import GenericAdaptiveOptimizer
from optimizers.engines.stepper import Stepper


class GradientRelease:
    """## The hooks on the parameters of an optimizer; `remove` takes them off again"""

    def __init__(self, optimizer: GenericAdaptiveOptimizer) -> None:
        self._optimizer = optimizer
        # Parameters step at different times, so each has its own plan.
        self._steppers: dict[Tensor, Stepper] = {}
        self._shared_stepper = optimizer._stepper
        self._places = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._hooks = [p.register_post_accumulate_grad_hook(self._step) for p in self._places if p.requires_grad]

    def _step(self, param: Tensor) -> None:
        optimizer = self._optimizer
        # Only reading `vars` keeps the state unknown to others, and its tensors need no looking at.
        if optimizer._stepper is not self._shared_stepper:
            # A state was loaded.
            self._steppers, self._shared_stepper = {}, optimizer._stepper
        states = vars(optimizer)["state"]
        one = object.__new__(type(optimizer))
        vars(one).update(
            vars(optimizer),
            param_groups=[{**optimizer.param_groups[self._places[param]], "params": [param]}],
            state=defaultdict(dict, {param: states[param]} if param in states else {}),
        )
        self._steppers.setdefault(param, Stepper()).step(one)
        states.update(vars(one)["state"])
        param.grad = None

    def remove(self) -> None:
        """### Let gradients stay from now on"""
        for hook in self._hooks:
            hook.remove()


def release_gradients(optimizer: GenericAdaptiveOptimizer) -> GradientRelease:
    """
    ## Step each parameter as soon as its gradient is there, and let the gradient go

    For the parameters that `optimizer` has now and that require a gradient. Raises `TypeError` for an optimizer of
    another library, and `ValueError` for one that is `differentiable`.
    """
    if not isinstance(optimizer, GenericAdaptiveOptimizer):
        raise TypeError(
            f"release_gradients takes an optimizer of this package. Received: {type(optimizer).__name__}. "
            "Make the one of the same name, from `optimizers` instead of `torch.optim`"
        )
    if any(group["differentiable"] for group in optimizer.param_groups):
        raise ValueError("a step within backward is not recorded, so release_gradients needs differentiable=False")
    return GradientRelease(optimizer)
