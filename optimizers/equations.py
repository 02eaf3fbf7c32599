r"""
---
title: Equations as executed
summary: The update of any rule as formulas, recovered from what it does.
---

# Equations as executed

A page says what its paper says, and below each formula stands the code. Is the code the formula? Here a rule is read
by the same recorder that makes its kernel, with symbols in place of its numbers, so what comes out is what is executed,
with all that the base does before the rule:

```python
>>> print(equations(Lion, weight_decay=0.1))
```

gives the lines of Lion; a notebook shows them as formulas. Your own rules have equations too: their letters are taken
from the names of the state and of the hyper-parameters, unless the class says otherwise, as
`letters = {"my_state": r"\zeta"}` does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from optimizers.base import check_class, check_ours

if TYPE_CHECKING:
    from sympy import Expr, Symbol

    from optimizers.engines.latex import FormulaPrinter


@dataclass(frozen=True)
class Equations:
    """
    ## The equations of a rule

    * `updates` has for everything that a step changes, by its name in the state or `"param"`, its new value as a
      formula of old values only.
    * `lines` are the same as people would write them: pairs of a symbol and its formula, of which later ones use
      earlier ones. The symbol for the new value of `exp_avg` is `exp_avg_t`.
    * `initial` are the values of the state before the first step; None where they are no formula.
    * `symbols` are those in `updates`, by name: `param`, `grad`, `t`, the entries of the state, and the numbers of the
      group: `lr`, `beta1`, `beta2`, `eps`, ...
    * `values` are the numbers that the rule was given, for its symbols.

    Formulas are sympy's, of arithmetic, roots, `Abs`, `sign`, `Min`, `Max`, `exp`, `log`, `cos`, `tanh` and
    `Piecewise`, which sympy prints in any language.
    """

    name: str
    updates: Mapping[str, Expr]
    lines: tuple[tuple[Symbol, Expr], ...]
    initial: Mapping[str, Expr | None]
    symbols: Mapping[str, Symbol]
    values: Mapping[Symbol, float]
    _printer: FormulaPrinter = field(repr=False, compare=False)

    def latex(self) -> str:
        """### One aligned block of LaTeX"""
        rows = [f"{self._printer.doprint(symbol)} &= {self._printer.doprint(expr)}" for symbol, expr in self.lines]
        return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex()}$"

    def __str__(self) -> str:
        return "\n".join(f"{symbol} = {expr}" for symbol, expr in self.lines)


def equations(
    rule: Callable[..., Any],
    *,
    as_numbers: Collection[str] = (),
    as_symbols: Collection[str] = (),
    **options: Any,
) -> Equations:
    """
    ## The equations that a rule executes

    `rule` is an optimizer class, or anything that makes an optimizer of `(params, **options)`. Numbers in the
    parameter group become symbols, those that are 0 excepted, so that what they switch off does not appear; everything
    else is as given. `as_numbers` and `as_symbols` name entries of the group for which that should be otherwise. Where
    the rule branches on a number both branches are read.

    Raises `optimizers.engines.program.Unrecordable`, with the place in the rule, where something is no formula: a
    product of matrices, a look at the values of a tensor, a function that takes floats only.
    """
    # sympy takes a while to import, and few need it.
    from optimizers.engines.cases import inlined
    from optimizers.engines.latex import FormulaPrinter
    from optimizers.engines.symbolic import Subject
    from optimizers.engines.tidy import letters, tidy

    param = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(2, 2).requires_grad_()
    check_class("equations", rule)
    optimizer = rule([param], **options)
    check_ours("equations", optimizer)
    subject = Subject(optimizer, tuple(as_numbers), tuple(as_symbols))
    branch = subject.read()
    lines = tidy(subject, branch)
    changed = {symbol for symbol, _ in lines}
    new = {name: symbol for name, symbol in subject.targets.items() if symbol in changed}
    return Equations(
        type(optimizer).__name__,
        {name: inlined(symbol, branch) for name, symbol in new.items()},
        tuple(lines),
        subject.initial,
        subject.symbols,
        subject.values,
        FormulaPrinter(letters(subject, lines), subject.tensors),
    )
