"""
What was read of a formula, and its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from sympy import Expr, Symbol, lambdify

#: Letters for matrices, whose products are those of matrices and keep their order.
MATRICES = {"X", "A"}


class Unreadable(Exception):
    """A formula that is not in the notation of CONTRIBUTING.md; the message says what was not understood."""


@dataclass(frozen=True)
class Name:
    r"""A letter with its accent and upper index, and its lower index: `\hat v` and `t-1`. Words are `\text{...}`."""

    base: str
    index: str = ""

    def __str__(self) -> str:
        index = self.index if len(self.index) < 2 or self.index[0] == "\\" else f"{{{self.index}}}"
        return f"{self.base}_{index}" if index else self.base

    def indexed(self, index: str) -> Name:
        """The same with another index, beside its own."""
        return Name(self.base, f"{self.index},{index}" if self.index and index else self.index or index)


@dataclass
class Call:
    """A function of formulas. Cases are one too: of a formula and the sides and sign of its condition, in turn."""

    function: str
    arguments: list[Any]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(map(str, self.arguments))})"


class Lookup(Protocol):
    """Gives the value of a name; `at` gives it for other steps."""

    def __call__(self, name: Name) -> Any: ...
    def at(self, name: Name, step: Any) -> Any: ...


@dataclass
class Formula:
    """What was read: an expression of sympy, and the names and calls that its symbols stand for."""

    latex: str
    expr: Expr
    parts: dict[Symbol, Name | Call] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.expr.xreplace({s: Symbol(str(p), commutative=s.is_commutative) for s, p in self.parts.items()}))

    @cached_property
    def name(self) -> Name | None:
        """The name, where the formula is nothing else."""
        part = self.parts.get(self.expr)
        return part if isinstance(part, Name) else None

    def names(self) -> Iterator[Name]:
        """All names in it."""
        for part in self.parts.values():
            if isinstance(part, Name):
                yield part
            else:
                for argument in part.arguments:
                    yield from argument.names() if isinstance(argument, Formula) else ()

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return lambdify(list(self.parts), self.expr, "numpy")  # type: ignore[no-any-return]

    def value(self, lookup: Lookup) -> Any:
        """What it is where `lookup` gives the value of each name."""
        values = [_value(part, lookup) for part in self.parts.values()]
        with np.errstate(all="ignore"):
            made = self._function(*values)
        return made.view(np.ndarray) if isinstance(made, np.ndarray) else made


class _Matrix(np.ndarray):
    """An array whose products are those of matrices."""

    def __mul__(self, other: Any) -> Any:
        return np.matmul(self, other) if isinstance(other, _Matrix) else super().__mul__(other)

    def __pow__(self, exponent: Any, *_: Any) -> Any:
        return np.linalg.matrix_power(self, int(exponent))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max": np.maximum,
    "min": np.minimum,
    "exp": np.exp,
    "ln": np.log,
    "cos": np.cos,
    "sign": np.sign,
    "abs": np.abs,
    "norm": lambda x: np.linalg.norm(np.asarray(x)),
    "clip": lambda x, bound: np.clip(x, -bound, bound),
    # To the dtype of the parameter, which is float64 here.
    "round": lambda x: x,
    "<": np.less,
    ">": np.greater,
    "\\le": np.less_equal,
    "\\ge": np.greater_equal,
}


def _value(part: Name | Call, lookup: Lookup) -> Any:
    if isinstance(part, Name):
        # numpy's numbers may be divided by zero.
        value = np.asarray(lookup(part), np.float64)[()]
        return value.view(_Matrix) if is_matrix(part) else value
    if part.function == "prod":
        factor, last = part.arguments
        numbers = np.arange(1, int(last.value(lookup)) + 1)
        return np.prod(lookup.at(factor, numbers))
    values = [argument.value(lookup) for argument in part.arguments]
    if part.function == "cases":
        # Each value with its condition; the last has none.
        return np.select([np.asarray(c, bool) for c in values[1::2]], values[:-1:2], values[-1])
    return FUNCTIONS[part.function](*values)


def is_matrix(part: Name | Call) -> bool:
    """Whether a name is that of a matrix, perhaps transposed."""
    return isinstance(part, Name) and part.base.removesuffix("^\\top") in MATRICES
