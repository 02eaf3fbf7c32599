r"""
---
title: Tidy equations
summary: What deserves a line of its own, and the letters.
---

# Tidy equations

A [reading](symbolic.html) gives a definition for everything that the rule has a name for. Read by people, an
equation should have few lines, and none should be long. What is stored has a line. What is used once, or is as short as
$1 - \beta_1^t$, is put where it is used; what is long, or is a choice between cases, keeps its line and its name.
"""

from __future__ import annotations

import re
from typing import Any

from sympy import Expr, Piecewise, Symbol

from optimizers.engines.cases import after, inlined
from optimizers.engines.symbolic import Branch, Subject

#: A choice with operations up to this number is put where it is used; beyond `LONG`, nothing is.
SHORT, LONG = 2, 10

Lines = list[tuple[Symbol, Any]]


def tidy(subject: Subject, branch: Branch) -> Lines:
    """## The lines, each after those that it uses"""
    targets = [
        new for name, new in subject.targets.items() if branch.get(new, subject.symbols[name]) != subject.symbols[name]
    ]
    defined = _reached(targets, branch)
    while True:
        few = next((s for s in defined if s not in targets and not _deserves_line(subject, s, defined)), None)
        if few is None:
            break
        value = defined.pop(few)
        defined = _reached(targets, {s: expr.xreplace({few: value}) for s, expr in defined.items()})
    defined = _reached(targets, _apart(subject, defined))
    return list(_still(subject, defined).items())


def _reached(targets: list[Symbol], defined: Branch) -> Branch:
    """The definitions that the targets need, each after those that it needs."""
    order: Branch = {}

    def visit(symbol: Symbol) -> None:
        if symbol in defined and symbol not in order:
            for used in sorted(defined[symbol].free_symbols - {symbol}, key=places.__getitem__):
                visit(used)
            order[symbol] = defined[symbol]

    places: dict[Symbol, int] = {s: i for i, s in enumerate(defined)}
    for expr in defined.values():
        for symbol in expr.free_symbols:
            places.setdefault(symbol, -1)
    for target in sorted(targets, key=places.__getitem__):
        visit(target)
    return order


def _deserves_line(subject: Subject, symbol: Symbol, defined: Branch) -> bool:
    expr = defined[symbol]
    if symbol not in subject.names or not expr.args:
        return False
    users = [other for other, formula in defined.items() if symbol in formula.free_symbols]
    uses = sum(defined[user].count(symbol) for user in users)
    if subject.names[symbol] == "lr":
        return True
    if expr.has(Piecewise):
        # One line of numbers holds a choice well, if it is its only one.
        return bool(uses > 1 or users[0] in subject.tensors)
    if symbol in subject.tensors:
        return bool(uses > 1)
    operations: int = expr.count_ops()
    return bool(operations >= (SHORT + 1 if uses > 1 else LONG))


def _apart(subject: Subject, defined: Branch) -> Branch:
    """Choices between numbers that are part of a formula of tensors, in lines of their own."""
    apart: Branch = {}
    for symbol, expr in defined.items():
        inner = [] if isinstance(expr, Piecewise) or symbol not in subject.tensors else _choices(expr, subject)
        for choice in inner:
            name = next((s for s, e in apart.items() if e == choice), None)
            if name is None:
                name = Symbol(f"c{len(subject.names)}_t", real=True)
                subject.names[name] = "c"
                apart[name] = choice
            expr = expr.xreplace({choice: name})
        apart[symbol] = expr
    return apart


def _choices(expr: Any, subject: Subject) -> list[Any]:
    if isinstance(expr, Piecewise) and not expr.free_symbols & subject.tensors:
        return [expr]
    return [choice for part in expr.args for choice in _choices(part, subject)]


def _still(subject: Subject, defined: Branch) -> Branch:
    """What does not depend on the step loses the index t of its name."""
    moving = {subject.t, *subject.tensors, *subject.scalars.values()}
    names: dict[Symbol, Symbol] = {}
    for symbol, expr in defined.items():
        if symbol in subject.names and not inlined(expr, defined).free_symbols & moving:
            name = symbol.name.removesuffix("_t")
            if name not in subject.symbols:
                names[symbol] = Symbol(name, real=True)
                subject.names[names[symbol]] = subject.names[symbol]
    return {names.get(s, s): expr.xreplace(names) for s, expr in defined.items()}


# ## Letters

# fmt: off
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
}
# fmt: on
#: The usual letters for entries of a group and of a state, and for the names of numbers and values in a rule.
LETTERS = {
    "param": r"\theta",
    "grad": "g",
    "lr": r"\alpha",
    "eps": r"\epsilon",
    "weight_decay": r"\lambda",
    "lambd": r"\lambda",
    "momentum": r"\mu",
    "dampening": r"\tau",
    "momentum_decay": r"\psi",
    "lr_decay": r"\eta",
    "warmup": "w",
    "total_steps": "T",
    "d_model": "d_{model}",
    "t0": "t_0",
    "exp_avg": "m",
    "exp_avg_sq": "v",
    "max_exp_avg_sq": "v^{max}",
    "exp_avg_var": "s",
    "max_exp_avg_var": "s^{max}",
    "exp_avg_slow": "n",
    "exp_inf": "u",
    "square_avg": "v",
    "acc_delta": "u",
    "sum": "s",
    "grad_avg": r"\bar g",
    "momentum_buffer": "b",
    "mu_product": "P",
    "hessian": "h",
    "fp32_copy": r"\Theta",
    "delta": r"\Delta",
    "denominator": "d",
    "rho_inf": r"\rho_\infty",
    "part": "p",
    "factor": "f",
}


def letters(subject: Subject, lines: Lines) -> dict[Symbol, str]:
    """## LaTeX for every symbol: before a step the index is $t - 1$, after it $t$"""
    own: dict[str, str] = {}
    for kind in reversed(type(subject.rule).__mro__):
        own.update(vars(kind).get("letters", {}))
    if subject.group.get("optimized_update") and "eps" not in own:
        own["eps"] = r"\hat\epsilon"
    changed = {symbol for symbol, _ in lines}
    found: dict[Symbol, str] = {}

    def add(symbol: Symbol, name: str, index: str) -> None:
        letter = _letter(name, own)
        choices = [letter, rf"\tilde {letter}", _text(name), *(f"{_text(name)}_{i}" for i in range(2, 100))]
        free = (_indexed(choice, index) for choice in choices)
        found[symbol] = next(latex for latex in free if latex not in found.values())

    # A formula is written in this order: numbers, averages, the gradient, the parameter.
    last = ("grad", "param")
    for name in (*(name for name in subject.symbols if name not in last), *last):
        old = subject.symbols[name]
        new, moves = after(old), name in subject.targets
        add(old, name, ("t-1" if new in changed else "t") if moves else "t" if name == "grad" else "")
        if new in changed and moves:
            add(new, name, "t")
    for symbol, expr in lines:
        if symbol in subject.names and symbol not in found:
            earlier = _shifted(subject, symbol, expr, lines)
            name = subject.names[symbol]
            if earlier is not None and found[earlier].endswith("_t"):
                found[symbol] = found[earlier][:-1] + "{t+1}"
            else:
                add(symbol, name, "t" if symbol.name.endswith("_t") else "")
    return found


def _shifted(subject: Subject, symbol: Symbol, expr: Expr, lines: Lines) -> Symbol | None:
    """The symbol of which this one is the value at the next step."""
    for other, definition in lines:
        if other == symbol:
            return None
        if definition.xreplace({subject.t: subject.t + 1}) == expr and other in subject.names:
            return other
    return None


def _letter(name: str, own: dict[str, str]) -> str:
    if name in own or name in LETTERS:
        return own.get(name) or LETTERS[name]
    if name in _GREEK:
        return rf"\{name}"
    if len(name) == 1:
        return name
    parts = re.fullmatch(r"(\D+?)_?(\d+)", name)
    if parts and (len(parts[1]) == 1 or parts[1] in _GREEK):
        return _indexed(_letter(parts[1], own), parts[2])
    return _text(name)


def _text(name: str) -> str:
    return r"\text{" + name.replace("_", r"\_") + "}"


def _indexed(letter: str, index: str) -> str:
    """A letter with an index, beside that which it may have."""
    if not index:
        return letter
    own = re.fullmatch(r"(.*)_(?:\{([^{}]*)\}|(\w|\\\w+))", letter)
    if own and not letter.startswith(r"\text"):
        return f"{own[1]}_{{{own[2] or own[3]},{index}}}"
    return f"{letter}_{index}" if len(index) == 1 else f"{letter}_{{{index}}}"
