r"""
---
title: The loop as a kernel
summary: Gradient, update and test of convergence of all steps, in one generated C function.
---

# The loop as a kernel

Where the gradient is a formula or a C function, nothing in a loop of gradient descent needs Python. With
[the numbers of all steps](scalars.html) as formulas the whole of it is one function in C: for $t = 1, 2, \dots$

1. the numbers of the step,
2. for each element its gradient and its update, in the operations of [the C back end](c_kernel.html),
3. $\lVert \theta_t - \theta_{t-1} \rVert^2$, which is summed up along the way, and compared.

The sum has 16 parts, which are added in one order, and so has each block of elements. So neither the width of the
processor's vectors nor the number of threads changes it. Arrays are filled up to a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sympy import Expr, Symbol

from optimizers.engines.c_kernel import C, prologue
from optimizers.engines.gradient import C_FUNCTIONS, Recording
from optimizers.engines.printing import value_name, variable
from optimizers.engines.program import Program, Step, Unrecordable
from optimizers.engines.scalars import POWERS, Choice, Numbers, RuleReader, Tree, Way, ways
from optimizers.engines.symbolic import Subject

LANES, BLOCK = 16, 4096

_PROLOGUE = f"""\
#define LANES {LANES}
#define BLOCK {BLOCK}

typedef struct {{
    int64_t n, first, last, threads, which, step;
    double tolerance, moved, closeness;
    const double *numbers;
    double *state, *scalars, *sums;
    real **arrays;
    const real *expected;
    void (*gradient)(const double *, double *, int64_t);
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread)(void), (*team)(void);
}} launch;
"""

_MOVE = """
static void work(void *argument) {
    const launch *l = argument;
    const int64_t blocks = (l->n + BLOCK - 1) / BLOCK, team = l->threads > 1 ? l->team() : 1;
    const int64_t thread = l->threads > 1 ? l->thread() : 0, share = (blocks + team - 1) / team;
    for (int64_t b = thread * share; b < blocks && b < (thread + 1) * share; b++)
        l->sums[b] = part(l, b * BLOCK, l->n < (b + 1) * BLOCK ? l->n : (b + 1) * BLOCK);
}

/* One step of all elements; gives the square of its length. */
static double move(launch *l) {
    if (l->n <= BLOCK) return part(l, 0, l->n);
    if (l->threads > 1) l->parallel(work, l, (unsigned)l->threads, 0);
    else work(l);
    double sum = 0;
    for (int64_t b = 0; b < (l->n + BLOCK - 1) / BLOCK; b++) sum += l->sums[b];
    return sum;
}

/* 1 if the gradient is not as expected, up to a part of its largest element. */
int check(const launch *l) {
    double largest = 0, farthest = 0;
    for (int64_t i = 0; i < l->n; i++) {
        const double is = l->arrays[1][i], should = l->expected[i], apart = fabs(is - should);
        if (is == should || (is != is && should != should)) continue;
        if (!(apart < INFINITY)) return 1;
        if (apart > farthest) farthest = apart;
        if (fabs(should) > largest) largest = fabs(should);
    }
    return farthest > l->closeness * largest;
}
"""


@dataclass(frozen=True)
class LoopRule:
    """
    ## A rule, ready to be put into a loop

    `leaves` are the names of its tensors, the parameter and the gradient first; `first` are the ways of the first step
    if that is another, `later` those of all others. `numbers` are the symbols of the hyper-parameters, `scalars` those
    of the numbers in the state, and `initial` is the state at first.
    """

    title: str
    leaves: tuple[str, ...]
    first: Tree | None
    later: Tree
    t: Symbol
    numbers: tuple[Symbol, ...]
    scalars: dict[str, Symbol]
    initial: dict[str, Expr]
    param: Symbol
    #: The compiled loops of this rule, by the form of the gradient.
    kernels: dict[Any, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def read(cls, subject: Subject) -> LoopRule:
        """### Read a rule. Raises `Unrecordable`"""
        initial: dict[str, Expr] = {}
        for name, value in subject.initial.items():
            if value is None:
                raise Unrecordable(f"state[{name!r}] begins with values that no formula gives")
            initial[name] = value
        reader = RuleReader(subject)
        title, symbols = type(subject.rule).__name__, subject.symbols
        return cls(
            title,
            reader.leaves,
            reader.first,
            reader.later,
            subject.t,
            tuple(subject.values),
            dict(subject.scalars),
            initial,
            symbols["param"],
        )

    def source(self, recording: Recording | None, real: torch.dtype) -> tuple[str, int]:
        """
        ### The C of the loop

        The gradient is one that was recorded, or a C function. With it comes how many numbers the loop keeps from step
        to step: it may be left and entered again, and goes on to the bit as if it had not been.
        """
        source = _Source(self, recording, real)
        return "".join(source.text()), source.kept

    @property
    def width(self) -> int:
        """### How many numbers a step has, at most"""
        trees = [tree for tree in (self.first, self.later) if tree is not None]
        return max(len(way.numbers) for tree in trees for way in ways(tree))


def joined(recording: Recording | None, program: Program, leaves: tuple[str, ...]) -> Program:
    """
    ## One program of two: a gradient, then the rule, for which that is the gradient

    Without a recording the gradient is a leaf. What the rule adds to its state is stored as all else.
    """
    names = (*leaves, *(f"array{k}" for k in range(len(recording.arrays) if recording else 0)))
    steps: list[Step] = []

    def add(part: Program, ids: dict[int, int]) -> None:
        for step in part.steps:
            operands = tuple(None if o is None else ids[o] for o in step.operands)
            ids[step.value] = len(names) + len(steps)
            steps.append(Step(ids[step.value], step.name, operands, step.source))

    of_rule = {id: leaves.index(name) for id, name in enumerate(program.leaves)}
    if recording is not None:
        of_gradient = {0: 0, **{1 + k: len(leaves) + k for k in range(len(recording.arrays))}}
        add(recording.program, of_gradient)
        of_rule[1] = of_gradient[recording.result]
    add(program, of_rule)
    stores = {program.leaves[leaf]: id for leaf, id in program.stores.items()} | program.new_state
    return Program(names, steps, {leaves.index(name): of_rule[id] for name, id in stores.items()}, {})


#: C, with the functions that a gradient may have.
_C = replace(C, formulas={**C.formulas, **{name: name.upper() + "({0})" for name in C_FUNCTIONS.values()}})


class _Source:
    """## The C of a loop"""

    def __init__(self, rule: LoopRule, recording: Recording | None, real: torch.dtype) -> None:
        self.rule, self.recording, self.real = rule, recording, real
        trees = [tree for tree in (rule.first, rule.later) if tree is not None]
        self.programs = list({id(way.program): way.program for tree in trees for way in ways(tree)}.values())
        self.wholes = list(map(self._joined, self.programs))
        self.leaves = self.wholes[0].leaves
        self.names = [variable(name, slot) for slot, name in enumerate(self.leaves)]
        self.kept = 0
        #: Numbers of the gradient come before those of the rule.
        self.own = len(recording.numbers) if recording else 0

    def _joined(self, program: Program) -> Program:
        """A program, with that of the gradient before it."""
        whole = joined(self.recording, program, self.rule.leaves)
        if self.real == torch.float64:
            # With symbols it isn't known that a number has a reciprocal. In float64 all have one.
            whole.steps = [replace(s, name="div") if s.name == "exact_div" else s for s in whole.steps]
        return whole

    def text(self) -> Iterator[str]:
        gradient = f"{len(self.recording.program.steps)} operations" if self.recording else "a C function"
        heading = f"{self.rule.title}, the whole loop, with a gradient of {gradient}"
        suffix = "f" if self.real == torch.float32 else ""
        yield f"{C.remark(heading)}\n"
        yield prologue(self.real)
        yield from (f"#define {name.upper()} {name}{suffix}\n" for name in sorted(set(C_FUNCTIONS.values())))
        yield _PROLOGUE + POWERS
        for index, whole in enumerate(self.wholes):
            yield self._update(index, whole)
        yield self._part()
        yield _MOVE
        yield self._gradient()
        yield "\n".join(self._step())

    # ### The elements

    def _update(self, index: int, whole: Program) -> str:
        """A function that updates a range of elements, and gives the square of the way that they went."""
        numbers, body = _C.body(whole, self.names)
        written = whole.stores
        used = {0, *written.values(), *(o for step in whole.steps for o in step.operands)} - {None}
        slots = [slot for slot in range(len(self.names)) if slot in used or slot in written]
        arguments = ", ".join(f"{'' if s in written else 'const '}real *restrict {self.names[s]}_at" for s in slots)
        loads = [f"const real {self.names[s]} = {self.names[s]}_at[i];" for s in slots if s in used]
        stores = [f"{self.names[s]}_at[i] = {self._value(written[s])};" for s in slots if s in written]
        moved = f"(double){self._value(written[0])} - (double){self.names[0]}" if 0 in written else "0"
        call = ", ".join(f"l->arrays[{s}]" for s in slots)
        lines = [
            f"static double update_{index}({arguments}, const double *scalars, int64_t from, int64_t to) {{",
            *(f"    {line}" for line in numbers),
            "    double sums[LANES] = {0};",
            "    for (int64_t begin = from; begin < to; begin += LANES)",
            "        for (int64_t lane = 0; lane < LANES; lane++) {",
            "            const int64_t i = begin + lane;",
            *(f"            {line}" for line in (*loads, *body)),
            f"            const double moved = i < to ? {moved} : 0;",
            "            sums[lane] += moved * moved;",
            *(f"            {line}" for line in stores),
            "        }",
            "    for (int64_t half = LANES / 2; half; half /= 2)",
            "        for (int64_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];",
            "    return sums[0];",
            "}",
        ]
        self._calls = [*getattr(self, "_calls", []), f"update_{index}({call}, l->scalars, from, to)"]
        return "\n".join(["", *lines, ""])

    def _part(self) -> str:
        cases = [f"        case {i}: return {call};" for i, call in enumerate(self._calls[:-1])]
        body = ["    switch (l->which) {", *cases, f"        default: return {self._calls[-1]};", "    }"]
        return "\n".join(["", "static double part(const launch *l, int64_t from, int64_t to) {", *body, "}", ""])

    def _gradient(self) -> str:
        """A function that puts the gradient in its place."""
        if self.recording is None:
            lines = ["    l->gradient(l->arrays[0], l->arrays[1], l->n);"]
        else:
            rule = Program(("param", "grad"), [], {}, {})
            whole = self._joined(rule)
            numbers, body = _C.body(whole, self.names)
            slots = [0, *range(len(self.rule.leaves), len(self.names))]
            result = {0: 0, **{1 + k: s for k, s in enumerate(slots[1:])}}.get(self.recording.result)
            value = self._value(whole.steps[-1].value if result is None else result)
            lines = [
                "    const double *scalars = l->scalars;",
                *(f"    {line}" for line in numbers),
                *(f"    const real *restrict {self.names[s]}_at = l->arrays[{s}];" for s in slots),
                "    real *restrict grad_at = l->arrays[1];",
                "    for (int64_t i = 0; i < l->n; i++) {",
                *(f"        const real {self.names[s]} = {self.names[s]}_at[i];" for s in slots),
                *(f"        {line}" for line in body),
                f"        grad_at[i] = {value};",
                "    }",
            ]
        return "\n".join(["", "static void gradient(const launch *l) {", *lines, "}", ""])

    def _value(self, id: int) -> str:
        return value_name(self.wholes[0], self.names, id)

    # ### The steps

    def _step(self) -> Iterator[str]:
        rule = self.rule
        symbols = {symbol: variable(symbol.name, k) for k, symbol in enumerate(rule.numbers)}
        scalars = {s: variable(s.name, k) for k, s in enumerate(rule.scalars.values(), len(symbols))}
        printed = Numbers(rule.t, symbols, scalars)
        later = list(self._tree(printed, rule.later))
        first = [] if rule.first is None else list(self._tree(printed, rule.first))
        self.kept = printed.kept
        yield from ("", "int step(launch *l) {")
        yield from (f"    const double {name} = l->numbers[{k}];" for k, name in enumerate(symbols.values()))
        yield from (f"    {line}" for line in printed.before)
        yield f"    double *scalars = l->scalars + {self.own};"
        yield "    if (l->first == 0) {"
        yield f"        for (int64_t k = 0; k < {self.own}; k++) l->scalars[k] = l->numbers[{len(symbols)} + k];"
        yield from (f"        {line}" for line in self._begin(printed, symbols))
        yield "    }"
        yield "    for (int64_t step = l->first + 1; step <= l->last; step++) {"
        yield "        const double t = (double)step;"
        yield from (f"        const double {name} = l->state[{k}];" for k, name in enumerate(scalars.values()))
        yield from (f"        {line}" for line in printed.each)
        if first:
            first, later = ([f"    {line}" for line in lines] for lines in (first, later))
            later = ["if (step == 1) {", *first, "} else {", *later, "}"]
        yield from (f"        {line}" for line in later)
        yield "        l->moved = move(l);"
        if self.recording is None:
            yield "        gradient(l);"
        yield "        l->step = step;"
        ending = "" if self.recording is None else "gradient(l); "
        yield f"        if (l->moved < l->tolerance) {{ {ending}return 1; }}"
        yield f"        if (!(l->moved < INFINITY)) {{ {ending}return 2; }}"
        yield "    }"
        yield from (f"    {line}" for line in ([ending.strip()] if ending else []))
        yield from ("    return 0;", "}", "")

    def _tree(self, printed: Numbers, tree: Tree) -> Iterator[str]:
        if isinstance(tree, Choice):
            yield f"if ({printed.condition(tree.condition)}) {{"
            yield from (f"    {line}" for line in self._tree(printed, tree.one))
            yield "} else {"
            yield from (f"    {line}" for line in self._tree(printed, tree.two))
            yield "}"
            return
        yield from self._way(printed, tree)

    def _way(self, printed: Numbers, way: Way) -> Iterator[str]:
        lines, numbers, scalars = printed.way(way)
        yield from lines
        yield from (f"scalars[{k}] = {number};" for k, number in enumerate(numbers))
        yield from (f"l->state[{k}] = {number};" for k, number in enumerate(scalars))
        yield f"l->which = {next(k for k, p in enumerate(self.programs) if p is way.program)};"

    def _begin(self, printed: Numbers, symbols: dict[Symbol, str]) -> Iterator[str]:
        """The state at first, and the first gradient."""
        rule = self.rule
        yield from printed.first
        yield "const int64_t padded = (l->n + LANES - 1) / LANES * LANES;"
        for k, name in enumerate(rule.scalars):
            yield f"l->state[{k}] = {printed.number(rule.initial[name])};"
        for slot, name in enumerate(rule.leaves):
            if slot > 1:
                value = rule.initial.get(name, 0)
                first = "l->arrays[0][i]" if value == rule.param else f"(real)({printed.number(value)})"
                yield f"for (int64_t i = 0; i < padded; i++) l->arrays[{slot}][i] = {first};"
        yield "gradient(l);"
        if self.recording is not None:
            yield "if (l->closeness >= 0 && check(l)) return 3;"
