"""
What a page calls things, and which values these names have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from docs.formulas.cases import LETTERS
from docs.formulas.comments import comments, definitions, page_of
from docs.formulas.formula import Formula, Name, Unreadable
from docs.formulas.notation import read, read_name
from optimizers.engines.state import group_numbers, new_state
from optimizers.engines.tidy import _letter

Names = dict[Name, Any]

_CONSTANTS = {Name("\\pi"): np.pi}


@dataclass
class Letters:
    """
    What a page calls things. `state` and `group` are letters of entries, by name; `others` are expressions of the code
    for further letters, and `defined` is what the aligned blocks say.
    """

    state: dict[str, list[Name]]
    group: dict[Name, Any]
    others: dict[Name, str]
    defined: dict[Name, str]
    of: Callable[[str], Name]


@dataclass
class Scope:
    """The values of names at the step t; `where` are definitions of a single formula."""

    letters: Letters
    names: Names
    where: dict[Name, Formula]
    t: Any

    def __call__(self, name: Name) -> Any:
        """The value of a name. Raises `Unreadable` where it has none."""
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name == Name("t"):
            return self.t
        if name.base.endswith("^\\top"):
            return self(Name(name.base.removesuffix("^\\top"), name.index)).T
        is_word = name.base.startswith("\\text") and name.index in ("", "t")
        word = Name(name.base.replace(" ", "_") if is_word else "")
        for other in (name, usual(name), word):
            if other in self.where:
                return self.where[other].value(self)
            if other in self.names:
                return self.names[other]
            if other in self.letters.group:
                return self.letters.group[other]
        if "t" not in name.index:
            raise Unreadable(f"{name} is not known here")
        if name.index == "t":
            return self._definition(name).value(self)
        return self.at(name, read(name.index).value(self))

    def at(self, name: Name, step: Any) -> Any:
        """The value that the head of the page defines for a name, at any step, or at many."""
        # At another step only what does not change with the steps is known.
        fixed = {k: v for k, v in self.names.items() if "t" not in k.index}
        return self._definition(name).value(Scope(self.letters, fixed, {}, step))

    def _definition(self, name: Name) -> Formula:
        bases = {letter.base for letters in self.letters.state.values() for letter in letters}
        general = Name(name.base, "t")
        if name.base in bases or general not in self.letters.defined:
            raise Unreadable(f"{name} is not known here")
        formula = read(self.letters.defined[general])
        if name.base in {other.base for other in formula.names()}:
            raise Unreadable(f"{name} is not known here")
        return formula


def usual(name: Name) -> Name:
    """The name by the step t, of one that is written for the first step, or for the last estimate."""
    head, comma, last = name.index.rpartition(",")
    return Name(name.base, head + comma + {"0": "t-1", "1": "t", "t-k": "t-1"}.get(last, last))


def word(name: str) -> Name:
    """The name in formulas of a name in the code."""
    return Name(rf"\text{{{name}}}")


def letters_of(module: ModuleType, optimizer: Any) -> Letters:
    """What the page of a module calls the things of an optimizer."""
    own: dict[str, str] = {}
    for kind in reversed(type(optimizer).__mro__):
        own.update(vars(kind).get("letters", {}))

    def of(name: str) -> Name:
        try:
            return read_name(_letter(name, own))
        except Unreadable:
            return word(name)

    group: dict[Name, Any] = {}
    for name, value in group_numbers(optimizer.param_groups[0]).items():
        if isinstance(value, bool):
            group[word(name)] = value
        elif isinstance(value, (int, float)):
            group[of(name)] = value
        elif isinstance(value, tuple):
            group.update({of(f"{name.removesuffix('s')}{i}"): number for i, number in enumerate(value, 1)})
    if of("eps") in group:
        group[Name(r"\hat \epsilon")] = group[of("eps")]
    entries = new_state(optimizer, optimizer.param_groups[0], optimizer.param_groups[0]["params"][0])
    state = {name: [of(name)] for name in (*entries, *optimizer.lazy_state)}
    for name, letter in _initial(module, state):
        if letter not in state[name] and letter not in group:
            state[name].append(letter)
    defined: dict[Name, str] = {}
    for kind in type(optimizer).__mro__:
        text = module.__doc__ if kind.__module__ == module.__name__ else sys.modules[kind.__module__].__doc__
        defined = {**definitions(text or ""), **defined}
    others = {read_name(name): code for name, code in LETTERS.get(module.__name__.rpartition(".")[2], {}).items()}
    return Letters(state, group, others, defined, of)


def _initial(module: ModuleType, state: dict[str, Any]) -> Iterator[tuple[str, Name]]:
    """The letters that a page itself gives to entries of the state, by `# $m_0 = 0$`."""
    for comment in comments(page_of(Path(str(module.__file__)))):
        letter = comment.latex[0].partition("=")[0].strip()
        for name in state:
            if comment.targets == [f"state[{name!r}]"] and letter.endswith("_0"):
                yield name, read_name(letter.removesuffix("_0"))
