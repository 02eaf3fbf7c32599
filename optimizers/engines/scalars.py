r"""
---
title: The numbers of all steps
summary: What a rule does at step t, with symbols for its numbers - programs, and the numbers that they take as C.
---

# The numbers of all steps

A rule that is read at every step may do anything with its numbers. A loop of thousands of steps that is to be one
[kernel](loop.html) can't ask Python each time. So the rule is [read with symbols](symbolic.html), once: its tensors
give a program, as always, and its numbers give formulas of $t$ and of the hyper-parameters, which are printed as C.

A comparison of numbers makes two ways out of one, and in the kernel an `if` around the loop over the elements. Ways
that differ in their numbers only, as those of a schedule do, share a program.

Most of these numbers are the same at each step and are calculated before the loop. What is left is often $\beta^t$.
To raise a number to a power takes 20 to 50 nanoseconds, as long as some dozens of elements. A running product takes
one, and its rounding error is kept beside it as a second number, so that it does not grow with $t$.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sympy import Add, Expr, Mul, Pow, Symbol
from sympy.printing.c import C99CodePrinter

from optimizers.engines.cases import inlined
from optimizers.engines.program import Program, Unrecordable
from optimizers.engines.symbolic import COMPARISONS, READINGS, Fork, Reading, Subject, SymbolicTape

# ## Reading


@dataclass(frozen=True)
class Way:
    """
    ### One way through a rule

    `numbers` are what `program` takes, `scalars` what becomes of the numbers of the state. Both are formulas of the
    symbols of the rule and of those in `defined`, which are for what the rule itself has a name for.
    """

    program: Program
    defined: tuple[tuple[Symbol, Expr], ...]
    numbers: tuple[Expr, ...]
    scalars: tuple[Expr, ...]


@dataclass(frozen=True)
class Choice:
    """### Two ways, of a condition that holds and of one that does not"""

    condition: Any
    one: Tree
    two: Tree


Tree = Way | Choice


class _StepReading(Reading):
    """### A reading that keeps the program as it is"""

    def __init__(self, subject: Subject, outcomes: tuple[bool, ...], tape: SymbolicTape) -> None:
        super().__init__(subject, outcomes)
        self._tape = tape

    def _read(self) -> Any:
        subject, tape = self.subject, self._tape
        tape.rewind()
        state = self._run(tape)
        numbers = tuple(self.use(number) for number in tape.scalars)
        after = tuple(self.use(state[name]) for name in subject.scalars)
        return Way(tape.program(tape.node), tuple(self.made.items()), numbers, after)


class RuleReader:
    """
    ## All ways through a rule

    `leaves` are the names of all tensors: the parameter, the gradient and the state, with what the first step adds to
    it. `first` are the ways of the first step, where it does add something, and `later` those of all others.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        own = dict(vars(subject.rule))
        self.first: Tree | None = None
        self.leaves = tuple(subject.leaves)
        self.later = self._read()
        added = {name: None for way in ways(self.later) for name in way.program.new_state}
        if added:
            for name in added:
                subject.add_leaf(name)
            self.first, self.leaves = self.later, tuple(subject.leaves)
            self.later = self._read()
            if any(way.program.new_state for way in ways(self.later)):
                raise Unrecordable(f"{type(subject.rule).__name__} adds to its state more than once")
        if {k: v for k, v in vars(subject.rule).items() if own.get(k, v) is not v or k not in own}:
            raise Unrecordable(f"a step of {type(subject.rule).__name__} changes an attribute of the optimizer")

    def _read(self) -> Tree:
        tape = SymbolicTape(self.leaves)
        self._readings = 0
        tree, again = self._explore(tape, ()), self._explore(tape, ())
        if tree != again:
            raise Unrecordable(f"{type(self._subject.rule).__name__} does something else each time it is asked")
        return tree

    def _explore(self, tape: SymbolicTape, outcomes: tuple[bool, ...]) -> Tree:
        self._readings += 1
        if self._readings > READINGS or len(outcomes) > COMPARISONS:
            raise Unrecordable(
                f"{type(self._subject.rule).__name__} was read {self._readings} times, and still compares numbers with "
                "another outcome. A loop can't be read whose end depends on a number of the group or the step"
            )
        reading = _StepReading(self._subject, outcomes, tape)
        try:
            way: Way = reading.branch()  # type: ignore[assignment]
            return way
        except Fork as fork:
            condition = inlined(fork.condition, reading.made)
        one, two = self._explore(tape, (*outcomes, True)), self._explore(tape, (*outcomes, False))
        return one if one == two else Choice(condition, one, two)


def ways(tree: Tree) -> Iterator[Way]:
    """All ways of a tree."""
    if isinstance(tree, Way):
        yield tree
    else:
        yield from ways(tree.one)
        yield from ways(tree.two)


# ## Printing

#: The error of a product that is rounded is a number: where the processor has a
#: fused multiply-add, that gives it.
POWERS = """
typedef struct { double high, low; } power;
/* The next power. One that is nearly 0 has no room for its error, and one of a negative number is left to `pow`. */
static inline double next(power *p, double base, double t) {
#ifdef FP_FAST_FMA
    if (p->high > 1e-280 && base > 0) {
        const double high = p->high * base;
        p->low = fma(p->low, base, fma(p->high, base, -high));
        p->high = high;
        return p->high + p->low;
    }
#endif
    return pow(base, t);
}
"""


class _Printer(C99CodePrinter):
    """### Formulas as C: each number is the nearest double"""

    def __init__(self, names: dict[Symbol, str]) -> None:
        super().__init__()
        self._names = names

    def _print_Symbol(self, expr: Symbol) -> str:
        return self._names[expr]

    def _print_Rational(self, expr: Any) -> str:
        number = expr.p / expr.q
        return repr(number) if number >= 0 else f"({number!r})"

    _print_Integer = _print_Rational
    _print_Zero = _print_One = _print_NegativeOne = _print_Half = _print_Rational


class Numbers:
    """
    ## The numbers as C

    `symbols` are those of hyper-parameters, `moving` those that change from step to step, with $t$ as `t`: each with
    its name in C. What is printed may use `before`, lines that come before the loop, and `each`, lines at the
    beginning of every step. Powers of $t$ are kept in the numbers of the state, behind its own; `first` are the lines
    that set them.
    """

    def __init__(self, t: Symbol, symbols: dict[Symbol, str], moving: dict[Symbol, str]) -> None:
        self._t, self._moving = t, {t, *moving}
        self._names = {**symbols, **moving, t: "t"}
        self._print = _Printer(self._names).doprint
        self._fixed: dict[Expr, Symbol] = {}
        self._powers: dict[Expr, Symbol] = {}
        self._state = len(moving)
        self.before: list[str] = []
        self.first: list[str] = []
        self.each: list[str] = []

    @property
    def kept(self) -> int:
        """### How many numbers are kept from step to step"""
        return self._state + 2 * len(self._powers)

    def way(self, way: Way) -> tuple[list[str], list[str], list[str]]:
        """### A way: the lines that it needs, then its numbers, and what becomes of those of the state"""
        lines = []
        renamed: dict[Symbol, Any] = {}
        for symbol, expr in way.defined:
            expr = expr.xreplace(renamed)
            if not expr.free_symbols & self._moving or not expr.args:
                renamed[symbol] = expr
                continue
            value = self._reduced(expr)
            name = self._new(symbol.name)
            renamed[symbol] = name
            self._moving.add(name)
            lines.append(f"const double {self._names[name]} = {self._print(value)};")
        numbers, scalars = (
            [self._print(self._reduced(e.xreplace(renamed))) for e in exprs] for exprs in (way.numbers, way.scalars)
        )
        return lines, numbers, scalars

    def condition(self, condition: Any) -> str:
        """
        ### A condition

        As it stands: `t / n >= 0.5` is another thing than `t * (1 / n) >= 0.5`, by a rounding that decides.
        """
        if not condition.args:
            return "1" if condition else "0"
        sides = (self._print(self._reduced(side, hoist=False)) for side in condition.args)
        return f" {condition.rel_op} ".join(sides)

    def number(self, expr: Expr) -> str:
        """### A formula of hyper-parameters"""
        return str(self._print(expr))

    def _new(self, name: str) -> Symbol:
        symbol = Symbol(f"v{len(self._names)}_{name}", real=True)
        self._names[symbol] = "".join(c if c.isascii() and c.isalnum() else "_" for c in symbol.name)
        return symbol

    def _reduced(self, expr: Any, hoist: bool = True) -> Any:
        """A formula, with symbols for what is calculated before it."""
        if not expr.args or not (hoist or expr.free_symbols & self._moving):
            return expr
        if not expr.free_symbols & self._moving:
            return self._hoisted(expr)
        if isinstance(expr, Pow) and expr.exp == self._t and not expr.base.free_symbols & self._moving:
            return self._running(expr.base)
        if hoist and isinstance(expr, (Add, Mul)):
            fixed = [arg for arg in expr.args if not arg.free_symbols & self._moving]
            moving = [self._reduced(arg) for arg in expr.args if arg.free_symbols & self._moving]
            return expr.func(*([self._reduced(expr.func(*fixed))] if fixed else []), *moving)
        return expr.func(*(self._reduced(arg, hoist) for arg in expr.args))

    def _hoisted(self, expr: Expr) -> Symbol | Expr:
        if expr not in self._fixed:
            self._fixed[expr] = self._new("fixed")
            self.before.append(f"const double {self._names[self._fixed[expr]]} = {self._print(expr)};")
        return self._fixed[expr]

    def _running(self, base: Expr) -> Symbol:
        if base not in self._powers:
            symbol = self._new(f"{base}_to_t")
            self._moving.add(symbol)
            name, of = self._names[symbol], self._print(self._reduced(base))
            self.before.append(f"power *const powers_of_{name} = (power *)(l->state + {self.kept});")
            self.first.append(f"*powers_of_{name} = (power){{1, 0}};")
            self.each.append(f"const double {name} = next(powers_of_{name}, {of}, t);")
            self._powers[base] = symbol
        return self._powers[base]
