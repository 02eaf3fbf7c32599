r"""
---
title: Minimise a function
summary: scipy's minimize, by any rule of this package - where it can be, all steps in one kernel.
---

# Minimise a function

A rule needs no network. `minimize` lets it walk downhill from a point, and answers as `scipy.optimize.minimize` does:

```python
result = minimize(None, numpy.full(128, 10.0), jac=lambda x: 2 * x, optimizer=Adam, lr=0.01, max_steps=10_000)
result.x, result.nit, result.message, result.way
```

From $\theta_0$, `x0`, it takes steps $t = 1, 2, \dots$ of the rule with the gradient $g_t = \nabla f(\theta_{t-1})$,
until

$$\lVert \theta_t - \theta_{t-1} \rVert^2 < \text{tol}^2$$

or `max_steps` are done. So a rule that stands still for a step, at a learning rate of $0$ say, has arrived.

## The gradient

`jac` may be

* left out: then `fun` is called with a `torch.Tensor`, and torch differentiates it;
* a function of an array that gives an array of the same shape;
* compiled: a `scipy.LowLevelCallable`, a `numba.cfunc`, or a function or pointer of ctypes, with the signature
  `void (const double *theta, double *grad, int64_t n)`.

If it is compiled, or does the same to each element, the whole loop becomes [one kernel](engines/loop.html): gradient,
update and test. A Python function is then called once for each walk, with a stand-in that
[writes down](engines/gradient.html) what is done to it, and at its first walk with `x0` too, to see whether that
agrees. So it should be a function of its argument and of nothing that changes during a walk; constants may change
between walks. `result.way` says which way was taken:

* `"one kernel"`;
* `"one kernel, called for each step"`, where there is a `callback`;
* `"step by step"`, and then `result.reason` says why: what mixes elements, the rule or the gradient; a rule whose
  numbers are no formula; a dtype or a device that kernels don't take; no compiler.

The way is chosen alike for rules of this package and for your own. `fused=False` among the options asks for steps.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from optimizers.adam import Adam
from optimizers.base import GenericAdaptiveOptimizer, check_class

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

    from optimizers.engines.walk import End, Walk


def minimize(
    fun: Callable[[Any], Any] | None = None,
    x0: Any = None,
    *,
    jac: Any = None,
    optimizer: Callable[..., torch.optim.Optimizer] = Adam,
    max_steps: int = 1000,
    tol: float = 1e-6,
    callback: Callable[..., Any] | None = None,
    **hyper: Any,
) -> OptimizeResult:
    r"""
    ## Walk from a point to a minimum

    * `fun` is the function. With `jac` it may be None: then nobody knows its value, and `result.fun` is NaN.
    * `x0` is where to begin: an array or a tensor of any shape, in whose dtype all is calculated, or numbers, which
      become float64, as integers do. It stays as it is.
    * `optimizer` makes the rule, of parameters and `hyper`: a class, of this package or your own. Any other
      `torch.optim.Optimizer` will do too, step by step.
    * `callback` is called after each step, as by scipy: with `intermediate_result=` if that is the name of its only
      argument, else with a copy of `x`. It ends the walk by raising `StopIteration`.

    Gives a `scipy.optimize.OptimizeResult`: `x`, `fun` and `jac` at the end, in numpy or torch as `x0` was; `nit`, the
    number of steps; `nfev` and `njev`, how often function and gradient were calculated; `success`, whether it
    converged; `status`, which is $0$ then, $1$ after `max_steps`, $2$ where a step led to NaN or infinity (the walk
    ends at once, and `x` is what it led to), and $99$ if the callback ended it; the same in words, `message`; and `way`
    and `reason`.

    Raises `TypeError` or `ValueError` for arguments that won't do: for hyper-parameters, what the rule raises. What
    `fun`, `jac` and `callback` raise goes through.
    """
    result, walk_class = _parts()
    check_class("minimize", optimizer)
    walk = walk_class(fun, x0, jac, optimizer, hyper, callback)
    steps, tolerance = _steps(max_steps), _tolerance(tol)
    end = walk.go(steps, tolerance * tolerance, GenericAdaptiveOptimizer)
    return result(
        x=end.x,
        fun=end.fun,
        jac=end.jac,
        nit=end.nit,
        nfev=walk.evaluations,
        njev=end.nit + 1,
        success=end.status == 0,
        status=end.status,
        message=_message(end, steps, tolerance),
        way=end.way,
        reason=end.reason,
    )


def _message(end: End, steps: int, tol: float) -> str:
    if end.status == 0:
        return f"Converged: step {end.nit} moved x by less than tol={tol:g}."
    if end.status == 2:
        return f"Step {end.nit} led to NaN or infinity: try a smaller lr, or another x0."
    if end.status == 99:
        return "`callback` raised `StopIteration`."
    moved = f", and the last moved x by {math.sqrt(end.moved):.3g}" if end.nit else ""
    return f"All max_steps={steps} steps were taken{moved}."


def _steps(max_steps: Any) -> int:
    try:
        steps = operator.index(max_steps)
    except TypeError:
        raise TypeError(f"max_steps must be an integer of at least 0. Received: {max_steps!r}") from None
    if steps < 0:
        raise ValueError(f"max_steps must be an integer of at least 0. Received: {max_steps}")
    return steps


def _tolerance(tol: Any) -> float:
    try:
        tolerance = float(tol)
    except (TypeError, ValueError):
        raise TypeError(f"tol must be a number of at least 0. Received: {tol!r}") from None
    if not 0 <= tolerance:
        raise ValueError(f"tol must be a number of at least 0. Received: {tol}")
    return tolerance


@functools.cache
def _parts() -> tuple[type[OptimizeResult], type[Walk]]:
    """What takes a while to import, and few need."""
    try:
        from scipy.optimize import OptimizeResult
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'minimize answers as scipy does, and scipy is missing: pip install "literate-optimizers[minimize]"',
            name="scipy",
        ) from error
    from optimizers.engines.walk import Walk

    return OptimizeResult, Walk
