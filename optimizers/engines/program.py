"""
---
title: Programs
summary: The tree of all readings of a rule, and the program that one reading gives.
---

# Programs

What a rule does is written down operation by operation. All readings together form a tree, as a rule may take another
branch at another step; the way from the root to the end of a reading is its program.

A value is an `id`. Operations never change a value, they make a new one; a method such as `mul_` makes its object
stand for the new one.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

import torch

#: An operation: its name, then its operands: the id of a value, None for a number, or a name. Methods that work in
#: place end in an underscore.
Operation = tuple[Any, ...]


class Unrecordable(Exception):
    """A rule did something that no kernel can do; the message says what, where and why."""


@dataclass
class Step:
    """## One line of a program: `value = name(*operands)`, and the line of the rule that it comes from"""

    value: int
    name: str
    operands: tuple[int | None, ...]
    source: str


@dataclass
class Program:
    """
    ## What a reading of a rule gives

    * `leaves` names the values that are there at the start: `param`, `grad`, then the tensors of the state. Their ids
      are their places.
    * `steps` are the operations, in order. Numbers are taken from the list of scalars as they come.
    * `stores` gives the id of the value to be stored for the place of each leaf that changes.
    * `new_state` gives the same for the tensors that the rule adds to the state.
    """

    leaves: tuple[str, ...]
    steps: list[Step]
    stores: dict[int, int]
    new_state: dict[str, int]
    _memo: dict[Any, str] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """How many scalars the program takes."""
        return sum(operand is None for step in self.steps for operand in step.operands)

    def memo(self, key: Any, make: Callable[[], str]) -> str:
        """What a back end made of the program, kept by the back end's own key."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]


class _Nobody:
    """The newest follower where there is none yet: no operation has its name."""

    name = ""


class Node(dict[Operation, "Node"]):
    """
    A place in the tree of readings: the value made last, and what followed it.

    It is a dictionary of its followers that grows where something is done for the first time: look-ups are what a
    reading consists of. Quicker still is to ask the follower made last, the `newest`, whether the operation is its own:
    `name`, `one`, `two` and `three` are the first parts of that, `size` is the number of all.
    """

    __slots__ = (
        "id", "name", "newest", "object", "one", "operation", "parent", "program", "size", "source", "three", "two"
    )  # fmt: skip
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, id: int, parent: Node | None, operation: Operation, source: str) -> None:
        self.id, self.parent, self.operation, self.source = id, parent, operation, source
        self.object: Any = None
        self.program: Program | None = None
        self.name, self.one, self.two, self.three = (*operation, None, None, None, None)[:4]
        self.size = len(operation)
        self.newest: Node = _Nobody  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __missing__(self, operation: Operation) -> Node:
        # Only here is it checked whether an operation may be done.
        name, first = operation[0], operation[1]
        if name.endswith("_") and owner(first, path(self)) == 1:
            refuse(f"`{name}` writes through the gradient", "take the form without underscore, which makes a new value")
        node = self.newest = self[operation] = Node(self.id + 1, self, operation, rule_line())
        return node


def path(node: Node) -> list[Node]:
    """The operations that lead to a node."""
    nodes = []
    while node.parent is not None:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]


def owner(id: int, nodes: list[Node]) -> int:
    """The first id of the object that stood for the value `id`: an operation in place keeps the object."""
    before = {n.id: n.operation[1] for n in nodes if n.operation[0].endswith("_")}
    while id in before:
        id = before[id]
    return id


def program_of(leaves: tuple[str, ...], nodes: list[Node]) -> Program:
    """The program of a reading that did what `nodes` say, one after the other."""
    steps: list[Step] = []
    current = {id: id for id in range(len(leaves))}
    stored: dict[str, int] = {}
    for node in nodes:
        name, *operands = node.operation
        if name == "store":
            stored[operands[0]] = owner(operands[1], nodes)
            continue
        if name.endswith("_"):
            current[owner(operands[0], nodes)] = node.id
        steps.append(Step(node.id, name.rstrip("_"), tuple(operands), node.source))
    stores = {leaf: id for leaf, id in current.items() if id != leaf and leaf < len(leaves)}
    new_state = {}
    for name, first in stored.items():
        id = current.get(first, first)
        if name in leaves[2:]:
            stores[leaves.index(name, 2)] = id
        else:
            new_state[name] = id
    return Program(leaves, steps, stores, new_state)


_TORCH = os.path.join(os.path.dirname(torch.__file__), "")


def refuse(what: str, why: str) -> NoReturn:
    """Say that something can't be recorded, where the rule does it, and why."""
    raise Unrecordable(f"{what} ({rule_line()}): {why}")


def rule_frame() -> FrameType:
    """Where the rule is that is being read: the innermost frame outside the engines."""
    frame = sys._getframe(1)
    here = os.path.dirname(__file__)
    while frame.f_back is not None and (
        os.path.dirname(frame.f_code.co_filename) == here or frame.f_code.co_filename.startswith(_TORCH)
    ):
        frame = frame.f_back
    return frame


def rule_line() -> str:
    """The line of the rule that is being read."""
    frame = rule_frame()
    name, line = frame.f_code.co_filename, frame.f_lineno
    return f"{os.path.basename(name)}:{line}: {linecache.getline(name, line).strip()}"
