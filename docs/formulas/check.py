"""
Every page against itself.

Each rule of a page is read with the options of `cases.CASES`, at several steps, from a random state. Every formula must
be reached at least once, and hold whenever it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import optimizers
from docs.formulas.cases import CASES, EXCEPTIONS, LETTERS, NOT_NEGATIVE, STEPS, Case
from docs.formulas.comments import Comment, comments, definitions, page_of
from docs.formulas.notation import Name, Unreadable, read, read_name
from docs.formulas.values import ValueTape
from docs.formulas.watch import Letters, Scope, Watch
from optimizers.engines.state import StateView, group_numbers, new_state
from optimizers.engines.tidy import _letter

PAGES = Path(optimizers.__file__).parent
#: More rows than columns, and enough elements that each side of a maximum is met.
SHAPE = (6, 4)
NOTATION = 'CONTRIBUTING.md, "Formulas above code", has the notation'


@dataclass
class Report:
    """What was found on a page: `checked` of `total` formulas, `exceptions` with their reasons, and `failures`."""

    name: str
    total: int = 0
    checked: int = 0
    exceptions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Check all pages, print what was found; the result is the exit code."""
    reports = [report for path in sorted(PAGES.glob("*.py")) if (report := check(path)).total]
    width = max(len(report.name) for report in reports)
    for report in reports:
        print(f"{report.name:{width}}  {report.checked}/{report.total}")
    checked, total = (sum(getattr(report, what) for report in reports) for what in ("checked", "total"))
    exceptions = [line for report in reports for line in report.exceptions]
    print(f"{checked} of {total} formulas above operations checked ({checked / total:.1%}), {len(exceptions)} exceptions")
    for line in exceptions:
        print(f"  {line}")
    failures = [failure for report in reports for failure in report.failures]
    print(*failures, sep="\n", file=sys.stderr, end="\n" if failures else "")
    return 1 if failures else 0


def check(path: Path) -> Report:
    """Check one page: a module of the package, or a changed copy of one with the same name."""
    page = page_of(path)
    found, report = list(comments(page)), Report(path.name)
    report.total = len(found)
    excepted = {comment.place: reason for comment in found if (reason := _exception(path.stem, comment))}
    watched = [comment for comment in found if comment.place not in excepted]
    report.exceptions = [f"{c.place}: {c.latex[0]}: {excepted[c.place]}" for c in found if c.place in excepted]
    for stem, begins in EXCEPTIONS:
        if stem == path.stem and not any(comment.latex[0].startswith(begins) for comment in found):
            report.failures.append(f"{path.name}:1: no formula begins with the exception {begins!r}")
    equations, unreadable = {}, []
    for comment in watched:
        try:
            equations[comment.place] = comment.equations()
        except Unreadable as error:
            unreadable.append(_failure(comment, f"the formula can't be read: {error}\n    {NOTATION}"))
    report.failures += unreadable
    watched = [comment for comment in watched if comment.place in equations]
    if not watched:
        return report
    checked, wrong = set(), {}
    module = _module(path)
    for case in CASES.get(path.stem, []):
        watch = Watch(str(module.__file__), watched, _letters(module, case), case.tolerance)
        watch.equations = equations
        for t in STEPS:
            _read(watch, _optimizer(module, case), case, t)
            for place, what in watch.failures.items():
                wrong.setdefault(place, f"the formula is not what its line does, in {case} at t = {t}\n{what}")
        checked |= watch.checked
    for comment in watched:
        if comment.place in wrong:
            report.failures.append(_failure(comment, wrong[comment.place]))
        elif comment.place not in checked:
            what = f"no case of docs/formulas/cases.py reaches it ({len(CASES.get(path.stem, []))} for this page)"
            report.failures.append(_failure(comment, what))
    report.checked = len(checked - set(wrong))
    return report


def _exception(stem: str, comment: Comment) -> str:
    return next((why for (s, begins), why in EXCEPTIONS.items() if s == stem and comment.latex[0].startswith(begins)), "")


def _failure(comment: Comment, what: str) -> str:
    first, *rest = what.split("\n")
    formulas = " and ".join(" ".join(latex.split()) for latex in comment.latex)
    code = "\n                   ".join(comment.code.split("\n"))
    rows = [f"{comment.page}:{comment.line}: {first}", f"    formula        {formulas}", f"    code           {code}"]
    return "\n".join([*rows, *rest])


# ## A page and what it calls things


def _module(path: Path) -> ModuleType:
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


def _optimizer(module: ModuleType, case: Case) -> Any:
    options = dict(case.options)
    if "absolute" in options:
        options["weight_decay"] = optimizers.WeightDecay(options["weight_decay"], absolute=options.pop("absolute"))
    param = torch.from_numpy(_random(0, "param")).requires_grad_()
    return _rule(module, case)([param], **options)


def _letters(module: ModuleType, case: Case) -> Letters:
    optimizer = _optimizer(module, case)
    own: dict[str, str] = {}
    for kind in reversed(type(optimizer).__mro__):
        own.update(vars(kind).get("letters", {}))

    def of(name: str) -> Name:
        try:
            return read_name(_letter(name, own))
        except Unreadable:
            return Name(rf"\text{{{name}}}")

    group: dict[Name, Any] = {}
    for name, value in group_numbers(optimizer.param_groups[0]).items():
        if isinstance(value, bool):
            group[Name(rf"\text{{{name}}}")] = value
        elif isinstance(value, (int, float)):
            group[of(name)] = value
        elif isinstance(value, tuple):
            group.update({of(f"{name.removesuffix('s')}{i}"): number for i, number in enumerate(value, 1)})
    if "eps" in optimizer.param_groups[0]:
        group[Name(r"\hat \epsilon")] = group[of("eps")]
    state = {name: [of(name)] for name in (*new_state(optimizer, *_first(optimizer)), *optimizer.lazy_state)}
    for name, letter in _initial(module, state):
        if letter not in state[name]:
            state[name].append(letter)
    defined: dict[Name, str] = {}
    for kind in type(optimizer).__mro__:
        text = module.__doc__ if kind.__module__ == module.__name__ else sys.modules[kind.__module__].__doc__
        defined = {**definitions(text or ""), **defined}
    others = {read_name(name): code for name, code in LETTERS.get(module.__name__.rpartition(".")[2], {}).items()}
    return Letters(state, group, others, defined, of)


def _initial(module: ModuleType, state: dict[str, Any]) -> Iterator[tuple[str, Name]]:
    """The letters that a page itself gives to entries of the state, by `# $m_0 = 0$`."""
    for comment in comments(page_of(Path(str(module.__file__)))):
        for name in state:
            if comment.targets == [f"state['{name}']"] and (found := comment.latex[0].partition("=")[0].strip()).endswith("_0"):
                yield name, read_name(found.removesuffix("_0"))


def _first(optimizer: Any) -> tuple[dict[str, Any], Tensor]:
    group = optimizer.param_groups[0]
    return group, group["params"][0]


# ## Reading a rule


def _random(t: int, name: str) -> np.ndarray:
    """Values for a tensor, the same in every run."""
    made = np.random.default_rng([t, *name.encode()]).normal(size=SHAPE)
    return np.abs(made) + 0.1 if any(word in name for word in NOT_NEGATIVE) else made


class _Exact(Tensor):
    """A tensor that stays in float64 where a rule asks for fewer digits."""

    def bfloat16(self, *_: Any, **__: Any) -> Tensor:
        return self


def _read(watch: Watch, optimizer: Any, case: Case, t: int) -> None:
    """Read a rule at step t, from a random state."""
    group, param = _first(optimizer)
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
    tensors = {name: _random(t, name) for name in names}
    numbers = {name: t if name == "step" else 0.5 for name in made if name in optimizer.scalar_state}
    numbers.update((name, _number(value, watch, t)) for name, value in case.numbers.items())
    if case.reading == "recorded":
        tape = ValueTape({"param": _random(t, "param"), "grad": grad.numpy(), **tensors})
        state: Any = tape.state(numbers)
        theta: Any = tape.param
        watch.start(state, theta, tape.grad, t)
        with watch():
            optimizer.update_param(state, group_numbers(group), tape.grad, theta)
        return
    state, theta = StateView(), param.detach()
    tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    if case.reading == "tensors":
        theta, grad = theta.as_subclass(_Exact), grad.as_subclass(_Exact)
        tensors = {name: tensor.as_subclass(_Exact) for name, tensor in tensors.items()}
    dict.update(state, {**tensors, **numbers})
    if case.reading == "hessian":
        optimizer.state[param], param.grad = state, grad
    watch.start(state, theta, grad, t)
    with watch(), torch.no_grad():
        if case.reading == "hessian":
            optimizer.update_hessian(n_tokens=3)
        else:
            optimizer.update_param(state, group_numbers(group), grad, theta)


def _number(value: float | str, watch: Watch, t: int) -> float:
    return float(read(value).value(Scope(watch.letters, {}, {}, t)) if isinstance(value, str) else value)
