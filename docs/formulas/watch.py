"""
A rule is read, line by line, and its formulas are compared with what the lines below them make.

A name in a formula has the value that was given to it last: before the step, by the line under an earlier formula
(`m_t` is not known before a line has made it), as the argument of a hook, or by a line without formula.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

import numpy as np

from docs.formulas.comments import Comment, Equation
from docs.formulas.notation import Formula, Name, Unreadable, read
from docs.formulas.values import look

Names = dict[Name, Any]


class Mismatch(Exception):
    """A formula is not what its line does; the message has both sides."""


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
        word = Name(name.base.replace(" ", "_") if name.base.startswith("\\text") else "")
        for other in (name, _usual(name), word):
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
        return read(self.letters.defined[general])


_CONSTANTS = {Name("\\pi"): np.pi}


@dataclass
class _Frame:
    """What is known of a function that runs."""

    locals: dict[str, Any]
    comment: Comment | None = None
    before: Names = field(default_factory=dict)
    old: list[Any] = field(default_factory=list)


class Watch:
    """
    Watches functions of one file. `names` are values by their names; `state`, `param` and `t` belong to the reading.
    What was compared is in `checked`, what doesn't hold in `failures`, by comment.
    """

    def __init__(self, file: str, found: list[Comment], letters: Letters, tolerance: float) -> None:
        self.file, self.letters, self.tolerance = file, letters, tolerance
        self.starts = {comment.lines.start: comment for comment in found}
        self.checked: set[str] = set()
        self.failures: dict[str, str] = {}
        self.equations: dict[str, list[Equation]] = {}

    def start(self, state: dict[str, Any], param: Any, grad: Any, t: int) -> None:
        """A reading begins."""
        self.state, self.param, self.t = state, param, t
        self.names: Names = {Name("t"): t, Name("\\theta", "t-1"): look(param), Name("g", "t"): look(grad)}
        for name, value in state.items():
            for letter in self.letters.state.get(name, []):
                self.names[letter.indexed("t-1")] = look(value)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch what is called within."""
        earlier = sys.gettrace()
        frames: dict[FrameType, _Frame] = {}

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            self._line(frames[frame], frame, event, argument)
            return line

        def call(frame: FrameType, event: str, argument: Any) -> Any:
            if frame.f_code.co_filename != self.file:
                return None
            frames[frame] = _Frame({})
            self._enter(frames[frame], frame)
            return line

        sys.settrace(call)
        try:
            yield
        finally:
            sys.settrace(earlier)

    # ## What names stand for

    def _enter(self, known: _Frame, frame: FrameType) -> None:
        """A hook is called: its arguments have names."""
        for name, index in {"param": "t-1", "grad": "t"}.items():
            if (value := look(frame.f_locals.get(name))) is not None:
                self.names[self.letters.of(name).indexed(index)] = value
        self._learn(known, frame)

    def _learn(self, known: _Frame, frame: FrameType) -> None:
        """What a line without formula has made: entries of the state, and the function's own names."""
        entries = {f"state {name}": (name, value) for name, value in frame.f_locals.get("state", {}).items()}
        own = {name: (name, value) for name, value in frame.f_locals.items() if name != "param"}
        for key, (name, thing) in {**entries, **own}.items():
            value = look(thing)
            if value is None or (key in known.locals and np.array_equal(known.locals[key], value)):
                continue
            known.locals[key] = value
            letter = self.letters.of(name)
            if np.array_equal(value, self.names.get(letter.indexed("t-1"))):
                # The old value, which does not change before a line changes it.
                continue
            self.names[letter.indexed("t")] = value
            if key == name:
                self.names[_word(name)] = value
                if letter not in self.letters.group:
                    self.names[letter] = value

    # ## Lines

    def _line(self, known: _Frame, frame: FrameType, event: str, argument: Any) -> None:
        comment = known.comment
        if event in ("line", "return"):
            if comment and (event == "return" or frame.f_lineno not in comment.lines):
                self._compare(known, frame, comment, argument)
                known.comment = comment = None
            if comment is None:
                self._learn(known, frame)
        if event == "line" and comment is None and frame.f_lineno in self.starts:
            known.comment = comment = self.starts[frame.f_lineno]
            known.before = {**self.names, **self._others(frame)}
            known.old = [None if comment.returns else _now(target, frame) for target in comment.targets]
        name = frame.f_code.co_name
        if event == "return" and name.startswith("get_") and (value := look(argument)) is not None:
            self.names[_word(name.removeprefix("get_"))] = value

    def _others(self, frame: FrameType) -> Names:
        found = {name: look(_evaluated(code, frame)) for name, code in self.letters.others.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _compare(self, known: _Frame, frame: FrameType, comment: Comment, returned: Any) -> None:
        if comment.returns:
            made = [look(value) for value in (returned if isinstance(returned, tuple) else (returned,))]
        else:
            made = [_now(target, frame) for target in comment.targets]
        names = {**self.names, **known.before}
        old = known.old if len(known.old) == len(made) else [None] * len(made)
        try:
            equations = self.equations[comment.place]
            for equation, value, before in zip(equations, made, old, strict=True):
                self._check(equation, names, value, before)
                if equation.result:
                    self._check_result(equation, frame, value)
                    self.names[_usual(equation.result)] = value
        except (Unreadable, Mismatch, ValueError) as error:
            self.failures.setdefault(comment.place, str(error))
        self.checked.add(comment.place)

    def _check(self, equation: Equation, names: Names, made: Any, before: Any) -> None:
        if made is None:
            raise Unreadable("it can't be told what the line makes: no tensor and no number")
        lookup = Scope(self.letters, names, equation.where, self.t)
        for side in equation.sides:
            value = side.value(lookup)
            if equation.condition:
                if before is None and equation.result:
                    before = lookup(equation.result)
                value = np.where(equation.condition.value(lookup), value, before)
            if not _agree(value, made, before, self.tolerance):
                used = {str(name): lookup(name) for name in side.names() if name != Name("i")}
                raise Mismatch(_both_sides(side, value, made, used))

    def _check_result(self, equation: Equation, frame: FrameType, made: Any) -> None:
        """Whether the name that the formula gives to the value is that of what the line has changed."""
        name, state = equation.result, frame.f_locals.get("state", self.state)
        entries = {entry: self.letters.of(entry).base for entry in state}
        for entry, thing in {**state, "param": self.param}.items():
            if entries.get(entry, "\\theta") == name.base and not np.array_equal(look(thing), made):  # type: ignore[union-attr]
                raise Mismatch(f"    the line does not change {name}\n    it made        {_shown(made)}")


def _usual(name: Name) -> Name:
    """The name by the step t, of one that is written for the first step, or for the last estimate."""
    head, comma, last = name.index.rpartition(",")
    return Name(name.base, head + comma + {"0": "t-1", "1": "t", "t-k": "t-1"}.get(last, last))


def _word(name: str) -> Name:
    return Name(rf"\text{{{name}}}")


def _evaluated(code: str, frame: FrameType) -> Any:
    """The value of an expression of the code, or None where it has none yet."""
    try:
        return eval(_compiled(code), frame.f_globals, frame.f_locals)
    except (NameError, KeyError, TypeError):
        return None


@lru_cache(maxsize=None)
def _compiled(code: str) -> CodeType:
    return compile(code, "<formula>", "eval")


def _now(target: str, frame: FrameType) -> Any:
    return look(_evaluated(target, frame))


def _agree(value: Any, made: Any, before: Any, tolerance: float) -> bool:
    """Whether a formula gives what was made, but for a small part of how far that moved the value."""
    value, made = np.asarray(value, np.float64), np.asarray(made, np.float64)
    if value.shape not in (made.shape, ()) or not np.isfinite(made).all():
        return False
    moved = made
    if before is not None and np.shape(before) == made.shape and not np.array_equal(made, before):
        moved = made - before
    return bool((np.abs(value - made) <= tolerance * np.abs(moved).max()).all())


def _both_sides(side: Formula, value: Any, made: Any, used: dict[str, Any]) -> str:
    rows = [f"    read as        {side}", f"    which gives    {_shown(value)}", f"    the line made  {_shown(made)}"]
    rows += [f"      {name} = {_shown(value)}" for name, value in used.items()]
    return "\n".join(rows)


def _shown(value: Any) -> str:
    numbers = np.asarray(value, np.float64).ravel()
    return ", ".join(f"{number:.10g}" for number in numbers[:3]) + (", ..." if len(numbers) > 3 else "")

