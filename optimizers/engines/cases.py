r"""
---
title: Cases
summary: The formulas of two branches of a rule, as one.
---

# Cases

Where a rule branches on a number, one reading gives a formula for the case that a condition holds, and one for the case
that it does not. Most of both is the same. So the two are taken apart together, until they differ:

* $\alpha f(x)$ where $x < y$ and $\alpha f(y)$ elsewhere is $\alpha f(\min(x, y))$;
* $f(x)$ where $x \neq y$, and elsewhere what $f(y)$ is too, is $f(x)$;
* anything else is a choice, $a$ if the condition holds and $b$ otherwise.

A choice between numbers stays where it is. One between tensors becomes the choice of the whole line.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import sympy
from sympy import Add, Max, Min, Mul, Piecewise, Symbol
from sympy.core.relational import Relational


def after(symbol: Symbol) -> Symbol:
    """The symbol for what is stored in the place of another."""
    return Symbol(f"{symbol.name}_t", real=True)


def inlined(expr: Any, defined: dict[Symbol, Any]) -> Any:
    """A formula without the names that are defined."""
    while True:
        names = {s: defined[s] for s in expr.free_symbols if s in defined and defined[s] != s}
        if not names:
            return expr
        expr = expr.xreplace(names)


def choice(condition: Any, one: Any, two: Any) -> Any:
    """One formula if a condition holds, and the other one otherwise."""
    pairs = [(e, sympy.And(condition, c)) for e, c in one.args] if isinstance(one, Piecewise) else [(one, condition)]
    return Piecewise(*pairs, *(two.args if isinstance(two, Piecewise) else [(two, True)]))


class Whole(Exception):
    """Two formulas differ in tensors."""


class Merge:
    """## Two branches, of a condition that holds and of one that does not"""

    def __init__(self, condition: Any, one: dict[Symbol, Any], two: dict[Symbol, Any], tensors: set[Symbol]) -> None:
        self._condition, self._branches, self._tensors = condition, (dict(one), dict(two)), tensors
        self._used = [self._names(branch) for branch in self._branches]

    @staticmethod
    def _names(branch: dict[Symbol, Any]) -> set[Symbol]:
        return set(branch).union(*(expr.free_symbols for expr in branch.values()))

    def merged(self) -> dict[Symbol, Any]:
        """### One branch, with choices where the two differ"""
        one, two = self._branches
        result: dict[Symbol, Any] = {}
        # Taking formulas apart may give a name to what is nameless in the other branch, so begin with the last.
        while True:
            names = [s for s in one if s in two and s not in result]
            if not names:
                break
            result[names[-1]] = self._line(one[names[-1]], two[names[-1]])
        order = dict.fromkeys((*one, *two))
        return {s: result.get(s, one.get(s, two.get(s))) for s in order}

    def _line(self, one: Any, two: Any) -> Any:
        try:
            return self._unify(one, two)
        except Whole:
            return choice(self._condition, one, two)

    def _unify(self, one: Any, two: Any) -> Any:
        """### A formula that is `one` if the condition holds, and `two` otherwise"""
        if one == two:
            return one
        named = self._named(one, two)
        if named is not None:
            return named
        failed = None
        try:
            found = self._descend(one, two)
        except Whole as whole:
            found, failed = None, whole
        if found is None or found.has(Piecewise):
            for attempt in (self._clipped, self._special):
                better = attempt(one, two)
                if better is not None:
                    return better
        if failed is not None:
            raise failed
        if found is not None:
            return found
        if (one.free_symbols | two.free_symbols) & self._tensors:
            raise Whole
        return choice(self._condition, one, two)

    def _descend(self, one: Any, two: Any) -> Any:
        """What both have in common, and in it the only parts that differ; None where they have nothing."""
        for kind in (Add, Mul):
            parts, others = Counter(kind.make_args(one)), Counter(kind.make_args(two))
            common = parts & others
            if common:
                rest = self._unify(kind(*(parts - common).elements()), kind(*(others - common).elements()))
                return kind(*common.elements(), rest)
        if one.func == two.func and len(one.args) == len(two.args) and not isinstance(one, Piecewise):
            differing = [i for i, (a, b) in enumerate(zip(one.args, two.args, strict=True)) if a != b]
            if len(differing) == 1 and not isinstance(one, (Add, Mul)):
                i = differing[0]
                return one.func(*one.args[:i], self._unify(one.args[i], two.args[i]), *one.args[i + 1 :])
        return None

    def _named(self, one: Any, two: Any) -> Any:
        """What has a name in one branch only gets it in the other one too."""
        for index, (name, value) in enumerate(((one, two), (two, one))):
            own, other = self._branches[index], self._branches[1 - index]
            if not name.is_Symbol or name not in own or name in self._tensors or name.name.startswith("_"):
                continue
            new = name not in self._used[1 - index] or other.get(name) == value
            if new and not value.free_symbols & self._tensors:
                other[name] = value
                self._used[1 - index].add(name)
                return name
        return None

    def _clipped(self, one: Any, two: Any) -> Any:
        """A minimum or a maximum: both are the same function, of the two numbers that are compared."""
        if not isinstance(self._condition, Relational) or self._condition.func in (sympy.Eq, sympy.Ne):
            return None
        low, high = self._condition.lts, self._condition.gts
        if {one, two} == {low, high}:
            return Min(low, high) if one == low else Max(low, high)
        first, second = self._branches
        for value, other, function in ((low, high, Min), (high, low, Max)):
            # The value is taken where the condition holds ...
            found = self._function_of(value, other, function, one, first, two, second)
            if found is None:
                # ... or where it does not, and then it is the larger of two, not the smaller.
                found = self._function_of(value, other, Max if function is Min else Min, two, second, one, first)
            if found is not None:
                return found
        return None

    def _function_of(self, value: Any, other: Any, bound: Any, one: Any, mine: Any, two: Any, its: Any) -> Any:
        """`one` with the lesser or greater of `value` and `other` for `value`, if `two` is that with `other`."""
        if value not in mine:
            return None
        one = self._up_to(value, one, mine)
        if value not in one.free_symbols or inlined(one.xreplace({value: other}), mine) != inlined(two, its):
            return None
        return one.xreplace({value: bound(value, other)})

    def _special(self, one: Any, two: Any) -> Any:
        """A case that is no exception: where two numbers are the same, the formula for others gives the same."""
        if not isinstance(self._condition, (sympy.Eq, sympy.Ne)):
            return None
        same, general = (0, 1) if isinstance(self._condition, sympy.Eq) else (1, 0)
        exprs = (one, two)
        for value, other in (self._condition.args, self._condition.args[::-1]):
            if value.is_Symbol:
                deep = self._up_to(value, exprs[general], self._branches[general])
                at = inlined(deep.xreplace({value: other}), self._branches[general])
                if at == inlined(exprs[same], self._branches[same]):
                    return exprs[general]
        return None

    @staticmethod
    def _up_to(value: Symbol, expr: Any, branch: dict[Symbol, Any]) -> Any:
        """A formula without those names whose definitions contain `value`."""
        rest = {name: definition for name, definition in branch.items() if name != value}
        while True:
            names = {
                s: rest[s] for s in expr.free_symbols if s in rest and value in inlined(rest[s], rest).free_symbols
            }
            if not names:
                return expr
            expr = expr.xreplace(names)
