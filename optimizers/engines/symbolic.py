r"""
---
title: The symbolic reader
summary: A rule read with symbols for its numbers, which gives the equations that are executed.
---

# The symbolic reader

The [recorder](recorder.html) writes down what a rule does to tensors. Its numbers go to a list, so nothing keeps them
from being symbols: $\alpha$ for the learning rate, $t$ for the count of steps. The program of such a reading, with
its list, is the update as a formula.

A comparison of symbols, as in `if rho > 5`, has no answer. So the rule is read once for each: a comparison that was
not met before stops the reading, and two others follow, which are told that it holds, and that it doesn't. What they
give is [merged](cases.html), from the last comparison to the first.

What a rule has a name for keeps it: `rho = rho_inf - ...` becomes a definition of $\rho_t$. A **branch** is what one
reading gives, all definitions in their order: those of numbers and values with a name, and of what is stored.
"""

from __future__ import annotations

import math
import operator
import os
import re
import traceback
from collections.abc import Callable
from numbers import Real
from typing import Any, NoReturn

import sympy
import torch
from sympy import Expr, Integer, Piecewise, Rational, Symbol
from torch import Tensor

from optimizers.engines.cases import Merge, after, choice, inlined
from optimizers.engines.program import Program, Step, Unrecordable, rule_frame, rule_line
from optimizers.engines.recorder import Tape
from optimizers.engines.state import group_numbers, new_state

#: A name and what it stands for, in the order of the reading.
Branch = dict[Symbol, Any]
#: How often a rule is read, and how many comparisons may follow each other. What needs more has a loop without end.
READINGS, COMPARISONS = 512, 32


class NoFloat(Unrecordable, TypeError):
    """A symbol got where only a float can be."""


class Fork(BaseException):
    """A comparison that has no answer yet. No rule may catch it."""

    def __init__(self, condition: Any) -> None:
        super().__init__(condition)
        self.condition = condition


def exact(number: Any) -> Expr:
    """A number as its digits say: 0.9 is nine tenths."""
    if isinstance(number, Tensor):
        number = number.item()
    if number in (math.pi, math.e):
        return sympy.pi if number == math.pi else sympy.E
    if not math.isfinite(number):
        return sympy.nan if number != number else sympy.oo * (1 if number > 0 else -1)
    return Integer(int(number)) if number == int(number) else Rational(repr(float(number)))


# ## Numbers that are symbols


def _function(function: Any) -> Any:
    def method(self: Symbolic) -> Symbolic:
        return Symbolic(self._reading, function(self._reading.use(self)))

    return method


class Symbolic:
    """### A number of which only the formula is known"""

    __slots__ = ("_reading", "expr", "inner", "place")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, reading: Reading, expr: Expr) -> None:
        self._reading, self.expr = reading, expr
        #: The line that it was made on, and whether it was used there: then the line has no name for it.
        self.place, self.inner = rule_line(), False

    __neg__, __abs__, __pos__ = map(_function, (operator.neg, sympy.Abs, operator.pos))
    cos, exp, log = map(_function, (sympy.cos, sympy.exp, sympy.log))

    def __bool__(self) -> bool:
        return self._reading.decide(sympy.Ne, self, 0)

    def __float__(self) -> float:
        return float(self.expr) if self.expr.is_number else self._no_float()

    def __index__(self) -> int:
        return int(self.expr) if self.expr.is_Integer else self._no_float()

    def _no_float(self, *_: Any) -> NoReturn:
        what = f"a symbol is given where only a float can be ({rule_line()})"
        raise NoFloat(f"{what}: write it with + - * / **, or keep the number by as_numbers=[...]")

    __complex__ = __round__ = __trunc__ = __floor__ = __ceil__ = _no_float
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = _no_float

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        """A function of torch takes it; what that means is for the values beside it."""
        return NotImplemented


# The recorder takes it for a number.
Real.register(Symbolic)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Symbolic))


def _arithmetic(function: Callable[[Any, Any], Any], swapped: bool) -> Any:
    def method(self: Symbolic, other: Any) -> Any:
        if not _is_number(other):
            return NotImplemented
        one, two = self._reading.use(self), self._reading.use(other)
        return Symbolic(self._reading, function(two, one) if swapped else function(one, two))

    return method


def _comparison(relation: Any) -> Any:
    def method(self: Symbolic, other: Any) -> Any:
        return self._reading.decide(relation, self, other) if _is_number(other) else NotImplemented

    return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Symbolic, f"__{_name}__", _arithmetic(getattr(operator, _name), swapped=False))
    setattr(Symbolic, f"__r{_name}__", _arithmetic(getattr(operator, _name), swapped=True))
for _name in ("Lt", "Le", "Gt", "Ge", "Eq", "Ne"):
    setattr(Symbolic, f"__{_name.lower()}__", _comparison(getattr(sympy, _name)))


class SymbolicTape(Tape):
    """### A tape that sees its numbers being used"""

    __slots__ = ("reading",)
    reading: Reading

    def number(self, value: Any) -> int | None:
        """A number of the program, which may be a symbol."""
        if isinstance(value, Symbolic):
            self.reading.use(value)
        return super().number(value)


# ## What is known of a rule before it is read


class Subject:
    """
    ### A rule, and a symbol for everything that it is given

    * `symbols` has them by name: `param`, `grad`, the entries of the state, `t`, and the numbers of the group.
    * `group` is the group as the rule sees it; `scalars` are the numbers of the state; `initial` is the state at first.
    * `tensors` are the symbols that stand for tensors; all others are numbers.
    """

    def __init__(self, rule: Any, as_numbers: tuple[str, ...], as_symbols: tuple[str, ...]) -> None:
        self.rule = rule
        self.readings, self._last = 0, sympy.true
        #: Symbols for numbers that were compared, by their formulas, and the names that the rule has for others.
        self.marks: dict[Any, Symbol] = {}
        self.names: dict[Symbol, str] = {}
        self._as_numbers, self._as_symbols = as_numbers, as_symbols
        group = rule.param_groups[0]
        param = group["params"][0]
        self.numbers = group_numbers(group)
        for name in (*as_numbers, *as_symbols):
            if name not in self.numbers:
                raise ValueError(f"{name!r} is no entry of the parameter group, which has {', '.join(self.numbers)}")
        state = new_state(rule, group, param)
        self.leaves = ["param", "grad", *(k for k, v in state.items() if _is_tensor(rule, k, v))]
        scalars = [name for name in rule.scalar_state if name in state and name != "step"]
        self.others = {k: v for k, v in state.items() if k not in (*self.leaves, *scalars, "step")}
        self.symbols: dict[str, Symbol] = {}
        self.values: dict[Symbol, float] = {}
        self.group = {name: self._entry(name, value) for name, value in self.numbers.items()}
        self.has_step = "step" in state
        self.t = self._add("t", Symbol("t", integer=True, positive=True))
        self.scalars = {name: self._add(name) for name in scalars}
        self.tensors = set(map(self._add, self.leaves))
        self.initial = {name: self._initial(name, state[name], param) for name in (*self.leaves[2:], *scalars)}

    def _add(self, name: str, symbol: Symbol | None = None) -> Symbol:
        if name in self.symbols or name.removesuffix("_t") in self.symbols:
            raise Unrecordable(
                f"{name!r} would be the name of two symbols: of the state, and of the group or a new value"
            )
        self.symbols[name] = symbol or Symbol(name, real=True)
        return self.symbols[name]

    def _entry(self, name: str, value: Any) -> Any:
        """An entry of the group. A number that is 0 stays, so that what it takes away does not appear."""
        if isinstance(value, (tuple, list)) and value and all(map(_is_constant, value)):
            stem = name.removesuffix("s")
            return tuple(self._leaf(f"{stem}{i}", v, name) for i, v in enumerate(value, 1))
        return self._leaf(name, value, name) if _is_constant(value) else value

    def _leaf(self, name: str, value: float, entry: str) -> Any:
        if (value == 0 and entry not in self._as_symbols) or not math.isfinite(value):
            return value
        if entry in self._as_numbers:
            return exact(value)
        sign = {"positive": True} if value > 0 else {"negative": True} if value < 0 else {"nonnegative": True}
        self.symbols[name] = Symbol(name, **sign)
        self.values[self.symbols[name]] = value
        return self.symbols[name]

    @property
    def targets(self) -> dict[str, Symbol]:
        """What a step may store, and the symbols for that, the parameter last."""
        return {name: after(self.symbols[name]) for name in (*self.leaves[2:], *self.scalars, "param")}

    def add_leaf(self, name: str) -> None:
        """An entry that the rule adds to the state."""
        self.leaves.append(name)
        self.tensors.add(self._add(name))

    def _initial(self, name: str, value: Tensor, param: Tensor) -> Expr | None:
        """What an entry of the state is at first: a number, a number of the group, the parameter, or not known."""
        if value.shape == param.shape and torch.equal(value.double(), param.detach().double()):
            return self.symbols["param"]
        if name not in self.scalars and value.shape != param.shape:
            raise Unrecordable(f"state[{name!r}] has another shape than the parameter")
        first = value.reshape(-1)[0].item()
        if not bool((value == first).all()):
            return None
        if value.dtype == torch.float32:
            first = float(f"{first:.7g}")
        for key, number in self.numbers.items():
            if first != 0 and key in self.symbols and math.isclose(number, first, rel_tol=1e-6):
                # The same number by chance?
                other = new_state(self.rule, {**self.rule.param_groups[0], key: 2 * number}, param)[name]
                if math.isclose(other.reshape(-1)[0].item(), 2 * first, rel_tol=1e-6):
                    return self.symbols[key]
        return exact(first)

    # ### Reading

    def explore(self, outcomes: tuple[bool, ...] = ()) -> Branch:
        """All branches that begin with these outcomes of comparisons, merged."""
        self.readings += 1
        if self.readings > READINGS or len(outcomes) > COMPARISONS:
            raise Unrecordable(
                f"{type(self.rule).__name__} was read {self.readings} times, and still compares numbers with another "
                f"outcome: {self._last}. A loop can't be read whose end depends on a number of the group or the step"
            )
        reading = Reading(self, outcomes)
        try:
            return reading.branch()
        except Fork as fork:
            condition, self._last = fork.condition, fork.condition
        one, two = self.explore((*outcomes, True)), self.explore((*outcomes, False))
        return self.merge(condition, one, two)

    def merge(self, condition: Any, one: Branch, two: Branch) -> Branch:
        """Two branches as one: what only one of them stores stays as it is in the other."""
        for name, new in self.targets.items():
            if (new in one) != (new in two):
                (two if new in one else one)[new] = self.symbols[name]
        return Merge(condition, one, two, self.tensors).merged()

    def read(self) -> Branch:
        """All branches. A rule whose first step adds to the state has another first step."""
        known = len(self.leaves)
        self.added: dict[str, None] = {}
        first = self.explore()
        if not self.added:
            return first
        for name in self.added:
            self.add_leaf(name)
        later, olds = self.explore(), {self.symbols[name]: Integer(0) for name in self.leaves[known:]}
        self.initial.update((name, Integer(0)) for name in self.leaves[known:])
        if len(self.added) > len(self.leaves) - known:
            raise Unrecordable(f"{type(self.rule).__name__} adds to its state more than once")
        if all(
            inlined(later.get(new, self.symbols[name]), later).xreplace(olds)
            == inlined(first.get(new, self.symbols[name]), first)
            for name, new in self.targets.items()
        ):
            # An entry that begins as zeros does the same.
            return later
        return self.merge(sympy.Eq(self.t, 1), first, later)


def _is_tensor(rule: Any, name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and name not in rule.scalar_state


def _is_constant(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ## One reading


class Reading:
    """### A reading of a rule, with the outcomes of its first comparisons"""

    def __init__(self, subject: Subject, outcomes: tuple[bool, ...]) -> None:
        self.subject = subject
        self._outcomes = iter(outcomes)
        self._known: dict[Any, bool] = {}
        self.made: Branch = {}

    def use(self, number: Any) -> Expr:
        """The formula of a number that is used. If the rule has a name for it, that is its formula."""
        if not isinstance(number, Symbolic):
            return exact(number)
        if rule_line() == number.place:
            number.inner = True
        elif number.expr.args or number.expr in self.subject.marks.values():
            name = "" if number.inner else _assigned(number.place)
            name = name or next((k for k, v in rule_frame().f_locals.items() if v is number), "")
            if name:
                number.expr = self.define(name, number.expr)
        return number.expr

    def define(self, name: str, expr: Expr, tensor: bool = False) -> Symbol:
        """A symbol for a formula, by the rule's name for it. A name that is there already gets a number."""
        taken = {*self.subject.symbols, *(symbol.name for symbol in self.subject.targets.values())}
        numbered = (Symbol(f"{name}{i}_t", real=True) for i in ("", *range(2, READINGS)))
        symbol = next(s for s in numbered if s.name not in taken and self.made.get(s, expr) == expr)
        self.made[symbol] = expr
        self.subject.names[symbol] = name
        if tensor:
            self.subject.tensors.add(symbol)
        return symbol

    def decide(self, relation: Any, one: Any, two: Any) -> bool:
        """The outcome of a comparison of numbers."""
        for number in (one, two):
            if isinstance(number, float) and not 1e-37 < abs(number) < 1e37 and number != 0:
                # Not the rule asks that but the recorder: whether a number has a reciprocal. All have.
                return relation in (sympy.Lt, sympy.Le, sympy.Ne) if number is two else relation in (sympy.Gt, sympy.Ge)
        sides = self.use(one), self.use(two)
        asked = relation(*(inlined(side, self.made) for side in sides))
        if asked in (sympy.true, sympy.false):
            return bool(asked)
        if asked.canonical not in self._known:
            outcome = next(self._outcomes, None)
            if outcome is None:
                raise Fork(relation(*(self._mark(number).expr for number in (one, two))))
            self._known[asked.canonical], self._known[asked.negated.canonical] = outcome, not outcome
        for number in (one, two):
            self._mark(number)
        return self._known[asked.canonical]

    def _mark(self, number: Any) -> Any:
        """Give a number that was compared a symbol, by which `min` and `max` are known."""
        if not isinstance(number, Symbolic):
            return Symbolic(self, exact(number))
        if number.expr.args:
            marks = self.subject.marks
            mark = marks.setdefault(number.expr, Symbol(f"_{len(marks)}", real=True))
            self.made[mark] = number.expr
            number.expr = mark
        return number

    def branch(self) -> Branch:
        """Read the rule."""
        try:
            return self._read()
        except (TypeError, RuntimeError) as error:
            if isinstance(error, Unrecordable):
                raise
            raise Unrecordable(f"symbols in place of numbers won't do ({_place(error)}): {error}") from error

    def _run(self, tape: SymbolicTape) -> dict[str, Any]:
        """Have the rule written down on a tape, and give the state that it leaves."""
        subject, tape.reading = self.subject, self
        scalars = {name: Symbolic(self, symbol) for name, symbol in subject.scalars.items()}
        if subject.has_step:
            scalars["step"] = Symbolic(self, subject.t)
        state = tape.state({**subject.others, **scalars})
        subject.rule.update_param(state, self._numbers(subject.group), tape.grad, tape.param)
        return state

    def _read(self) -> Branch:
        subject = self.subject
        tape = SymbolicTape(tuple(subject.leaves))
        state = self._run(tape)
        program, numbers = tape.program(tape.node), iter(tape.scalars)
        subject.added.update(dict.fromkeys(program.new_state))
        Values(self, program, lambda: self.use(next(numbers))).define()
        for name, symbol in subject.scalars.items():
            value = self.use(state[name])
            if value == symbol:
                continue
            # The entry's own name takes the place of the rule's.
            if value in self.made and value not in subject.tensors:
                self.made = {after(symbol) if k == value else k: v for k, v in self.made.items()}
                self.made[value] = after(symbol)
            else:
                self.made[after(symbol)] = value
        return self.made

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self._numbers(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return tuple(map(self._numbers, value))
        return Symbolic(self, value) if isinstance(value, Expr) else value


def _place(error: Exception) -> str:
    """The line of the rule that an error comes from."""
    here = os.path.dirname(__file__)
    lines = [e for e in traceback.extract_tb(error.__traceback__) if os.path.dirname(e.filename) != here]
    return f"{os.path.basename(lines[-1].filename)}:{lines[-1].lineno}: {lines[-1].line}" if lines else "engines"


def _assigned(line: str) -> str:
    """The name on the left of an assignment, of a line as `rule_line` gives it."""
    found = re.match(r"[^:]*:\d+: (\w+)\s*(?::[^=]+)?=[^=]", line)
    return found[1] if found else ""


# ## A program as formulas

#: Operations that are operators, so they are the same for formulas as for numbers and arrays.
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "copy": lambda a: a,
    "set": lambda a, b: b,
    "add": lambda a, b, s=1: a + s * b,
    "sub": lambda a, b, s=1: a - s * b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "exact_div": lambda a, b: a / b,
    "addcmul": lambda a, b, c, s=1: a + s * b * c,
    "addcdiv": lambda a, b, c, s=1: a + s * b / c,
    "lerp": lambda a, b, w: a + w * (b - a),
    "reciprocal": lambda a: 1 / a,
    "square": lambda a: a**2,
    "neg": operator.neg,
}

_FORMULAS: dict[str, Callable[..., Any]] = {
    **ARITHMETIC,
    "pow": lambda a, b: a**b,
    "maximum": sympy.Max,
    "minimum": sympy.Min,
    "clamp": lambda a, low, high: sympy.Min(sympy.Max(a, low), high),
    "clamp_tensors": lambda a, low, high: sympy.Min(sympy.Max(a, low), high),
    "clamp_min": sympy.Max,
    "clamp_max": sympy.Min,
    "sqrt": sympy.sqrt,
    "rsqrt": lambda a: 1 / sympy.sqrt(a),
    "abs": sympy.Abs,
    "sign": sympy.sign,
    "exp": sympy.exp,
    "log": sympy.log,
    "tanh": sympy.tanh,
    "lt": sympy.Lt,
    "le": sympy.Le,
    "gt": sympy.Gt,
    "ge": sympy.Ge,
    "eq": sympy.Eq,
    "ne": sympy.Ne,
}
_LOGIC: dict[str, Callable[..., Any]] = {"and": sympy.And, "or": sympy.Or, "not": sympy.Not}


class Values:
    """### The values of a program, each with its formula"""

    def __init__(self, reading: Reading, program: Program, number: Callable[[], Expr]) -> None:
        self._reading, self._program, self._number = reading, program, number
        self._symbols = [reading.subject.symbols[name] for name in program.leaves]
        self._made: dict[int, Any] = dict(enumerate(self._symbols))
        # A copy is what it is a copy of.
        self._same: dict[int, int] = {}
        stored = {program.leaves[leaf]: id for leaf, id in program.stores.items()} | program.new_state
        for step in program.steps:
            source = step.operands[-1]
            if step.name in ("copy", "set") and source is not None:
                self._same[step.value] = self._origin(source)
        param = stored.pop("param", None)
        #: What is stored, the parameter last: if something else holds the same, the parameter is a copy of that.
        self._stored = stored if param is None else {**stored, "param": param}
        self._new: dict[int, Symbol] = {}
        for name, id in self._stored.items():
            if self._origin(id) >= len(program.leaves):
                self._new.setdefault(self._origin(id), self._after(name))

    def _origin(self, id: int) -> int:
        return self._same.get(id, id)

    def _after(self, name: str) -> Symbol:
        symbol = after(Symbol(name))
        self._reading.subject.tensors.add(symbol)
        return symbol

    def define(self) -> None:
        """Add what is stored, and what has a name and deserves one, to the definitions."""
        defined = self._reading.made
        for step in self._program.steps:
            operands = [self._number() if id is None else self._made[id] for id in step.operands]
            if step.value in self._same:
                self._made[step.value] = self._made[self._same[step.value]]
                continue
            expr = self._formula(step, operands)
            new = self._new.get(step.value)
            if new is not None:
                defined[new] = expr
            elif self._deserves_name(step, expr):
                new = self._reading.define(self._name(step), expr, tensor=True)
            self._made[step.value] = expr if new is None else new
        for name, id in self._stored.items():
            if self._after(name) not in defined:
                defined[self._after(name)] = _number(self._made[id])

    def _formula(self, step: Step, operands: list[Any]) -> Any:
        if step.name in _LOGIC:
            return _LOGIC[step.name](*map(_condition, operands))
        if step.name == "where":
            condition, one, two = operands
            return choice(_condition(condition), _number(one), _number(two))
        if step.name not in _FORMULAS:
            raise Unrecordable(f"there is no formula for `{step.name}` ({step.source})")
        return _FORMULAS[step.name](*(_number(operand) for operand in operands))

    def _users(self, id: int) -> list[Step]:
        """Who takes a value, or a copy of it."""
        return [
            step
            for step in self._program.steps
            if step.value not in self._same and any(o is not None and self._origin(o) == id for o in step.operands)
        ]

    def _deserves_name(self, step: Step, expr: Any) -> bool:
        users = self._users(step.value)
        if not expr.args or expr.is_Boolean or isinstance(expr, sympy.core.relational.Relational):
            return False
        if isinstance(expr, Piecewise):
            return any(user.name != "where" for user in users)
        return len(users) > 1 and (expr.count_ops() > 1 or step.name == "neg")

    def _name(self, step: Step) -> str:
        name = _assigned(step.source)
        if name and all(user.source != step.source for user in self._users(step.value)):
            return name
        # What is made of the gradient is one.
        made_of = {other.value: other.operands[0] for other in self._program.steps}
        id: int | None = step.value
        while id in made_of:
            id = made_of[id]
        return "grad" if id == 1 else "x"


def _number(value: Any) -> Any:
    """A condition as a number."""
    return Piecewise((1, value), (0, True)) if value.is_Boolean or value.is_Relational else value


def _condition(value: Any) -> Any:
    """A number as a condition."""
    return value if value.is_Boolean or value.is_Relational else sympy.Ne(value, 0)
