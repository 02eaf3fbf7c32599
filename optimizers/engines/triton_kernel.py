r"""
---
title: The Triton back end
summary: A program printed as a Triton kernel - one launch over all elements of all tensors on a GPU.
---

# The Triton back end

The same [program](program.html) that becomes a loop in [C](c_kernel.html) for the CPU becomes a kernel in
[Triton](https://triton-lang.org) for a GPU. It is one launch for all tensors, however many there are: their addresses
are in a table in the memory of the device, and so are the numbers of the step.

The work is cut into blocks of one size. A block looks up whose it is, which part of that tensor it has, and where
that lies; it reads every array once and writes once. A block that is whole, of tensors that all begin at a multiple of
16 bytes, moves 16 bytes at a time. All others take the longer way, element by element, with a mask.

The formulas are those of the C back end, so both round alike: division and roots are those of IEEE, and no operation is
contracted by the compiler. Half types are computed in float32 and complex numbers are pairs of real ones.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch

from optimizers.engines.compiler import NoCompiler, short_name
from optimizers.engines.printing import Language, loaded, value_name, variable, written
from optimizers.engines.program import Program, Unrecordable

#: The elements of a block, and how many warps share it: each thread has two times four numbers of each array.
BLOCK, WARPS = 1024, 4

TYPES = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
}


@cache
def language(real: torch.dtype) -> Language:
    """## Triton, for a dtype of the arithmetic"""
    kind = TYPES[real]
    # In float32 `/` and `sqrt` are approximations, in float64 they are exact.
    quotient, root = ("tl.div_rn({}, {})", "tl.sqrt_rn({})") if real == torch.float32 else ("{} / {}", "tl.sqrt({})")
    formulas = {
        "copy": "{0}",
        "set": "{1}",
        "add": "{0} + {1}",
        "add_scaled": "tl.fma({2}, {1}, {0})",
        "sub": "{0} - {1}",
        "sub_scaled": "tl.fma(-{2}, {1}, {0})",
        "mul": "{0} * {1}",
        "div": quotient.format("{0}", "{1}"),
        "div_number": "{0} * {1}",
        "exact_div": quotient.format("{0}", "{1}"),
        "pow": "libdevice.pow({0}, {1})",
        "maximum": "largest({0}, {1})",
        "minimum": "smallest({0}, {1})",
        "addcmul": "tl.fma({1}, {2}, {0})",
        "addcmul_scaled": "tl.fma({3} * {1}, {2}, {0})",
        "addcdiv": "{0} + " + quotient.format("{1}", "{2}"),
        "addcdiv_scaled": "{0} + " + quotient.format("{3} * {1}", "{2}"),
        "lerp": ("tl.where(tl.abs({2}) < 0.5, tl.fma({2}, {1} - {0}, {0}), tl.fma({2} - 1, {1} - {0}, {1}))"),
        "clamp_min": "larger({0}, {1})",
        "clamp_max": "smaller({0}, {1})",
        "clamp": "smaller(larger({0}, {1}), {2})",
        "clamp_tensors": "smallest(largest({0}, {1}), {2})",
        "sqrt": root.format("{0}"),
        "rsqrt": quotient.format("1.0", root.format("{0}")),
        "reciprocal": quotient.format("1.0", "{0}"),
        "square": "{0} * {0}",
        "abs": "tl.abs({0})",
        "sign": f"({{0}} > 0).to({kind}) - ({{0}} < 0).to({kind})",
        "neg": "-{0}",
        **{name: f"libdevice.{name}({{0}})" for name in ("exp", "log", "tanh")},
        **{
            name: f"({{0}} {sign} {{1}}).to({kind})"
            for name, sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items()
        },
        "and": f"(({{0}} != 0) & ({{1}} != 0)).to({kind})",
        "or": f"(({{0}} != 0) | ({{1}} != 0)).to({kind})",
        "not": f"({{0}} == 0).to({kind})",
        "where": "tl.where({0} != 0, {1}, {2})",
    }
    return Language(
        name="Triton",
        formulas=formulas,
        number=f"s{{0}} = tl.load(numbers + {{0}}).to({kind})",
        reciprocal=f"s{{0}} = (1 / tl.load(numbers + {{0}})).to({kind})",
        value="{0} = {1}",
        comment="# {}",
        escapes=("\n", " "),
    )


# As torch has them: a bound that is a number and one that is a tensor treat NaN differently.
_BOUNDS = """

@triton.jit
def larger(a, b):
    return tl.where(((b != b) & (a == a)) | (a < b), b, a)


@triton.jit
def smaller(a, b):
    return tl.where(((b != b) & (a == a)) | (a > b), b, a)


@triton.jit
def largest(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def smallest(a, b):
    return tl.where((a < b) | (a != a), a, b)
"""

_HEAD = """\
import triton
import triton.language as tl
from triton.language.extra import libdevice
"""


def triton_source(
    title: str, programs: Sequence[Program], real: torch.dtype, slots: Sequence[torch.dtype], guarded: bool = False
) -> str:
    """
    ## The Triton source of a launch

    `programs` are those between which each tensor chooses by the first of its numbers; a single one has no choice.
    `real` is the dtype of the arithmetic, `slots` are the dtypes in memory of the leaves and then of the new state.
    With `guarded` nothing is done where AMP has found an infinite gradient.
    """
    first = programs[0]
    if any(tuple(p.new_state) != tuple(first.new_state) for p in programs):
        raise Unrecordable(f"{title} adds other entries to its state on one branch than on another")
    names = [variable(name, slot) for slot, name in enumerate((*first.leaves, *first.new_state))]
    operations = " or ".join(str(len(program.steps)) for program in programs)
    parts = [
        f"# {title}: {operations} operations on {', '.join((*first.leaves, *first.new_state))}\n".replace("\r", " ")
    ]
    parts.append(_HEAD)
    updates = [_update(index, program, names, real, slots) for index, program in enumerate(programs)]
    if any(re.search(r"\b(larger|smaller|largest|smallest)\(", update) for update in updates):
        parts.append(_BOUNDS)
    parts += [*updates, _step(programs, names, slots, guarded)]
    return "".join(parts)


def _update(index: int, program: Program, names: list[str], real: torch.dtype, slots: Sequence[torch.dtype]) -> str:
    """### One block: load, the operations, store"""
    stored = written(program)
    numbers, body = language(real).body(program, names)
    used = loaded(program)
    pointers = [f"{names[slot]}_at" for slot in sorted({*used, *stored})]
    lines = [
        *numbers,
        "i = begin + tl.arange(0, BLOCK)",
        "inside = i < end",
        *(f"{at} += i" for at in pointers),
        "if WHOLE:",
        "    inside = tl.full((BLOCK,), 1, tl.int1)",
        *(f"    {at} = tl.multiple_of({at}, 16)" for at in pointers),
        *(f"{names[slot]} = tl.load({names[slot]}_at, inside).to({TYPES[real]})" for slot in used),
        *body,
        *(
            f"tl.store({names[slot]}_at, ({value_name(program, names, stored[slot])}).to({TYPES[slots[slot]]}), inside)"
            for slot in sorted(stored)
        ),
    ]
    arguments = ", ".join(["numbers", *pointers, "begin", "end", "BLOCK: tl.constexpr", "WHOLE: tl.constexpr"])
    head = f"@triton.jit\ndef update_{index}({arguments}):"
    return "\n".join(["", "", head, *(f"    {line}" for line in lines), ""])


def _step(programs: Sequence[Program], names: list[str], slots: Sequence[torch.dtype], guarded: bool) -> str:
    """
    ### The kernel

    The table `fixed` is laid out by [`TritonLaunch`](triton_launch.html): a row for each slot but that of the gradient,
    whose addresses are new at each step and have their own table, then sizes and the places of the numbers, and then
    the blocks, each as the index of its tensor and of itself in that tensor.
    """
    rows = len(names) - 1
    choice = len(programs) > 1
    lines = [
        f"block = tl.load(fixed + {rows + 2} * tensors + tl.program_id(0))",
        "tensor = block >> 32",
        "begin = (block & 0xFFFFFFFF) * BLOCK",
        f"end = tl.load(fixed + {rows} * tensors + tensor)",
        f"numbers += tl.load(fixed + {rows + 1} * tensors + tensor)",
        *_pointers(names, slots),
    ]
    calls = [_call(index, program, names) for index, program in enumerate(programs)]
    if choice:
        lines += ["way = tl.load(numbers)", "numbers += 1"]
        for index, call in enumerate(calls):
            last = index == len(calls) - 1
            lines += ["else:" if last else f"{'el' if index else ''}if way == {index}:", *(f"    {x}" for x in call)]
    else:
        lines += calls[0]
    if guarded:
        lines = ["if tl.load(found_inf) == 0:", *(f"    {line}" for line in lines)]
    arguments = ["fixed", "grads", "numbers", *(["found_inf"] if guarded else []), "tensors", "BLOCK: tl.constexpr"]
    head = f'@triton.jit(do_not_specialize=["tensors"])\ndef step({", ".join(arguments)}):'
    return "\n".join(["", "", head, *(f"    {line}" for line in lines), ""])


def _pointers(names: list[str], slots: Sequence[torch.dtype]) -> Iterator[str]:
    """The addresses of a tensor, and whether they are all multiples of 16."""
    for slot, (name, dtype) in enumerate(zip(names, slots, strict=True)):
        at = "grads" if slot == 1 else f"fixed + {slot - (slot > 1)} * tensors"
        yield f"{name} = tl.load({at} + tensor)"
        yield f"{name}_at = {name}.to(tl.pointer_type({TYPES[dtype]}))"
    yield f"whole = (begin + BLOCK <= end) & (({' | '.join(names)}) % 16 == 0)"


def _call(index: int, program: Program, names: list[str]) -> list[str]:
    pointers = [f"{names[slot]}_at" for slot in sorted({*loaded(program), *written(program)})]
    call = f"update_{index}({', '.join(['numbers', *pointers, 'begin', 'end', 'BLOCK'])}, {{}})"
    return ["if whole:", f"    {call.format(True)}", "else:", f"    {call.format(False)}"]


# ## Loading


def load(source: str) -> dict[str, Any]:
    """
    ### The functions of a source

    Nothing is read from files. Triton wants to read the text of a function again, and finds it where Python keeps the
    lines of sources that were read. Raises `NoCompiler` where there is no Triton.
    """
    if source not in _loaded:
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise NoCompiler(f"kernels for GPUs need Triton, which can't be imported ({error}): install it") from None
        name = f"<kernel {short_name(source)}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        namespace: dict[str, Any] = {"__name__": "optimizers.kernels"}
        exec(compile(source, name, "exec"), namespace)
        _loaded[source] = namespace
    return _loaded[source]


_loaded: dict[str, dict[str, Any]] = {}
