r"""
The formulas of a page, and the statements below them.

A comment of which a line begins with `$`, directly above a statement in a function, is the formula of that statement.
Several formulas in a comment, `$...$ and $...$`, are those of the next values that are made. What follows a comma or a
semicolon is for people. The aligned blocks at the head of a page define what is neither state nor hyper-parameter.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.formulas.formula import Formula, Name, Unreadable
from docs.formulas.notation import read, read_condition, read_name, split
from docs.site.source import Module, read_module

_MATHS = re.compile(r"\$\$(.*?)\$\$|\$(.*?)\$", re.S)
_COMMA = r",\s*\\q?quad(?![a-zA-Z])"


@dataclass
class Equation:
    r"""
    `result = right`, where either may be missing: `result` is the name that the value gets, `sides` are what it must
    be, and `condition` is where, for a value that otherwise stays as it is. `where` are definitions for this one only.
    """

    latex: str
    result: Name | None
    sides: list[Formula]
    condition: Formula | None
    where: dict[Name, Formula]


@dataclass
class Comment:
    """
    A formula comment. `lines` are those of its statements, `targets` are the expressions whose values these make.
    `in_place` says that the value was there before, `returns` that it is what the function gives.
    """

    page: Path
    line: int
    latex: list[str]
    lines: range
    targets: list[str]
    in_place: bool
    returns: bool
    code: str

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.page.name}:{self.line}"

    def equations(self) -> list[Equation]:
        """Read the formulas. Raises `Unreadable`."""
        if not self.targets:
            raise Unreadable("it stands above no operation")
        if len(self.latex) != len(self.targets):
            raise Unreadable(f"formulas: {len(self.latex)}, values that the lines below make: {len(self.targets)}")
        return [read_equation(latex) for latex in self.latex]


def read_equation(latex: str) -> Equation:
    """Read the formula of one value."""
    first, *others = split(latex, _COMMA)
    where = {}
    for other in others:
        equation = read_equation(other)
        if equation.result is None or not equation.sides:
            raise Unreadable(f"{other.strip()!r} defines nothing")
        where[equation.result] = equation.sides[0]
    formula, *conditions = split(first, r"\\quad\s*\\text\{where \}|\\text\{ where \}")
    sides = list(split(formula, r"\\leftarrow(?![a-zA-Z])|="))
    result = None
    try:
        if len(sides) > 1:
            result = read_name(sides[0])
            sides = sides[1:]
    except Unreadable:
        pass
    condition = read_condition(conditions[0]) if conditions else None
    formulas = [read(side) for side in sides]
    if unused := where.keys() - {name for each in (*formulas, *where.values()) for name in each.names()}:
        raise Unreadable(f"{min(map(str, unused))} is defined and not used")
    return Equation(latex, result, formulas, condition, where)


def definitions(docstring: str) -> dict[Name, str]:
    """What the aligned blocks of a page define, by name."""
    found: dict[Name, str] = {}
    for block in re.findall(r"\\begin\{align\}(.*?)\\end\{align\}", docstring, re.S):
        for row in re.split(
            r"\\\\|\\qquad|(?<!\\)&\s*\n", re.sub(r"\\begin\{cases\}.*?\\end\{cases\}", "", block, flags=re.S)
        ):
            left, *right = list(split(row.replace("&", ""), r"\\leftarrow(?![a-zA-Z])|="))
            try:
                found.setdefault(read_name(left), right[0])
            except (Unreadable, IndexError):
                continue
    return found


def page_of(path: Path) -> Module:
    """A page, cut into sections."""
    return read_module(path, f"optimizers.{path.stem}", path.read_text(encoding="utf-8"))


def comments(page: Module) -> Iterator[Comment]:
    """All formula comments in the functions of a page. What stands above no statement has no targets."""
    blocks = list(_blocks(page.tree))
    above = {statement.lineno: block[place:] for block in blocks for place, statement in enumerate(block)}
    inside = {line for block in blocks for line in range(block[0].lineno, (block[-1].end_lineno or 0) + 1)}
    for section in page.sections[1:]:
        if section.name or section.note_lines.start not in inside or not re.search(r"^\$", section.notes, re.M):
            continue
        latex = [a or b for a, b in _MATHS.findall(_formulas(section.notes))]
        below = _enough(above.get(section.note_lines.stop, []), len(latex))
        targets = [ast.unparse(target) for each in below for target in _targets(each)]
        lines = range(below[0].lineno, (below[-1].end_lineno or 0) + 1) if targets else range(0)
        code = "\n".join(page.lines[line - 1].strip() for line in lines)
        kinds = (
            isinstance(below[-1], ast.Expr) if targets else False,
            isinstance(below[-1], ast.Return) if targets else False,
        )
        yield Comment(page.path, section.note_lines.start, latex, lines, targets, *kinds, code)


def _blocks(tree: ast.AST, inside: bool = False) -> Iterator[list[ast.stmt]]:
    """The lists of statements in functions."""
    for child in ast.iter_child_nodes(tree):
        within = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        if within:
            for part in ("body", "orelse", "finalbody"):
                if isinstance(block := getattr(child, part, None), list) and block:
                    yield block
        yield from _blocks(child, within)


def _formulas(notes: str) -> str:
    """The part of a comment that is formulas: from the first line that begins with one, without the words behind."""
    text = notes[re.search(r"^\$", notes, re.M).start() :]  # type: ignore[union-attr]
    end = 0
    for found in _MATHS.finditer(text):
        if end and text[end : found.start()].strip() not in ("", "and"):
            break
        end = found.end()
    return text[:end]


def _enough(statements: list[ast.stmt], values: int) -> list[ast.stmt]:
    """As many of the statements as make so many values, if they follow each other line by line."""
    below, made = statements[:1], len(_targets(statements[0])) if statements else 0
    for statement in statements[1:]:
        if made >= values or not _targets(statement) or statement.lineno != (below[-1].end_lineno or 0) + 1:
            break
        below.append(statement)
        made += len(_targets(statement))
    return below


def _targets(statement: ast.stmt) -> list[ast.expr]:
    """The expressions that have the values which a statement makes, once it is done; those of a return are itself."""
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
        return target.elts if isinstance(target, ast.Tuple) else [target]
    if isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        return [statement.target]
    if isinstance(statement, ast.Return) and statement.value:
        return statement.value.elts if isinstance(statement.value, ast.Tuple) else [statement.value]
    if isinstance(statement, ast.Expr):
        # A chain of methods in place changes that with which it begins.
        node = statement.value
        while isinstance(node, (ast.Call, ast.Attribute)):
            node = node.func if isinstance(node, ast.Call) else node.value
        return [node]
    return []
