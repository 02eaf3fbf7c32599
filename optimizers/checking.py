"""
---
title: Check an optimizer
summary: The properties that every rule of this package has, tried on a rule of your own.
---

# Check an optimizer

A new rule is a few lines, and a few lines can be wrong in ways that a falling loss does not show.
`check_optimizer` tries on your class what the tests of this package try on ours:

```python
print(check_optimizer(MyRule, lr=0.1))
```

It runs the rule by every reader in every dtype and compares them with the plain one, tensor by tensor; sees that the
gradient is left alone, that a parameter without gradient stays and keeps its own count, that a parameter's result does
not depend on its company, that checkpoints continue bit for bit, and that a learning rate of 0 moves nothing.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: The ways to run a rule, by the values of its groups that choose them. The first is the measure of the others.
READERS: dict[str, tuple[bool | None, bool | None]] = {
    "single": (False, False),
    "foreach": (True, False),
    "fused": (None, None),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)
SHAPES: tuple[tuple[int, ...], ...] = ((4, 3), (5,), (), (0,), (2, 3, 2, 2), (70, 9))
STEPS = 5
#: How far the fused reader may be from the single one, in ULP of the largest number on the way, for each step.
ULPS_PER_STEP = 4.0

Factory = Callable[..., Any]
Shape = tuple[int, ...]
Values = list[Tensor]


class CheckFailed(RuntimeError):
    """A rule lacks a property; the message says which, by which reader and dtype, where, and by how much."""


@dataclass(frozen=True)
class Line:
    """One check that passed; `distance` is the largest one seen, in ULP per step."""

    check: str
    dtype: str
    reader: str
    distance: float
    note: str = ""


@dataclass(frozen=True)
class CheckReport:
    """## What was tried, all of which passed"""

    rule: str
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        rows = [f"{self.rule}: {len(self.lines)} checks passed"]
        for check in dict.fromkeys(line.check for line in self.lines):
            rows.append(f"  {check}")
            for reader in READERS:
                lines = [line for line in self.lines if (line.check, line.reader) == (check, reader)]
                farthest = max(line.distance for line in lines)
                distance = f"within {farthest:.2f} ULP a step" if farthest else "exactly"
                notes = " ".join(dict.fromkeys(line.note for line in lines if line.note))
                rows.append(f"    {reader:<8} {distance:<24} {', '.join(x.dtype for x in lines)}  {notes}".rstrip())
        return "\n".join(rows)


def check_optimizer(
    factory: Factory, *, shapes: Sequence[Shape] = SHAPES, dtypes: Sequence[torch.dtype] = DTYPES, **kwargs: Any
) -> CheckReport:
    """
    ## Try every property of a rule on a class, or on a function that makes an optimizer

    `factory(params, **kwargs)` must give an optimizer of this package. A rule that is not for any parameter is given
    at least two `shapes`, or the `dtypes`, that it is for. Returns a report. Raises `CheckFailed` at the first
    difference, and what the rule itself raises.
    """
    if len(shapes) < 2:
        raise ValueError(f"one parameter is tried without the others, so two shapes are needed. Received: {shapes}")
    subject = _Subject(factory, kwargs, tuple(shapes))
    lines = []
    for dtype in dtypes:
        for reader in READERS:
            run = subject.using(reader, dtype)
            lines += [check(run) for check in _CHECKS]
    return CheckReport(subject.name, tuple(lines))


class _Run:
    """A rule by one reader in one dtype."""

    def __init__(self, subject: _Subject, reader: str, dtype: torch.dtype) -> None:
        self.subject, self.reader, self.dtype = subject, reader, dtype

    def params(self) -> Values:
        """Parameters, the same each time."""
        return _params(self.subject.shapes, self.dtype)

    def optimizer(self, params: Values, **group: Any) -> Any:
        """An optimizer for the parameters, run by this reader."""
        made = self.subject.factory(params, **self.subject.kwargs)
        for each in made.param_groups:
            each["foreach"], each["fused"] = READERS[self.reader]
            each.update(group)
        return made

    def passed(self, check: str, distance: float = 0.0, note: str = "") -> Line:
        return Line(check, str(self.dtype).removeprefix("torch."), self.reader, distance, note)

    def fail(self, what: str, detail: str) -> CheckFailed:
        return CheckFailed(f"{self.subject.name}, {self.reader} reader, {self.dtype}: {what}: {detail}")

    def must_equal(self, what: str, got: Values, expected: Values) -> None:
        """Bit for bit."""
        for index, (a, b) in enumerate(zip(got, expected, strict=True)):
            if not torch.equal(_bits(a), _bits(b)):
                raise self.fail(what, f"parameter {index} {_difference(a, b)}")


class _Subject:
    def __init__(self, factory: Factory, kwargs: dict[str, Any], shapes: tuple[Shape, ...]) -> None:
        self.factory, self.kwargs, self.shapes = factory, kwargs, shapes
        self.name = getattr(factory, "__name__", repr(factory))

    def using(self, reader: str, dtype: torch.dtype) -> _Run:
        return _Run(self, reader, dtype)


# ## Material


def _params(shapes: tuple[Shape, ...], dtype: torch.dtype) -> Values:
    generator = torch.Generator().manual_seed(1)
    made = [_draw(shape, dtype, generator) for shape in shapes]
    # Those of four dimensions as convolutions have them; the last, if a matrix, with rows and columns exchanged.
    made = [p.to(memory_format=torch.channels_last) if p.dim() == 4 else p for p in made]
    if made[-1].dim() == 2:
        made[-1] = made[-1].t().contiguous().t()
    return [p.requires_grad_() for p in made]


def _gradients(params: Values, steps: int = STEPS) -> list[Values]:
    generator = torch.Generator().manual_seed(2)
    return [
        [torch.empty_like(p, requires_grad=False).copy_(_draw(tuple(p.shape), p.dtype, generator)) for p in params]
        for _ in range(steps)
    ]


def _draw(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=wide, generator=generator).to(dtype)


def _take_steps(optimizer: Any, params: Values, rows: list[Values]) -> Values:
    for row in rows:
        for param, grad in zip(params, row, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return [p.detach().clone() for p in params]


def _bits(tensor: Tensor) -> Tensor:
    flat = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    return flat.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _difference(got: Tensor, expected: Tensor) -> str:
    a, b = got.detach(), expected.detach()
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"is {tuple(a.shape)} of {a.dtype}, not {tuple(b.shape)} of {b.dtype}"
    apart = (a - b).abs().flatten()
    where = int(torch.where(apart.isnan(), torch.inf, apart.to(torch.float64)).argmax())
    return f"differs by {apart[where]} at element {where}: {a.flatten()[where]} instead of {b.flatten()[where]}"


def _ulps(got: Tensor, expected: Tensor, start: Tensor) -> float:
    """The distance of two results, in units of the last place of the largest number on the way."""
    if got.numel() == 0:
        return 0.0
    if not torch.equal(got.isfinite(), expected.isfinite()):
        return float("inf")
    scale = torch.stack([start.abs().max(), expected.abs().max()]).max().double() * torch.finfo(got.dtype).eps
    wide = torch.complex128 if got.is_complex() else torch.float64
    return float((got.to(wide) - expected.to(wide)).abs().max() / scale)


# ## The checks


def _agrees_with_single(run: _Run) -> Line:
    what = "gives what the single reader gives"
    start = [p.detach().clone() for p in run.params()]
    results, note = [], ""
    for each in (run, run.subject.using("single", run.dtype)):
        params = run.params()
        optimizer = each.optimizer(params)
        results.append(_take_steps(optimizer, params, _gradients(params)))
        if each is run:
            note = "; ".join(dict.fromkeys(f"{e.reader}: {e.reason}" for e in optimizer.explain().entries if e.reason))
    got, expected = results
    if run.reader != "fused":
        run.must_equal(what, got, expected)
        return run.passed(what)
    worst = 0.0
    for index, (a, b, s) in enumerate(zip(got, expected, start, strict=True)):
        distance = _ulps(a, b, s) / STEPS
        if not distance <= ULPS_PER_STEP:
            raise run.fail(what, f"parameter {index} {_difference(a, b)}, {distance:.1f} ULP a step")
        worst = max(worst, distance)
    return run.passed(what, worst, note)


def _leaves_gradients_alone(run: _Run) -> Line:
    what = "leaves the gradient as it is"
    params = run.params()
    optimizer, rows = run.optimizer(params), _gradients(params)
    for row in rows:
        for param, grad in zip(params, row, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        run.must_equal(what, [p.grad for p in params if p.grad is not None], row)
    return run.passed(what)


def _counts_by_parameter(run: _Run) -> Line:
    what = "a missing gradient stops one parameter only"
    params, alone = run.params(), run.params()
    rows = _gradients(params)
    optimizer = run.optimizer(params)
    for number, row in enumerate(rows):
        before = params[1].detach().clone()
        for index, (param, grad) in enumerate(zip(params, row, strict=True)):
            param.grad = None if index == 1 and number in (0, 2) else grad.clone()
        optimizer.step()
        if params[1].grad is None:
            run.must_equal("a parameter without gradient stays", [params[1]], [before])
    expected = _take_steps(
        run.optimizer([alone[1]]), [alone[1]], [[r[1]] for i, r in enumerate(rows) if i not in (0, 2)]
    )
    run.must_equal(what, [params[1]], expected)
    expected = _take_steps(run.optimizer([alone[0]]), [alone[0]], [[r[0]] for r in rows])
    run.must_equal("a parameter's result is independent of its company", [params[0]], expected)
    return run.passed(what)


def _continues(run: _Run) -> Line:
    what = "continues from a checkpoint and from copies"
    params = run.params()
    rows = _gradients(params)
    expected = _take_steps(run.optimizer(params), params, rows)
    note = ""
    for way in (_by_checkpoint, _by_copy, _by_pickle):
        params = run.params()
        optimizer = run.optimizer(params)
        if way is _by_pickle and "<locals>" in type(optimizer).__qualname__:
            note = "not pickled: Python can't pickle a class that is defined in a function"
            continue
        _take_steps(optimizer, params, rows[:2])
        other = way(run, optimizer)
        values = [p for group in other.param_groups for p in group["params"]]
        run.must_equal(f"{what} ({way.__name__.strip('_')})", _take_steps(other, values, rows[2:]), expected)
    return run.passed(what, note=note)


def _by_checkpoint(run: _Run, optimizer: Any) -> Any:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    other = run.optimizer([p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def _by_copy(run: _Run, optimizer: Any) -> Any:
    return copy.deepcopy(optimizer)


def _by_pickle(run: _Run, optimizer: Any) -> Any:
    # Its own bytes, made one line ago: nothing foreign is loaded.
    return pickle.loads(pickle.dumps(optimizer))


def _stays_at_no_learning_rate(run: _Run) -> Line:
    what = "a learning rate of 0 moves nothing"
    params = run.params()
    start = [p.detach().clone() for p in params]
    rows = _gradients(params, 2)
    if _lr_is_where_it_starts(run):
        rows = [[torch.zeros_like(p) for p in params]] * 2
    run.must_equal(what, _take_steps(run.optimizer(params, lr=0.0), params, rows), start)
    return run.passed(what)


def _lr_is_where_it_starts(run: _Run) -> bool:
    """Whether a learning rate has no effect after the first step, as in Rprop. It then stops nothing."""
    results = []
    for factor in (1.0, 2.0):
        params = run.params()
        optimizer, rows = run.optimizer(params), _gradients(params)
        _take_steps(optimizer, params, rows[:1])
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        results.append(_take_steps(optimizer, params, rows[1:]))
    return all(torch.equal(_bits(a), _bits(b)) for a, b in zip(*results, strict=True))


def _is_finite_at_no_gradient(run: _Run) -> Line:
    what = "a gradient of 0 gives finite numbers"
    params = run.params()
    rows = [[torch.zeros_like(g) for g in row] for row in _gradients(params, 2)]
    for index, value in enumerate(_take_steps(run.optimizer(params), params, rows)):
        if not value.isfinite().all():
            raise run.fail(what, f"parameter {index} has {int((~value.isfinite()).sum())} that are not")
    return run.passed(what)


def _reads_the_same_program(run: _Run) -> Line:
    what = "a schedule needs no other kernel"
    params = run.params()
    optimizer, rows = run.optimizer(params), _gradients(params, 4)
    _take_steps(optimizer, params, rows[:2])
    before = optimizer.kernel_source()
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * 0.5
    _take_steps(optimizer, params, rows[2:])
    note = "" if optimizer.kernel_source() == before else "the rule took another branch"
    return run.passed(what, note=note)


_CHECKS: tuple[Callable[[_Run], Line], ...] = (
    _agrees_with_single,
    _leaves_gradients_alone,
    _counts_by_parameter,
    _continues,
    _stays_at_no_learning_rate,
    _is_finite_at_no_gradient,
    _reads_the_same_program,
)
