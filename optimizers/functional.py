r"""
---
title: Rules as pure functions
summary: init, update and get_params of any rule, as in JAX, for torch.func, vmap and torch.compile.
---

# Rules as pure functions

An optimizer keeps parameters and writes to them. Where a training run is itself something to compute with, to
differentiate, to run for many learning rates at once, a function is better: state in, state out. JAX's
[example optimizers](https://github.com/jax-ml/jax/blob/main/jax/example_libraries/optimizers.py) are three of them,

\begin{align}
s_0 &= \text{init}(\theta_0) \\
s_{i+1} &= \text{update}(i,\, g,\, s_i) \\
\theta_i &= \text{get\_params}(s_i)
\end{align}

and any rule of this library, yours too, is made into these:

```python
init, update, get_params = as_functions(Adam, lr=1e-2)

state = init({"w": torch.randn(3, 2), "b": torch.zeros(2)})
for i in range(100):
    grads = torch.func.grad(loss)(get_params(state))
    state = update(i, grads, state)
```

Nothing is written. It is the text of the rule that runs, with [values out of place](engines/functional.html), so the
parameters are those of the class, bit for bit. Nothing is detached either: gradients flow through all that is handed
in. Where that isn't wanted, hand in `param.detach()`, or step under `torch.no_grad()`.

* **Parameters** are tensors in any *pytree*: one tensor, or containers of them, of whatever kind torch's pytrees know.
  For parts that move by other rules, or with other numbers, take several triples, one for each part.
* **The count** is $i = 0, 1, 2, \dots$, and the rule's $t$ is $i + 1$. As in JAX it is taken as given: an $i$ that
  jumps corrects the bias of averages that were not made.
* **The learning rate** is a number, a tensor, or a function of $i$, a *schedule*. State is made with that of $i = 0$.
* **A missing gradient** is None in place of a tensor. It leaves its parameter and state as they are. As in the class
  that parameter's own $t$ is then one behind: $i$ goes on, so the state counts the steps that were missed.

## Under `vmap`, `grad` and `torch.compile`

A state is a pytree too: its tensors are its leaves, its numbers are part of its structure. So `torch.func.vmap` maps
over an ensemble of states, and a rule may still decide by its numbers, as RAdam does by $t$.

Hyper-parameters, and $i$, may be tensors that are mapped or differentiated:

```python
def after(lr):
    init, update, get_params = as_functions(SGD, lr=lr)
    ...
    return loss(get_params(state))

torch.func.vmap(after)(torch.logspace(-4, 0, 9))     # nine runs as one
torch.func.grad(after)(torch.tensor(0.1))            # a better learning rate
```

A rule can't decide by a tensor that is mapped, or take Python's number of one: Rprop does so with `lr`, which is only
where its steps begin. It then raises `TypeError`. A mapped option isn't checked, since nobody can look at it. And what
is kept in float32, as torch does with NAdam's product, isn't rounded where it is a tensor, or compiled.

`torch.compile(update, fullgraph=True)` compiles once for any $i$ that is a tensor; rules that decide by $t$, as RAdam
or a warm-up, want a number. For numbers it compiles twice, the second time for all of them, and once more for each
branch that a rule takes. Muon is compiled in parts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils import _pytree as pytree

from optimizers.base import GenericAdaptiveOptimizer, check_class, check_ours
from optimizers.engines.cohort import as_stored
from optimizers.engines.functional import functional_group, is_mapped, step_out_of_place, watched
from optimizers.engines.state import refuse_number

#: A learning rate for each i, which may be a tensor.
Schedule = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Slot:
    """
    ## The state of one parameter

    * `tensors` are by torch's names, `exp_avg` say. In a pytree they are the leaves, and all else is structure.
    * `numbers` are the other entries, such as NAdam's `mu_product`. They become tensors if they are made from some.
    * `missed` is the number of steps for which there was no gradient.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    missed: int = 0


pytree.register_pytree_node(
    Slot,
    lambda slot: ([slot.tensors], (slot.numbers, slot.missed)),
    lambda children, structure: Slot(*children, *structure),
    serialized_type_name="optimizers.functional.Slot",
    flatten_with_keys_fn=lambda slot: (
        [(pytree.GetAttrKey("tensors"), slot.tensors)],
        (slot.numbers, slot.missed),
    ),
)


class State(NamedTuple):
    """
    ## What `update` takes and gives

    `params` is the tree of parameters, and `slots` the same tree with a `Slot` for each: `state.slots["w"].tensors`.
    """

    params: Any
    slots: Any


class Functions(NamedTuple):
    """## The three functions"""

    init: Callable[[Any], State]
    update: Callable[[Any, Any, State], State]
    get_params: Callable[[State], Any]


def as_functions(rule: Callable[..., Any], *, lr: float | Tensor | Schedule | None = None, **options: Any) -> Functions:
    """
    ## The functions of a rule

    `rule` is an optimizer class, or anything that makes an optimizer of `(params, **options)`. `lr` may be a function
    of `i`; without it, and for other options, the rule has its defaults. `foreach`, `fused`, `capturable` and
    `differentiable` are ways of running a class, and can't be had here.

    Raises `TypeError` for what is no rule, and `ValueError` for bad options, in the words of the rule.
    """
    check_class("as_functions", rule)
    schedule: Schedule | None = None
    if callable(lr):
        schedule, lr = lr, lr(0)
    if lr is not None:
        options["lr"] = lr
    mapped = {name: value for name, value in options.items() if is_mapped(value)}
    # Nobody can look at their values, so the rule can't check them.
    checked = {name: value for name, value in options.items() if name not in mapped}

    def build(params: list[Tensor]) -> GenericAdaptiveOptimizer:
        optimizer: GenericAdaptiveOptimizer = rule(params, **checked)
        check_ours("as_functions", optimizer)
        return optimizer

    functional = _Functional(build, mapped, schedule)
    return Functions(functional.init, functional.update, _get_params)


def _get_params(state: State) -> Any:
    return state.params


class _Functional:
    """
    ## A rule with its hyper-parameters

    All in it is constant. `build` makes the optimizer of some parameters; `mapped` are options that `vmap` maps over.
    """

    def __init__(
        self,
        build: Callable[[list[Tensor]], GenericAdaptiveOptimizer],
        mapped: dict[str, Any],
        schedule: Schedule | None,
    ) -> None:
        self.build, self.schedule = build, schedule
        # A matrix, as Muon wants it.
        self.rule = build([torch.zeros(1, 1)])
        group = self.rule.param_groups[0]
        for option in ("foreach", "fused", "capturable", "differentiable"):
            if group[option]:
                raise ValueError(
                    f"as_functions takes no {option}={group[option]!r}, which is about how a class steps. Functions "
                    "are always differentiable, and torch.compile makes kernels of them"
                )
        unknown = set(mapped) - set(group)
        if unknown:
            raise TypeError(f"{type(self.rule).__name__} takes no tensor that is mapped as {min(unknown)!r}")
        self.group = functional_group({**group, **mapped, "differentiable": True})

    def init(self, params: Any) -> State:
        """
        ### The state before the first step

        Raises `TypeError` for a parameter that is no tensor, and what the class raises for one that it can't take.
        """
        leaves, tree = pytree.tree_flatten(params)
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(f"parameters must be tensors. Received: {type(leaf).__name__}{_place(params, leaf)}")
        if leaves and not is_compiling():
            self.build([torch.empty(p.shape, dtype=p.dtype, device="meta") for p in leaves])
        return State(params, pytree.tree_unflatten(map(self.new_slot, leaves), tree))

    def new_slot(self, param: Tensor) -> Slot:
        """### The state of a new parameter"""
        state: dict[str, Any] = {}
        with watched(self.rule, self.group):
            self.rule.init_state(state, self.group, param)
        for name, value in state.items():
            refuse_number(self.rule, name, value)
        return self.slot(state, missed=0)

    def slot(self, state: dict[str, Any], missed: int) -> Slot:
        """### A state, its numbers as the class would keep them. The count is `i`, and not kept"""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and name != "step"}
        numbers = {name: value for name, value in state.items() if name not in tensors and name != "step"}
        if not is_compiling():
            numbers = {n: as_stored(n, v) if n in self.rule.scalar_state else v for n, v in numbers.items()}
        return Slot(tensors, numbers, missed)

    def update(self, i: Any, grads: Any, state: State) -> State:
        """
        ### The state after a step

        `i` counts the steps from 0. Raises `ValueError` if `grads` are no tree like that of the parameters.
        """
        leaves, tree = pytree.tree_flatten(state.params)
        group = self.group if self.schedule is None else {**self.group, "lr": self.scheduled(i)}
        slots = tree.flatten_up_to(state.slots)
        params, made = [], []
        for param, grad, slot in zip(leaves, _matched(grads, state.params), slots, strict=True):
            if grad is None:
                theta, new = param, Slot(slot.tensors, slot.numbers, slot.missed + 1)
            else:
                theta, new = self.step(_count(i, slot.missed), group, param, grad, slot)
            params.append(theta)
            made.append(new)
        return State(pytree.tree_unflatten(params, tree), pytree.tree_unflatten(made, tree))

    def step(self, t: Any, group: dict[str, Any], param: Tensor, grad: Tensor, slot: Slot) -> tuple[Tensor, Slot]:
        """### One parameter and its state after a step"""
        if grad.is_sparse:
            raise RuntimeError(self.rule.sparse_error or "pure functions take no sparse gradients: use to_dense()")
        scalars = {name: value for name, value in slot.tensors.items() if name in self.rule.scalar_state}
        moments = {name: value for name, value in slot.tensors.items() if name not in scalars}
        numbers = {"step": t, **slot.numbers, **scalars}
        with watched(self.rule, group, numbers):
            theta, state = step_out_of_place(self.rule, group, numbers, moments, grad, param)
        return theta, self.slot(state, slot.missed)

    def scheduled(self, i: Any) -> Any:
        """### The learning rate that the schedule has for `i`"""
        assert self.schedule is not None
        lr = self.schedule(i)
        if isinstance(lr, Tensor):
            if lr.numel() != 1:
                raise ValueError("Tensor lr must be 1-element")
            return lr.squeeze()
        if not 0.0 <= lr:
            raise ValueError(f"Invalid learning rate: {lr}")
        return lr


def _count(i: Any, missed: int) -> Any:
    """The count t of a parameter that has missed some steps."""
    if isinstance(i, Tensor):
        # In float32 little would be left of 1 - 0.999 ** t.
        return i.to(torch.float64) + (1 - missed)
    t = (i if isinstance(i, int) else operator.index(i)) + 1 - missed
    if t < 1:
        raise ValueError(f"i counts all steps from 0 on. Received: {i}, and a parameter has missed {missed} steps")
    return t


def _matched(grads: Any, params: Any) -> list[Tensor | None]:
    """The gradients in the order of the parameters."""
    leaves, tree = pytree.tree_flatten(params)
    try:
        found: list[Tensor | None] = tree.flatten_up_to(grads)
    except ValueError as error:
        raise ValueError(f"the gradients are another tree than the parameters: {error}") from None
    for param, grad in zip(leaves, found, strict=True):
        if grad is None:
            continue
        if not isinstance(grad, Tensor):
            raise TypeError(f"gradients must be tensors. Received: {type(grad).__name__}{_place(params, param)}")
        if grad.shape != param.shape or grad.is_complex() != param.is_complex():
            raise ValueError(
                f"a gradient must be as its parameter, {param.dtype} of shape {tuple(param.shape)}. "
                f"Received: {grad.dtype} of shape {tuple(grad.shape)}{_place(params, param)}"
            )
    return found


def _place(params: Any, leaf: Any) -> str:
    """Where in the tree a leaf is, if it is in one."""
    paths = [path for path, found in pytree.tree_flatten_with_path(params)[0] if found is leaf]
    return f" at {pytree.keystr(paths[0])}" if paths and paths[0] else ""
