"""
---
title: Traced numbers
summary: The numbers of one reading, as a function of the group, for the many cohorts that differ only in numbers.
---

# Traced numbers

With hundreds of groups, one for each layer of a detection model say, reading the rule for each takes longer than the
kernel. What differs between them are numbers. So one cohort is read with numbers that write down how they are
calculated, and the others get theirs from that calculation.

A comparison of numbers, as in `if rho > 5`, is written down with its outcome. Where another group would have it turn
out differently the calculation gives None, and that group is read by itself. A rule that needs a real float
(`math.sqrt`) can't be traced; all its cohorts are then read. The tracing is done anew at every step and compared
with a plain reading, because a rule may look at other things than its group.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

Group = dict[str, Any]
#: Of one group and its count: the numbers of the kernel, or None where the group needs a reading of its own.
Calculation = Callable[[Group, Any], tuple[float, ...] | None]
#: The same of many groups, one after the other; None if any of them needs a reading.
Calculations = Callable[[list[Group], list[Any]], list[float] | None]


class Untraceable(Exception):
    """A number got where its calculation can't be followed."""


class Sheet:
    """## What is calculated, line by line, as Python"""

    def __init__(self, group: dict[str, Any]) -> None:
        self.lines: list[str] = []
        self._loads: dict[str, str] = {}
        self._same = {k: v for k, v in group.items() if not _is_number(v) and k not in ("params", "param_names")}
        self.group = {name: self._leaf(name, value) for name, value in group.items()}

    def _leaf(self, name: str, value: Any) -> Any:
        if isinstance(value, tuple) and value and all(map(_is_number, value)):
            del self._same[name]
            return tuple(self._load(f"group[{name!r}][{i}]", v) for i, v in enumerate(value))
        return self._load(f"group[{name!r}]", value) if _is_number(value) else value

    def _load(self, source: str, value: float) -> Traced:
        name = f"g{len(self._loads)}"
        self._loads[name] = source
        return Traced(self, name, value)

    def put(self, code: str, value: Any) -> Traced:
        """A number calculated by `code`."""
        self.lines.append(f"x{len(self.lines)} = {code}")
        return Traced(self, f"x{len(self.lines) - 1}", value)

    def guard(self, code: str, outcome: bool) -> bool:
        """A comparison, which must turn out the same for other groups."""
        self.lines.append(f"if ({code}) is not {outcome}: return None")
        return outcome

    def function(self, numbers: list[Any]) -> tuple[str, dict[str, Any]]:
        """The source of the calculation of `numbers`, for one group and for many, and what it refers to."""
        result = "".join(f"{_code(number)}, " for number in numbers)
        body = "\n".join([*self.lines, result])
        used = [name for name in self._loads if re.search(rf"\b{name}\b", body)]
        same = [f"group[{key!r}] is not same_{i}" for i, key in enumerate(self._same)]
        head = [f"if {' or '.join(same)}: return None"] if same else []
        lines = [*head, *(f"{name} = {self._loads[name]}" for name in used), *self.lines]
        one = ["def calculation(group, t):", *(f"    {line}" for line in lines), f"    return ({result})"]
        many = [
            "def calculations(groups, counts):",
            "    numbers = []",
            "    for group, t in zip(groups, counts):",
            *(f"        {line}" for line in lines),
            f"        numbers += ({result})",
            "    return numbers",
        ]
        return "\n".join([*one, *many]), {f"same_{i}": value for i, value in enumerate(self._same.values())}


class Traced:
    """## A number that writes down how it is calculated"""

    __slots__ = ("_sheet", "code", "value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, sheet: Sheet, code: str, value: Any) -> None:
        self._sheet, self.code, self.value = sheet, code, value

    def __bool__(self) -> bool:
        return self._sheet.guard(f"bool({self.code})", bool(self.value))

    def __neg__(self) -> Traced:
        return self._sheet.put(f"-{self.code}", -self.value)

    def __abs__(self) -> Traced:
        return self._sheet.put(f"abs({self.code})", abs(self.value))

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        """A function of torch takes it; what that means is for the values beside it."""
        return NotImplemented


def _arithmetic(sign: str, function: Callable[[Any, Any], Any], swapped: bool) -> Callable[[Traced, Any], Any]:
    def method(self: Traced, other: Any) -> Any:
        if not isinstance(other, Traced) and not _is_number(other):
            return NotImplemented
        one, two = (other, self) if swapped else (self, other)
        return self._sheet.put(f"{_code(one)} {sign} {_code(two)}", function(_value(one), _value(two)))

    return method


def _comparison(sign: str, function: Callable[[Any, Any], bool]) -> Callable[[Traced, Any], bool]:
    def method(self: Traced, other: Any) -> bool:
        return self._sheet.guard(f"{self.code} {sign} {_code(other)}", function(self.value, _value(other)))

    return method


for _name, _sign in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**"}.items():
    setattr(Traced, f"__{_name}__", _arithmetic(_sign, getattr(operator, _name), swapped=False))
    setattr(Traced, f"__r{_name}__", _arithmetic(_sign, getattr(operator, _name), swapped=True))
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
    setattr(Traced, f"__{_name}__", _comparison(_sign, getattr(operator, _name)))


def _is_number(value: Any) -> bool:
    return value.__class__ in (int, float)


def _value(number: Any) -> Any:
    return number.value if isinstance(number, Traced) else number


def _code(number: Any) -> str:
    if isinstance(number, Traced):
        return number.code
    if not isinstance(number, (bool, int, float)) or not math.isfinite(number):
        raise Untraceable(f"{number!r} is no number that can be written down")
    return f"({number!r})"


_calculations: dict[str, Any] = {}


def calculation(
    group: Group, t: int | None, read: Callable[[Group, Any], list[Any]]
) -> tuple[Calculation, Calculations]:
    """
    ## The calculation of the numbers of a reading, for one group and for many

    `read(group, t)` reads the rule and gives its numbers. Raises what the rule raises when its numbers are no floats,
    and `Untraceable`.
    """
    sheet = Sheet(group)
    source, same = sheet.function(read(sheet.group, None if t is None else Traced(sheet, "t", t)))
    if source not in _calculations:
        _calculations[source] = compile(source, "<traced>", "exec")
    namespace: dict[str, Any] = dict(same)
    exec(_calculations[source], namespace)
    return namespace["calculation"], namespace["calculations"]
