"""
A module as sections: notes and the code that they belong to.

A docstring is the note of its definition, a comment on its own line is the note of the lines below it. Everything else
is code. So every line of a module is in exactly one section, as note or as code.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

#: Comments for tools, which are no notes.
_FOR_TOOLS = re.compile(r"#\s*(type:|fmt:|noqa|ruff:|mypy:|pragma:)|#!")


class SiteError(Exception):
    """Something that the reader of the site would stumble over. The message begins with file and line."""

    def __init__(self, path: Path | str, line: int, what: str) -> None:
        super().__init__(f"{path}:{line}: {what}")


def slug(words: str) -> str:
    """A fragment made of words, as on GitHub, so that links within written pages work there too."""
    return re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")


@dataclass
class Section:
    """
    Notes and code. `id` stays when the code moves: the qualified name of the definition, or for a comment that of the
    definition around it, with a number. `note_lines` and `code_lines` are numbers of lines, from 1.
    """

    id: str
    name: str
    notes: str
    note_lines: range
    code_lines: list[int] = field(default_factory=list)


@dataclass
class Module:
    """A module of the library. `path` is that in the repository, `definitions` has the node of each qualified name."""

    path: Path
    name: str
    text: str
    tree: ast.Module
    front: dict[str, str]
    sections: list[Section]
    definitions: dict[str, Definition]

    @property
    def lines(self) -> list[str]:
        """The source; the first line is at 0."""
        return self.text.splitlines()


def read_module(path: Path, name: str, text: str) -> Module:
    """Cut a module into sections. Raises `SiteError` where a public name has no docstring, or the page no title."""
    tree = ast.parse(text, str(path))
    # Where a name is defined twice, as a property with its setter is, the first is meant.
    definitions: dict[str, Definition] = {}
    for qualified, node in _definitions(tree):
        definitions.setdefault(qualified, node)
    docstring = _docstring(tree)
    if docstring is None:
        raise SiteError(path, 1, "the module has no docstring, so its page has no title")
    front, notes = front_matter(path, docstring[0])
    first = Section("", "", notes, docstring[1])
    starts: dict[int, Section] = {1: first}
    noted = set(first.note_lines)
    for qualified, node in definitions.items():
        if (found := _docstring(node)) is None:
            if _needs_docstring(qualified, definitions):
                raise SiteError(path, node.lineno, f"`{qualified}` is public and has no docstring")
            continue
        line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        starts[line] = Section(qualified, qualified, *found)
        noted |= set(found[1])
    for lines, comment in _comments(text):
        if not noted.intersection(lines):
            starts[lines.start] = Section("", "", comment, lines)
            noted |= set(lines)
    sections = _fill(starts, noted, len(text.splitlines()))
    _name_comments(sections, definitions)
    return Module(path, name, text, tree, front, sections, definitions)


def front_matter(path: Path, text: str) -> tuple[dict[str, str], str]:
    """The `key: value` lines between two lines of dashes, and the text below them."""
    found = re.match(r"\s*---\n(.*?)\n---\n", text, re.S)
    if not found:
        return {}, text
    pairs = [line.partition(":") for line in found[1].splitlines()]
    if any(not sign for _, sign, _ in pairs):
        raise SiteError(path, 2, "a line of the front matter is not `key: value`")
    # The lines stay, empty, so that those of the text keep their numbers.
    return {key.strip(): value.strip() for key, _, value in pairs}, "\n" * found[0].count("\n") + text[found.end() :]


def _definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield prefix + child.name, child
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.If, ast.Try)):
            yield from _definitions(child, prefix)


def _docstring(node: Any) -> tuple[str, range] | None:
    first = node.body[0] if node.body else None
    if not (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    ):
        return None
    text = first.value.value
    # Empty lines at the start are kept: an error has to name the right line.
    before = text[: len(text) - len(text.lstrip())].count("\n")
    return "\n" * before + inspect.cleandoc(text), range(first.lineno, (first.end_lineno or first.lineno) + 1)


def _needs_docstring(qualified: str, definitions: dict[str, Definition]) -> bool:
    """Whether users meet a definition: it is not private, not in a function."""
    outer = qualified.rpartition(".")[0]
    if any(part.startswith("_") for part in qualified.split(".")):
        return False
    if not outer:
        return True
    # What stands for a tensor has the methods of one, which torch documents.
    around = definitions[outer]
    return isinstance(around, ast.ClassDef) and not _binds(around, "__torch_function__")


def _binds(node: ast.ClassDef, name: str) -> bool:
    """Whether a class has an attribute of its own, by a definition or an assignment."""
    assigned = (target for line in node.body if isinstance(line, ast.Assign) for target in line.targets)
    defined = (line.name for line in node.body if isinstance(line, ast.FunctionDef))
    return name in defined or any(isinstance(target, ast.Name) and target.id == name for target in assigned)


def _comments(text: str) -> Iterator[tuple[range, str]]:
    """Blocks of comments that have their lines for themselves."""
    block: list[tuple[int, int, str]] = []
    source = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or source[token.start[0] - 1][: token.start[1]].strip():
            continue
        if _FOR_TOOLS.match(token.string):
            continue
        (line, column), words = token.start, re.sub(r"^#:? ?", "", token.string)
        if block and block[-1][:2] != (line - 1, column):
            yield range(block[0][0], block[-1][0] + 1), "\n".join(words for *_, words in block)
            block = []
        block.append((line, column, words))
    if block:
        yield range(block[0][0], block[-1][0] + 1), "\n".join(words for *_, words in block)


def _fill(starts: dict[int, Section], noted: set[int], last: int) -> list[Section]:
    """Give each section its code: what follows its start and is no note."""
    section = starts[1]
    for line in range(1, last + 1):
        section = starts.get(line, section)
        if line not in noted:
            section.code_lines.append(line)
    return [starts[line] for line in sorted(starts)]


def _name_comments(sections: list[Section], definitions: dict[str, Definition]) -> None:
    """A comment is known by its heading, or by the definition around it and its place there."""
    counts: dict[str, int] = {}
    for section in sections[1:]:
        if section.name:
            continue
        if heading := re.match(r"#+ (.+)", section.notes):
            words = slug(heading[1])
            section.id = f"part-{words}" if words in definitions else words
            continue
        line = section.note_lines.start
        around = [name for name, node in definitions.items() if node.lineno <= line <= (node.end_lineno or 0)]
        outer = around[-1] if around else "module"
        counts[outer] = counts.get(outer, 0) + 1
        section.id = f"{outer}-{counts[outer]}"
