r"""
---
title: Formulas in print
summary: A formula as LaTeX, in the order in which a person would write it.
---

# Formulas in print

sympy keeps sums and products in an order of its own, and writes $-m_{t-1} + g_t$. Here a sum begins with what is
positive, with averages before the gradient and short terms before long ones; a product has numbers first and tensors
last. Powers with negative exponents are below the line, and decimals are decimals.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Add, Expr, Mul, Piecewise, Pow, Rational, Symbol
from sympy.core.relational import Relational
from sympy.printing.latex import LatexPrinter


class FormulaPrinter(LatexPrinter):
    """## The printer: `letters` has the LaTeX of every symbol, `tensors` are those that are no numbers"""

    def __init__(self, letters: dict[Symbol, str], tensors: set[Symbol]) -> None:
        super().__init__()
        self._letters, self._tensors = letters, tensors
        self._ranks = {symbol: rank for rank, symbol in enumerate(letters)}

    def _print_Symbol(self, expr: Symbol, style: str = "plain") -> str:
        return self._letters[expr]

    # ### Order

    def _rank(self, expr: Expr) -> int:
        """The place of the first tensor in a formula, or of its first symbol if there is none."""
        symbols = (expr.free_symbols & self._tensors) or expr.free_symbols
        return min((self._ranks[s] for s in symbols), default=-1)

    def _place_in_sum(self, term: Expr) -> tuple[Any, ...]:
        is_tensor = bool(term.free_symbols & self._tensors)
        tensors = len(term.free_symbols & self._tensors)
        return _is_negative(term), not is_tensor, tensors, self._rank(term), int(term.count_ops())

    def _place_in_product(self, factor: Expr) -> tuple[Any, ...]:
        is_tensor = bool(factor.free_symbols & self._tensors)
        length = 0 if not factor.args else 1 if isinstance(factor, Add) else 2
        return not factor.is_number, is_tensor, length, self._rank(factor)

    # ### Arithmetic

    def _print_Add(self, expr: Add, order: Any = None) -> str:
        share = abs(expr.args[0].as_coeff_Mul()[0])
        if share != 1 and all(abs(term.as_coeff_Mul()[0]) == share for term in expr.args):
            # Half of a sum, not a sum of halves.
            return str(self._print(Mul(share, Add(*(term / share for term in expr.args)), evaluate=False)))
        terms = sorted(expr.args, key=self._place_in_sum)
        if terms[0].is_number and all(term.is_Symbol for term in terms[1:]):
            # A count is t + 1, not 1 + t.
            terms = [*terms[1:], terms[0]]
        printed: str = self._print(terms[0])
        for term in terms[1:]:
            printed += f" - {self._print(-term)}" if _is_negative(term) else f" + {self._print(term)}"
        return printed

    def _print_Mul(self, expr: Mul) -> str:
        number, rest = expr.as_coeff_Mul()
        if number.is_negative:
            return f"-{self._print_Mul(Mul(-number, rest, evaluate=False))}"
        factors: tuple[Expr, ...] = Mul.make_args(rest)
        cases = [factor for factor in factors if isinstance(factor, Piecewise)]
        under = [Pow(*_inverse(factor)) for factor in factors if _is_below(factor)]
        over = [factor for factor in factors if factor not in cases and not _is_below(factor)]
        numerator, denominator = _digits(number)
        upper = self._product([] if numerator == "1" and (over or cases or under) else [numerator], over)
        lower = self._product([denominator] if denominator else [], under)
        if lower:
            upper = rf"\frac{{{upper or 1}}}{{{lower}}}"
        return " ".join(part for part in (upper, *map(self._print, cases)) if part)

    def _product(self, digits: list[str], factors: list[Expr]) -> str:
        alone = len(factors) + len(digits) == 1
        ordered = sorted(factors, key=self._place_in_product)
        return " ".join([*digits, *(self._print(f) if alone else self._in_brackets(f) for f in ordered)])

    def _in_brackets(self, expr: Expr) -> str:
        printed: str = self._print(expr)
        return rf"\left({printed}\right)" if isinstance(expr, (Add, Piecewise, sympy.And)) else printed

    def _print_Pow(self, expr: Pow) -> str:
        base, exponent = expr.as_base_exp()
        if _is_below(expr):
            return rf"\frac{{1}}{{{self._print(Pow(*_inverse(expr)))}}}"
        printed = self._print(base)
        if exponent == Rational(1, 2):
            return rf"\sqrt{{{printed}}}"
        # Two superscripts can't follow each other.
        if not (base.is_Symbol or (base.is_Rational and "frac" not in printed)) or "^" in printed:
            printed = rf"\left({printed}\right)"
        is_fraction = exponent.is_Rational and not exponent.is_Integer
        return f"{printed}^{{{exponent if is_fraction else self._print(exponent)}}}"

    def _print_Rational(self, expr: Rational) -> str:
        if expr.is_negative:
            return f"-{self._print(-expr)}"
        numerator, denominator = _digits(expr)
        return rf"\frac{{{numerator}}}{{{denominator}}}" if denominator else numerator

    # ### Functions

    def _print_Piecewise(self, expr: Piecewise) -> str:
        lines = [
            f"{self._print(value)} & "
            + (r"\text{otherwise}" if condition == sympy.true else rf"\text{{if }} {self._print(condition)}")
            for value, condition in expr.args
        ]
        return r"\begin{cases} " + r" \\ ".join(lines) + r" \end{cases}"

    def _print_Relational(self, expr: Relational) -> str:
        # What changes is on the left: t > 5, not 5 < t.
        left, right = (max((self._ranks[s] for s in side.free_symbols), default=-1) for side in expr.args)
        return str(super()._print_Relational(expr.reversed if right > left else expr))

    def _print_And(self, expr: Any) -> str:
        return r" \text{ and } ".join(map(self._print, expr.args))

    def _print_Or(self, expr: Any) -> str:
        return r" \text{ or } ".join(map(self._in_brackets, expr.args))

    def _call(self, name: str, expr: Any) -> str:
        arguments = ", ".join(self._print(a) for a in sorted(expr.args, key=self._place_in_sum))
        return rf"{name}\left({arguments}\right)"

    def _print_Max(self, expr: Any) -> str:
        return self._call(r"\max", expr)

    def _print_Min(self, expr: Any) -> str:
        return self._call(r"\min", expr)

    def _print_sign(self, expr: Any) -> str:
        return self._call(r"\operatorname{sign}", expr)

    def _print_cos(self, expr: Any) -> str:
        return self._call(r"\cos", expr)

    def _print_exp(self, expr: Any) -> str:
        return self._call(r"\exp", expr)

    def _print_log(self, expr: Any) -> str:
        return rf"\ln {self._print(expr.args[0])}" if expr.args[0].is_Symbol else self._call(r"\ln", expr)


def _is_negative(term: Expr) -> bool:
    return bool(term.as_coeff_Mul()[0].is_negative)


def _is_below(factor: Expr) -> bool:
    """Whether a factor belongs below the line."""
    return isinstance(factor, Pow) and _is_negative(factor.as_base_exp()[1])


def _inverse(factor: Expr) -> tuple[Expr, Expr]:
    base, exponent = factor.as_base_exp()
    return base, -exponent


def _digits(number: Rational) -> tuple[str, str]:
    """A positive number: what is above the line, and what is below it or nothing. Decimals have no line."""
    p, q = number.p, number.q
    decimal = q
    for prime in (2, 5):
        while decimal % prime == 0:
            decimal //= prime
    if q == 1 or q in (2, 4) or decimal != 1:
        return str(p), "" if q == 1 else str(q)
    power = len(str(q)) - 1
    if p == 1 and q == 10**power and power > 3:
        return f"10^{{-{power}}}", ""
    return f"{float(number):.15g}" if float(number) >= 1e-4 else f"{number}", ""
