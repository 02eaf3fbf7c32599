r"""
---
title: Numbers on the device
summary: What a rule does with its numbers, as a kernel, for steps that Python must not decide.
---

# Numbers on the device

A step reads its rule in Python, with the numbers of that step. Three kinds of steps on a GPU can't have that:

* one that is captured in a CUDA graph (`capturable=True`): it is repeated without Python;
* one under AMP: whether it is to be done at all, and so the count of steps, is known to the device alone;
* one with a learning rate that is a tensor there: to read it is to wait for all that was asked of the device before.

For these the rule is [read with symbols](scalars.html), once, which gives its programs and formulas for their numbers.
The formulas become a small kernel that runs before the large one. For each tensor it takes the count $t$ and the other
numbers of its state from where they lie, calculates in float64 what the program needs, and writes the new count.

A comparison of numbers makes two ways through a rule. The small kernel goes all of them and keeps what counts, and
where the ways have different programs the large one asks which it is to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from sympy import Expr, S, Symbol
from sympy.printing.c import C99CodePrinter
from torch import Tensor

from optimizers.engines.cohort import Cohort
from optimizers.engines.program import Program, Unrecordable
from optimizers.engines.scalars import Choice, RuleReader, Tree, Way, ways
from optimizers.engines.state import CPU, hypers_on, real_dtype
from optimizers.engines.symbolic import Subject
from optimizers.engines.triton_kernel import TYPES

#: The name under which a group has the scale of AMP, where gradients are yet to be divided by it.
GRAD_SCALE = "grad_scale"

#: How many tensors a block of the small kernel takes.
NUMBERS_BLOCK = 128

#: What a hyper-parameter on the device may be.
HYPER_TYPES = {**TYPES, torch.int64: "tl.int64", torch.int32: "tl.int32", torch.int16: "tl.int16"}


@dataclass(frozen=True)
class Column:
    """## A hyper-parameter: its symbol, where a group has it, and the dtype of its tensor, if it is one"""

    symbol: Symbol
    entry: str
    index: int | None
    dtype: torch.dtype | None

    def of(self, group: dict[str, Any]) -> Any:
        """### The number in a group, or the address of the tensor"""
        if self.entry == GRAD_SCALE:
            return 0.0
        value = group[self.entry]
        if self.index is not None:
            value = value[self.index]
        if self.dtype is not None:
            return value.data_ptr()
        return value.item() if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Reading:
    """
    ## What reading a rule with symbols gives

    `programs` are those of all ways. `columns` are the hyper-parameters that the formulas of `tree` have, `t` is the
    symbol of the count, and `scalars` are those of the other numbers in the state. `cells` are the names of all these.
    """

    tree: Tree
    programs: tuple[Program, ...]
    columns: tuple[Column, ...]
    t: Symbol
    scalars: dict[str, Symbol]
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        """### How many numbers a tensor has: which program, where there are several, and what it takes"""
        return (len(self.programs) > 1) + max(program.numbers for program in self.programs)


def signature(group: dict[str, Any], device: torch.device) -> tuple[Any, ...]:
    """## What groups must have in common to be read together: all but the numbers that may differ"""
    return tuple((name, _kind(value, device)) for name, value in group.items() if name not in ("params", "param_names"))


def _kind(value: Any, device: torch.device) -> Any:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    if not parts or not all(map(_is_number, parts)):
        # Not taken for numbers that may differ: a reading has them as they are.
        return repr(value)
    return tuple(_number_kind(part, device) for part in parts)


def _number_kind(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        if value.device == device:
            return value.dtype
        value = value.item()
    # A number that is 0 takes something away from the rule.
    return (value > 0) - (value < 0) if math.isfinite(value) else repr(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_restless(value: Any) -> bool:
    """Whether an entry of a group may change and still be the same object."""
    parts = value if isinstance(value, tuple) else (value,)
    return any(not (part is None or isinstance(part, (bool, int, float, str))) for part in parts)


def read(rule: Any, cohort: Cohort, scaled: bool) -> Reading:
    """
    ## Read a rule, for a cohort

    `scaled` gradients are divided by the scale of AMP. Raises `Unrecordable`.
    """
    try:
        return _read(rule, cohort, scaled)
    except Unrecordable:
        raise
    except Exception as error:
        # It is the symbols that the rule can't take. Otherwise the reading in Python fails as well, and says why.
        raise Unrecordable(f"symbols in place of numbers won't do: {type(error).__name__}: {error}") from error


def _read(rule: Any, cohort: Cohort, scaled: bool) -> Reading:
    group, param = rule.param_groups[cohort.group], cohort.params[0]
    on_device = hypers_on(group, param.device)
    for name in on_device:
        parts = group[name] if isinstance(group[name], tuple) else (group[name],)
        if not all(map(_is_number, parts)) or any(p.dtype not in HYPER_TYPES for p in parts if isinstance(p, Tensor)):
            raise Unrecordable(f"{name!r} has a tensor on the device among what are no numbers: {group[name]!r}")
    like = torch.zeros((2,) * param.dim(), dtype=real_dtype(param.dtype), device=CPU)
    # What a tensor holds is not looked at. Of a number that is 0 nothing is known but that it is not negative.
    numbers = {name: _zeros(value) if name in on_device else value for name, value in group.items()}
    subject = Subject(_stand_in(rule, {**numbers, "params": [like]}, scaled), (), (*on_device, *[GRAD_SCALE] * scaled))
    subject.others = dict(cohort.others)
    cells = (*(["step"] if subject.has_step else []), *subject.scalars)
    reader = RuleReader(subject)
    tree = next((t for t in (reader.first, reader.later) if t is not None and _leaves(t) == set(cohort.names)), None)
    if tree is None or set(cells) != set(cohort.scalars):
        there = ", ".join((*cohort.names, *cohort.scalars))
        raise Unrecordable(f"the state has {there}, which is not what {type(rule).__name__} gives it")
    programs = tuple({id(way.program): way.program for way in ways(tree)}.values())
    used = set().union(*(expr.free_symbols for expr in _formulas(tree)))
    columns = tuple(c for c in _columns(subject, group, param.device) if c.symbol in used)
    return Reading(tree, programs, columns, subject.t, dict(subject.scalars), cells)


def _stand_in(rule: Any, group: dict[str, Any], scaled: bool) -> Any:
    """A rule with one group and one small parameter, to be read in the place of the real one."""
    other = object.__new__(type(rule))
    own: dict[str, Any] = {**vars(rule), "param_groups": [group]}
    if scaled:
        group[GRAD_SCALE] = 1.0

        def update_param(state: Any, group: dict[str, Any], grad: Any, param: Any) -> None:
            group = dict(group)
            type(rule).update_param(other, state, group, grad.div(group.pop(GRAD_SCALE)), param)

        own["update_param"] = update_param
    other.__dict__.update(own)
    return other


def _leaves(tree: Tree) -> set[str]:
    return set(next(ways(tree)).program.leaves[2:])


def _formulas(tree: Tree) -> Iterator[Any]:
    if isinstance(tree, Choice):
        yield tree.condition
        yield from _formulas(tree.one)
        yield from _formulas(tree.two)
    else:
        yield from (*(expr for _, expr in tree.defined), *tree.numbers, *tree.scalars)


def _columns(subject: Subject, group: dict[str, Any], device: torch.device) -> Iterator[Column]:
    for entry, value in subject.group.items():
        parts = enumerate(value) if isinstance(value, tuple) else [(None, value)]
        for index, part in parts:
            if isinstance(part, Symbol):
                given = None if entry == GRAD_SCALE else group[entry] if index is None else group[entry][index]
                dtype = given.dtype if isinstance(given, Tensor) and given.device == device else None
                yield Column(part, entry, index, dtype)


def _zeros(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_zeros, value))
    return 0.0 if isinstance(value, Tensor) else value


# ## Printing


class _Printer(C99CodePrinter):
    """### Formulas as Triton. Every number of theirs has a name, as Triton would round it to float32"""

    def __init__(self, names: dict[Symbol, str], constant: Callable[[float], str]) -> None:
        functions = {name: f"libdevice.{name}" for name in ("exp", "log", "cos")}
        super().__init__({"user_functions": {**functions, "Abs": "tl.abs"}})
        self._names, self._constant = names, constant

    def _print_Symbol(self, expr: Symbol) -> str:
        return self._names[expr]

    def _print_Number(self, expr: Any) -> str:
        return self._constant(float(expr))

    _print_Integer = _print_Rational = _print_Zero = _print_One = _print_NegativeOne = _print_Half = _print_Number
    _print_Pi = _print_Exp1 = _print_Infinity = _print_NegativeInfinity = _print_NaN = _print_Number

    def _print_Pow(self, expr: Any) -> str:
        base, exponent = expr.base, expr.exp
        if exponent in (S.NegativeOne, -S.Half):
            return f"{self._constant(1.0)} / ({self._print(base**-exponent)})"
        if exponent == S.Half:
            return f"tl.sqrt({self._print(base)})"
        return f"libdevice.pow({self._print(base)}, {self._print(exponent)})"

    def _print_Relational(self, expr: Any) -> str:
        return f"{self._print(expr.lhs)} {expr.rel_op} {self._print(expr.rhs)}"


@dataclass
class _Lines:
    """### The lines of the calculation: each formula has a name, and the same formula has the same"""

    names: dict[Symbol, str]
    constants: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    _known: dict[Any, Symbol] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._print = _Printer(self.names, self.constant).doprint

    def constant(self, value: float) -> str:
        text = repr(value) if math.isfinite(value) else f'float("{value}")'
        return self.constants.setdefault(text, f"c{len(self.constants)}")

    def assign(self, expr: Any, name: str = "") -> Symbol:
        """A symbol for a formula."""
        if expr not in self._known:
            if expr in self.names:
                return expr
            word = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
            symbol = Symbol(f"v{len(self._known)}{'_' * bool(word)}{word}", real=True)
            self.lines.append(f"{symbol.name} = {self._print(expr)}")
            self.names[symbol] = symbol.name
            self._known[expr] = symbol
        return self._known[expr]

    def way(self, way: Way, program: int, width: int) -> list[str]:
        """The names of the results of a way: which program, its numbers, and what becomes of those of the state."""
        renamed: dict[Symbol, Any] = {}
        for symbol, expr in way.defined:
            renamed[symbol] = self.assign(expr.xreplace(renamed), symbol.name)
        numbers, scalars = (
            [self._result(expr.xreplace(renamed)) for expr in exprs] for exprs in (way.numbers, way.scalars)
        )
        return [self.constant(float(program)), *numbers, *[self.constant(0.0)] * (width - len(numbers)), *scalars]

    def _result(self, expr: Expr) -> str:
        return self.constant(float(expr)) if expr.is_number else self.names[self.assign(expr)]

    def tree(self, tree: Tree, programs: tuple[Program, ...], width: int) -> list[str]:
        """The names of the results of all ways."""
        if isinstance(tree, Way):
            return self.way(tree, next(k for k, p in enumerate(programs) if p is tree.program), width)
        if not tree.condition.args:
            return self.tree(tree.one if tree.condition else tree.two, programs, width)
        condition = self.names[self.assign(tree.condition)]
        one, two = (self.tree(part, programs, width) for part in (tree.one, tree.two))
        return [self._chosen(condition, a, b) for a, b in zip(one, two, strict=True)]

    def _chosen(self, condition: str, one: str, two: str) -> str:
        if one == two:
            return one
        name = f"w{len(self.lines)}"
        self.lines.append(f"{name} = tl.where({condition}, {one}, {two})")
        return name


def numbers_source(reading: Reading) -> str:
    """
    ## The Triton source of the numbers

    `tensors` has for each tensor where the hyper-parameters of its group begin, then the addresses of the numbers in
    its state. `hypers` are numbers, as bits, and addresses.
    """
    names: dict[Symbol, str] = {}
    loads = [*_hypers(reading, names), *_state(reading, names)]
    printed = _Lines(names)
    width = max(program.numbers for program in reading.programs)
    way, *results = printed.tree(reading.tree, reading.programs, width)
    numbers = [way] * (len(reading.programs) > 1) + results[:width]
    after = dict(zip(reading.scalars, results[width:], strict=True))
    body = [
        "i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)",
        "inside = i < count",
        "group = tl.load(tensors + i, inside, other=0)",
        *loads,
        *(f"{name} = tl.full((BLOCK,), {text}, tl.float64)" for text, name in printed.constants.items()),
        *printed.lines,
        *(f"tl.store(numbers + i * {len(numbers)} + {k}, {name}, inside)" for k, name in enumerate(numbers)),
        *(f"tl.store(at{k}, {after.get(name, 't')}.to(tl.float32), inside)" for k, name in enumerate(reading.cells)),
    ]
    arguments = "tensors, hypers, numbers, found_inf, grad_scale, count, BLOCK: tl.constexpr"
    head = ['@triton.jit(do_not_specialize=["count"])', f"def calculate({arguments}):"]
    return "\n".join(["", "", *head, "    if tl.load(found_inf) == 0:", *(f"        {line}" for line in body), ""])


def _hypers(reading: Reading, names: dict[Symbol, str]) -> Iterator[str]:
    """The hyper-parameters of the group of a tensor."""
    for k, column in enumerate(reading.columns):
        names[column.symbol] = f"h{k}"
        yield f"# {column.symbol.name}"
        at = f"tl.load(hypers + group + {k}, inside, other=0)"
        if column.entry == GRAD_SCALE:
            yield f"h{k} = tl.load(grad_scale).to(tl.float64)"
        elif column.dtype is None:
            yield f"h{k} = {at}.to(tl.float64, bitcast=True)"
        else:
            pointer = f"{at}.to(tl.pointer_type({HYPER_TYPES[column.dtype]}))"
            yield f"h{k} = tl.load({pointer}, inside, other=0).to(tl.float64)"


def _state(reading: Reading, names: dict[Symbol, str]) -> Iterator[str]:
    """The numbers in the state of a tensor. The count is that of this step."""
    for k, name in enumerate(reading.cells):
        names[reading.scalars.get(name, reading.t)] = "t" if name == "step" else f"z{k}"
        yield f"# {name}"
        yield f"at{k} = tl.load(tensors + {k + 1} * count + i, inside, other=0).to(tl.pointer_type(tl.float32))"
        value = f"tl.load(at{k}, inside, other=0).to(tl.float64)"
        yield f"t = {value} + 1" if name == "step" else f"z{k} = {value}"
