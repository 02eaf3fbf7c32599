"""
A tape that knows its values.

The recorder writes down what a rule does. Here each operation is also evaluated as it is written, in float64, so that
at any line of the rule it can be said what was made so far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from optimizers.engines.program import Node
from optimizers.engines.recorder import Mask, Recorded, Tape
from optimizers.engines.symbolic import ARITHMETIC

#: What the operations of a tape are, without the underscore of those in place.
OPERATIONS: dict[str, Callable[..., Any]] = {
    **ARITHMETIC,
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "clamp": lambda a, low, high: np.minimum(np.maximum(a, low), high),
    "clamp_tensors": lambda a, low, high: np.minimum(np.maximum(a, low), high),
    "clamp_min": np.maximum,
    "clamp_max": np.minimum,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}


class ValueTape(Tape):
    """A tape of leaves with these values. `known` has the value of every id."""

    __slots__ = ("_node", "known", "shape")

    def __init__(self, leaves: dict[str, np.ndarray]) -> None:
        self.known: dict[int, Any] = dict(enumerate(leaves.values()))
        self.shape = leaves["param"].shape
        super().__init__(tuple(leaves))

    @property
    def node(self) -> Node:
        """The place in the tree of readings; to go to the next is to evaluate it."""
        return self._node

    @node.setter
    def node(self, node: Node) -> None:
        self._node = node
        name, *operands = node.operation or ("store",)
        if name == "store":
            return
        numbers = iter(self.scalars[len(self.scalars) - operands.count(None) :])
        values = [next(numbers) if operand is None else self.known[operand] for operand in operands]
        made = OPERATIONS[name.rstrip("_")](*values)
        self.known[node.id] = np.broadcast_to(made, self.shape)


def look(value: Any) -> Any:
    """The value that something in a rule has now, or None if it is no number and no tensor."""
    if isinstance(value, (Recorded, Mask)):
        tape: Any = value._tape
        return tape.known[value.id]
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.is_sparse else value.detach()
        return np.array(dense.numpy(), dtype=np.float64)
    if isinstance(value, (int, float)):
        return float(value)
    return None
