"""
The rules of a page, made and read.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import optimizers
from docs.formulas.cases import NOT_NEGATIVE, Case
from docs.formulas.letters import Scope
from docs.formulas.notation import read
from docs.formulas.values import ValueTape
from docs.formulas.watch import Watch
from optimizers.engines.state import StateView, group_numbers, new_state

PAGES = Path(optimizers.__file__).parent
#: More rows than columns, and enough elements that each side of a maximum is met.
SHAPE = (6, 4)


def module_of(path: Path) -> ModuleType:
    """The module of a page; a changed copy is loaded beside the one that it is a copy of."""
    name = f"optimizers.{path.stem}"
    if path.parent == PAGES:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _rule(module: ModuleType, case: Case) -> Any:
    rule = getattr(module, case.rule, None) or getattr(optimizers, case.rule)
    decay = getattr(module, "WeightDecay", optimizers.WeightDecay)
    own = {"update_param": module.GenericAdaptiveOptimizer.update_param} if module.__name__ == "optimizers.base" else {}
    return type(case.rule, (rule,), {"weight_decay": decay(), **own, "__module__": module.__name__})


def optimizer_of(module: ModuleType, case: Case) -> Any:
    """The optimizer of a case, with the rule and the decay of this module."""
    options = dict(case.options)
    if "absolute" in options:
        options["weight_decay"] = optimizers.WeightDecay(options["weight_decay"], absolute=options.pop("absolute"))
    param = torch.from_numpy(_random(0, "param")).requires_grad_()
    return _rule(module, case)([param], **options)


def _random(t: int, name: str) -> np.ndarray:
    """Values for a tensor, the same in every run."""
    made = np.random.default_rng([t, *name.encode()]).normal(size=SHAPE)
    return np.abs(made) + 0.1 if any(word in name for word in NOT_NEGATIVE) else made


class _Exact(Tensor):
    """A tensor that stays in float64 where a rule asks for fewer digits."""

    def bfloat16(self, *_: Any, **__: Any) -> Tensor:
        return self


def read_rule(watch: Watch, optimizer: Any, case: Case, t: int) -> None:
    """Read a rule at step t, from a random state."""
    group = optimizer.param_groups[0]
    param = group["params"][0]
    grad = torch.from_numpy(_random(t, "grad"))
    if case.reading == "sparse":
        rows = torch.tensor([[*range(len(grad)), 0, 2]])
        grad = torch.sparse_coo_tensor(rows, torch.cat([grad, grad[:2]]), grad.shape, check_invariants=True)
    watch.start({}, param, grad, t)
    with watch():
        made = new_state(optimizer, group, param)
    names = [name for name, value in made.items() if name not in optimizer.scalar_state]
    if t > 1:
        names += optimizer.lazy_state
    values = {name: _random(t, name) for name in names}
    numbers = {name: t if name == "step" else 0.5 for name in made if name in optimizer.scalar_state}
    numbers.update((name, _number(value, watch, t)) for name, value in case.numbers.items())
    if case.reading == "recorded":
        tape = ValueTape({"param": _random(t, "param"), "grad": grad.numpy(), **values})
        state: Any = tape.state(numbers)
        watch.start(state, tape.param, tape.grad, t)
        with watch():
            optimizer.update_param(state, group_numbers(group), tape.grad, tape.param)
    else:
        _read_tensors(watch, optimizer, case, t, {**values, **numbers}, grad)


def _read_tensors(watch: Watch, optimizer: Any, case: Case, t: int, entries: dict[str, Any], grad: Tensor) -> None:
    """Let a rule do with tensors what can't be recorded."""
    group = optimizer.param_groups[0]
    param = group["params"][0]
    kind = _Exact if case.reading == "tensors" else Tensor
    state, theta, given = StateView(), param.detach().as_subclass(kind), grad
    if not grad.is_sparse:
        given = grad.as_subclass(kind)
    for name, value in entries.items():
        is_tensor = isinstance(value, np.ndarray)
        dict.__setitem__(state, name, torch.from_numpy(value).as_subclass(kind) if is_tensor else value)
    if case.reading == "hessian":
        optimizer.state[param], param.grad = state, grad
    watch.start(state, theta, grad, t)
    with watch(), torch.no_grad():
        if case.reading == "hessian":
            optimizer.update_hessian(n_tokens=3)
        else:
            optimizer.update_param(state, group_numbers(group), given, theta)


def _number(value: float | str, watch: Watch, t: int) -> float:
    return float(read(value).value(Scope(watch.letters, {}, {}, t)) if isinstance(value, str) else value)
