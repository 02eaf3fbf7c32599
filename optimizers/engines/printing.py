"""
---
title: Printing programs
summary: What the languages of kernels have in common.
---

# Printing programs

A kernel is a program, printed: the numbers that it takes, then its operations, a line each, with the line of the rule
that they come from above them. In which words is up to the language. [C](c_kernel.html) and
[Triton](triton_kernel.html) each have a table of formulas, and what goes around them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from optimizers.engines.program import Program, Step, Unrecordable


@dataclass(frozen=True)
class Language:
    """
    ## The words of a language

    * `formulas` has the operations by name. `{0}`, `{1}`, ... are operands. Names that end in `_scaled` are for
      operations with one more operand than usual, by which the one before is multiplied, and `div_number` is for a
      quotient by a number: the operand is then the reciprocal.
    * `number` and `reciprocal` give the number `s{0}` of a kernel, or its reciprocal.
    * `value` gives the value `{0}` by the formula `{1}`.
    * `comment` goes around the line of the rule; `escapes` is text that would end it, and what stands for that.
    """

    name: str
    formulas: dict[str, str]
    number: str
    reciprocal: str
    value: str
    comment: str
    escapes: tuple[str, str]

    def remark(self, text: str) -> str:
        """### A comment"""
        return self.comment.format(text.replace(*self.escapes))

    def formula(self, step: Step, operands: list[str]) -> str:
        """### An operation"""
        name = step.name
        if name == "div" and step.operands[1] is None:
            name = "div_number"
        elif {"add": 3, "sub": 3, "addcmul": 4, "addcdiv": 4}.get(name) == len(operands):
            name += "_scaled"
        if name not in self.formulas:
            raise Unrecordable(f"{self.name} kernels have no formula for `{step.name}` ({step.source})")
        return self.formulas[name].format(*operands)

    def body(self, program: Program, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """### The lines of the numbers, and those of the operations; `names` are those of the leaves"""
        numbers: list[str] = []
        lines: list[str] = []
        source = ""
        for step in program.steps:
            operands: list[str] = []
            for id in step.operands:
                if id is None:
                    inverted = step.name == "div" and len(operands) == 1
                    operands.append(f"s{len(numbers)}")
                    numbers.append((self.reciprocal if inverted else self.number).format(len(numbers)))
                else:
                    operands.append(value_name(program, names, id))
            if step.source != source:
                source = step.source
                lines.append(self.remark(source))
            lines.append(self.value.format(f"x{step.value}", self.formula(step, operands)))
        return numbers, lines


def variable(name: str, slot: int) -> str:
    """## A name of a state as a variable: any text may be one, and none may be taken for a number or a value"""
    return f"{re.sub(r'[^A-Za-z_]', '_', name) or 'state'}_{slot}"


def value_name(program: Program, names: Sequence[str], id: int) -> str:
    """## What a value is called: a leaf has the name of its variable"""
    return names[id] if id < len(program.leaves) else f"x{id}"


def written(program: Program) -> dict[int, int]:
    """## The values to be stored, by slot: those of the leaves, and behind them those of the new state"""
    return {**program.stores, **dict(enumerate(program.new_state.values(), len(program.leaves)))}


def loaded(program: Program) -> list[int]:
    """## The slots of the leaves that are used"""
    used = {id for step in program.steps for id in step.operands} | set(written(program).values())
    return [slot for slot in range(len(program.leaves)) if slot in used]
