"""
The rules and surfaces of the playground, as JavaScript.

Nothing is written a second time: a rule is read with symbols, and sympy prints what it does. So is a surface, whose
functions are called with symbols in place of numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import sympy
import torch
from sympy import Expr, jscode

from docs.pictures.entries import PROBLEMS, Entry, all_entries
from docs.pictures.paths import STEPS
from docs.pictures.rates import RATES
from docs.pictures.surfaces import SURFACES, Surface
from optimizers import AdamFP16, Sophia, equations
from optimizers.engines.program import Unrecordable

#: Not here: its path is Adam's, but for rounding; and one that is handed the curvature besides the gradient.
LEFT_OUT = (AdamFP16, Sophia)

#: Numbers that a short run in a plane does not show.
NO_SLIDERS = {"eps", "weight_decay", "d_model", "t0", "lambd", "step_size1", "step_size2", "momentum_decay"}

#: Where a slider may go, on the scale that is named: `log` is of powers of ten, `decay` of the distance from one.
RANGES = {
    "lr": ("log", -4, 2),
    "eta1": ("plain", 0.05, 0.95),
    "eta2": ("plain", 1.05, 2),
}


def source() -> str:
    """The script that sets `window.playground`."""
    rules = [text for entry in all_entries().values() if entry.rule not in LEFT_OUT for text in _rule(entry)]
    lists = {"surfaces": map(_surface, SURFACES), "rules": rules}
    body = "\n".join(name + ": [\n" + ",\n".join(items) + "\n]," for name, items in lists.items())
    return f'"use strict";\nwindow.playground = {{\n{body}\n}};\n'


def _surface(surface: Surface) -> str:
    x, y = sympy.symbols("x y", real=True)
    told = {n: getattr(surface, n) for n in ("name", "title", "lesson", "start", "minima", "x", "y", "levels")}
    value, *gradient = (jscode(sympy.nsimplify(f)) for f in (surface.value(x, y), *surface.gradient(x, y)))
    functions = f"value: (x, y) => {value},\ngradient: (x, y) => [{', '.join(gradient)}],"
    return f"{{...{_json(told)},\n{functions}\n}}"


def _rule(entry: Entry) -> Iterator[str]:
    """The rule as an object, or nothing where it can't be read."""
    options = entry.run_options(PROBLEMS[0], STEPS)
    group = entry.rule([torch.zeros(1, 1)], **options).defaults
    try:
        read = equations(entry.rule, as_numbers=NO_SLIDERS & set(group), **options)
    except Unrecordable:
        return
    numbers = {str(symbol): value for symbol, value in read.values.items()}
    state = [name for name in read.updates if name != "param"]
    told = {
        "name": entry.name,
        "rule": entry.rule.__name__,
        "page": f"{entry.page}.html",
        "options": options,
        "hypers": [_slider(name, value) for name, value in numbers.items()],
        "rates": dict(zip(PROBLEMS, RATES[entry.name], strict=True)),
    }
    start = ", ".join(f"{name}: {jscode(read.initial.get(name) or sympy.S.Zero)}" for name in state)
    body = [_unpack(state, "state"), _unpack(numbers, "numbers"), *_assignments(read.updates)]
    body += [f"Object.assign(state, {{{', '.join(f'{name}: new_{name}' for name in state)}}});", "return new_param;"]
    yield "\n".join(
        [
            f"{{...{_json(told)},",
            f"initial(numbers) {{\n  {_unpack(numbers, 'numbers')}\n  return {{{start}}};\n}},",
            "update(param, grad, state, numbers, t) {",
            *(f"  {line}" for line in body),
            "},\n}",
        ]
    )


def _assignments(updates: Any) -> Iterator[str]:
    """What is used more than once is computed once."""
    shared, results = sympy.cse(list(updates.values()), order="none")
    yield from (f"const {symbol} = {_js(expr)};" for symbol, expr in shared)
    yield from (f"const new_{name} = {_js(expr)};" for name, expr in zip(updates, results, strict=True))


def _js(expr: Expr) -> str:
    # The ternaries of a choice come on lines of their own.
    return " ".join(jscode(expr).split())


def _unpack(names: Iterable[str], of: str) -> str:
    return f"const {{ {', '.join(names)} }} = {of};"


def _slider(name: str, value: float) -> dict[str, Any]:
    if name in RANGES:
        scale, low, high = RANGES[name]
    elif 0 <= value < 1:
        scale, low, high = "decay", 0, 4
    else:
        power = round(math.log10(value))
        scale, low, high = "log", power - 2, power + 2
    return {"name": name, "value": value, "scale": scale, "low": low, "high": high}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
