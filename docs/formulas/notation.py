r"""
Formulas as pages write them, for sympy's LaTeX parser.

That parser knows arithmetic, `\frac` and `\sqrt`. Names with accents and indices, and functions, are taken out first:
each becomes one letter, and every product gets its sign. What is allowed is in CONTRIBUTING.md, "Formulas above code".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from sympy import Expr, Symbol
from sympy.parsing.latex.lark.latex_parser import LarkLaTeXParser
from sympy.parsing.latex.lark.transformer import TransformToSymPyExpr

from docs.formulas.formula import Call, Formula, Name, Unreadable, is_matrix

#: What stands in place of a name while sympy reads: for numbers and elements, and for matrices.
_LETTERS, _CAPITALS = "abcfghjklmnopqrstuvwxyz", "ABXYZ"

_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
_LETTER = rf"(?:\\(?:{'|'.join(_GREEK.split())}|Theta|Delta)(?![a-zA-Z])|[a-zA-Z]|\\text\{{[\w ]+\}})"
_UPPER, _LOWER = r"\^(?:\{max\}|\+|-|\\top)", r"_(?:\{[^{}]*\}|\\infty|\w)"
_NAME = re.compile(
    rf"(?:(?P<accent>\\(?:hat|bar|tilde))\s*(?P<brace>\{{)?)?(?P<letter>{_LETTER})(?(brace)\}})"
    rf"(?:(?P<upper>{_UPPER})(?P<lower>{_LOWER})?|(?P<lower2>{_LOWER})(?P<upper2>{_UPPER})?)?"
)
_FUNCTION = re.compile(r"\\(max|min|exp|ln|cos)(?![a-zA-Z])|\\text\{(sign|clip|round)\}(?=\s*\()")
_PRODUCT = re.compile(r"\\prod_\{i=1\}\^(?:\{([^{}]*)\}|(\w))")
_CASES = re.compile(r"\\begin\{cases\}(.*?)\\end\{cases\}", re.S)
_SPACE = re.compile(r"\\[,;!]|\\q?quad(?![a-zA-Z])|\\(?:[bB]igg?|left|right)(?![a-zA-Z])")
_RELATION = re.compile(r"(<|>|\\le(?![a-z])|\\ge(?![a-z]))")


class _Transformer(TransformToSymPyExpr):
    def SYMBOL(self, token: Any) -> Symbol:
        # sympy's name for what is a letter in the grammar.
        return Symbol(str(token), commutative=str(token) not in _CAPITALS)


_parser = LarkLaTeXParser(transformer=_Transformer)


@cache
def _parsed(plain: str) -> Expr:
    try:
        made = _parser.doparse(plain)
    except Exception as error:
        # lark has a family of them, with the grammar's inner words.
        raise Unreadable(f"sympy can't read {plain!r}") from error
    if not isinstance(made, Expr):
        raise Unreadable(f"sympy reads {plain!r} in more than one way")
    return made


@cache
def read(latex: str) -> Formula:
    """Read a formula without `=` and arrow."""
    return _Reader(_SPACE.sub(" ", latex).replace("\\tfrac", "\\frac")).formula()


def read_name(latex: str) -> Name:
    """Read a name."""
    found = _NAME.fullmatch(latex.strip())
    if not found:
        raise Unreadable(f"{latex!r} is no name")
    return _name(found)


def _name(found: re.Match[str]) -> Name:
    accent, letter = found["accent"], found["letter"]
    upper, lower = found["upper"] or found["upper2"] or "", found["lower"] or found["lower2"] or ""
    base = f"{accent} {letter}" if accent else letter
    return Name(base + upper.replace("{", "").replace("}", ""), re.sub(r"[_{}\s]", "", lower))


class _Reader:
    """Reads one formula, from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.plain: list[str] = []
        self.parts: dict[str, Name | Call] = {}

    def formula(self) -> Formula:
        while self._skip() < len(self.text):
            self._next()
        if not self.plain:
            raise Unreadable("a formula is empty")
        expr = _parsed("".join(self.plain))
        symbols = {Symbol(k, commutative=k not in _CAPITALS): part for k, part in self.parts.items()}
        return Formula(self.text.strip(), expr, symbols)

    def _skip(self) -> int:
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1
        return self.place

    def _take(self, pattern: str | re.Pattern[str]) -> re.Match[str] | None:
        found = re.compile(pattern).match(self.text, self._skip())
        if found:
            self.place = found.end()
        return found

    def _next(self) -> None:
        if found := self._take(_CASES):
            self._part(Call("cases", list(_cases(found[1]))))
        elif found := self._take(_PRODUCT):
            factor = self._take(_NAME)
            if not factor:
                raise Unreadable(r"after \prod stands no name")
            self._part(Call("prod", [_name(factor), _read(found[1] or found[2])]))
        elif found := self._take(_FUNCTION):
            self._part(Call(found[1] or found[2], [_read(a) for a in self._arguments()]))
        elif found := self._take(r"\\lVert(.*?)\\rVert"):
            self._part(Call("norm", [_read(found[1])]))
        elif found := self._take(r"\|([^|]*)\|"):
            self._part(Call("abs", [_read(found[1])]))
        elif found := self._take(r"\\frac|\\sqrt"):
            self._begin(found[0])
            if found[0] == "\\sqrt" and not self.text.startswith("{", self._skip()):
                self.plain.append("{")
                self._next()
                self.plain.append("}")
        elif found := self._take(_NAME):
            self._part(_name(found))
        elif found := self._take(r"\d+(\.\d+)?|\("):
            self._begin(found[0])
        elif self._take(r"\\cdot(?![a-zA-Z])"):
            self.plain.append("*")
        elif found := self._take(r"[-+/^(){}]"):
            self.plain.append(found[0])
        else:
            raise Unreadable(f"{self.text[self.place :].strip()!r} is not understood")

    def _begin(self, token: str) -> None:
        """A factor begins: behind another one it is multiplied."""
        if self.plain and (self.plain[-1][-1].isalnum() or self.plain[-1] in (")", "}")):
            self.plain.append("*")
        self.plain.append(token)

    def _part(self, part: Name | Call) -> None:
        letter = next((k for k, known in self.parts.items() if known == part), None)
        if letter is None:
            letters = _CAPITALS if is_matrix(part) else _LETTERS
            letter = next((k for k in letters if k not in self.parts), None)
            if letter is None:
                raise Unreadable("a formula has too many names")
            self.parts[letter] = part
        self._begin(letter)

    def _arguments(self) -> list[str]:
        """What a function is of: in brackets, or one name or fraction."""
        start = self._skip()
        if self.text.startswith("(", start):
            self.place = _closing(self.text, start) + 1
            return list(split(self.text[start + 1 : self.place - 1], ","))
        if self._take(r"\\frac"):
            for _ in range(2):
                if not self.text.startswith("{", self._skip()):
                    raise Unreadable(r"\frac wants two arguments in braces")
                self.place = _closing(self.text, self.place) + 1
        elif not self._take(_NAME):
            raise Unreadable("a function wants its argument in brackets")
        return [self.text[start : self.place]]


def _read(latex: str) -> Formula:
    return _Reader(latex).formula()


def _cases(text: str) -> Iterator[Formula]:
    rows = [row.partition("&") for row in text.split("\\\\")]
    for value, _, condition in rows[:-1]:
        yield _read(value)
        yield read_condition(condition)
    value, _, condition = rows[-1]
    if condition.strip() != r"\text{otherwise}":
        raise Unreadable(r"the last of cases must be \text{otherwise}")
    yield _read(value)


def read_condition(latex: str) -> Formula:
    r"""Read a comparison, or the name of a switch of the group, `\text{nesterov}`."""
    sides = _RELATION.split(_SPACE.sub(" ", latex))
    if len(sides) == 1:
        return Formula(latex, Symbol("a"), {Symbol("a"): read_name(latex)})
    if len(sides) != 3:
        raise Unreadable(f"{latex!r} is no condition")
    return Formula(latex, Symbol("a"), {Symbol("a"): Call(sides[1], [_read(sides[0]), _read(sides[2])])})


def split(text: str, pattern: str) -> Iterator[str]:
    """The parts of a text between what fits a pattern outside of all brackets."""
    start = place = 0
    while place < len(text):
        if text[place] in "({":
            place = _closing(text, place) + 1
        elif found := re.compile(pattern).match(text, place):
            yield text[start:place]
            start = place = found.end()
        else:
            place += 1
    yield text[start:]


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in "({") - (text[place] in ")}")
        if not depth:
            return place
    raise Unreadable(f"a bracket is not closed: {text[start:]!r}")
