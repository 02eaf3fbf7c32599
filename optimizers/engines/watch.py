"""
---
title: Has it changed?
summary: Whether a class or a function, and all that it refers to, is what it was.
---

# Has it changed?

What was read from a rule may be kept as long as the rule is the same. A class that is defined anew is another object.
But a method may be replaced, and a number that a method takes from its module, or from the function around it, may be
set to another one: in a notebook that is done all the time. So we note all that the methods refer to by name, and
see whether it is still there. What may change without being replaced, such as a list, can't be told: `is_settled` is
False, and nothing should be kept. Functions, such as gradients, are watched alike.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

import torch

_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, range, BuiltinFunctionType)
#: Whose modules and functions don't change.
_FOREIGN = {"torch", "numpy", "sympy", "scipy", *sys.stdlib_module_names} - {"__main__"}


def is_plain(value: Any) -> bool:
    """Whether a value can't change."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, (tuple, frozenset)):
        return all(map(is_plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen: bool = type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and all(map(is_plain, vars(value).values()))
    return False


class Watch:
    """
    ## What a function, or methods of a class, refer to, as it is now

    Of a class, `roots` are the names of the methods; what they call is watched too. Classes above `base` are not.
    """

    def __init__(self, subject: FunctionType | type, base: type = object, roots: Sequence[str] = ()) -> None:
        self.is_settled = True
        self._classes = [k for k in subject.__mro__ if issubclass(k, base)] if isinstance(subject, type) else []
        # Another base anywhere makes another tuple.
        self._orders = [(kind, kind.__mro__) for kind in self._classes[:1]]
        self._seen: set[Any] = set()
        self._cells: list[tuple[CellType, Any]] = []
        self._names: dict[Any, tuple[Mapping[str, Any], dict[str, None]]] = {}
        if isinstance(subject, FunctionType):
            self._note(subject, ())
        for name in roots:
            self._note_member(name)
        # What is not there yet may be tomorrow, so members are counted too.
        for kind in self._classes:
            for name in vars(kind):
                if (kind, name) in self._seen:
                    self._names.setdefault(kind, (vars(kind), {}))[1][name] = None
        self._sizes = [(vars(kind), len(vars(kind))) for kind in self._classes]
        tables = [(table, itemgetter(*names)) for table, names in self._names.values()]
        self._tables = [(table, get, get(table)) for table, get in tables]
        # A function must not be kept by what is kept with it.
        del self._seen, self._names

    def is_unchanged(self) -> bool:
        """### Whether all is as it was"""
        try:
            for kind, order in self._orders:
                if kind.__mro__ is not order:
                    return False
            for members, size in self._sizes:
                if len(members) != size:
                    return False
            for table, get, before in self._tables:
                if get(table) != before:
                    return False
            for cell, before in self._cells:
                if cell.cell_contents != before:
                    return False
        except (KeyError, ValueError, RuntimeError):
            # A name is gone, a cell is empty, or there is an array where there was none.
            return False
        return self.is_settled

    def _note_member(self, name: str) -> None:
        for kind in self._classes:
            if name in vars(kind) and (kind, name) not in self._seen:
                self._seen.add((kind, name))
                self._note(vars(kind)[name], ())

    def _note(self, value: Any, names: tuple[str, ...]) -> None:
        """Note what a value refers to. `names` are those that are used where it is."""
        function = _function(value)
        if function is not None:
            if function not in self._seen and not _is_foreign(function.__module__):
                self._seen.add(function)
                self._note_function(function)
        elif isinstance(value, ModuleType):
            if not _is_foreign(value.__name__):
                self._watch(vars(value), names)
        elif isinstance(value, type):
            for kind in value.__mro__:
                if kind not in self._classes and not _is_foreign(kind.__module__) and not _is_ours(kind.__module__):
                    self._watch(vars(kind), names)
        elif not is_plain(value):
            self.is_settled = False
        elif callable(value):
            self._note(type(value), ("__call__",))

    def _note_function(self, function: FunctionType) -> None:
        names = tuple(_names(function.__code__))
        if not _is_ours(function.__module__):
            self._watch(function.__globals__, names)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                self._cells.append((cell, cell.cell_contents))
                self._note(cell.cell_contents, names)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._note(default, names)
        for name in names:
            self._note_member(name)

    def _watch(self, table: Mapping[str, Any], names: tuple[str, ...]) -> None:
        _, known = self._names.setdefault(id(table), (table, {})) if any(n in table for n in names) else (table, {})
        for name in names:
            if name in table and name not in known:
                known[name] = None
                self._note(table[name], names)


def _is_foreign(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _FOREIGN


def _is_ours(module: str | None) -> bool:
    """Whether it is a module of this package: what these take from elsewhere, they have imported."""
    return (module or "").partition(".")[0] == __name__.partition(".")[0]


def _function(value: Any) -> FunctionType | None:
    """The function in a member of a class."""
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    return value if isinstance(value, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    """What is referred to by name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
