"""
A rule is read, line by line, and its formulas are compared with what the lines below them make.

A name in a formula has the value that was given to it last: before the step, by the line under an earlier formula
(`m_t` is not known before a line has made it), as the argument of a hook, or by a line without formula.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, FrameType
from typing import Any

import numpy as np

from docs.formulas.comments import Comment, Equation
from docs.formulas.formula import Formula, Name, Unreadable
from docs.formulas.letters import Letters, Names, Scope, usual, word
from docs.formulas.values import look


class Mismatch(Exception):
    """A formula is not what its line does; the message has both sides."""


#: What may be nothing to one who multiplies in another order.
_TINY = 1e-300


@dataclass
class _Frame:
    """What is known of a function that runs; `names` are those that only it knows."""

    locals: dict[str, Any] = field(default_factory=dict)
    names: Names = field(default_factory=dict)
    comment: Comment | None = None
    before: Names = field(default_factory=dict)
    old: list[Any] = field(default_factory=list)


class Watch:
    """
    Watches functions of one file. `names` are values by their names; `state`, `param` and `t` belong to the reading.
    What was compared is in `checked`, what doesn't hold in `failures`, by comment.
    """

    def __init__(
        self,
        file: str,
        found: list[Comment],
        equations: dict[str, list[Equation]],
        letters: Letters,
        tolerance: float,
    ) -> None:
        self.file, self.equations, self.letters, self.tolerance = file, equations, letters, tolerance
        self.starts = {comment.lines.start: comment for comment in found}
        self.checked: set[str] = set()
        self.failures: dict[str, str] = {}

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
            frames[frame] = _Frame()
            self._enter(frames[frame], frame)
            return line

        sys.settrace(call)
        try:
            yield
        finally:
            sys.settrace(earlier)

    # ## What names stand for

    def _enter(self, known: _Frame, frame: FrameType) -> None:
        """A hook is called. The parameter that it is given may have decayed."""
        if (value := look(frame.f_locals.get("param"))) is not None:
            self.names[Name("\\theta", "t-1")] = value
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
            if np.array_equal(value, self.names.get(letter.indexed("t-1"), np.nan)):
                # The old value, which does not change before a line changes it.
                continue
            names = known.names if key == name else self.names
            names[letter.indexed("t")] = value
            if key == name:
                names[word(name)] = value
                if letter not in self.letters.group:
                    names[letter] = value

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
            known.before = {**self.names, **known.names, **self._others(frame)}
            known.old = [None if comment.returns else _now(target, frame) for target in comment.targets]
        name = frame.f_code.co_name
        if event == "return" and name.startswith("get_") and (value := look(argument)) is not None:
            self.names[word(name.removeprefix("get_"))] = value

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
            for equation, value, before, target in zip(equations, made, old, comment.targets, strict=True):
                self._check(equation, names, value, before)
                if equation.result:
                    self._check_result(equation.result, frame, value, target, comment.in_place)
                    self.names[usual(equation.result)] = known.names[usual(equation.result)] = value
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

    def _check_result(self, name: Name, frame: FrameType, made: Any, target: str, in_place: bool) -> None:
        """Whether the name that the formula gives to the value is that of what the line has changed."""
        is_decay = name.base == "\\theta" and frame.f_code.co_name == "__call__"
        if name.index.endswith("t-1") != is_decay:
            raise Mismatch(f"    {name} is no new value; only the decay gives the old parameter another one")
        letter = self.letters.of(target)
        others = [other for other, code in self.letters.others.items() if code == target]
        is_lettered = target.isidentifier() and not letter.base.startswith("\\text")
        if not in_place and is_lettered and name.base not in {each.base for each in (letter, word(target), *others)}:
            raise Mismatch(f"    {name} is not what `{target}` is called")
        changed = _evaluated(target, frame) if in_place else None
        for entry, thing in {**frame.f_locals.get("state", self.state), "param": self.param}.items():
            named = name.base in {letter.base for letter in self.letters.state.get(entry, [self.letters.of(entry)])}
            differs = name.base != "g" and not np.array_equal(look(thing), made)
            is_target = thing is changed or target == f"state[{entry!r}]"
            if (named and differs) or (is_target and not named):
                raise Mismatch(f"    the line does not change {name}\n    the line made  {_shown(made)}")


def _evaluated(code: str, frame: FrameType) -> Any:
    """The value of an expression of the code, or None where it has none yet."""
    try:
        return eval(_compiled(code), frame.f_globals, frame.f_locals)
    except (NameError, KeyError, TypeError):
        return None


@cache
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
    return bool((np.abs(value - made) <= tolerance * np.abs(moved).max() + _TINY).all())


def _both_sides(side: Formula, value: Any, made: Any, used: dict[str, Any]) -> str:
    rows = [f"    read as        {side}", f"    which gives    {_shown(value)}", f"    the line made  {_shown(made)}"]
    rows += [f"      {name} = {_shown(value)}" for name, value in used.items()]
    return "\n".join(rows)


def _shown(value: Any) -> str:
    numbers = np.asarray(value, np.float64).ravel()
    return ", ".join(f"{number:.10g}" for number in numbers[:3]) + (", ..." if len(numbers) > 3 else "")
