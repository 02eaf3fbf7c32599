"""
---
title: The columns
summary: Everyone who takes part in the timing - torch, other libraries, our readers, and the streaming limit.
---

# The columns

All of them have the same parameters, gradients and hyper-parameters. Each has its own memory for parameters and
states, as long as that fits: from `SHARED_ELEMENTS` on, they share the memory of the parameters. Arrays of that
size stay in no cache from one step to the next, so it makes no difference to the time.

Other libraries take part if they can be imported. They know Adam only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import optimizers
from optimizers.engines.compiler import NoCompiler
from optimizers.experiments.streaming import Stream
from optimizers.experiments.timing import Column
from optimizers.experiments.workloads import Workload

SHARED_ELEMENTS = 100_000_000

#: Makes an optimizer of parameters or groups.
Factory = Callable[[list[Any]], Optimizer]

_READERS: dict[str, dict[str, bool]] = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@dataclass
class Contest:
    """
    ## A rule and its options

    `ours` and `twin` are the classes, here and in torch. `notes` gather what couldn't take part, and why.
    """

    ours: type[Optimizer]
    twin: type[Optimizer]
    options: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """### The name of the rule, which both have"""
        return self.ours.__name__

    @property
    def lr(self) -> float:
        """### The learning rate: the given one, or torch's default"""
        return float(self.options.get("lr", signature(self.twin).parameters["lr"].default))

    def entrants(self, device: str = "cpu") -> dict[str, Factory]:
        """### Who takes part on a device, by the names of the columns"""
        theirs = {f"torch {name}": _entrant(self.twin, self.options, keys) for name, keys in _READERS.items()}
        ours = {f"ours {name}": _entrant(self.ours, self.options, keys) for name, keys in _READERS.items()}
        ours["ours single"] = ours.pop("ours for-loop")
        order = ("ours single", "ours foreach", "ours fused")
        found = {**theirs, **self._peers(device), **{name: ours[name] for name in order}}
        return {name: factory for name, factory in found.items() if factory is not None}

    def _peers(self, device: str) -> dict[str, Factory | None]:
        """### The other libraries, where they know the rule and its options"""
        name = self.name
        if name not in ("Adam", "AdamW") or not set(self.options) <= {"lr", "betas", "eps", "weight_decay"}:
            return {}
        group = self.ours([torch.zeros(1, requires_grad=True)], **self.options).param_groups[0]
        common = {key: group[key] for key in ("lr", "betas", "eps")}
        decay = group["weight_decay"]
        peers: dict[str, Callable[[], Factory]] = {}
        if device == "cpu":
            peers["DeepSpeedCPUAdam"] = partial(_deepspeed, {**common, "weight_decay": decay}, name == "AdamW")
        if name == "Adam" and decay == 0:
            peers["labml_nn"] = partial(_labml, common)
        return {peer: self._import(peer, make) for peer, make in peers.items()}

    def _import(self, name: str, peer: Callable[[], Factory]) -> Factory | None:
        try:
            return peer()
        except ModuleNotFoundError as error:
            self.notes.append(f"{name} takes no part: {str(error.name).partition('.')[0]} is not installed")
        except Exception as error:
            # A peer may fail to import in any way, and the others go on without it.
            self.notes.append(f"{name} takes no part: {type(error).__name__}: {error}")
        return None


def pairs() -> dict[str, tuple[type[Optimizer], type[Optimizer]]]:
    """## The rules that torch has too: our class and torch's, by name"""
    found = {}
    for name in optimizers.__all__:
        ours, twin = getattr(optimizers, name), getattr(torch.optim, name, None)
        if isinstance(twin, type) and issubclass(twin, Optimizer) and twin is not Optimizer:
            found[name] = (ours, twin)
    return found


# ## Who takes part


def _entrant(cls: type[Optimizer], options: dict[str, Any], reader: dict[str, bool]) -> Factory | None:
    """### A class with one reader, or None if it hasn't got that"""
    known = signature(cls).parameters
    if any(value and name not in known for name, value in reader.items()):
        return None
    wish = {name: value for name, value in reader.items() if name in known}
    return lambda params: cls(params, **{**options, **wish})


def _deepspeed(options: dict[str, Any], decoupled: bool) -> Factory:
    """### DeepSpeed's Adam. It brings its own OpenMP runtime, which takes the number of threads from the environment"""
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    def make(params: list[Any]) -> Optimizer:
        optimizer: Optimizer = DeepSpeedCPUAdam(params, **options, adamw_mode=decoupled)
        return optimizer

    return make


def _labml(options: dict[str, Any]) -> Factory:
    """### labml's annotated Adam, in the form of the update that it takes by default"""
    from labml_nn.optimizers.adam import Adam

    def make(params: list[Any]) -> Optimizer:
        optimizer: Optimizer = Adam(params, **options)
        return optimizer

    return make


# ## Ready to step


def make_columns(
    contest: Contest,
    entrants: dict[str, Factory],
    workload: Workload,
    gradients: Sequence[Tensor],
    device: str = "cpu",
) -> list[Column]:
    """
    ### The columns of a row, each one step old

    Whoever can't take that step has no column, and the reason is noted. The streaming limit is one of the CPU.
    """
    start = workload.draw(seed=1, scale=1.0, device=device)
    columns, arrays = [], 1
    for name, factory in entrants.items():
        params = [Parameter(p) for p in _memory(start, workload)]
        try:
            optimizer = factory(workload.arrange(params, contest.lr))
            column = Column(name, optimizer.step, partial(renew, params))
            _first_step(column, gradients)
        except RuntimeError as error:
            _note(contest, f"{name} takes no part in {workload.name}: {error}")
            continue
        columns.append(column)
        if name == "ours single":
            arrays += count_arrays(optimizer, params[0])
    return columns if device != "cpu" else [*columns, *_limit(contest, start, workload, arrays, gradients)]


def _limit(
    contest: Contest, start: list[Tensor], workload: Workload, arrays: int, gradients: Sequence[Tensor]
) -> list[Column]:
    states = [[torch.zeros_like(p) for p in start] for _ in range(arrays - 1)]
    try:
        stream = Stream([_memory(start, workload), *states])
    except NoCompiler as error:
        _note(contest, f"the limit can't be measured: {error}")
        return []
    column = Column("limit", stream.step, stream.renew)
    _first_step(column, gradients)
    return [column]


def _memory(start: list[Tensor], workload: Workload) -> list[Tensor]:
    return start if workload.elements >= SHARED_ELEMENTS else [p.clone() for p in start]


def _first_step(column: Column, gradients: Sequence[Tensor]) -> None:
    column.renew(gradients)
    column.step()


def _note(contest: Contest, text: str) -> None:
    if text not in contest.notes:
        contest.notes.append(text)


def renew(params: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """### Give every parameter a new gradient: a new tensor on these values"""
    for param, grad in zip(params, gradients, strict=True):
        param.grad = grad.detach()


def count_arrays(optimizer: Optimizer, param: Tensor) -> int:
    """### How many arrays a state has. A step of every rule reads and writes each of them once"""
    scalars = getattr(optimizer, "scalar_state", ())
    return sum(isinstance(v, Tensor) and name not in scalars for name, v in optimizer.state[param].items())
