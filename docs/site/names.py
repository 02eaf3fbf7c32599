"""What an identifier in the code means: which definition of which module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from docs.site.source import Module

#: A definition: the name of its module, and its qualified name there; "" is the module itself.
Target = tuple[str, str]


@dataclass(frozen=True)
class Reference:
    """An identifier at a line (from 1) and column (in characters) that means `target`."""

    line: int
    column: int
    target: Target


class Names:
    """All names of a set of modules."""

    def __init__(self, modules: dict[str, Module]) -> None:
        self.modules = modules
        self._scopes: dict[str, dict[str, Target]] = {}
        for name, module in modules.items():
            self._scopes[name] = {d: (name, d) for d in module.definitions if "." not in d}
        for name, module in modules.items():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    for alias in node.names:
                        if target := self._imported(node.module, alias.name):
                            self._scopes[name].setdefault(alias.asname or alias.name, target)

    def _imported(self, module: str, name: str) -> Target | None:
        if f"{module}.{name}" in self.modules:
            return f"{module}.{name}", ""
        if module not in self.modules:
            return None
        if name in self.modules[module].definitions:
            return module, name
        # A package hands on what it imported.
        for node in ast.walk(self.modules[module].tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module != module:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._imported(node.module, alias.name)
        return None

    def find(self, module: str, dotted: str) -> Target | None:
        """What a dotted name means at the top of a module."""
        first, *rest = dotted.split(".")
        target = self._scopes.get(module, {}).get(first)
        for name in rest:
            target = self.member(target, name) if target else None
        return target

    def member(self, target: Target, name: str) -> Target | None:
        """`name` of a class, looked up in its bases too, or of a module."""
        module, qualified = target
        if not qualified:
            return self.find(module, name)
        if f"{qualified}.{name}" in self.modules[module].definitions:
            return module, f"{qualified}.{name}"
        for base in self.bases(target):
            if found := self.member(base, name):
                return found
        return None

    def bases(self, target: Target) -> list[Target]:
        """The bases of a class, as far as they are ours."""
        node = self.modules[target[0]].definitions.get(target[1])
        if not isinstance(node, ast.ClassDef):
            return []
        found = [self.find(target[0], ast.unparse(base)) for base in node.bases]
        return [base for base in found if base]

    def references(self, module: Module) -> Iterator[Reference]:
        """Every identifier of a module that means a definition."""
        yield from _Visitor(self, module).found()


class _Visitor(ast.NodeVisitor):
    def __init__(self, names: Names, module: Module) -> None:
        self.names, self.module = names, module
        self.lines = module.lines
        self.classes: list[str] = []
        self.locals: list[set[str]] = []
        self.references: list[Reference] = []

    def found(self) -> list[Reference]:
        self.visit(self.module.tree)
        return self.references

    def _put(self, line: int, utf8: int, target: Target | None) -> None:
        if target:
            column = len(self.lines[line - 1].encode()[:utf8].decode())
            self.references.append(Reference(line, column, target))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.classes.append(".".join([*self.classes[-1:], node.name]))
        self.generic_visit(node)
        self.classes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)]
        stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        self.locals.append({*arguments, *stored})
        self.generic_visit(node)
        self.locals.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._put(alias.lineno, alias.col_offset, self.names._imported(node.module or "", alias.name))

    def visit_Name(self, node: ast.Name) -> None:
        self._put(node.lineno, node.col_offset, self._name(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.visit(node.value)
        holder = self._holder(node.value)
        if holder and node.end_lineno is not None and node.end_col_offset is not None:
            start = node.end_col_offset - len(node.attr.encode())
            self._put(node.end_lineno, start, self.names.member(holder, node.attr))

    def _name(self, name: str) -> Target | None:
        if any(name in names for names in self.locals):
            return None
        return self.names.find(self.module.name, name)

    def _holder(self, node: ast.expr) -> Target | None:
        own = (self.module.name, self.classes[-1]) if self.classes else None
        if isinstance(node, ast.Name):
            return own if node.id in ("self", "cls") else self._name(node.id)
        if isinstance(node, ast.Attribute):
            holder = self._holder(node.value)
            return self.names.member(holder, node.attr) if holder else None
        if own and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super":
            return next(iter(self.names.bases(own)), None)
        return None
